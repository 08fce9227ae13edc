//! Generic resources that are devices of this host: a task that is given one finds it at the same path.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use model::spec::{GenericResources, Names};
use runtime::{MountConfig, MountSource};

/// Names of resources that are paths of devices begin with this.
const FOLDER: &str = "/dev/";

/// Whether all that are called like devices are devices of this host.
///
/// # Errors
/// The first that is none, for an operator.
pub fn check_devices(resources: &GenericResources) -> Result<(), String> {
    devices(&resources.named).try_for_each(|(kind, path)| check(kind, path))
}

/// The devices that a task was given, as mounts. There is no device cgroup: a container has what stands in its `/dev`, and may
/// make nothing there (no `MKNOD`).
pub(crate) fn mounts(granted: &Names) -> Result<Vec<MountConfig>, String> {
    devices(granted)
        .map(|(kind, path)| {
            check(kind, path)?;
            Ok(MountConfig {
                target: path.clone(),
                source: MountSource::Bind {
                    path: path.into(),
                    recursive: false,
                },
                read_only: false,
            })
        })
        .collect()
}

fn devices(named: &Names) -> impl Iterator<Item = (&String, &String)> {
    let all = named
        .iter()
        .flat_map(|(kind, names)| names.iter().map(move |name| (kind, name)));
    all.filter(|(_, name)| name.starts_with(FOLDER))
}

fn check(kind: &str, path: &str) -> Result<(), String> {
    let is_clean = path
        .split('/')
        .skip(1)
        .all(|part| !matches!(part, "" | "." | ".."));
    let is_device = || {
        let kind = fs::metadata(Path::new(path)).map(|m| m.file_type());
        kind.map(|k| k.is_char_device() || k.is_block_device())
    };
    let problem = match is_clean.then(is_device) {
        Some(Ok(true)) => return Ok(()),
        Some(Ok(false)) => "it is no device".to_owned(),
        Some(Err(e)) => e.to_string(),
        None => "it is no path without \".\" and \"..\"".to_owned(),
    };
    Err(format!(
        "generic resource {kind}={path} is not on this host ({problem}): start its daemon with the devices that it has"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_like_a_device_has_to_be_one() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in /dev");
        let file = format!("k={}", file.path().display());
        for (text, problem) in [
            ("k=/dev/null", None),
            ("k=GPU-1", None),
            ("k=/srv/not/looked/at", None),
            ("k=/dev/no-such-device", Some("No such file")),
            ("k=/dev/../dev/null", Some("no path without")),
            ("k=/dev//null", Some("no path without")),
            ("k=/dev/", Some("no path without")),
            ("k=/dev/pts", Some("no device")),
            (file.as_str(), Some("no device")),
        ] {
            let resources = GenericResources::parse([text]).expect("resources");
            let got = check_devices(&resources);
            match problem {
                None => assert_eq!(got, Ok(()), "{text}"),
                Some(part) => assert!(got.is_err_and(|e| e.contains(part)), "{text}"),
            }
        }
    }

    #[test]
    fn a_task_gets_its_devices_alone() {
        let granted: Names = [("gpu", vec!["/dev/null", "/dev/zero"]), ("licence", vec!["A-1"])]
            .map(|(kind, names)| (kind.to_owned(), names.into_iter().map(str::to_owned).collect()))
            .into();
        let found: Vec<String> = mounts(&granted)
            .expect("both are there")
            .into_iter()
            .map(|m| m.target)
            .collect();
        assert_eq!(found, ["/dev/null", "/dev/zero"]);
    }
}
