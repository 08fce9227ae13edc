//! Tests of snapshot files: sizes around a piece, and every kind of damage.

use super::*;
use crate::raft::log::tests::ring;

fn write(dir: &Path, content: &[u8], step: usize) -> SnapshotFile {
    let mut writer = SnapshotWriter::create(dir, &ring(dir)).unwrap();
    for part in content.chunks(step) {
        writer.write(part).unwrap();
    }
    writer.finish().unwrap()
}

fn pieces(file: &mut SnapshotFile) -> io::Result<Vec<Vec<u8>>> {
    file.rewind();
    std::iter::from_fn(|| file.next_piece().transpose()).collect()
}

fn content(len: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(len).collect()
}

#[test]
fn a_snapshot_of_any_size_is_read_as_it_was_written_in_pieces_within_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        (0, 1, 1),
        (1, 1, 1),
        (PIECE_BYTES - 1, 1000, 1),
        (PIECE_BYTES, PIECE_BYTES, 1),
        (PIECE_BYTES + 1, 7777, 2),
        (3 * PIECE_BYTES, 3 * PIECE_BYTES, 3),
        (5 * PIECE_BYTES / 2, 100_000, 3),
    ];
    for (len, step, expected) in rows {
        let mut file = write(dir.path(), &content(len), step);
        let found = pieces(&mut file).unwrap();
        assert_eq!(found.len(), expected, "{len}");
        assert!(found.iter().all(|p| p.len() <= PIECE_BYTES));
        assert!(found.concat() == content(len), "{len}");
        let mut read = Vec::new();
        file.rewind();
        file.reader().read_to_end(&mut read).unwrap();
        assert!(read == content(len), "{len}");
    }
}

#[test]
fn pieces_that_are_missing_doubled_or_swapped_do_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ring(dir.path());
    write(dir.path(), &content(3 * PIECE_BYTES), 4096)
        .install(dir.path(), &keys)
        .unwrap();
    let path = path_in(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let full = PIECE_BYTES + TAG_BYTES;
    let (header, body) = whole.split_at(HEADER_BYTES);
    let piece = |n: usize| &body[n * full..(n + 1) * full];
    let rows: &[(&str, Vec<&[u8]>, usize)] = &[
        ("the last is gone", vec![piece(0), piece(1)], 1),
        ("only the header", vec![], 0),
        ("two are swapped", vec![piece(1), piece(0), piece(2)], 0),
        ("one is doubled", vec![piece(0), piece(1), piece(1), piece(2)], 2),
        (
            "one follows the end",
            vec![piece(0), piece(1), piece(2), piece(2)],
            2,
        ),
        ("the first is gone", vec![piece(1), piece(2)], 0),
    ];
    for (name, parts, good) in rows {
        std::fs::write(&path, [header, &parts.concat()].concat()).unwrap();
        let mut file = SnapshotFile::open(&path, &keys).unwrap().unwrap();
        for _ in 0..*good {
            file.next_piece().unwrap();
        }
        let error = file.next_piece().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}");
        let error = error.downcast::<LogError>().unwrap();
        let expected = (HEADER_BYTES + good * full) as u64;
        assert!(
            matches!(error, LogError::Corrupt { offset, .. } if offset == expected),
            "{name}: {error}"
        );
    }
}

#[test]
fn what_was_not_installed_leaves_no_file_and_what_was_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ring(dir.path());
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    drop(SnapshotWriter::create(dir.path(), &keys).unwrap());
    drop(write(dir.path(), b"one", 1));
    assert_eq!(names(), ["keys"]);
    let mut first = write(dir.path(), b"first", 5);
    first.install(dir.path(), &keys).unwrap();
    first.install(dir.path(), &keys).unwrap();
    let mut second = write(dir.path(), b"second", 6);
    second.install(dir.path(), &keys).unwrap();
    drop(second);
    assert_eq!(names(), ["keys", "snapshot"]);
    assert_eq!(
        pieces(&mut first).unwrap(),
        [b"first"],
        "a reader keeps what it opened"
    );
    let mut newest = SnapshotFile::open(&path_in(dir.path()), &keys).unwrap().unwrap();
    assert_eq!(pieces(&mut newest).unwrap(), [b"second"]);
    // What a killed process left.
    std::fs::write(dir.path().join("snapshot-12.tmp"), b"half").unwrap();
    std::fs::write(dir.path().join("snapshot.tmp"), b"half").unwrap();
    remove_unfinished(dir.path()).unwrap();
    assert_eq!(names(), ["keys", "snapshot"]);
}

#[test]
fn a_snapshot_from_a_folder_with_other_keys_is_sealed_anew_when_it_is_installed() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let keys = ring(here.path());
    let mut file = write(there.path(), &content(PIECE_BYTES + 9), 4096);
    file.install(here.path(), &keys).unwrap();
    let mut mine = SnapshotFile::open(&path_in(here.path()), &keys).unwrap().unwrap();
    assert!(pieces(&mut mine).unwrap().concat() == content(PIECE_BYTES + 9));
    assert!(
        SnapshotFile::open(&path_in(there.path()), &ring(there.path()))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_snapshot_of_the_version_before_sealing_is_read_and_sealed() {
    use crate::raft::record::SnapshotHeader;
    use crate::raft::state_machine::StateMachine;
    use model::object::{Meta, Object, Secret};
    use prost::Message;

    let dir = tempfile::tempdir().unwrap();
    let secret = Secret {
        id: model::SecretId(3),
        meta: Meta::default(),
        spec: std::sync::Arc::new(model::spec::SecretSpec {
            name: "s".into(),
            data: b"CANARY-of-a-snapshot".to_vec(),
            ..Default::default()
        }),
    };
    let object = proto::types::Object::from(&Object::Secret(std::sync::Arc::new(secret)));
    let header = SnapshotHeader {
        index: 8,
        objects: 1,
        ..SnapshotHeader::default()
    };
    let mut bytes = PLAIN_MAGIC.to_vec();
    bytes.extend(header.encode_length_delimited_to_vec());
    bytes.extend(object.encode_length_delimited_to_vec());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let path = path_in(dir.path());
    std::fs::write(&path, &bytes).unwrap();
    assert!(bytes.windows(6).any(|w| w == b"CANARY"));
    for _ in 0..2 {
        let (_, published) = StateMachine::open(dir.path(), &ring(dir.path())).unwrap();
        assert_eq!(published.state.load().secrets().count(), 1);
        assert_eq!(key_of(&path).unwrap(), Some(1));
        assert!(!std::fs::read(&path).unwrap().windows(6).any(|w| w == b"CANARY"));
    }
    bytes[20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let damaged = StateMachine::open(dir.path(), &ring(dir.path())).map(|_| ());
    assert!(matches!(damaged, Err(LogError::Corrupt { .. })));
}
