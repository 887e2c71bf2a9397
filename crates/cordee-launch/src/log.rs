//! The log file of one rank, and its last lines.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err::{File, OpenOptions};

/// Lines kept for the failure report.
const TAIL: usize = 100;
/// Bytes of each of them.
const TAIL_WIDTH: usize = 2000;

/// Everything a rank printed, over all attempts.
#[derive(Debug)]
pub(crate) struct RankLog {
    file: File,
    tail: VecDeque<String>,
}

/// Where the log of a rank lies.
pub(crate) fn path(directory: &Path, rank: usize) -> PathBuf {
    directory.join(format!("rank-{rank:03}.log"))
}

impl RankLog {
    /// Opens the log to append to it, and separates this attempt from what is there.
    pub(crate) fn open(path: &Path, attempt: usize) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            let line_feed = if last == *b"\n" { "" } else { "\n" };
            // One write, so that a crash leaves no half of it.
            file.write_all(format!("{line_feed}==== attempt {attempt} ====\n").as_bytes())?;
        }
        Ok(Self {
            file,
            tail: VecDeque::new(),
        })
    }

    /// Appends complete lines with one `write`, so that they are with the kernel whatever happens to us.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.keep_tail(lines);
        self.file.write_all(lines)
    }

    fn keep_tail(&mut self, lines: &[u8]) {
        let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
        let newest: Vec<_> = lines
            .rsplitn(TAIL + 1, |&byte| byte == b'\n')
            .take(TAIL)
            .collect();
        for line in newest.into_iter().rev() {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(
                String::from_utf8_lossy(&line[..line.len().min(TAIL_WIDTH)]).into_owned(),
            );
        }
    }

    /// The last lines of this attempt.
    pub(crate) fn into_tail(self) -> Vec<String> {
        self.tail.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_attempt_appends_after_a_separator() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path(), 7);
        assert!(path.ends_with("rank-007.log"));
        let mut log = RankLog::open(&path, 1).unwrap();
        log.append(b"one\n\xff\n").unwrap();
        log.append(b"no line feed").unwrap();
        let mut log = RankLog::open(&path, 2).unwrap();
        log.append(b"two\n").unwrap();
        let expected = b"one\n\xff\nno line feed\n==== attempt 2 ====\ntwo\n";
        assert_eq!(fs_err::read(&path).unwrap(), expected);
        assert_eq!(log.into_tail(), ["two"]);
    }

    #[test]
    fn the_tail_holds_the_last_hundred_lines() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = RankLog::open(&path(directory.path(), 0), 1).unwrap();
        log.append(b"0\n1\n2\n").unwrap();
        let block: Vec<_> = (3..150).map(|line| line.to_string()).collect();
        log.append((block.join("\n") + "\n").as_bytes()).unwrap();
        log.append(b"\n").unwrap();
        let mut expected: Vec<_> = (51..150).map(|line| line.to_string()).collect();
        expected.push(String::new());
        assert_eq!(log.into_tail(), expected);
    }
}
