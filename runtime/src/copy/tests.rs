//! Copies with trees and tars that mean harm: inputs B73 to B75 of the reliability list.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tar::EntryType as Kind;

use super::*;

fn tree(path: &Path) -> Tree {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Tree::new(rustix::fs::open(path, flags, Mode::empty()).unwrap(), None)
}

/// As whoever runs the tests, so that they need no root.
fn plain() -> Options {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    Options {
        owner: Owner::Is(uid.as_raw(), gid.as_raw()),
        privileges: false,
        devices: false,
    }
}

fn copy(from: &Tree, source: &str, to: &Tree, destination: &str) -> Result<Outcome, CopyError> {
    let source = from.source(source, false)?;
    let target = to.target(destination, source.shape)?;
    let mut tar = Vec::new();
    source.pack(&mut tar)?;
    unpack(tar.as_slice(), &target, plain())
}

/// Name, kind, target of a link, content.
type Entry = (&'static str, Kind, &'static str, &'static str);

fn tar_of(entries: &[(&str, Kind, &str, &str)]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, kind, link, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.append(&header, content.as_bytes()).unwrap();
    }
    out.into_inner().unwrap()
}

/// `container` is a root with a folder `d`; beside it, outside, lies `secret`.
fn stage() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("container/d")).unwrap();
    fs::create_dir_all(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/secret"), "secret").unwrap();
    dir
}

#[test]
fn a_folder_survives_a_round_trip() {
    let (dir, long) = (stage(), "n".repeat(200));
    let from = dir.path().join("container/d");
    fs::create_dir_all(from.join("sub").join(&long).join(&long)).unwrap();
    fs::write(from.join("sub").join(&long).join(&long).join("deep"), "deep").unwrap();
    fs::write(from.join("file"), "content").unwrap();
    fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(from.join("file"), from.join("sub/same")).unwrap();
    symlink(format!("../{}", "t".repeat(300)), from.join("link")).unwrap();
    let root = tree(&dir.path().join("container"));
    copy(&root, "/d", &root, "/e").unwrap();
    let to = dir.path().join("container/e");
    assert_eq!(
        fs::read_to_string(to.join("sub").join(&long).join(&long).join("deep")).unwrap(),
        "deep"
    );
    let (one, same) = (
        fs::metadata(to.join("file")).unwrap(),
        fs::metadata(to.join("sub/same")).unwrap(),
    );
    assert_eq!(
        (one.mode() & 0o7777, one.ino(), one.nlink()),
        (0o640, same.ino(), 2)
    );
    assert_eq!(one.mtime(), fs::metadata(from.join("file")).unwrap().mtime());
    assert_eq!(fs::read_link(to.join("link")).unwrap().as_os_str().len(), 303);
    // Again, onto what is there: nothing is doubled, nothing is in the way.
    copy(&root, "/d/.", &root, "/e").unwrap();
    assert!(!to.join("d").exists());
    copy(&root, "/d", &root, "/e").unwrap();
    assert!(to.join("d/file").exists());
}

#[test]
fn paths_of_a_container_stay_in_it() {
    let dir = stage();
    let root = tree(&dir.path().join("container"));
    let container = dir.path().join("container");
    symlink("../../outside", container.join("climbs")).unwrap();
    symlink(dir.path().join("outside"), container.join("absolute")).unwrap();
    symlink("/proc/self/root", container.join("door")).unwrap();
    for path in ["/../outside/secret", "/../../etc/shadow", "/d/../../outside"] {
        assert!(
            matches!(root.source(path, true), Err(CopyError::Path { .. })),
            "{path}"
        );
    }
    for path in ["/climbs/secret", "/absolute/secret", "/door/etc"] {
        assert!(root.source(path, true).is_err(), "{path}");
        let file = Shape {
            folder: false,
            contents: false,
        };
        assert!(root.target(path, file).is_err(), "{path}");
    }
}

#[test]
fn entries_that_lead_out_are_refused() {
    let rows: &[(&str, &[Entry])] = &[
        ("climbing", &[("../secret", Kind::Regular, "", "x")]),
        ("climbing within", &[("a/../../secret", Kind::Regular, "", "x")]),
        ("from the root", &[("/secret", Kind::Regular, "", "x")]),
        (
            "through a link of its own",
            &[
                ("l", Kind::Symlink, "../../outside", ""),
                ("l/secret", Kind::Regular, "", "x"),
            ],
        ),
        (
            "through a link that is there",
            &[("out/secret", Kind::Regular, "", "x")],
        ),
        (
            "a folder over a link",
            &[
                ("out", Kind::Directory, "", ""),
                ("out/secret", Kind::Regular, "", "x"),
            ],
        ),
        ("a hard link out", &[("h", Kind::Link, "out/secret", "")]),
        ("a hard link up", &[("h", Kind::Link, "../../outside/secret", "")]),
    ];
    for (row, entries) in rows {
        let dir = stage();
        symlink(dir.path().join("outside"), dir.path().join("container/d/out")).unwrap();
        let root = tree(&dir.path().join("container"));
        let target = root.folder("/d").unwrap();
        let result = unpack(tar_of(entries).as_slice(), &target, plain());
        assert!(matches!(result, Err(CopyError::Path { .. })), "{row}: {result:?}");
        assert_eq!(
            fs::read_to_string(dir.path().join("outside/secret")).unwrap(),
            "secret",
            "{row}"
        );
        assert_eq!(
            fs::read_dir(dir.path().join("outside")).unwrap().count(),
            1,
            "{row}"
        );
    }
}

#[test]
fn what_is_there_gives_way_to_its_like_only() {
    let dir = stage();
    fs::create_dir(dir.path().join("container/d/folder")).unwrap();
    fs::write(dir.path().join("container/d/file"), "old").unwrap();
    symlink("file", dir.path().join("container/d/link")).unwrap();
    let target = tree(&dir.path().join("container")).folder("/d").unwrap();
    let put = |entry| unpack(tar_of(&[entry]).as_slice(), &target, plain());
    assert!(put(("folder", Kind::Regular, "", "x")).is_err());
    assert!(put(("file", Kind::Directory, "", "")).is_err());
    // The link itself is replaced, not what it leads to.
    put(("link", Kind::Regular, "", "new")).unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("container/d/file")).unwrap(),
        "old"
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("container/d/link")).unwrap(),
        "new"
    );
}

#[test]
fn privileges_and_devices_are_taken_only_where_that_is_wanted() {
    let dir = stage();
    let target = tree(&dir.path().join("container")).folder("/d").unwrap();
    let tar = tar_of(&[("su", Kind::Regular, "", "x"), ("null", Kind::Char, "", "")]);
    let outcome = unpack(tar.as_slice(), &target, plain()).unwrap();
    assert_eq!(
        outcome,
        Outcome {
            bytes: 1,
            devices_left_out: 1
        }
    );
    let mode = |name: &str| {
        fs::metadata(dir.path().join("container/d").join(name))
            .unwrap()
            .mode()
            & 0o7777
    };
    assert_eq!(mode("su"), 0o755);
    let kept = Options {
        privileges: true,
        ..plain()
    };
    unpack(tar.as_slice(), &target, kept).unwrap();
    assert_eq!(mode("su"), 0o6755);
}

#[test]
fn headers_and_names_are_bounded_and_compressed_tars_are_not_opened() {
    let dir = stage();
    let target = tree(&dir.path().join("container")).folder("/d").unwrap();
    let long = "x".repeat(5000);
    let huge = "x".repeat(300 << 10);
    for (row, tar) in [
        (
            "a name",
            tar_of(&[("L", Kind::GNULongName, "", &long), ("n", Kind::Regular, "", "")]),
        ),
        (
            "a header",
            tar_of(&[("P", Kind::XHeader, "", &huge), ("n", Kind::Regular, "", "")]),
        ),
    ] {
        let result = unpack(tar.as_slice(), &target, plain());
        assert!(matches!(result, Err(CopyError::Limit(_))), "{row}: {result:?}");
    }
    let pax = "16 size=9999999\n";
    for (row, tar) in [
        ("gzip", [&[0x1f, 0x8b, 8][..], &[7; 2000]].concat()),
        (
            "a size that stands elsewhere",
            tar_of(&[("P", Kind::XHeader, "", pax), ("n", Kind::Regular, "", "x")]),
        ),
        (
            "a pax header without end",
            tar_of(&[
                ("P", Kind::XHeader, "", "99 path=a\n"),
                ("n", Kind::Regular, "", "x"),
            ]),
        ),
    ] {
        let result = unpack(tar.as_slice(), &target, plain());
        assert!(matches!(result, Err(CopyError::Format(_))), "{row}: {result:?}");
    }
}

#[test]
fn a_pipe_is_copied_as_a_pipe_and_read_by_nobody() {
    let dir = stage();
    let pipe = dir.path().join("container/d/pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        Mode::from(0o600),
        0,
    )
    .unwrap();
    let root = tree(&dir.path().join("container"));
    copy(&root, "/d", &root, "/e").unwrap();
    let copied = fs::symlink_metadata(dir.path().join("container/e/pipe")).unwrap();
    assert_eq!(copied.mode() & 0o170_000, 0o010_000);
}

#[test]
fn a_file_that_shrinks_is_filled_and_one_that_grows_is_cut() {
    let dir = stage();
    let path = dir.path().join("container/d/file");
    for (then, wanted) in [("12", "12\0\0\0\0"), ("1234567890", "123456")] {
        fs::write(&path, "abcdef").unwrap();
        let source = tree(&dir.path().join("container"))
            .source("/d/file", false)
            .unwrap();
        fs::write(&path, then).unwrap();
        let mut tar = Vec::new();
        source.pack(&mut tar).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut text = String::new();
        archive
            .entries()
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, wanted);
    }
}

/// B73: somebody in the container exchanges the destination for a link out, over and over, while it is copied to.
#[test]
fn a_destination_that_is_swapped_for_a_link_lets_nothing_out() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = stage();
    let container = dir.path().join("container");
    symlink("../../outside", container.join("evil")).unwrap();
    symlink(dir.path().join("outside"), container.join("d/evil")).unwrap();
    fs::create_dir(container.join("d/sub")).unwrap();
    let root = tree(&container);
    let tar = tar_of(&[
        ("sub", Kind::Directory, "", ""),
        ("sub/secret", Kind::Regular, "", "stolen"),
    ]);
    let stop = AtomicBool::new(false);
    let file = Shape {
        folder: false,
        contents: false,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (a, b) in [("d/sub", "d/evil"), ("d", "evil")] {
                    let (a, b) = (container.join(a), container.join(b));
                    for _ in 0..2 {
                        let _ = renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
                    }
                }
            }
        });
        for _ in 0..2000 {
            if let Ok(target) = root.folder("/d") {
                let _ = unpack(tar.as_slice(), &target, plain());
            }
            let source = root.source("/d/sub/secret", true);
            if let (Ok(source), Ok(target)) = (source, root.target("/d/copy", file)) {
                let mut out = Vec::new();
                source.pack(&mut out).unwrap();
                assert!(!out[512..].starts_with(b"secret"), "what lies outside was copied");
                let _ = unpack(out.as_slice(), &target, plain());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        fs::read_to_string(dir.path().join("outside/secret")).unwrap(),
        "secret"
    );
    assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 1);
}
