//! The console: what a person or a program sees of a run.
//!
//! People read standard error: a bar on a terminal, lines elsewhere, colours only on a terminal.
//! Standard output carries data only: in JSON mode every message as one object a line, otherwise
//! what a command was asked to print. The console shows what it is told and knows nothing of how
//! ranks run; what text looks like is in `lines`, `summary` and `style`, which print nothing.

mod goodput;
mod lines;
mod numbers;
mod pace;
mod repeats;
#[cfg(test)]
mod samples;
mod screen;
mod style;
mod summary;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anstream::AutoStream;
use anstream::adapter::strip_str;
use cordee_metrics::Ledger;
use cordee_protocol::{Banner, Failure, StepProgress, WorkerMessage};
use indicatif::ProgressDrawTarget;

pub use self::numbers::bytes;
use self::pace::Pace;
use self::repeats::Repeats;
use self::screen::Screen;
pub(crate) use self::{
    goodput::{goodput, goodput_table, share},
    numbers::{compact, duration},
    style::harmless,
    table::{Side, table},
};

/// Longest silence about one stage of a preparation.
const STAGE_SILENCE: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar on a terminal, lines elsewhere.
    Auto,
    /// A bar; lines where there is no terminal to draw it on.
    Bar,
    /// A line every few steps, and at least every minute.
    Plain,
    /// Every message as a JSON object, one a line, on standard output.
    Json,
    /// Nothing but warnings and errors.
    None,
}

/// How progress is shown, once it is known where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Bar,
    Plain,
    Json,
    Nothing,
}

/// Shows a run.
pub struct Console {
    show: Show,
    screen: Screen,
    pace: Pace,
    repeats: Repeats,
    /// The stage of the preparation that was shown last, and when.
    stage: Option<(String, Instant)>,
    /// The rank whose panic was begun; its next line says why.
    panicking: Option<usize>,
    /// The banner of the attempt at hand.
    banner: Option<Banner>,
}

impl Console {
    /// A console on the standard streams.
    pub(crate) fn new(mode: ProgressMode) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let show = shown(mode, io::stderr().is_terminal() && !dumb);
        Self::on(
            show,
            Screen::new(people(), io::stdout(), ProgressDrawTarget::stderr),
        )
    }

    fn on(show: Show, screen: Screen) -> Self {
        let (pace, repeats) = (Pace::default(), Repeats::default());
        Self {
            show,
            screen,
            pace,
            repeats,
            stage: None,
            panicking: None,
            banner: None,
        }
    }

    /// Shows a message of a rank.
    pub(crate) fn message(&mut self, rank: usize, message: &WorkerMessage) {
        if self.show == Show::Json {
            self.screen.data(&message.to_line());
        }
        if matches!(message, WorkerMessage::Banner(_)) {
            // After a restart the same may go wrong again, which is news.
            self.tell_repeats();
        }
        match message {
            WorkerMessage::Warning { rank, text } => self.warning_of(*rank, text),
            WorkerMessage::Failed(failure) => self.failed(failure),
            _ if rank == 0 && matches!(self.show, Show::Bar | Show::Plain) => {
                self.progress(message);
            }
            _ => {}
        }
    }

    fn progress(&mut self, message: &WorkerMessage) {
        let text = match message {
            WorkerMessage::Banner(banner) => {
                self.screen.remove_bar();
                self.pace = Pace::default();
                let shown = self.banner.replace(banner.clone());
                let news = shown.map_or_else(|| banner.clone(), |shown| news(banner, &shown));
                self.screen.show(&format!("{}\n", lines::banner(&news)));
                if self.show == Show::Bar {
                    self.screen.start_bar(banner.first_step, banner.last_step);
                }
                return;
            }
            WorkerMessage::Step(progress) => return self.step(progress),
            WorkerMessage::Evaluation(evaluation) => lines::evaluation(evaluation),
            WorkerMessage::Checkpoint {
                step,
                path,
                bytes,
                seconds,
            } => lines::checkpoint(*step, path, *bytes, *seconds),
            WorkerMessage::Sample { prompt, text } => lines::sample(prompt, text),
            WorkerMessage::Summary(summary) => {
                self.screen.remove_bar();
                format!("\n{}", summary::summary(summary))
            }
            WorkerMessage::Warning { .. }
            | WorkerMessage::Failed(_)
            | WorkerMessage::Bench(_)
            | WorkerMessage::Collective(_)
            | WorkerMessage::Check(_)
            | WorkerMessage::Trace(_)
            | WorkerMessage::Operators(_)
            | WorkerMessage::VerifiedCollectives(_) => {
                return;
            }
        };
        self.screen.show(&text);
    }

    fn step(&mut self, progress: &StepProgress) {
        self.pace.note(progress);
        let eta = self.pace.eta(progress);
        if self.show == Show::Bar {
            self.screen
                .update_bar(progress.step, lines::beside_bar(progress, eta));
        } else if self.pace.show(progress, Instant::now()) {
            self.screen.show(&lines::step(progress, eta));
        }
    }

    fn warning_of(&mut self, rank: usize, text: &str) {
        if self.repeats.is_new(rank, text) {
            let of = if rank == 0 {
                String::new()
            } else {
                format!("rank {rank}: ")
            };
            self.screen
                .show(&style::warning(&format!("{of}{}", style::harmless(text))));
        }
    }

    /// Shows a failure at once, but not its hint: that belongs to the end, under the error that
    /// names the first failure.
    fn failed(&mut self, failure: &Failure) {
        let rank = failure.rank;
        let is_new = self.repeats.is_new(rank, &key(&failure.message));
        // The rank says it on its standard error too, line by line and with the hint.
        let hint = failure.hint.iter().map(|hint| format!("hint: {hint}"));
        for line in failure
            .message
            .lines()
            .skip(1)
            .map(str::to_owned)
            .chain(hint)
        {
            self.repeats.is_new_beside(rank, &key(&line));
        }
        if is_new {
            self.screen
                .show(&style::error(&format!("rank {rank}: {}", failure.message)));
        }
    }

    /// Shows a line that a rank printed: all of rank 0, and of the others what looks like an error.
    /// The rest is in their logs.
    pub(crate) fn log_line(&mut self, rank: usize, line: &str) {
        let plain = strip_str(line).to_string();
        let explains = self
            .panicking
            .take_if(|panicking| *panicking == rank)
            .is_some();
        if plain.contains("panicked at") {
            self.panicking = Some(rank);
        }
        let shown = if explains || plain.starts_with("hint: ") {
            self.repeats.is_new_beside(rank, &key(&plain))
        } else if looks_like_error(&plain) {
            self.repeats.is_new(rank, &key(&plain))
        } else {
            // The lines of a failure come here too, after the message that was shown whole.
            rank == 0 && !self.repeats.was_said_beside(&key(&plain))
        };
        if !shown {
            return;
        }
        match rank {
            0 => self.screen.show(line),
            _ => self.screen.show(&format!("[rank {rank}] {line}")),
        }
    }

    /// Shows what is done before ranks start. Texts that differ in their numbers only are one
    /// stage.
    pub(crate) fn preparing(&mut self, text: &str) {
        match self.show {
            Show::Bar => self.screen.show_briefly(text),
            Show::Plain => {
                let stage: String = text
                    .chars()
                    .filter(|c| !c.is_ascii_digit() && *c != '.')
                    .collect();
                let old = self
                    .stage
                    .as_ref()
                    .is_some_and(|(shown, when)| *shown == stage && when.elapsed() < STAGE_SILENCE);
                if !old {
                    self.stage = Some((stage, Instant::now()));
                    self.screen.show(text);
                }
            }
            Show::Json | Show::Nothing => {}
        }
    }

    /// Shows a warning of the launcher itself.
    pub(crate) fn warning(&mut self, text: &str) {
        self.screen.show(&style::warning(text));
    }

    /// Shows a failure that does not end the run.
    pub(crate) fn failure(&mut self, text: &str) {
        self.screen.show(&style::error(text));
    }

    /// Shows where the time of a run went, over all of its attempts.
    pub(crate) fn goodput(&mut self, ledger: &Ledger, attempts: usize) {
        if matches!(self.show, Show::Bar | Show::Plain) {
            self.screen.show(&goodput::goodput(ledger, attempts));
        }
    }

    /// Shows something said in passing.
    pub(crate) fn note(&mut self, text: &str) {
        if self.show != Show::Nothing {
            self.screen.show(&style::note(text));
        }
    }

    /// Leaves the screen to others. A bar that did not reach its end stays where it stopped.
    pub(crate) fn finish(&mut self) {
        self.screen.leave_bar();
        self.tell_repeats();
    }

    /// Says which other ranks said what was shown for one.
    fn tell_repeats(&mut self) {
        for (text, first, others) in self.repeats.take() {
            let noun = if others.len() == 1 { "rank" } else { "ranks" };
            let others = numbers::ranks(&others);
            let text = format!("{noun} {others} said the same as rank {first}: {text}");
            self.screen.show(&style::note(&text));
        }
    }

    /// Prints what a command was asked for, as it is.
    pub fn print_data(text: &str) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes());
        let _ = stdout.flush();
    }

    /// Prints a warning where there is no run to show.
    pub(crate) fn print_warning(text: &str) {
        let _ = writeln!(people(), "{}", style::warning(text));
    }

    /// Prints why the program ends. A line that begins with `hint: ` says what to try.
    pub(crate) fn print_error(text: &str) {
        let _ = writeln!(people(), "{}", style::error(text));
    }
}

/// Standard error, with colours if it takes them.
fn people() -> AutoStream<io::Stderr> {
    AutoStream::auto(io::stderr())
}

/// What a mode means where standard error is a terminal, or not.
fn shown(mode: ProgressMode, terminal: bool) -> Show {
    match mode {
        ProgressMode::Auto | ProgressMode::Bar if terminal => Show::Bar,
        ProgressMode::Auto | ProgressMode::Bar | ProgressMode::Plain => Show::Plain,
        ProgressMode::Json => Show::Json,
        ProgressMode::None => Show::Nothing,
    }
}

/// What a banner says that the one before it did not: after a restart little is new.
fn news(banner: &Banner, before: &Banner) -> Banner {
    let mut news = banner.clone();
    news.lines.retain(|line| !before.lines.contains(line));
    news
}

/// Whether a line of a log is one that people look for first.
fn looks_like_error(line: &str) -> bool {
    let line = line.trim_start();
    let starts = |word: &str| {
        line.get(..word.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(word))
    };
    line.contains("panicked at")
        || ["error", "fatal"].into_iter().any(starts)
        || is_python_exception(line)
}

/// Whether it is the last line of what Python says of an exception: `torch.OutOfMemoryError: CUDA out
/// of memory`. `PyTorch` puts the rank before it.
fn is_python_exception(line: &str) -> bool {
    let line = match line.split_once("]: ") {
        Some((rank, line)) if rank.starts_with("[rank") => line,
        _ => line,
    };
    let name = line.split(':').next().unwrap_or_default();
    let is_name = |it: char| it.is_alphanumeric() || it == '_' || it == '.';
    name.chars().all(is_name) && (name.ends_with("Error") || name.ends_with("Exception"))
}

/// What makes two lines the same, whichever way they came here.
fn key(line: &str) -> String {
    let line = line.lines().next().unwrap_or_default().trim();
    // A panic begins with the id of its thread, which is another in every rank.
    let line = line
        .find("panicked at")
        .map_or(line, |start| &line[start..]);
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
