//! What a test must find, or it fails and shows what it found instead.

use libtest_mimic::Failed;

/// Fails unless two things are the same.
pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), Failed> {
    if got == want {
        Ok(())
    } else {
        Err(format!("got {got:?}, want {want:?}").into())
    }
}

/// Fails, and shows the text, when a part is not in it.
pub(crate) fn contains(text: &str, part: &str) -> Result<(), Failed> {
    if text.contains(part) {
        Ok(())
    } else {
        Err(format!("no \"{part}\" in:\n{text}").into())
    }
}
