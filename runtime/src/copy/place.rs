//! Where a copy goes: what `cp` means by its source and its destination, as Docker has it.

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// It is a folder.
    pub folder: bool,
    /// What is in it is meant, not the folder itself: its path ends with `/.`.
    pub contents: bool,
}

/// What is at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A folder.
    Folder,
    /// Something else.
    Other,
    /// Nothing, in a folder that is there.
    Nothing,
}

/// How a copy is put where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Into the destination, under its own name.
    Into,
    /// Into the destination, without the folder it came in.
    Contents,
    /// As the destination: under the name that one has.
    As,
}

/// Why a source cannot go to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// `file` to `nothing/`.
    #[error("the destination ends with / but is no folder that is there: make it first, or leave the / away")]
    NoFolder,
    /// A folder onto a file.
    #[error("a folder cannot be copied onto a file")]
    FolderOnFile,
    /// `file` to `file/`.
    #[error("the destination ends with / but is a file")]
    FileAsFolder,
}

/// Chooses. `slash` says that the destination was written with `/` at its end, so a folder is meant.
///
/// # Errors
/// [`PlaceError`] where the two do not go together.
pub fn place(source: Shape, destination: Destination, slash: bool) -> Result<Place, PlaceError> {
    match (source.folder, destination) {
        (true, Destination::Folder) if source.contents => Ok(Place::Contents),
        (_, Destination::Folder) => Ok(Place::Into),
        (true, Destination::Nothing) => Ok(Place::As),
        (true, Destination::Other) => Err(PlaceError::FolderOnFile),
        (false, Destination::Nothing) if slash => Err(PlaceError::NoFolder),
        (false, Destination::Other) if slash => Err(PlaceError::FileAsFolder),
        (false, Destination::Nothing | Destination::Other) => Ok(Place::As),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_go_where_docker_puts_them() {
        use Destination::{Folder, Nothing, Other};
        let (file, folder) = ((false, false), (true, false));
        let contents = (true, true);
        for (row, (is_folder, contents), destination, slash, wanted) in [
            ("a file gets a new name", file, Nothing, false, Ok(Place::As)),
            ("a file takes another's place", file, Other, false, Ok(Place::As)),
            ("a file into a folder", file, Folder, false, Ok(Place::Into)),
            (
                "no folder is made for a file",
                file,
                Nothing,
                true,
                Err(PlaceError::NoFolder),
            ),
            (
                "a file is no folder",
                file,
                Other,
                true,
                Err(PlaceError::FileAsFolder),
            ),
            ("a folder gets a new name", folder, Nothing, false, Ok(Place::As)),
            ("also with / at its end", folder, Nothing, true, Ok(Place::As)),
            ("a folder into a folder", folder, Folder, false, Ok(Place::Into)),
            (
                "not onto a file",
                folder,
                Other,
                false,
                Err(PlaceError::FolderOnFile),
            ),
            (
                "what is in it into a folder",
                contents,
                Folder,
                false,
                Ok(Place::Contents),
            ),
            (
                "what is in it as a new folder",
                contents,
                Nothing,
                false,
                Ok(Place::As),
            ),
        ] {
            let source = Shape {
                folder: is_folder,
                contents,
            };
            assert_eq!(place(source, destination, slash), wanted, "{row}");
        }
    }
}
