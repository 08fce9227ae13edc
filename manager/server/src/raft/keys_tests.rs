//! Tests of the file of data keys: locked and unlocked, damaged, and how many there may be.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn ready(dir: &Path) -> KeyRing {
    match KeyRing::open(dir).unwrap() {
        Opened::Ready(ring) => ring,
        Opened::Locked(ring) => panic!("{ring:?}"),
    }
}

fn locked(dir: &Path) -> LockedRing {
    match KeyRing::open(dir).unwrap() {
        Opened::Locked(ring) => ring,
        Opened::Ready(ring) => panic!("{ring:?}"),
    }
}

/// What a ring seals with key `number`, with the nonce left out of account.
fn opens(one: &KeyRing, other: &KeyRing, number: u32) -> bool {
    let sealed = one
        .cipher(number, b"salt", b"test")
        .unwrap()
        .seal(b"here", b"text")
        .unwrap();
    let cipher = other.cipher(number, b"salt", b"test");
    cipher.is_some_and(|c| c.open(b"here", &sealed).is_some_and(|plain| plain == b"text"))
}

#[test]
fn a_ring_is_read_as_it_was_written_and_a_rotation_keeps_the_older_keys() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::create(dir.path(), None).unwrap();
    let mode = std::fs::metadata(dir.path().join("keys"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(
        KeyRing::create(dir.path(), None),
        Err(KeyError::Exists { .. })
    ));
    assert_eq!((ring.newest(), ring.rotate().unwrap(), ring.newest()), (1, 2, 2));
    let read = ready(dir.path());
    assert_eq!(read.newest(), 2);
    assert!(opens(&ring, &read, 1) && opens(&ring, &read, 2));
    assert!(read.cipher(3, b"salt", b"test").is_none());
}

#[test]
fn a_locked_ring_opens_with_its_newest_key_only_and_a_wrong_one_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (UnlockKey::random().unwrap(), UnlockKey::random().unwrap());
    let ring = KeyRing::create(dir.path(), Some(&first)).unwrap();
    let unlocked = locked(dir.path()).unlock(&first).unwrap();
    assert!(opens(&ring, &unlocked, 1));
    // A rotation keeps the lock without being told the key again.
    unlocked.rotate().unwrap();
    unlocked.seal(Some(&second)).unwrap();
    let path = dir.path().join("keys");
    let (bytes, written) = (
        std::fs::read(&path).unwrap(),
        std::fs::metadata(&path).unwrap().modified().unwrap(),
    );
    let waiting = locked(dir.path());
    for wrong in [&first, &UnlockKey::random().unwrap()] {
        let error = waiting.unlock(wrong).unwrap_err();
        assert!(matches!(error, KeyError::WrongKey { .. }), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written);
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["keys"]);
    let unlocked = waiting.unlock(&second).unwrap();
    assert!(opens(&ring, &unlocked, 1) && unlocked.newest() == 2 && unlocked.is_sealed());
    unlocked.seal(None).unwrap();
    assert!(opens(&unlocked, &ready(dir.path()), 2));
}

#[test]
fn a_changed_bit_of_the_file_is_damage_and_never_a_wrong_key() {
    for unlock in [None, Some(UnlockKey::random().unwrap())] {
        let dir = tempfile::tempdir().unwrap();
        KeyRing::create(dir.path(), unlock.as_ref()).unwrap();
        let path = dir.path().join("keys");
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, changed).unwrap();
            let error = KeyRing::open(dir.path()).map(|_| ()).unwrap_err();
            let expected = matches!(
                error,
                KeyError::Log(LogError::Corrupt { .. } | LogError::Format { .. })
            );
            assert!(expected, "bit {bit}: {error}");
        }
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(KeyRing::open(dir.path()).is_err(), "cut at {end}");
        }
    }
}

#[test]
fn a_ring_has_a_bound_and_an_unfinished_file_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::create(dir.path(), None).unwrap();
    for _ in 1..KEYS_MAX {
        ring.rotate().unwrap();
    }
    let before = std::fs::read(dir.path().join("keys")).unwrap();
    assert!(matches!(ring.rotate(), Err(KeyError::TooMany { .. })));
    assert_eq!(std::fs::read(dir.path().join("keys")).unwrap(), before);
    // Nothing is sealed in this folder.
    ring.forget_unused().unwrap();
    assert_eq!(ring.ring().keys.len(), 1);
    assert_eq!(
        ring.rotate().unwrap(),
        u32::try_from(KEYS_MAX).unwrap() + 1,
        "no number comes twice"
    );
    std::fs::write(dir.path().join("keys.tmp"), before).unwrap();
    assert_eq!(ready(dir.path()).newest(), ring.newest());
    assert!(!dir.path().join("keys.tmp").exists());
}

#[test]
fn a_ring_does_not_overwrite_what_another_one_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::create(dir.path(), None).unwrap();
    let other = ready(dir.path());
    assert_eq!(other.rotate().unwrap(), 2);
    assert!(matches!(
        ring.seal(Some(&UnlockKey::random().unwrap())),
        Err(KeyError::Changed { .. })
    ));
    assert!(matches!(ring.rotate(), Err(KeyError::Changed { .. })));
    assert_eq!((ring.newest(), ready(dir.path()).newest()), (1, 2));
    std::fs::remove_file(dir.path().join("keys")).unwrap();
    assert!(
        matches!(other.rotate(), Err(KeyError::Changed { .. })),
        "a folder that was left gets no keys"
    );
}
