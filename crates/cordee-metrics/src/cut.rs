//! Cutting a file of records back to where a run resumes.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::read::whole_lines;

/// What of a record decides whether it stays.
#[derive(Deserialize)]
struct Position {
    step: u64,
}

/// Cuts `path` behind the last record that precedes every record of `first_step` or later.
///
/// Steps never fall within a file, so what stays is a prefix, and the cut is one truncation at
/// the end of a line: a crash in the middle of it leaves the file as it was, or cut. Half a line
/// that a crash or a full disk left at the end goes too. A file that does not exist is left so.
pub(crate) fn cut_from(path: &Path, first_step: u64) -> io::Result<()> {
    let text = match fs_err::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let (mut end, mut keep) = (0, 0);
    for line in whole_lines(&text) {
        end += line.len();
        match serde_json::from_slice(line) {
            Ok(Position { step }) if step < first_step => keep = end,
            Ok(Position { .. }) => break,
            // A crash of the machine can leave blocks of garbage. It stays where records follow
            // it, so that nothing is dropped that a reader could still want, and goes at the end.
            Err(_) => {}
        }
    }
    if keep < text.len() {
        let file = fs_err::OpenOptions::new().write(true).open(path)?;
        file.set_len(keep as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::cut_from;

    /// Cuts `text` and gives what is left.
    fn cut(text: &[u8], first_step: u64) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        cut_from(&path, first_step).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn a_missing_file_stays_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        cut_from(&path, 3).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn garbage_at_the_end_goes_and_garbage_between_records_stays() {
        let text = b"{\"step\":1}\n\0\0\0\n{\"step\":2}\n\0\0\n\0";
        assert_eq!(cut(text, 9), b"{\"step\":1}\n\0\0\0\n{\"step\":2}\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_a_crash_leaves_a_cut_keeps_exactly_the_whole_lines_before_the_step(
            increments in prop::collection::vec(0_u64..3, 1..20),
            first_step in 0_u64..30,
            lost in 0_usize..40,
        ) {
            let mut step = 0;
            let lines: Vec<(u64, String)> = increments.iter().map(|increment| {
                step += increment;
                (step, format!("{{\"loss\":0.5,\"step\":{step}}}\n"))
            }).collect();
            let whole: String = lines.iter().map(|(_, line)| line.as_str()).collect();
            let left = &whole.as_bytes()[..whole.len().saturating_sub(lost)];

            let mut length = 0;
            let expected: String = lines.iter().take_while(|(step, line)| {
                length += line.len();
                *step < first_step && length <= left.len()
            }).map(|(_, line)| line.as_str()).collect();
            prop_assert_eq!(cut(left, first_step), expected.as_bytes());
        }
    }
}
