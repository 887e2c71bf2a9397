//! A file of JSON lines that loses none.
//!
//! A line goes to the kernel whole, in one `write(2)`, and is from then on safe from whatever kills
//! this process. What the file system refuses (a full disk, a quota) waits here, in order.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::MetricsError;

/// A file that one JSON object after the other is appended to.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    pending: Pending,
}

impl JsonLines {
    /// Opens `path` to append to it, and creates it if it is not there.
    pub fn open(path: &Path) -> Result<Self, MetricsError> {
        let file = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        let file = file.map_err(MetricsError::Open)?.into_parts().0;
        Ok(Self {
            path: path.to_owned(),
            file,
            pending: Pending::default(),
        })
    }

    /// Appends a record. It and every record before it that still waits are written now if the
    /// file takes them; otherwise they wait for the next call.
    pub fn push<T: Serialize>(&mut self, record: &T) {
        let mut line = serde_json::to_vec(record).expect("records have string keys only");
        line.push(b'\n');
        self.pending.lines.push_back(line);
        // An error is not lost: `flush` meets it again and says it.
        let _ = self.pending.write_to(&mut self.file);
    }

    /// Returns once every line is on disk, safe from a crash of the machine too, or says why not.
    /// Lines that could not be written are kept.
    pub fn flush(&mut self) -> Result<(), MetricsError> {
        let written = self.pending.write_to(&mut self.file);
        written.map_err(|source| MetricsError::Pending {
            path: self.path.clone(),
            lines: self.pending.lines.len(),
            source,
        })?;
        let synced = self.file.sync_data();
        synced.map_err(|source| MetricsError::Sync {
            path: self.path.clone(),
            source,
        })
    }
}

/// Lines that are not written yet.
#[derive(Debug, Default)]
struct Pending {
    lines: VecDeque<Vec<u8>>,
    /// Bytes of the first line that are in the file already: a disk that fills up takes a part.
    written: usize,
}

impl Pending {
    /// Writes as many lines as `file` takes, each with one call if it takes it whole.
    fn write_to(&mut self, file: &mut impl Write) -> io::Result<()> {
        while let Some(line) = self.lines.front() {
            match file.write(&line[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.written == line.len() {
                self.lines.pop_front();
                self.written = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind, Write};

    use proptest::prelude::*;

    use super::{JsonLines, Pending};
    use crate::MetricsError;

    /// A file that does with each write what the next answer says: take that many bytes, or fail.
    struct Moody {
        taken: Vec<u8>,
        answers: Vec<Result<usize, ErrorKind>>,
    }

    impl Write for Moody {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self
                .answers
                .pop()
                .unwrap_or(Ok(usize::MAX))?
                .min(bytes.len());
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn whatever_the_file_refuses_no_byte_is_lost_doubled_or_out_of_order(
            lengths in prop::collection::vec(1_usize..40, 1..20),
            answers in prop::collection::vec(
                prop_oneof![
                    (0_usize..40).prop_map(Ok),
                    Just(Err(ErrorKind::StorageFull)),
                    Just(Err(ErrorKind::Interrupted)),
                ],
                0..60,
            ),
        ) {
            let mut file = Moody { taken: vec![], answers };
            let mut pending = Pending::default();
            let mut expected = vec![];
            for (index, length) in lengths.into_iter().enumerate() {
                let line = vec![index as u8; length];
                expected.extend_from_slice(&line);
                pending.lines.push_back(line);
                let _ = pending.write_to(&mut file);
            }
            file.answers.clear();
            pending.write_to(&mut file).unwrap();
            prop_assert_eq!(file.taken, expected);
            prop_assert!(pending.lines.is_empty());
        }
    }

    #[test]
    fn a_device_that_is_always_full_is_named_with_what_waits() {
        let mut lines = JsonLines::open("/dev/full".as_ref()).unwrap();
        lines.push(&1);
        lines.push(&2);
        match lines.flush().unwrap_err() {
            MetricsError::Pending {
                path,
                lines,
                source,
            } => {
                assert_eq!((path.to_str(), lines), (Some("/dev/full"), 2));
                assert_eq!(source.kind(), ErrorKind::StorageFull);
            }
            other => panic!("{other}"),
        }
    }
}
