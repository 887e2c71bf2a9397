//! The recorder of a run: takes records, never waits, and owns the sinks.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::cut::cut_from;
use crate::lossy::Lossy;
use crate::{Event, JsonLines, MetricsError, StepRecord, TensorBoard};

/// Name of the file of steps in a run directory.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the file of events in a run directory.
pub const EVENTS_FILE: &str = "events.jsonl";
/// Name of the folder of `TensorBoard` event files in a run directory.
pub const TENSORBOARD_FOLDER: &str = "tb";

/// Writes what happens in a run to its directory. One process writes a run directory at a time.
///
/// A recorder that is dropped without [`Recorder::finish`] still writes what it was given, but
/// tells nobody if that fails.
#[derive(Debug)]
pub struct Recorder {
    /// Unbounded, so that nothing is lost and nobody waits. `None` only while it is closed.
    lines: Option<Sender<Order>>,
    writer: Option<JoinHandle<()>>,
    tensorboard: Option<Lossy<Entry>>,
}

/// A record of either kind.
#[derive(Debug)]
enum Entry {
    Step(StepRecord),
    Event(Event),
}

/// What the thread that writes lines is told.
#[derive(Debug)]
enum Order {
    Write(Entry),
    Flush(SyncSender<Result<(), MetricsError>>),
}

impl Recorder {
    /// Opens the records in `run_dir`, which exists.
    ///
    /// `resume_at` is the number of optimizer steps that the checkpoint has behind it: records past
    /// it, which an earlier attempt left, are cut from both files, since the steps will happen
    /// again. Without it the run starts anew, and everything an earlier attempt left is cut.
    /// `tensorboard` says whether to write event files as well.
    pub fn open(
        run_dir: &Path,
        resume_at: Option<u64>,
        tensorboard: bool,
    ) -> Result<Self, MetricsError> {
        let first_step = resume_at.map_or(0, |step| step + 1);
        let open = |name| {
            let path = run_dir.join(name);
            cut_from(&path, first_step).map_err(MetricsError::Open)?;
            JsonLines::open(&path)
        };
        let (metrics, events) = (open(METRICS_FILE)?, open(EVENTS_FILE)?);
        let tensorboard = if tensorboard {
            let mut board = TensorBoard::create(&run_dir.join(TENSORBOARD_FOLDER), first_step)?;
            let sink = Lossy::start(move |entry| match entry {
                Entry::Step(record) => board.step(&record),
                Entry::Event(event) => board.event(&event),
            });
            Some(sink.map_err(MetricsError::Open)?)
        } else {
            None
        };
        let (lines, orders) = channel();
        let writer = std::thread::Builder::new().name("metrics-lines".to_owned());
        let writer = writer.spawn(move || write_lines(metrics, events, &orders));
        let writer = Some(writer.map_err(MetricsError::Open)?);
        Ok(Self {
            lines: Some(lines),
            writer,
            tensorboard,
        })
    }

    /// Records a step. Never waits.
    pub fn step(&self, record: StepRecord) {
        if let Some(tensorboard) = &self.tensorboard {
            tensorboard.push(Entry::Step(record));
        }
        self.write(Entry::Step(record));
    }

    /// Records an event. Never waits.
    pub fn event(&self, event: Event) {
        if let Some(tensorboard) = &self.tensorboard {
            tensorboard.push(Entry::Event(event.clone()));
        }
        self.write(Entry::Event(event));
    }

    fn write(&self, entry: Entry) {
        if let Some(lines) = &self.lines {
            // It fails only if the writer has panicked, which `flush` says.
            let _ = lines.send(Order::Write(entry));
        }
    }

    /// Waits until every line recorded so far is on disk. Call it before a checkpoint commits, so
    /// that what led to a checkpoint is on record wherever the checkpoint is.
    ///
    /// Lines that could not be written are kept, and tried again with the next one.
    pub fn flush(&self) -> Result<(), MetricsError> {
        let (reply, answer) = sync_channel(1);
        if let Some(lines) = &self.lines
            && lines.send(Order::Flush(reply)).is_ok()
            && let Ok(result) = answer.recv()
        {
            return result;
        }
        Err(MetricsError::WriterGone)
    }

    /// Records that lossy sinks have dropped so far. The JSON files drop none.
    pub fn dropped(&self) -> u64 {
        self.tensorboard.as_ref().map_or(0, Lossy::dropped)
    }

    /// Writes what is left and closes the files. Gives the number of records that lossy sinks
    /// dropped; fails if a line could not be written, which is then lost.
    pub fn finish(mut self) -> Result<u64, MetricsError> {
        let flushed = self.flush();
        let dropped = self.close();
        flushed.map(|()| dropped)
    }

    /// Ends the threads once they have written what they were given.
    fn close(&mut self) -> u64 {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            // A panic was told by `flush` as a writer that is gone.
            let _ = writer.join();
        }
        self.tensorboard.take().map_or(0, Lossy::finish)
    }
}

/// Adds an event to the record of a run that nobody else is writing: what became of its ranks, say.
pub fn append_event(run_dir: &Path, event: &Event) -> Result<(), MetricsError> {
    let path = run_dir.join(EVENTS_FILE);
    // Half a line that a killed process left would swallow this one.
    cut_from(&path, u64::MAX).map_err(MetricsError::Open)?;
    let mut events = JsonLines::open(&path)?;
    events.push(event);
    events.flush()
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread behind a recorder: does what it is told until the recorder is gone.
fn write_lines(mut metrics: JsonLines, mut events: JsonLines, orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Write(Entry::Step(record)) => metrics.push(&record),
            Order::Write(Entry::Event(event)) => events.push(&event),
            Order::Flush(reply) => {
                // Both are tried, even if the first fails.
                let results = [metrics.flush(), events.flush()];
                // The one who asked may have given up waiting.
                let _ = reply.send(results.into_iter().collect());
            }
        }
    }
}
