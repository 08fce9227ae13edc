//! Dockerfile and context into an image. Nothing is run: `RUN` is refused.
//!
//! Layers are made from sorted entries without times of today, so the same context gives the same image again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::compress;
use crate::config::{Document, Empty, Healthcheck, ImageConfig, RootFs};
use crate::dockerfile::{self, Instruction};
use crate::load::architecture;
use crate::reference::Reference;
use crate::store::{ImageStore, StoreError};
use crate::unpack::{self, UnpackError};

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// Path of the Dockerfile in the context; empty: `Dockerfile`.
    pub dockerfile: String,
    /// Names of the image.
    pub tags: Vec<String>,
    /// Values of `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// Labels beside those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// Stage to stop at; empty: the last.
    pub target: String,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An instruction cannot be carried out.
    #[error("{file}:{line}: {word}: {problem}")]
    Instruction {
        /// The Dockerfile.
        file: String,
        /// Its line.
        line: usize,
        /// Which instruction.
        word: String,
        /// What is wrong.
        problem: String,
    },
    /// The Dockerfile as a whole.
    #[error("{0}")]
    Dockerfile(String),
    /// The context cannot be unpacked.
    #[error("the build context")]
    Context(#[source] UnpackError),
    /// The image cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A stage under way.
#[derive(Default, Clone)]
struct Stage {
    name: String,
    config: ImageConfig,
    diff_ids: Vec<String>,
    vars: BTreeMap<String, String>,
}

struct Builder<'a> {
    store: &'a ImageStore,
    context: PathBuf,
    request: &'a BuildRequest,
    scratch: &'a Path,
    globals: BTreeMap<String, String>,
    stages: Vec<Stage>,
    layers: usize,
    archives: usize,
}

impl ImageStore {
    /// Builds an image from a context that comes as a tar; answers its id.
    ///
    /// # Errors
    /// [`BuildError`] with file and line; then no name leads to anything new.
    pub fn build(
        &self,
        context: impl Read,
        request: &BuildRequest,
        progress: &mut dyn FnMut(&str),
    ) -> Result<String, BuildError> {
        let scratch = self.scratch()?;
        let folder = scratch.path.join("context");
        let io = |source: io::Error| UnpackError::Io {
            entry: "the build context".into(),
            source,
        };
        fs::create_dir(&folder).map_err(io).map_err(BuildError::Context)?;
        let plain = compress::open(context).map_err(io).map_err(BuildError::Context)?;
        unpack::unpack(plain, &folder).map_err(BuildError::Context)?;
        let tags: Vec<Reference> = request
            .tags
            .iter()
            .map(|t| t.parse())
            .collect::<Result<_, _>>()
            .map_err(StoreError::from)?;
        let name = if request.dockerfile.is_empty() {
            "Dockerfile"
        } else {
            &request.dockerfile
        };
        let file = inside(&folder, name).map_err(BuildError::Dockerfile)?;
        let text = fs::read_to_string(&file)
            .map_err(|e| BuildError::Dockerfile(format!("read {name} of the build context: {e}")))?;
        let instructions =
            dockerfile::parse(&text).map_err(|e| BuildError::Dockerfile(format!("{name}: {e}")))?;
        let mut builder = Builder {
            store: self,
            context: folder,
            request,
            scratch: &scratch.path,
            globals: BTreeMap::new(),
            stages: Vec::new(),
            layers: 0,
            archives: 0,
        };
        let total = instructions.len();
        for (step, instruction) in instructions.iter().enumerate() {
            if instruction.word == "FROM" && builder.reached_target() {
                break;
            }
            progress(&format!(
                "[{}/{total}] {} {}",
                step + 1,
                instruction.word,
                instruction.rest
            ));
            builder
                .perform(instruction)
                .map_err(|problem| BuildError::Instruction {
                    file: name.to_owned(),
                    line: instruction.line,
                    word: instruction.word.clone(),
                    problem,
                })?;
        }
        builder.finish(&tags)
    }
}

impl Builder<'_> {
    fn reached_target(&self) -> bool {
        let target = &self.request.target;
        !target.is_empty() && self.stages.last().is_some_and(|s| s.name == *target)
    }

    fn finish(mut self, tags: &[Reference]) -> Result<String, BuildError> {
        if !self.request.target.is_empty() && !self.reached_target() {
            return Err(BuildError::Dockerfile(format!(
                "there is no stage {}",
                self.request.target
            )));
        }
        let Some(mut stage) = self.stages.pop() else {
            return Err(BuildError::Dockerfile("the Dockerfile has no FROM".into()));
        };
        if !self.request.labels.is_empty() {
            stage
                .config
                .labels
                .get_or_insert_default()
                .extend(self.request.labels.clone());
        }
        if stage.diff_ids.is_empty() {
            // An image has at least one layer, be it empty.
            let empty = self.tar(&[]).map_err(BuildError::Dockerfile)?;
            stage.diff_ids.push(empty);
        }
        let document = Document {
            created: None,
            architecture: architecture().into(),
            os: "linux".into(),
            config: Some(stage.config),
            rootfs: RootFs {
                kind: "layers".into(),
                diff_ids: stage.diff_ids,
            },
        };
        let config = serde_json::to_vec(&document).map_err(|e| BuildError::Dockerfile(e.to_string()))?;
        Ok(self.store.add_image(&config, tags)?)
    }

    fn perform(&mut self, i: &Instruction) -> Result<(), String> {
        match i.word.as_str() {
            "FROM" => return self.from(&i.rest),
            "ARG" => return self.arg(&i.rest),
            "RUN" => {
                return Err("commands cannot be run in a build yet: prepare the files outside and COPY them, or build elsewhere and `rswarm image load` the result".into());
            }
            "ONBUILD" => return Err("is not supported: write its instruction where the image is used".into()),
            _ => {}
        }
        let vars = self.stage()?.vars.clone();
        let expand = |text: &str| dockerfile::expand(text, &vars);
        let stage = self.stages.last_mut().ok_or("there is no FROM before it")?;
        let config = &mut stage.config;
        match i.word.as_str() {
            "ENV" => {
                for (name, value) in dockerfile::pairs(&expand(&i.rest)?)? {
                    config.env.retain(|e| e.split('=').next() != Some(name.as_str()));
                    config.env.push(format!("{name}={value}"));
                    stage.vars.insert(name, value);
                }
            }
            "LABEL" => config
                .labels
                .get_or_insert_default()
                .extend(dockerfile::pairs(&expand(&i.rest)?)?),
            "MAINTAINER" => {
                config
                    .labels
                    .get_or_insert_default()
                    .insert("maintainer".into(), i.rest.clone());
            }
            "WORKDIR" => {
                let dir = expand(&i.rest)?;
                let joined = Path::new(if config.working_dir.is_empty() {
                    "/"
                } else {
                    &config.working_dir
                })
                .join(dir);
                if joined.components().any(|c| c == Component::ParentDir) {
                    return Err("a working directory must not hold \"..\"".into());
                }
                config.working_dir = joined.to_string_lossy().into_owned();
            }
            "USER" => config.user = user(&expand(&i.rest)?)?,
            "EXPOSE" => {
                for port in dockerfile::words(&expand(&i.rest)?)? {
                    let (number, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
                    number.parse::<u16>().map_err(|_| format!("{port} is no port"))?;
                    config
                        .exposed_ports
                        .get_or_insert_default()
                        .insert(format!("{number}/{protocol}"), Empty {});
                }
            }
            "VOLUME" => {
                let text = expand(&i.rest)?;
                let paths = dockerfile::json_form(&text).map_or_else(|| dockerfile::words(&text), Ok)?;
                for path in paths {
                    if !path.starts_with('/') || path.split('/').any(|p| p == "..") {
                        return Err(format!("{path} is no absolute path without \"..\""));
                    }
                    config.volumes.get_or_insert_default().insert(path, Empty {});
                }
            }
            "ENTRYPOINT" => {
                config.entrypoint = command(&i.rest)?;
                config.cmd.clear();
            }
            "CMD" => config.cmd = command(&i.rest)?,
            "STOPSIGNAL" => config.stop_signal = expand(&i.rest)?,
            "HEALTHCHECK" => config.healthcheck = Some(healthcheck(&i.rest)?),
            "SHELL" => return Err("is not supported: write commands as JSON lists".into()),
            "COPY" | "ADD" => {
                let rest = expand(&i.rest)?;
                return self.copy(&rest, i.word == "ADD");
            }
            other => return Err(format!("there is no instruction {other}")),
        }
        Ok(())
    }

    fn stage(&mut self) -> Result<&mut Stage, String> {
        self.stages
            .last_mut()
            .ok_or_else(|| "there is no FROM before it".into())
    }

    fn from(&mut self, rest: &str) -> Result<(), String> {
        let words = dockerfile::words(&dockerfile::expand(rest, &self.globals)?)?;
        let words: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .filter(|w| !w.starts_with("--platform="))
            .collect();
        let (base, name) = match words.as_slice() {
            [base] => (*base, ""),
            [base, as_, name] if as_.eq_ignore_ascii_case("as") => (*base, *name),
            _ => return Err("write FROM IMAGE [AS NAME]".into()),
        };
        let mut stage = match self.stages.iter().find(|s| s.name == base) {
            Some(earlier) => earlier.clone(),
            None if base == "scratch" => Stage::default(),
            None => {
                let image = self.store.resolve(base).map_err(|e| e.to_string())?;
                let ids = image.layers.iter().rev().map(|p| {
                    let hex = p
                        .file_name()
                        .map(|n| n.to_string_lossy().into_owned())
                        .unwrap_or_default();
                    format!("sha256:{hex}")
                });
                Stage {
                    diff_ids: ids.collect(),
                    config: image.config,
                    ..Stage::default()
                }
            }
        };
        stage.name = name.to_owned();
        stage.vars = stage
            .config
            .env
            .iter()
            .filter_map(|e| e.split_once('='))
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        self.stages.push(stage);
        Ok(())
    }

    fn arg(&mut self, rest: &str) -> Result<(), String> {
        for word in dockerfile::words(rest)? {
            let (name, default) = word
                .split_once('=')
                .map_or((word.as_str(), None), |(n, d)| (n, Some(d)));
            let given = self.request.build_args.get(name).cloned();
            let vars = self.stages.last().map_or(&self.globals, |s| &s.vars);
            let default = default.map(|d| dockerfile::expand(d, vars)).transpose()?;
            let value = given.or(default).or_else(|| self.globals.get(name).cloned());
            let into = self.stages.last_mut().map_or(&mut self.globals, |s| &mut s.vars);
            if let Some(value) = value {
                into.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    fn copy(&mut self, rest: &str, add: bool) -> Result<(), String> {
        let mut words = dockerfile::json_form(rest).map_or_else(|| dockerfile::words(rest), Ok)?;
        let (mut from, mut owner, mut mode) = (None, None, None);
        while let Some(flag) = words.first().filter(|w| w.starts_with("--")).cloned() {
            words.remove(0);
            match flag.split_once('=') {
                Some(("--from", name)) => from = Some(name.to_owned()),
                Some(("--chown", who)) => owner = Some(numeric_owner(who)?),
                Some(("--chmod", bits)) => {
                    mode =
                        Some(u32::from_str_radix(bits, 8).map_err(|_| format!("{bits} is no octal mode"))?);
                }
                _ => return Err(format!("the flag {flag} is not supported")),
            }
        }
        let target = words
            .pop()
            .filter(|_| !words.is_empty())
            .ok_or("write SOURCE… TARGET")?;
        if words.iter().any(|w| w.contains("<<")) {
            return Err("here-documents are not supported: put the text into a file of the context".into());
        }
        let stage = self.stage()?;
        let cwd = if stage.config.working_dir.is_empty() {
            "/".to_owned()
        } else {
            stage.config.working_dir.clone()
        };
        let into_folder = target.ends_with('/') || target == "." || words.len() > 1;
        let target = Path::new(&cwd).join(&target);
        let roots = match from {
            None => vec![self.context.clone()],
            Some(name) => self.layers_of(&name)?,
        };
        let (mut items, mut unpacked): (Vec<Item>, Vec<Item>) = (Vec::new(), Vec::new());
        for source in &words {
            if source.contains("://") {
                return Err(format!(
                    "{source}: nothing is fetched in a build; put the file into the context"
                ));
            }
            let found = roots
                .iter()
                .find_map(|root| matches(root, source).ok().filter(|m| !m.is_empty()));
            let found =
                found.ok_or_else(|| format!("{source} is not in the build context (or leads out of it)"))?;
            let many = found.len() > 1 || into_folder;
            for path in found {
                if add && is_tar(&path) {
                    self.unpack(&path, &target, &mut unpacked)
                        .map_err(|e| format!("unpack {source}: {e}"))?;
                    continue;
                }
                collect(&path, &place(&target, &path, many), &mut items)?;
            }
        }
        for item in &mut items {
            (item.uid, item.gid) = owner.unwrap_or((0, 0));
            if let (Some(bits), false) = (mode, item.link.is_some()) {
                item.mode = bits;
            }
        }
        // What comes out of an archive keeps owner and mode unless they are given.
        for mut item in unpacked {
            (item.uid, item.gid) = owner.unwrap_or((item.uid, item.gid));
            items.push(item);
        }
        items.sort_by(|a, b| a.name.cmp(&b.name));
        items.dedup_by(|a, b| a.name == b.name);
        let id = self.tar(&items)?;
        self.stage()?.diff_ids.push(id);
        Ok(())
    }

    /// The content of an archive, as items below a target.
    fn unpack(&mut self, archive: &Path, target: &Path, items: &mut Vec<Item>) -> Result<(), String> {
        let folder = self.scratch.join(format!("add{}-{}", self.layers, self.archives));
        self.archives += 1;
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&folder)
            .map_err(|e| e.to_string())?;
        let file = fs::File::open(archive).map_err(|e| e.to_string())?;
        let plain = compress::open(file).map_err(|e| e.to_string())?;
        unpack::unpack(plain, &folder).map_err(|e| e.to_string())?;
        let first = items.len();
        collect(&folder, target, items)?;
        for item in items.iter_mut().skip(first) {
            let meta = fs::symlink_metadata(&item.path).map_err(|e| e.to_string())?;
            if item.path != folder {
                (item.uid, item.gid) = (meta.uid().into(), meta.gid().into());
            }
        }
        Ok(())
    }

    /// The layers of an earlier stage or an image, the top one first.
    fn layers_of(&self, name: &str) -> Result<Vec<PathBuf>, String> {
        let by_number = name.parse::<usize>().ok().and_then(|n| self.stages.get(n));
        let stage = self.stages.iter().find(|s| s.name == name).or(by_number);
        match stage {
            Some(stage) => Ok(stage
                .diff_ids
                .iter()
                .rev()
                .map(|d| self.store.layer_folder(d))
                .collect()),
            None => self
                .store
                .resolve(name)
                .map(|i| i.layers)
                .map_err(|e| e.to_string()),
        }
    }

    /// Makes a layer of the items; answers its digest.
    fn tar(&mut self, items: &[Item]) -> Result<String, String> {
        let path = self.scratch.join(format!("layer{}.tar", self.layers));
        self.layers += 1;
        let write = || -> io::Result<()> {
            let mut tar = tar::Builder::new(io::BufWriter::new(fs::File::create(&path)?));
            for item in items {
                item.write(&mut tar)?;
            }
            tar.into_inner()?
                .into_inner()
                .map_err(|e| e.into_error())?
                .sync_all()
        };
        write().map_err(|e| format!("write the layer: {e}"))?;
        let file = fs::File::open(&path).map_err(|e| e.to_string())?;
        let id = self
            .store
            .add_layer(io::BufReader::new(file), None)
            .map_err(|e| e.to_string())?;
        let _ = fs::remove_file(&path);
        Ok(id)
    }
}

/// One entry of a layer to be.
struct Item {
    name: String,
    path: PathBuf,
    folder: bool,
    link: Option<PathBuf>,
    mode: u32,
    uid: u64,
    gid: u64,
}

impl Item {
    fn write<W: io::Write>(&self, tar: &mut tar::Builder<W>) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(0);
        header.set_size(0);
        if let Some(link) = &self.link {
            header.set_entry_type(tar::EntryType::Symlink);
            return tar.append_link(&mut header, &self.name, link);
        }
        if self.folder {
            header.set_entry_type(tar::EntryType::Directory);
            return tar.append_data(&mut header, format!("{}/", self.name), io::empty());
        }
        let file = fs::File::open(&self.path)?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(file.metadata()?.len());
        tar.append_data(&mut header, &self.name, file)
    }
}

/// Where a source lands: in the target folder under its own name, or as the target. A folder's content goes into it.
fn place(target: &Path, source: &Path, many: bool) -> PathBuf {
    match source.file_name() {
        Some(name) if many && !source.is_dir() => target.join(name),
        Some(_) | None => target.to_owned(),
    }
}

fn collect(path: &Path, target: &Path, items: &mut Vec<Item>) -> Result<(), String> {
    let meta = fs::symlink_metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let name = target.to_string_lossy().trim_matches('/').to_owned();
    let link = meta
        .is_symlink()
        .then(|| fs::read_link(path))
        .transpose()
        .map_err(|e| e.to_string())?;
    let mode = meta.permissions().mode() & 0o7777;
    if !name.is_empty() {
        let folder = meta.is_dir();
        items.push(Item {
            name,
            path: path.to_owned(),
            folder,
            link,
            mode,
            uid: 0,
            gid: 0,
        });
    }
    if meta.is_dir() {
        let mut inner: Vec<_> = fs::read_dir(path)
            .map_err(|e| e.to_string())?
            .flatten()
            .map(|e| e.path())
            .collect();
        inner.sort();
        for child in inner {
            // Whiteouts of a stage's layer are not files.
            let device = fs::symlink_metadata(&child)
                .is_ok_and(|m| m.rdev() == 0 && m.mode() & 0o170_000 == 0o020_000);
            if let (Some(name), false) = (child.file_name(), device) {
                collect(&child, &target.join(name), items)?;
            }
        }
    }
    Ok(())
}

/// A path inside a root, no link followed out of it.
fn inside(root: &Path, name: &str) -> Result<PathBuf, String> {
    let relative = name.trim_start_matches('/');
    if Path::new(relative)
        .components()
        .any(|c| c == Component::ParentDir)
    {
        return Err(format!("{name} leads out of the build context"));
    }
    let path = root.join(relative);
    // What a link leads to must be inside as well.
    let real = path.canonicalize().map_err(|e| format!("{name}: {e}"))?;
    let root = root.canonicalize().map_err(|e| e.to_string())?;
    if real.starts_with(&root) {
        Ok(path)
    } else {
        Err(format!("{name} leads out of the build context"))
    }
}

/// The paths a source names; `*` and `?` match within the last part.
fn matches(root: &Path, source: &str) -> Result<Vec<PathBuf>, String> {
    if !source.contains(['*', '?']) {
        return inside(root, source).map(|p| vec![p]);
    }
    let (folder, pattern) = source.rsplit_once('/').unwrap_or((".", source));
    let folder = inside(root, folder)?;
    let pattern: Vec<char> = pattern.chars().collect();
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(|e| e.to_string())?
        .flatten()
        .filter(|e| {
            wildcard(
                &pattern,
                &e.file_name().to_string_lossy().chars().collect::<Vec<_>>(),
            )
        })
        .map(|e| e.path())
        .collect();
    found.sort();
    Ok(found)
}

/// Whether a name matches a pattern with `*` and `?`: the last star is the only one that has to be tried again.
fn wildcard(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            Some(_) | None => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn is_tar(path: &Path) -> bool {
    let name = path.to_string_lossy();
    path.is_file()
        && [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"]
            .iter()
            .any(|e| name.ends_with(e))
}

fn user(text: &str) -> Result<String, String> {
    for part in text.split(':') {
        let number = part.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
        if part.is_empty() || (number && part.parse::<u32>().ok().is_none_or(|n| n > i32::MAX as u32)) {
            return Err(format!(
                "{text} is no user: write NAME[:GROUP], or numbers up to 2147483647"
            ));
        }
    }
    if text.split(':').count() > 2 {
        Err(format!("{text} is no user: write NAME[:GROUP]"))
    } else {
        Ok(text.into())
    }
}

fn numeric_owner(text: &str) -> Result<(u64, u64), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let number = |t: &str| {
        t.parse::<u32>()
            .map(u64::from)
            .map_err(|_| format!("--chown={text}: only numbers can be used here"))
    };
    Ok((number(uid)?, number(gid)?))
}

/// The JSON form, or a line for the shell.
fn command(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("write a command".into());
    }
    Ok(dockerfile::json_form(text).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), text.into()]))
}

fn healthcheck(text: &str) -> Result<Healthcheck, String> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while rest.starts_with("--") {
        let (flag, tail) = rest
            .split_once(char::is_whitespace)
            .ok_or("a command is missing")?;
        rest = tail.trim_start();
        let (name, value) = flag
            .split_once('=')
            .ok_or_else(|| format!("{flag} needs a value"))?;
        match name {
            "--interval" => check.interval = nanos(value)?,
            "--timeout" => check.timeout = nanos(value)?,
            "--start-period" => check.start_period = nanos(value)?,
            "--start-interval" => check.start_interval = nanos(value)?,
            "--retries" => check.retries = value.parse().map_err(|_| format!("{value} is no number"))?,
            _ => return Err(format!("there is no flag {name}")),
        }
    }
    if rest == "NONE" {
        check.test = vec!["NONE".into()];
        return Ok(check);
    }
    let command = rest
        .strip_prefix("CMD")
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .ok_or("write CMD COMMAND or NONE")?;
    check.test = match dockerfile::json_form(command) {
        Some(words) => [vec!["CMD".to_owned()], words].concat(),
        None => vec!["CMD-SHELL".into(), command.into()],
    };
    Ok(check)
}

/// A Go duration of one or more parts in nanoseconds.
fn nanos(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text} is no duration such as 5s or 1m30s");
    let (mut total, mut rest) = (0f64, text);
    while !rest.is_empty() {
        let split = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let end = rest[split..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |e| split + e);
        let unit = match &rest[split..end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            _ => return Err(wrong()),
        };
        total += rest[..split].parse::<f64>().map_err(|_| wrong())? * unit;
        rest = &rest[end..];
    }
    if text.is_empty() || total > 3.2e16 {
        return Err(wrong());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and a year, checked above"
    )]
    Ok(total as u64)
}
