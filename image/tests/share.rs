//! Images from one store into another, as hosts exchange them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::{ImageStore, Reference, StoreError, UnpackError};
use sha2::{Digest, Sha256};

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = ImageStore::open(&dir.path().join("store")).expect("a store");
    (dir, store)
}

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut h = tar::Header::new_gnu();
        h.set_size(content.len() as u64);
        h.set_mode(0o640);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mtime(1_000_000);
        h.set_cksum();
        builder.append_data(&mut h, name, *content).expect("append");
    }
    builder.into_inner().expect("a tar")
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A config of layers, and an archive of it.
fn saved(layers: &[&[u8]], extra: &str, tag: &str) -> (String, Vec<u8>) {
    let ids: Vec<String> = layers.iter().map(|l| format!("\"{}\"", digest(l))).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux"{extra},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let names: Vec<String> = (0..layers.len()).map(|i| format!("\"{i}.tar\"")).collect();
    let manifest = format!(
        r#"[{{"Config":"c.json","RepoTags":["{tag}"],"Layers":[{}]}}]"#,
        names.join(",")
    );
    let mut entries: Vec<(String, &[u8])> = vec![("c.json".into(), config.as_bytes())];
    entries.extend(layers.iter().enumerate().map(|(i, l)| (format!("{i}.tar"), *l)));
    entries.push(("manifest.json".into(), manifest.as_bytes()));
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(n, c)| (n.as_str(), *c)).collect();
    let archive = tar_of(&entries);
    (config, archive)
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: layers keep owners, which needs root");
    }
    root
}

/// Bytes that no packer makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).expect("a folder").count()
}

/// Layers, packed layers and work in progress.
fn kept(dir: &tempfile::TempDir) -> [usize; 3] {
    ["layers", "blobs", "tmp"].map(|f| files(&dir.path().join("store").join(f)))
}

fn packed(store: &ImageStore, diff_id: &str) -> Vec<u8> {
    let (mut file, length) = store.open_blob(diff_id).expect("a packed layer");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes.len() as u64, length);
    bytes
}

#[test]
fn an_image_goes_from_store_to_store_and_stays_the_same() {
    if !is_root() {
        return;
    }
    let ((dir_a, a), (_dir_b, b), (_dir_c, c)) = (store(), store(), store());
    let (low, high) = (
        tar_of(&[("etc/low", &noise(700_000)), ("bin/x", b"old")]),
        tar_of(&[("bin/x", b"new")]),
    );
    let (config, archive) = saved(&[&low, &high, &low], "", "demo/a:1");
    a.load(&archive[..], &mut |_| {}).expect("it loads");
    assert_eq!(kept(&dir_a), [2, 2, 0]);
    // From the second store a third one takes it: what was fetched is offered as well.
    for (from, to) in [(&a, &b), (&b, &c)] {
        let offer = from.offer("demo/a:1").expect("it is offered");
        assert_eq!(
            (offer.id.as_str(), offer.config.as_slice()),
            (digest(config.as_bytes()).as_str(), config.as_bytes())
        );
        assert_eq!(offer.references, ["demo/a:1"]);
        let ids: Vec<&str> = offer.layers.iter().map(|l| l.diff_id.as_str()).collect();
        assert_eq!(ids, [digest(&low), digest(&high)], "each layer once");
        assert_eq!(to.missing(&offer.config).expect("a config"), ids);
        for layer in &offer.layers {
            let bytes = packed(from, &layer.diff_id);
            assert_eq!(bytes.len() as u64, layer.bytes);
            to.add_fetched_layer(&bytes[..], &layer.diff_id)
                .expect("it is taken");
            assert_eq!(packed(to, &layer.diff_id), bytes, "kept as it came");
        }
        assert!(to.missing(&offer.config).expect("a config").is_empty());
        let name: Reference = "demo/a:1".parse().expect("a name");
        assert_eq!(to.add_image(&offer.config, &[name]).expect("added"), offer.id);
        let (there, here) = (
            from.resolve("demo/a:1").expect("there"),
            to.resolve("demo/a:1").expect("here"),
        );
        assert_eq!(there.layers.len(), here.layers.len());
        for (x, y) in there.layers.iter().zip(&here.layers) {
            for file in ["etc/low", "bin/x"] {
                let read = |layer: &Path| fs::read(layer.join(file)).ok();
                assert_eq!(read(x), read(y), "{file}");
                let facts = |layer: &Path| {
                    use std::os::unix::fs::MetadataExt;
                    let m = fs::symlink_metadata(layer.join(file)).ok()?;
                    Some((m.mode(), m.uid(), m.gid(), m.mtime()))
                };
                assert_eq!(facts(x), facts(y), "{file}");
            }
        }
    }
}

#[test]
fn what_is_not_the_layer_is_refused_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (_dir_a, a) = store();
    let (layer, other) = (
        tar_of(&[("f", &noise(300_000))]),
        tar_of(&[("f", &noise(299_999))]),
    );
    let (_, archive) = saved(&[&layer, &other], "", "a:1");
    a.load(&archive[..], &mut |_| {}).expect("it loads");
    let wanted = digest(&layer);
    let good = packed(&a, &wanted);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let escape = tar_of(&[("ok", b"x")]);
    let mut rows: Vec<(String, Vec<u8>)> = vec![
        ("another layer".into(), packed(&a, &digest(&other))),
        ("nothing".into(), Vec::new()),
        ("no zstd".into(), layer.clone()),
        (
            "a small tar".into(),
            zstd::encode_all(&escape[..], 1).expect("zstd"),
        ),
        ("half".into(), good[..good.len() / 2].to_vec()),
        ("all but a byte".into(), good[..good.len() - 1].to_vec()),
        ("more behind it".into(), [&good[..], b"more"].concat()),
        ("twice".into(), [&good[..], &good[..]].concat()),
    ];
    for at in [0, 1_000, 150_000, good.len() - 10] {
        rows.push((format!("a flipped bit at {at}"), flipped(at)));
    }
    let (dir, b) = store();
    for (name, bytes) in rows {
        let error = b.add_fetched_layer(&bytes[..], &wanted).expect_err(&name);
        assert!(
            matches!(error, UnpackError::Digest { .. }) && !error.is_local(),
            "{name}: {error}"
        );
        assert!(error.to_string().contains("E_DIGEST"), "{name}: {error}");
        assert_eq!(kept(&dir), [0, 0, 0], "{name}");
    }
    b.add_fetched_layer(&good[..], &wanted)
        .expect("then the right one is taken");
    assert_eq!(kept(&dir), [1, 1, 0]);
    b.add_fetched_layer(&b"not read at all"[..], &wanted)
        .expect("it is there already");
}

#[test]
fn a_bomb_is_cut_off_early() {
    if !is_root() {
        return;
    }
    let (dir, store) = store();
    // 1 GiB of zeros in some 33 KB of zstd.
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").expect("a name");
    header.set_size(1 << 30);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 19).expect("zstd");
    std::io::Write::write_all(&mut encoder, header.as_bytes()).expect("pack");
    std::io::copy(&mut std::io::repeat(0).take(1 << 30), &mut encoder).expect("pack");
    let bomb = encoder.finish().expect("pack");
    assert!(bomb.len() < 100_000, "{} bytes", bomb.len());
    let error = store
        .add_fetched_layer(&bomb[..], &digest(b"anything"))
        .expect_err("refused");
    assert!(matches!(error, UnpackError::Limit(_)), "{error}");
    assert!(error.to_string().contains("E_LAYER_LIMIT"), "{error}");
    assert_eq!(kept(&dir), [0, 0, 0]);
}

#[test]
fn a_digest_is_no_path() {
    let (dir, store) = store();
    fs::write(dir.path().join("store/blobs/x.tar.zst"), b"x").expect("written");
    for bad in [
        "",
        "x",
        "sha256:../blobs/x",
        "../x",
        "sha256:00",
        "sha512:00",
        &format!("sha256:{}", "A".repeat(64)),
        &format!("sha256:{}/", "a".repeat(63)),
    ] {
        assert!(
            matches!(store.open_blob(bad), Err(StoreError::Config(_))),
            "{bad}"
        );
        assert!(store.add_fetched_layer(&b""[..], bad).is_err(), "{bad}");
    }
    let unknown = format!("sha256:{}", "a".repeat(64));
    assert!(matches!(store.open_blob(&unknown), Err(StoreError::NoBlob(_))));
    for config in [
        &b"{"[..],
        br#"{"rootfs":{"diff_ids":["sha256:../../etc"]}}"#,
        br#"{"rootfs":{"diff_ids":["x"]}}"#,
    ] {
        assert!(store.missing(config).is_err());
        assert!(store.add_image(config, &[]).is_err());
    }
}

#[test]
fn packed_layers_live_as_long_as_their_layers() {
    if !is_root() {
        return;
    }
    let (dir, store) = store();
    let (shared, own) = (tar_of(&[("s", b"s")]), tar_of(&[("o", b"o")]));
    for (layers, tag) in [
        (vec![&shared[..], &own[..]], "two:1"),
        (vec![&shared[..]], "one:1"),
    ] {
        store
            .load(&saved(&layers, "", tag).1[..], &mut |_| {})
            .expect("it loads");
    }
    store.remove("two:1", false, &|_| false).expect("removed");
    assert_eq!(kept(&dir), [1, 1, 0], "what the other image needs stays");
    // As an older version left it: no packed form, so nothing to offer.
    let blob = fs::read_dir(dir.path().join("store/blobs"))
        .expect("a folder")
        .next()
        .expect("one")
        .expect("one")
        .path();
    fs::remove_file(&blob).expect("removed");
    assert!(store.offer("one:1").is_none());
    assert!(store.resolve("one:1").is_ok());
    store
        .load(&saved(&[&shared], "", "one:1").1[..], &mut |_| {})
        .expect("it loads again");
    assert!(store.offer("one:1").is_some(), "loading it again makes up for it");
    // A crash between the two renames.
    fs::write(blob.with_file_name(format!("{}.tar.zst", "b".repeat(64))), b"x").expect("written");
    drop(store);
    let store = ImageStore::open(&dir.path().join("store")).expect("a store");
    assert_eq!(kept(&dir), [1, 1, 0]);
    store.remove("one:1", false, &|_| false).expect("removed");
    assert_eq!(kept(&dir), [0, 0, 0]);
}

#[test]
fn a_name_with_a_digest_is_that_image_whatever_the_name_means() {
    if !is_root() {
        return;
    }
    let (_dir, store) = store();
    let (old, new) = (tar_of(&[("v", b"1")]), tar_of(&[("v", b"2")]));
    let mut ids = Vec::new();
    for layer in [&old, &new] {
        let (config, archive) = saved(&[layer], "", "web:1");
        store.load(&archive[..], &mut |_| {}).expect("it loads");
        ids.push(digest(config.as_bytes()));
    }
    assert_eq!(store.resolve("web:1").expect("there").id, ids[1]);
    for (name, want) in [("web:1", 0), ("web", 0), ("other:2", 1)] {
        let pinned = format!("{name}@{}", ids[want]);
        assert_eq!(store.resolve(&pinned).expect("there").id, ids[want], "{pinned}");
    }
    for bad in [
        format!("web:1@sha256:{}", "0".repeat(64)),
        "web:1@sha256:00".into(),
        "web:1@../x".into(),
        format!("web:1@{}", &ids[1][7..]),
    ] {
        assert!(store.resolve(&bad).is_err(), "{bad}");
    }
    let pinned = format!("web:1@{}", ids[0]);
    store
        .remove(&pinned, false, &|_| false)
        .expect("the old one is removed");
    assert_eq!(
        store
            .resolve("web:1")
            .expect("the name stays with the new one")
            .id,
        ids[1]
    );
}

#[test]
fn every_change_is_told_and_counted() {
    if !is_root() {
        return;
    }
    let (_dir, store) = store();
    let told = Arc::new(AtomicUsize::new(0));
    let counter = told.clone();
    store.on_change(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    assert!(store.inventory().is_empty());
    let layer = tar_of(&[("f", b"f")]);
    let created = r#","created":"2024-02-03T04:05:06.789Z""#;
    let (config, archive) = saved(&[&layer], created, "a:1");
    store.load(&archive[..], &mut |_| {}).expect("it loads");
    store.tag("a:1", "b:2").expect("a name");
    let held = store.inventory();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].id, digest(config.as_bytes()));
    assert_eq!(held[0].references, ["a:1", "b:2"]);
    assert_eq!(held[0].created_ms, 1_706_933_106_789);
    let (_, archive) = saved(&[&layer], "", "c:1");
    store.load(&archive[..], &mut |_| {}).expect("it loads");
    let silent = store.inventory().into_iter().find(|h| h.references == ["c:1"]);
    assert!(
        silent.expect("there").created_ms > 1_706_933_106_789,
        "when it came here"
    );
    store.remove("b:2", false, &|_| false).expect("removed");
    assert_eq!((told.load(Ordering::SeqCst), store.version()), (4, 4));
}
