//! Reading back what a run wrote.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Event, MetricsError, StepRecord};

/// The steps in a `metrics.jsonl`, in the order of the file.
///
/// A last line without its line feed is still being written, or was cut short by a crash: it is
/// left out.
pub fn read_steps(path: &Path) -> Result<Vec<StepRecord>, MetricsError> {
    read_lines(path)
}

/// The events in an `events.jsonl`, in the order of the file; a last line without its line feed is
/// left out.
pub fn read_events(path: &Path) -> Result<Vec<Event>, MetricsError> {
    read_lines(path)
}

/// The step of the last whole line of a `metrics.jsonl`, read from its end; `None` where there is none.
pub fn last_step(path: &Path) -> Option<u64> {
    /// More than a line of a step takes.
    const TAIL: u64 = 64 << 10;
    #[derive(Deserialize)]
    struct Position {
        step: u64,
    }
    let mut file = fs_err::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let lines: Vec<_> = whole_lines(&text).collect();
    let read = |line: &&[u8]| serde_json::from_slice::<Position>(line).ok();
    lines.iter().rev().find_map(read).map(|found| found.step)
}

pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, MetricsError> {
    let text = fs_err::read(path).map_err(MetricsError::Open)?;
    whole_lines(&text)
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|source| MetricsError::Malformed {
                path: path.to_owned(),
                line: index + 1,
                source,
            })
        })
        .collect()
}

/// The lines of `text` that end with a line feed, each with it.
pub(crate) fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
}
