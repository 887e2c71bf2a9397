//! What a user reads when a run failed.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use cordee_protocol::Failure;

use crate::{Ending, Fate, Hang};

/// Characters of a log line that the report shows.
const LINE_WIDTH: usize = 300;

/// Which rank failed, how, and what it said.
#[derive(Clone, Debug, PartialEq)]
pub struct FailureReport {
    /// The rank that failed first.
    pub rank: usize,
    /// Name of its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub ending: Ending,
    /// Processes that the kernel's out-of-memory killer ended during the run, in the control group of
    /// launcher and workers; 0 where that cannot be read.
    pub out_of_memory_kills: u64,
    /// What it said itself before it ended.
    pub failure: Option<Failure>,
    /// The last step that any rank reported.
    pub last_step: Option<u64>,
    /// From the start of the launch to the end of the rank.
    pub ran_for: Duration,
    /// That nothing happened any more, and who is to blame for it.
    pub hang: Option<Box<Hang>>,
    /// The rank it blames, if that one was still running: it hung, or it was stopped.
    pub silent: Option<SilentRank>,
    /// The last lines of its log, at most 20.
    pub last_lines: Vec<String>,
    /// Its log.
    pub log: PathBuf,
    /// The code the launcher should exit with: the rank's own if it is in our table, else 1.
    pub exit_code: u8,
    /// The other ranks, in order.
    pub others: Vec<OtherRank>,
}

/// A rank that others waited for in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SilentRank {
    /// The rank.
    pub rank: usize,
    /// Its process id.
    pub pid: u32,
    /// Its log.
    pub log: PathBuf,
}

/// A rank that is not the one that failed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherRank {
    /// The rank.
    pub rank: usize,
    /// Its process id.
    pub pid: u32,
    /// What became of it.
    pub fate: Fate,
}

impl FailureReport {
    /// What the system knows about the cause beyond the ending, in words.
    pub fn cause(&self) -> Option<String> {
        if !self.ending.is_signal(9) {
            return None;
        }
        Some(match self.out_of_memory_kills {
            0 => "if you did not do that, the kernel's out-of-memory killer may have".to_owned(),
            1 => {
                "host out of memory: the kernel's out-of-memory killer ended 1 process of this run"
                    .to_owned()
            }
            count => format!(
                "host out of memory: the kernel's out-of-memory killer ended {count} processes of this run"
            ),
        })
    }

    /// The report as plain text, without a final line feed.
    pub fn render(&self) -> String {
        if let Some(hang) = &self.hang {
            return hang.render();
        }
        let mut text = String::new();
        if let Some(silent) = &self.silent {
            push(
                &mut text,
                format_args!(
                    "rank {} ({}, pid {}) did not answer\n  its log: {}\n",
                    silent.rank,
                    self.host,
                    silent.pid,
                    silent.log.display()
                ),
            );
        }
        push(
            &mut text,
            format_args!(
                "rank {} ({}, pid {}) {}",
                self.rank, self.host, self.pid, self.ending
            ),
        );
        if let Some(step) = self.last_step {
            push(&mut text, format_args!(" after step {step}"));
        }
        push(
            &mut text,
            format_args!(", {} after the start", seconds(self.ran_for)),
        );
        if let Some(failure) = &self.failure {
            push(
                &mut text,
                format_args!("\n  cause: {}", indent(&failure.message, "    ")),
            );
        }
        if let Some(cause) = self.cause() {
            push(&mut text, format_args!("\n  cause: {cause}"));
        }
        if self.last_lines.is_empty() {
            text.push_str("\n  its log of this attempt is empty");
        } else {
            text.push_str("\n  last lines of its log:");
            for line in &self.last_lines {
                push(&mut text, format_args!("\n    {}", shorten(line)));
            }
        }
        push(&mut text, format_args!("\n  log: {}", self.log.display()));
        for (fate, ranks) in self.others_by_fate() {
            let (noun, verb) = match (ranks.len(), fate) {
                (1, Fate::Ended(_)) => ("rank", ""),
                (1, _) => ("rank", "was "),
                (_, Fate::Ended(_)) => ("ranks", "each "),
                (_, _) => ("ranks", "were "),
            };
            push(
                &mut text,
                format_args!("\n  {noun} {} {verb}{fate}", list(&ranks)),
            );
        }
        if let Some(hint) = self
            .failure
            .as_ref()
            .and_then(|failure| failure.hint.as_ref())
        {
            push(&mut text, format_args!("\nhint: {}", indent(hint, "  ")));
        }
        text
    }

    fn others_by_fate(&self) -> Vec<(Fate, Vec<usize>)> {
        let mut fates: Vec<(Fate, Vec<usize>)> = Vec::new();
        for other in &self.others {
            match fates.iter_mut().find(|(fate, _)| *fate == other.fate) {
                Some((_, ranks)) => ranks.push(other.rank),
                None => fates.push((other.fate, vec![other.rank])),
            }
        }
        fates
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes any text");
}

fn indent(text: &str, by: &str) -> String {
    text.trim_end().replace('\n', &format!("\n{by}"))
}

fn shorten(line: &str) -> String {
    match line.char_indices().nth(LINE_WIDTH) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line.to_owned(),
    }
}

/// `1`, `1 and 2`, or `1, 2 and 3`.
pub(crate) fn list(ranks: &[usize]) -> String {
    let words: Vec<_> = ranks.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

fn seconds(time: Duration) -> String {
    let total = time.as_secs();
    match (total / 3600, total / 60 % 60, total % 60) {
        (0, 0, _) => format!("{:.1} s", time.as_secs_f64()),
        (0, minutes, seconds) => format!("{minutes} m {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> FailureReport {
        FailureReport {
            rank: 1,
            host: "node-b".to_owned(),
            pid: 4242,
            ending: Ending::Killed {
                signal: 9,
                core_dumped: false,
            },
            out_of_memory_kills: 0,
            failure: None,
            last_step: Some(1204),
            ran_for: Duration::from_millis(190_400),
            hang: None,
            silent: None,
            last_lines: vec!["one".to_owned(), "x".repeat(400)],
            log: PathBuf::from("runs/x/logs/rank-001.log"),
            exit_code: 1,
            others: [0, 2, 3]
                .map(|rank| OtherRank {
                    rank,
                    pid: 1,
                    fate: Fate::StoppedByLauncher,
                })
                .into_iter()
                .chain([OtherRank {
                    rank: 4,
                    pid: 1,
                    fate: Fate::Ended(Ending::Exited(1)),
                }])
                .collect(),
        }
    }

    #[test]
    fn a_killed_rank_reads_well() {
        let expected = format!(
            "rank 1 (node-b, pid 4242) was killed by SIGKILL (signal 9) after step 1204, 3 m 10 s after the start
  cause: if you did not do that, the kernel's out-of-memory killer may have
  last lines of its log:
    one
    {} ...
  log: runs/x/logs/rank-001.log
  ranks 0, 2 and 3 were stopped by the launcher
  rank 4 exited with code 1 (run failed, a retry may help)",
            "x".repeat(300)
        );
        assert_eq!(report().render(), expected);
    }

    #[test]
    fn a_rank_that_did_not_answer_comes_first() {
        let silent = SilentRank {
            rank: 3,
            pid: 77,
            log: PathBuf::from("runs/x/logs/rank-003.log"),
        };
        let text = FailureReport {
            silent: Some(silent),
            ..report()
        }
        .render();
        let expected = "rank 3 (node-b, pid 77) did not answer\n  its log: runs/x/logs/rank-003.log\nrank 1 (node-b, ";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_rank_that_gave_a_reason_is_quoted() {
        let failure = Failure {
            rank: 1,
            blames: None,
            code: 4,
            message: "loss is NaN\nin block 3".to_owned(),
            hint: Some("lower `optimizer.lr`".to_owned()),
        };
        let report = FailureReport {
            ending: Ending::Exited(4),
            failure: Some(failure),
            last_step: None,
            ran_for: Duration::from_millis(2040),
            last_lines: Vec::new(),
            others: Vec::new(),
            ..report()
        };
        let expected =
            "rank 1 (node-b, pid 4242) exited with code 4 (diverged), 2.0 s after the start
  cause: loss is NaN
    in block 3
  its log of this attempt is empty
  log: runs/x/logs/rank-001.log
hint: lower `optimizer.lr`";
        assert_eq!(report.render(), expected);
    }

    #[test]
    fn out_of_memory_is_said_when_it_is_known() {
        let report = FailureReport {
            out_of_memory_kills: 1,
            ..report()
        };
        assert!(
            report.render().contains("\n  cause: host out of memory: "),
            "{}",
            report.render()
        );
        let report = FailureReport {
            ending: Ending::Exited(1),
            ..report
        };
        assert_eq!(report.cause(), None);
    }
}
