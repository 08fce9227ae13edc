//! `docker save` archives, OCI layouts and plain root file systems into the store.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::compress;
use crate::config::{Document, ImageConfig, RootFs};
use crate::reference::Reference;
use crate::store::{CONFIG_MAX, ImageStore, StoreError, is_digest};
use crate::unpack::UnpackError;

/// Most files of an archive.
const FILES_MAX: usize = 10_000;
/// Most bytes of an archive.
const BYTES_MAX: u64 = 64 << 30;

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The archive cannot be read.
    #[error("read the archive")]
    Io(#[source] io::Error),
    /// It is no image archive, or a broken one.
    #[error("{0}")]
    Format(String),
    /// A layer of it cannot be used.
    #[error(transparent)]
    Layer(#[from] UnpackError),
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize, Default)]
struct Index {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
}

#[derive(Deserialize, Clone)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

/// The processor of this host, in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl ImageStore {
    /// Loads every image of an archive; answers id and names of each.
    ///
    /// # Errors
    /// [`LoadError`]; then no name leads to anything new.
    pub fn load(
        &self,
        source: impl Read,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<(String, Vec<String>)>, LoadError> {
        let scratch = self.scratch()?;
        let archive = Archive::read(compress::open(source).map_err(LoadError::Io)?, &scratch.path)?;
        let images = match archive.small("manifest.json")? {
            Some(text) => saved(&text)?,
            None => archive.layout()?,
        };
        if images.is_empty() {
            return Err(LoadError::Format(
                "the archive holds no image for this host".into(),
            ));
        }
        let mut ready = Vec::new();
        for image in images {
            let config = archive
                .small(&image.config)?
                .ok_or_else(|| missing(&image.config))?;
            if let Some(digest) = image.config.strip_prefix("blobs/sha256/") {
                verify(&config, digest)?;
            }
            let document: Document = serde_json::from_slice(&config)
                .map_err(|e| LoadError::Format(format!("{}: {e}", image.config)))?;
            if document.rootfs.diff_ids.len() != image.layers.len() {
                return Err(LoadError::Format(format!(
                    "E_MANIFEST_AMBIGUOUS: the config names {} layers, the manifest {}",
                    document.rootfs.diff_ids.len(),
                    image.layers.len()
                )));
            }
            for (layer, diff_id) in image.layers.iter().zip(&document.rootfs.diff_ids) {
                if !is_digest(diff_id) {
                    return Err(LoadError::Format(format!(
                        "{}: a layer's digest is not one",
                        image.config
                    )));
                }
                progress(&format!("layer {}", &diff_id[7..19]));
                let path = archive.path(layer).ok_or_else(|| missing(layer))?;
                let file = fs::File::open(path).map_err(LoadError::Io)?;
                let plain = compress::open(io::BufReader::new(file)).map_err(LoadError::Io)?;
                self.add_layer(plain, Some(diff_id))?;
            }
            let tags = image.repo_tags.unwrap_or_default();
            let names: Vec<Reference> = tags
                .iter()
                .map(|t| t.parse())
                .collect::<Result<_, _>>()
                .map_err(StoreError::from)?;
            ready.push((config, names));
        }
        // Names last: a broken second image leaves no name of the first.
        let mut loaded = Vec::new();
        for (config, names) in ready {
            let id = self.add_image(&config, &names)?;
            loaded.push((id, names.iter().map(ToString::to_string).collect()));
        }
        Ok(loaded)
    }

    /// Makes an image of one layer from the tar of a root file system.
    ///
    /// # Errors
    /// [`LoadError`] when the tar or the name cannot be used.
    pub fn import(&self, source: impl Read, reference: Option<&str>) -> Result<String, LoadError> {
        let names: Vec<Reference> = reference
            .map(str::parse)
            .transpose()
            .map_err(StoreError::from)?
            .into_iter()
            .collect();
        let layer = self.add_layer(compress::open(source).map_err(LoadError::Io)?, None)?;
        let document = Document {
            created: None,
            architecture: architecture().into(),
            os: "linux".into(),
            config: Some(ImageConfig::default()),
            rootfs: RootFs {
                kind: "layers".into(),
                diff_ids: vec![layer],
            },
        };
        let config = serde_json::to_vec(&document).map_err(|e| LoadError::Format(e.to_string()))?;
        Ok(self.add_image(&config, &names)?)
    }
}

fn missing(name: &str) -> LoadError {
    LoadError::Format(format!("the archive lacks {name}, which its manifest names"))
}

fn saved(text: &[u8]) -> Result<Vec<SavedImage>, LoadError> {
    serde_json::from_slice(text).map_err(|e| LoadError::Format(format!("manifest.json: {e}")))
}

fn verify(content: &[u8], hex: &str) -> Result<(), LoadError> {
    use sha2::{Digest, Sha256};
    let found = format!("{:x}", Sha256::digest(content));
    if found == hex {
        Ok(())
    } else {
        Err(LoadError::Format(format!(
            "E_DIGEST: a document is sha256:{found}, not sha256:{hex}"
        )))
    }
}

/// The files of an outer archive, unpacked flat: their names never become paths.
struct Archive {
    files: BTreeMap<String, PathBuf>,
    links: BTreeMap<String, String>,
}

impl Archive {
    fn read(source: impl Read, folder: &Path) -> Result<Self, LoadError> {
        let wrong = |e: io::Error| LoadError::Format(format!("E_TAR_FORMAT: this is no image archive: {e}"));
        let mut this = Self {
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        let mut bytes = 0u64;
        for entry in tar::Archive::new(source).entries().map_err(wrong)? {
            let mut entry = entry.map_err(wrong)?;
            let name = plain(&entry.path().map_err(wrong)?)?;
            if this.files.len() + this.links.len() >= FILES_MAX {
                return Err(LoadError::Format(format!(
                    "E_TAR_LIMIT: more than {FILES_MAX} files in the archive"
                )));
            }
            match entry.header().entry_type() {
                tar::EntryType::Regular => {
                    let path = folder.join(this.files.len().to_string());
                    let mut file = fs::File::create(&path).map_err(LoadError::Io)?;
                    bytes += io::copy(&mut (&mut entry).take(BYTES_MAX - bytes + 1), &mut file)
                        .map_err(LoadError::Io)?;
                    if bytes > BYTES_MAX {
                        return Err(LoadError::Format(
                            "E_TAR_LIMIT: the archive is larger than any image".into(),
                        ));
                    }
                    this.files.insert(name, path);
                }
                // Old archives name equal layers once, and link to them.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry
                        .link_name()
                        .map_err(wrong)?
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned();
                    let target = target.trim_start_matches("../").to_owned();
                    this.links.insert(name, target);
                }
                _ => {}
            }
        }
        Ok(this)
    }

    fn path(&self, name: &str) -> Option<&PathBuf> {
        self.files
            .get(name)
            .or_else(|| self.links.get(name).and_then(|t| self.files.get(t)))
    }

    /// A small document, whole.
    fn small(&self, name: &str) -> Result<Option<Vec<u8>>, LoadError> {
        let Some(path) = self.path(name) else {
            return Ok(None);
        };
        if fs::metadata(path).map_err(LoadError::Io)?.len() > CONFIG_MAX {
            return Err(LoadError::Format(format!(
                "{name} is larger than {CONFIG_MAX} bytes"
            )));
        }
        fs::read(path).map(Some).map_err(LoadError::Io)
    }

    /// The images of an OCI layout (image-spec, image-layout.md).
    fn layout(&self) -> Result<Vec<SavedImage>, LoadError> {
        let Some(text) = self.small("index.json")? else {
            return Err(LoadError::Format(
                "this is no image archive: it has neither manifest.json (docker save) nor index.json (OCI layout)".into(),
            ));
        };
        let mut images = Vec::new();
        let index: Index =
            serde_json::from_slice(&text).map_err(|e| LoadError::Format(format!("index.json: {e}")))?;
        for descriptor in index.manifests.unwrap_or_default() {
            let name = descriptor.annotations.as_ref().and_then(|a| {
                a.get("io.containerd.image.name")
                    .or_else(|| a.get("org.opencontainers.image.ref.name"))
                    .cloned()
            });
            if let Some(image) = self.manifest(&descriptor, 0)? {
                images.push(SavedImage {
                    repo_tags: name.map(|n| vec![n]),
                    ..image
                });
            }
        }
        Ok(images)
    }

    fn manifest(&self, descriptor: &Descriptor, depth: u32) -> Result<Option<SavedImage>, LoadError> {
        let ours = |p: &Platform| p.os == "linux" && p.architecture == architecture();
        if descriptor.platform.as_ref().is_some_and(|p| !ours(p)) {
            return Ok(None);
        }
        let path = blob(&descriptor.digest)?;
        let text = self.small(&path)?.ok_or_else(|| missing(&path))?;
        verify(&text, path.trim_start_matches("blobs/sha256/"))?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|e| LoadError::Format(format!("{path}: {e}")))?;
        match (index.manifests, index.layers) {
            (Some(_), Some(_)) => Err(LoadError::Format(format!(
                "E_MANIFEST_AMBIGUOUS: {path} is an index and a manifest"
            ))),
            (Some(inner), None) if depth < 2 => {
                for descriptor in inner {
                    if let Some(image) = self.manifest(&descriptor, depth + 1)? {
                        return Ok(Some(image));
                    }
                }
                Ok(None)
            }
            (None, Some(layers)) => {
                let config = index
                    .config
                    .ok_or_else(|| LoadError::Format(format!("{path} names no config")))?;
                Ok(Some(SavedImage {
                    config: blob(&config.digest)?,
                    repo_tags: None,
                    layers: layers.iter().map(|l| blob(&l.digest)).collect::<Result<_, _>>()?,
                }))
            }
            (Some(_) | None, None) => Err(LoadError::Format(format!(
                "{path} is neither an index nor a manifest"
            ))),
        }
    }
}

fn blob(digest: &str) -> Result<String, LoadError> {
    if !is_digest(digest) {
        let short: String = digest.chars().take(80).collect();
        return Err(LoadError::Format(format!("\"{short}\" is no digest")));
    }
    Ok(format!("blobs/sha256/{}", &digest[7..]))
}

/// A name of the outer archive as text without climbing.
fn plain(path: &Path) -> Result<String, LoadError> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(p) => parts.push(p.to_string_lossy().into_owned()),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(LoadError::Format(format!(
                    "E_TAR_ESCAPE: the archive names {}",
                    path.display()
                )));
            }
        }
    }
    Ok(parts.join("/"))
}
