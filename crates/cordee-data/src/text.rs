//! Text on disk: which files a source has, whether they are what they should be, where documents
//! end.
//!
//! Knows nothing of tokens. A source is read file by file, so memory holds one file's text at a
//! time.

use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest, Sha256};

use crate::{DataError, Format};

/// SHA-256 of some bytes.
pub(crate) type ContentHash = [u8; 32];

/// A file whose content is known by its hash.
#[derive(Clone, Debug)]
pub(crate) struct HashedFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) sha256: ContentHash,
}

/// A source: its files in reading order, and what stands in them.
#[derive(Clone, Debug)]
pub(crate) struct SourceFiles {
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) files: Vec<HashedFile>,
}

/// The files of the source at `path`: itself, or the files of a directory with the format's extension,
/// in order of their names.
pub(crate) fn list_files(
    name: &str,
    path: &Path,
    format: &Format,
) -> Result<Vec<PathBuf>, DataError> {
    let wanted = match format {
        Format::Text { .. } => "txt",
        Format::Examples { .. } => "jsonl",
    };
    if !path.try_exists()? {
        return Err(DataError::SourceMissing {
            name: name.to_owned(),
            path: path.to_owned(),
        });
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if file
            .extension()
            .is_some_and(|extension| extension == wanted)
            && file.is_file()
        {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(DataError::NoFiles {
            name: name.to_owned(),
            path: path.to_owned(),
            extension: wanted,
        });
    }
    files.sort();
    Ok(files)
}

/// Reads a whole file; an error if it is not the content that was hashed, not UTF-8, or blank.
pub(crate) fn read_text(file: &HashedFile) -> Result<String, DataError> {
    let bytes = fs::read(&file.path)?;
    if Sha256::digest(&bytes)[..] != file.sha256 {
        return Err(DataError::SourceChanged {
            path: file.path.clone(),
        });
    }
    let text = String::from_utf8(bytes).map_err(|error| not_utf8(&file.path, &error))?;
    if is_blank(&text) {
        return Err(DataError::EmptyText {
            path: file.path.clone(),
        });
    }
    Ok(text)
}

fn not_utf8(path: &Path, error: &std::string::FromUtf8Error) -> DataError {
    let offset = error.utf8_error().valid_up_to();
    let bytes = error.as_bytes();
    let line = bytes[..offset].split(|&byte| byte == b'\n').count() as u64;
    DataError::NotUtf8 {
        path: path.to_owned(),
        byte: bytes[offset],
        offset: offset as u64,
        line,
    }
}

/// The documents of a file: between separators, as they stand, without those that are blank.
pub(crate) fn documents<'t>(text: &'t str, separator: Option<&str>) -> Vec<&'t str> {
    match separator {
        Some(separator) => text
            .split(separator)
            .filter(|document| !is_blank(document))
            .collect(),
        None => vec![text],
    }
}

fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Format = Format::Text { separator: None };

    fn hashed(path: &Path) -> HashedFile {
        let bytes = fs::read(path).unwrap();
        HashedFile {
            path: path.to_owned(),
            bytes: bytes.len() as u64,
            sha256: Sha256::digest(&bytes).into(),
        }
    }

    #[test]
    fn invalid_bytes_are_named_by_offset_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latin1.txt");
        fs::write(&path, b"one\ntwo\ncaf\xe9 noir\n").unwrap();
        let error = read_text(&hashed(&path)).unwrap_err().to_string();
        assert!(
            error.ends_with("invalid byte 0xe9 at byte offset 11, line 3"),
            "{error}"
        );
        fs::write(&path, b"cut off \xc3").unwrap();
        let error = read_text(&hashed(&path)).unwrap_err().to_string();
        assert!(
            error.ends_with("invalid byte 0xc3 at byte offset 8, line 1"),
            "{error}"
        );
    }

    #[test]
    fn blank_and_changed_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        for blank in ["", " \n\t\n"] {
            fs::write(&path, blank).unwrap();
            assert!(matches!(
                read_text(&hashed(&path)),
                Err(DataError::EmptyText { .. })
            ));
        }
        let before = hashed(&path);
        fs::write(&path, "other").unwrap();
        assert!(matches!(
            read_text(&before),
            Err(DataError::SourceChanged { .. })
        ));
    }

    #[test]
    fn directories_list_text_files_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(
            list_files("s", &missing, &TEXT),
            Err(DataError::SourceMissing { .. })
        ));
        assert!(matches!(
            list_files("s", dir.path(), &TEXT),
            Err(DataError::NoFiles { .. })
        ));
        for name in ["b.txt", "a.txt", "c.md", "10.txt"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let names: Vec<_> = list_files("s", dir.path(), &TEXT)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["10.txt", "a.txt", "b.txt"]);
        let examples = Format::Examples {
            keys: crate::ExampleKeys::default(),
            too_long: cordee_config::TooLong::Skip,
        };
        let error = list_files("s", dir.path(), &examples).unwrap_err();
        assert!(error.to_string().ends_with("ends in .jsonl"), "{error}");
    }

    #[test]
    fn documents_keep_their_white_space() {
        assert_eq!(documents("a \n\n\n\n b\n\n\n", Some("\n\n")), ["a ", " b"]);
        assert_eq!(documents("a\n\nb", None), ["a\n\nb"]);
    }
}
