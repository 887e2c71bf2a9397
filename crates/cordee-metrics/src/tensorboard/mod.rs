//! `TensorBoard` event files: curves of a run, for those who have `TensorBoard` at hand.
//!
//! This sink is lossy: a point that cannot be written is left out and counted by its caller. What
//! is in the files is always whole, so that a reader never stops at half a record.

mod encode;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::{Event, EventKind, MetricsError, StepRecord};

/// What every name of an event file begins with; `TensorBoard` looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// Writes one event file.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    /// Bytes of whole records in the file.
    length: u64,
    /// Records that must precede the first point; empty once they are written.
    preamble: Vec<u8>,
}

impl TensorBoard {
    /// Starts a new event file in `folder`, which is created if need be.
    ///
    /// Points of `first_step` and later in older files of the folder are void from now on: the
    /// new file begins with a session start of that step, at which `TensorBoard` drops them.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self, MetricsError> {
        fs_err::create_dir_all(folder).map_err(MetricsError::Open)?;
        let path = next_path(folder).map_err(MetricsError::Open)?;
        let file = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path);
        let file = file.map_err(MetricsError::Open)?.into_parts().0;
        let time = crate::unix_time();
        let mut preamble = encode::record(&encode::file_version(time));
        preamble.extend(encode::record(&encode::session_start(time, first_step)));
        let mut board = Self {
            file,
            length: 0,
            preamble,
        };
        // A disk that is full now may have room when the first point comes.
        let _ = board.append(&[]);
        Ok(board)
    }

    /// Adds the curves of a step.
    pub fn step(&mut self, record: &StepRecord) -> io::Result<()> {
        let scalars = [
            ("loss".to_owned(), record.loss),
            ("grad_norm".to_owned(), record.grad_norm),
            ("lr".to_owned(), record.lr),
            ("tokens_per_s".to_owned(), record.tokens_per_s),
        ];
        self.append(&encode::record(&encode::scalars(
            record.time,
            record.step,
            &scalars,
        )))
    }

    /// Adds the points of an evaluation; other events have none.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        let EventKind::Evaluation { loss, sources, .. } = &event.event else {
            return Ok(());
        };
        let mut scalars = vec![("eval/loss".to_owned(), *loss)];
        for source in sources {
            scalars.push((format!("eval/{}/loss", source.name), source.loss));
            if let Some(bits) = source.bits_per_byte {
                scalars.push((format!("eval/{}/bits_per_byte", source.name), bits));
            }
        }
        self.append(&encode::record(&encode::scalars(
            event.time, event.step, &scalars,
        )))
    }

    /// Adds a whole record, or nothing.
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let mut bytes = self.preamble.clone();
        bytes.extend_from_slice(record);
        let written = self.file.write_all_at(&bytes, self.length);
        if written.is_err() {
            // Take back what a full disk took of it. If even that fails, the next record goes over
            // it, so no half record stays in the middle.
            let _ = self.file.set_len(self.length);
        }
        written?;
        self.length += bytes.len() as u64;
        self.preamble.clear();
        Ok(())
    }
}

/// A name that sorts behind all event files of the folder, because `TensorBoard` reads them in the
/// order of their names: the time, or one second later than the newest if a clock went backwards.
fn next_path(folder: &Path) -> io::Result<PathBuf> {
    let mut second = crate::unix_time() as u64;
    for entry in fs_err::read_dir(folder)? {
        let name = entry?.file_name();
        let stamp = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('.').next());
        if let Some(existing) = stamp.and_then(|stamp| stamp.parse::<u64>().ok()) {
            second = second.max(existing + 1);
        }
    }
    Ok(folder.join(format!("{PREFIX}{second:010}.cordee")))
}
