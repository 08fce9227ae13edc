//! Archives good and hostile, and builds, against a real store.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use image::{BuildRequest, ImageStore, Removed};
use sha2::{Digest, Sha256};

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = ImageStore::open(&dir.path().join("store")).expect("a store");
    (dir, store)
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut h = tar::Header::new_gnu();
    h.set_entry_type(kind);
    h.set_size(size);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(0);
    h
}

/// A tar of files; a name may be hostile, so it is written into the header as it is.
fn tar_of(entries: &[(&str, tar::EntryType, &[u8], &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content, link) in entries {
        let mut h = header(*kind, content.len() as u64);
        h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        h.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        h.set_cksum();
        builder.append(&h, *content).expect("append");
    }
    builder.into_inner().expect("a tar")
}

const FILE: tar::EntryType = tar::EntryType::Regular;

fn saved(layer: &[u8], config: &str, tag: &str) -> Vec<u8> {
    let manifest = format!(r#"[{{"Config":"c.json","RepoTags":["{tag}"],"Layers":["l.tar"]}}]"#);
    tar_of(&[
        ("c.json", FILE, config.as_bytes(), ""),
        ("l.tar", FILE, layer, ""),
        ("manifest.json", FILE, manifest.as_bytes(), ""),
    ])
}

fn config_of(layer: &[u8]) -> String {
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/a"],"Env":null}},"rootfs":{{"type":"layers","diff_ids":["sha256:{:x}"]}}}}"#,
        Sha256::digest(layer)
    )
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: layers keep owners, which needs root");
    }
    root
}

#[test]
fn a_saved_image_is_loaded_named_and_removed() {
    if !is_root() {
        return;
    }
    let (_dir, store) = store();
    let layer = tar_of(&[
        ("bin/a", FILE, b"hello", ""),
        ("etc/.wh.gone", FILE, b"", ""),
        ("old/.wh..wh..opq", FILE, b"", ""),
    ]);
    let archive = saved(&layer, &config_of(&layer), "demo/a:1");
    for packed in [archive.clone(), zstd::encode_all(&archive[..], 1).expect("zstd")] {
        let loaded = store.load(&packed[..], &mut |_| {}).expect("it loads");
        assert_eq!(loaded[0].1, ["demo/a:1"]);
    }
    let image = store.resolve("demo/a:1").expect("it is there");
    assert_eq!(image.config.cmd, ["/a"]);
    assert_eq!(
        fs::read(image.layers[0].join("bin/a")).expect("its file"),
        b"hello"
    );
    let gone = fs::symlink_metadata(image.layers[0].join("etc/gone")).expect("a whiteout");
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&gone.file_type()));
    store.tag("demo/a:1", "other").expect("tag");
    assert!(
        store.remove(&image.id[7..19], false, &|_| false).is_err(),
        "an id with two names"
    );
    assert_eq!(
        store.remove("other", false, &|_| true).expect("untag"),
        [Removed::Untagged("other:latest".into())]
    );
    assert!(store.remove("demo/a:1", false, &|_| true).is_err(), "in use");
    assert_eq!(
        store.remove("demo/a:1", false, &|_| false).expect("remove").len(),
        2
    );
    assert!(store.resolve("demo/a:1").is_err());
    assert!(!image.layers[0].exists());
}

#[test]
fn hostile_layers_are_refused_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    let target = outside.display().to_string();
    let link = tar::EntryType::Symlink;
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("a name that climbs", tar_of(&[("../../x", FILE, b"x", "")])),
        (
            "a name that climbs inside",
            tar_of(&[("a/../../b", FILE, b"x", "")]),
        ),
        ("an absolute name", tar_of(&[("/etc/passwd-x", FILE, b"x", "")])),
        (
            "a file through a link",
            tar_of(&[("x", link, b"", &target), ("x/file", FILE, b"x", "")]),
        ),
        (
            "a hard link that climbs",
            tar_of(&[("h", tar::EntryType::Link, b"", "../../etc/passwd")]),
        ),
        (
            "an unknown kind",
            tar_of(&[("k", tar::EntryType::new(b'Q'), b"", "")]),
        ),
        (
            "half a tar",
            tar_of(&[("f", FILE, &[1; 2000], "")])[..1000].to_vec(),
        ),
    ];
    for (name, layer) in rows {
        let got = store.load(&saved(&layer, &config_of(&layer), "evil:1")[..], &mut |_| {});
        assert!(got.is_err(), "{name}");
        assert!(store.resolve("evil:1").is_err(), "{name}: no name");
        assert_eq!(
            fs::read_dir(&outside).expect("outside").count(),
            0,
            "{name}: outside"
        );
        assert_eq!(store.list().len(), 0, "{name}: no image");
        assert_eq!(
            fs::read_dir(dir.path().join("store/layers"))
                .expect("layers")
                .count(),
            0,
            "{name}: no layer"
        );
    }
}

#[test]
fn archives_that_lie_are_refused() {
    let (_dir, store) = store();
    let layer = tar_of(&[("f", FILE, b"x", "")]);
    let other = tar_of(&[("f", FILE, b"y", "")]);
    let text =
        |r: Result<Vec<(String, Vec<String>)>, image::LoadError>| r.map(|_| ()).map_err(|e| e.to_string());
    let load = |archive: Vec<u8>| text(store.load(&archive[..], &mut |_| {}));
    assert!(
        load(saved(&other, &config_of(&layer), "a:1"))
            .expect_err("digest")
            .contains("E_DIGEST")
    );
    assert!(load(saved(&layer, "{}", "a:1")).is_err());
    assert!(
        load(saved(&layer, &config_of(&layer), "UPPER"))
            .expect_err("name")
            .contains("UPPER")
    );
    assert!(load(b"not a tar at all".to_vec()).is_err());
    assert!(
        load(tar_of(&[("x", FILE, b"", "")]))
            .expect_err("no manifest")
            .contains("neither")
    );
    let ambiguous = r#"{"manifests":[],"layers":[]}"#;
    let digest = format!("{:x}", Sha256::digest(ambiguous));
    let index = format!(r#"{{"manifests":[{{"digest":"sha256:{digest}"}}]}}"#);
    let blob = format!("blobs/sha256/{digest}");
    let archive = tar_of(&[
        ("index.json", FILE, index.as_bytes(), ""),
        (&blob, FILE, ambiguous.as_bytes(), ""),
    ]);
    assert!(
        load(archive)
            .expect_err("ambiguous")
            .contains("E_MANIFEST_AMBIGUOUS")
    );
}

fn build(store: &ImageStore, dockerfile: &str, tags: &[&str]) -> Result<String, String> {
    let inner = tar_of(&[
        ("etc/inner.txt", FILE, b"I", ""),
        ("escape", tar::EntryType::Symlink, b"", "/host"),
    ]);
    let list = [
        ("Dockerfile", FILE, dockerfile.as_bytes(), ""),
        ("app", FILE, b"#!", ""),
        ("conf/a.txt", FILE, b"A", ""),
        ("conf/b.txt", FILE, b"B", ""),
        ("inner.tar", FILE, &inner, ""),
        ("broken.tar", FILE, b"no archive", ""),
    ];
    let context = tar_of(&list);
    let request = BuildRequest {
        tags: tags.iter().map(|t| (*t).to_owned()).collect(),
        build_args: BTreeMap::from([("VERSION".to_owned(), "v2".to_owned())]),
        ..BuildRequest::default()
    };
    store
        .build(&context[..], &request, &mut |_| {})
        .map_err(|e| e.to_string())
}

#[test]
fn add_unpacks_archives_and_copy_does_not() {
    if !is_root() {
        return;
    }
    let (_dir, store) = store();
    let text = "FROM scratch\nADD inner.tar /srv/\nCOPY inner.tar /copy/\nADD app /bin/\n";
    build(&store, text, &["x:1"]).expect("it builds");
    let image = store.resolve("x:1").expect("it is there");
    let found = |path: &str| {
        image
            .layers
            .iter()
            .find_map(|l| std::fs::symlink_metadata(l.join(path)).ok())
    };
    assert!(found("srv/etc/inner.txt").expect("unpacked").is_file());
    assert!(found("srv/escape").expect("unpacked").is_symlink());
    assert!(found("copy/inner.tar").expect("copied").is_file());
    assert!(found("bin/app").expect("added").is_file());
    assert!(found("srv/inner.tar").is_none());
}

#[test]
fn a_dockerfile_becomes_the_same_image_again() {
    if !is_root() {
        return;
    }
    let (_dir, store) = store();
    let text = "ARG VERSION=v1\nFROM scratch AS base\nCOPY conf /etc/conf\nFROM scratch\nARG VERSION\nENV V=$VERSION W=\"x y\"\nWORKDIR /srv\n\
                COPY --chmod=755 app ./\nCOPY --from=base /etc/conf/*.txt /data/\nUSER 1000:1000\nEXPOSE 80 53/udp\nVOLUME [\"/data\"]\n\
                LABEL a=b\nHEALTHCHECK --interval=1m30s --retries=2 CMD [\"/srv/app\", \"check\"]\nSTOPSIGNAL SIGINT\nENTRYPOINT [\"/srv/app\"]\nCMD [\"run\"]\n";
    let id = build(&store, text, &["shop/web:v2"]).expect("it builds");
    assert_eq!(build(&store, text, &[]).expect("again"), id);
    let image = store.resolve("shop/web:v2").expect("it is there");
    assert_eq!(image.config.env, ["V=v2", "W=x y"]);
    assert_eq!(
        (image.config.working_dir.as_str(), image.config.user.as_str()),
        ("/srv", "1000:1000")
    );
    let check = image.config.healthcheck.expect("a check");
    assert_eq!(
        (check.interval, check.retries, check.test.len()),
        (90_000_000_000, 2, 3)
    );
    assert_eq!(
        fs::read_to_string(image.layers[0].join("data/b.txt")).expect("copied from the stage"),
        "B"
    );
    let app = fs::metadata(image.layers[1].join("srv/app")).expect("copied");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&app.permissions()) & 0o777,
        0o755
    );
}

#[test]
fn what_cannot_be_built_is_named_with_its_line() {
    let (_dir, store) = store();
    for (name, text, want) in [
        (
            "a command",
            "FROM scratch\nRUN make",
            "Dockerfile:2: RUN: commands cannot be run",
        ),
        ("a missing base", "FROM nothere", "image nothere not found"),
        (
            "a missing file",
            "FROM scratch\nCOPY none /",
            "none is not in the build context",
        ),
        (
            "a file outside",
            "FROM scratch\nCOPY ../x /",
            "../x is not in the build context",
        ),
        (
            "a broken archive",
            "FROM scratch\nADD broken.tar /",
            "unpack broken.tar",
        ),
        ("a fetch", "FROM scratch\nADD http://x/y /", "nothing is fetched"),
        (
            "an impossible user",
            "FROM scratch\nUSER 4294967296",
            "is no user",
        ),
        (
            "an unknown word",
            "FROM scratch\nFOO x",
            "there is no instruction FOO",
        ),
        ("no FROM", "ENV A=1", "no FROM"),
        (
            "a volume outside",
            "FROM scratch\nVOLUME /../../host",
            "no absolute path",
        ),
    ] {
        let got = build(&store, text, &["x:1"]).expect_err(name);
        assert!(got.contains(want), "{name}: {got}");
        assert!(store.resolve("x:1").is_err(), "{name}");
    }
}

#[test]
fn an_interrupted_load_leaves_nothing_after_the_next_open() {
    let (dir, store) = store();
    let left = dir.path().join("store/tmp/abc");
    fs::create_dir_all(&left).expect("a folder");
    drop(store);
    ImageStore::open(&dir.path().join("store")).expect("it opens");
    assert!(!Path::new(&left).exists());
}
