//! What a user reads when a run failed.

use std::fmt::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use cordee_protocol::Failure;
use serde::{Deserialize, Serialize};

use crate::cause::{Explanation, explain, hint_about, hint_for};
use crate::last_words::is_backtrace;
use crate::page::{WIDTH, clean, list, rows, shorten, wrap};
use crate::{Ending, Fate, Hang};

/// Rows of a report: a screen has 24, and a command that prints it adds some.
const ROWS: usize = 22;
const CAUSE_ROWS: usize = 6;
const HINT_ROWS: usize = 3;
/// Lines of the log that are shown where the cause is known.
const SURE_LINES: usize = 5;

/// Which rank failed, how, and what it said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailureReport {
    /// The rank that failed first.
    pub rank: usize,
    /// Name of its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// What its device is called, where it has one.
    pub device: Option<String>,
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
    /// That the whole node of the rank is gone, and not the rank alone.
    pub lost: Option<LostNode>,
    /// The rank it blames, if that one did not fail: it hung, it was stopped, or it left early.
    pub silent: Option<SilentRank>,
    /// Processes that it had started, and that ran on when it had ended until they were killed.
    pub left: usize,
    /// The last lines of its log, at most 100.
    pub last_lines: Vec<String>,
    /// Its log.
    pub log: PathBuf,
    /// The code the launcher should exit with: the rank's own if it is in our table, else 1.
    pub exit_code: u8,
    /// The other ranks, in order.
    pub others: Vec<OtherRank>,
}

/// A node that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostNode {
    /// Its index.
    pub node: usize,
    /// Its ranks.
    pub ranks: Range<usize>,
    /// How that was found out.
    pub why: String,
}

/// A rank that others waited for in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentRank {
    /// The rank.
    pub rank: usize,
    /// Its process id.
    pub pid: u32,
    /// Its log.
    pub log: PathBuf,
    /// Why nothing came from it.
    pub silence: Silence,
}

/// Why a rank that had not failed left others waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Silence {
    /// It ran or slept.
    Running,
    /// A signal or a debugger had stopped it.
    Stopped,
    /// It waited in the kernel for something that no signal interrupts.
    InKernel,
    /// It had ended in order, before the others.
    Left(Ending),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("did not answer"),
            Self::Stopped => f.write_str("did not answer: SIGSTOP or a debugger had stopped it"),
            Self::InKernel => f.write_str(
                "did not answer: it was stuck in the kernel, in a driver or a file system",
            ),
            Self::Left(ending) => write!(f, "{ending} while others needed it"),
        }
    }
}

/// A rank that is not the one that failed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherRank {
    /// The rank.
    pub rank: usize,
    /// Its process id.
    pub pid: u32,
    /// What became of it.
    pub fate: Fate,
}

impl LostNode {
    fn render(&self, host: &str) -> String {
        let Self { node, ranks, why } = self;
        let ranks: Vec<_> = ranks.clone().collect();
        let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
        let hint = if *node == 0 {
            "that machine stood still or was cut off for a while; see what its kernel and its network say"
        } else {
            "see whether that machine is up and can be reached from node 0; what its agent said is where it \
             was started"
        };
        let ranks = list(&ranks);
        format!("node {node} ({host}) with {noun} {ranks} is lost: {why}\nhint: {hint}")
    }
}

impl FailureReport {
    /// The report as plain text, without a final line feed: one screen, of 24 lines with 100 columns,
    /// unless paths alone are longer.
    pub fn render(&self) -> String {
        if let Some(hang) = &self.hang {
            return hang.render();
        }
        if let Some(lost) = &self.lost {
            return lost.render(&self.host);
        }
        let told = self.explanation();
        let mut before = self.silent_lines();
        before.extend(sentence(&self.first_line()));
        before.extend(wrap(&told.cause, "  cause: ", "    ", CAUSE_ROWS));
        if self.left > 0 {
            let (what, verb) = match self.left {
                1 => ("1 process".to_owned(), "was"),
                count => (format!("{count} processes"), "were"),
            };
            before.push(format!(
                "  {what} that it had started lived on and {verb} killed"
            ));
        }
        let mut after = vec![format!("  log: {}", self.log.display())];
        after.extend(self.other_lines());
        if let Some(hint) = &told.hint {
            after.extend(wrap(hint, "hint: ", "  ", HINT_ROWS));
        }
        let used: usize = before.iter().chain(&after).map(|line| rows(line)).sum();
        let room = ROWS.saturating_sub(used + 1);
        let most = if told.sure {
            room.min(SURE_LINES)
        } else {
            room
        };
        let lines = self.log_lines(most, told.sure);
        [before, lines, after].concat().join("\n")
    }

    /// What is known of the cause, and what to do next: the rank's own words before ours.
    fn explanation(&self) -> Explanation {
        let ours = explain(self.ending, self.out_of_memory_kills, &self.last_lines);
        match &self.failure {
            None => ours,
            Some(failure) => Explanation {
                cause: failure.message.clone(),
                hint: (self.silent.as_ref().and_then(hint_about))
                    .or_else(|| failure.hint.clone())
                    .or_else(|| Some(hint_for(self.ending.exit_code()?)?.to_owned())),
                sure: true,
            },
        }
    }

    fn silent_lines(&self) -> Vec<String> {
        let Some(silent) = &self.silent else {
            return Vec::new();
        };
        let first = format!(
            "rank {} ({}, pid {}) {}",
            silent.rank, self.host, silent.pid, silent.silence
        );
        let mut lines = sentence(&first);
        lines.push(format!("  its log: {}", silent.log.display()));
        lines
    }

    fn first_line(&self) -> String {
        let mut text = format!(
            "rank {} ({}, pid {}) {}",
            self.rank, self.host, self.pid, self.ending
        );
        if let Some(step) = self.last_step {
            push(&mut text, format_args!(" after step {step} and"));
        } else {
            text.push_str(" after");
        }
        push(&mut text, format_args!(" {}", seconds(self.ran_for)));
        text
    }

    /// The end of the log, in at most so many lines and one that says what they are.
    fn log_lines(&self, most: usize, sure: bool) -> Vec<String> {
        if self.last_lines.is_empty() {
            return vec!["  its log of this attempt is empty".to_owned()];
        }
        let mut lines: Vec<_> = self.last_lines.iter().collect();
        if sure {
            // The frames of a panic would push out what happened.
            lines.retain(|line| !is_backtrace(line));
        }
        let skipped = lines.len().saturating_sub(most);
        let lines = lines[skipped..]
            .iter()
            .map(|line| shorten(&format!("    {}", clean(line)), WIDTH))
            .skip_while(String::is_empty);
        let mut shown = vec!["  last lines of its log:".to_owned()];
        shown.extend(lines);
        shown
    }

    /// What became of the other ranks, in at most two lines: those that ended by themselves first.
    fn other_lines(&self) -> Vec<String> {
        let mut fates = self.others_by_fate();
        fates.sort_by_key(|(fate, _)| !matches!(fate, Fate::Ended(_)));
        let rest = if fates.len() > 2 {
            fates.split_off(1)
        } else {
            Vec::new()
        };
        let mut lines: Vec<String> = fates
            .iter()
            .map(|(fate, ranks)| {
                let (noun, verb) = match (ranks.len(), fate) {
                    (1, Fate::Ended(_)) => ("rank", ""),
                    (1, _) => ("rank", "was "),
                    (_, Fate::Ended(_)) => ("ranks", "each "),
                    (_, _) => ("ranks", "were "),
                };
                format!("  {noun} {} {verb}{fate}", list(ranks))
            })
            .collect();
        if !rest.is_empty() {
            let by_launcher = rest
                .iter()
                .filter(|(fate, _)| !matches!(fate, Fate::Ended(_)));
            let by_launcher: usize = by_launcher.map(|(_, ranks)| ranks.len()).sum();
            let all: usize = rest.iter().map(|(_, ranks)| ranks.len()).sum();
            lines.push(match (all - by_launcher, by_launcher) {
                (ended, 0) => format!("  {ended} more ranks failed in other ways"),
                (0, killed) => format!("  {killed} more ranks were killed by the launcher"),
                (ended, killed) => format!(
                    "  of the others {ended} failed in other ways and {killed} were killed by the launcher"
                ),
            });
        }
        lines.iter().map(|line| shorten(line, WIDTH)).collect()
    }

    fn others_by_fate(&self) -> Vec<(Fate, Vec<usize>)> {
        let mut fates: Vec<(Fate, Vec<usize>)> = Vec::new();
        let silent = self.silent.as_ref().map(|silent| silent.rank);
        for other in self
            .others
            .iter()
            .filter(|other| Some(other.rank) != silent)
        {
            match fates.iter_mut().find(|(fate, _)| *fate == other.fate) {
                Some((_, ranks)) => ranks.push(other.rank),
                None => fates.push((other.fate, vec![other.rank])),
            }
        }
        fates
    }
}

/// What happened to a rank, with room on the left for the word that a command puts before it.
fn sentence(text: &str) -> Vec<String> {
    const COMMAND: &str = "error: ";
    let mut lines = wrap(text, COMMAND, "  ", 3);
    lines[0].replace_range(..COMMAND.len(), "");
    lines
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes any text");
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
            device: None,
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
            lost: None,
            silent: None,
            left: 0,
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
            "rank 1 (node-b, pid 4242) was killed by SIGKILL (signal 9) after step 1204 and 3 m 10 s
  cause: if you did not do that, the kernel's out-of-memory killer may have
  last lines of its log:
    one
    {} ...
  log: runs/x/logs/rank-001.log
  rank 4 exited with code 1 (run failed, a retry may help)
  ranks 0, 2 and 3 were stopped by the launcher
hint: `dmesg` and the scheduler's log tell who killed it",
            "x".repeat(90)
        );
        assert_eq!(report().render(), expected);
    }

    #[test]
    fn a_rank_that_did_not_answer_comes_first() {
        let silent = SilentRank {
            rank: 3,
            pid: 77,
            log: PathBuf::from("runs/x/logs/rank-003.log"),
            silence: Silence::Running,
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
        let expected = "rank 1 (node-b, pid 4242) exited with code 4 (diverged) after 2.0 s
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
        let text = report.render();
        assert!(text.contains("\n  cause: out of memory: "), "{text}");
        let report = FailureReport {
            ending: Ending::Exited(1),
            ..report
        };
        let text = report.render();
        assert!(text.contains("; before that, perhaps: out of"), "{text}");
    }

    #[test]
    fn the_worst_fits_a_screen() {
        let long = "many words in a row ".repeat(60);
        let ending = |rank: usize| match rank % 5 {
            0 => Fate::Ended(Ending::Exited(1)),
            1 => Fate::Ended(Ending::Exited(75)),
            2 => Fate::Unkillable,
            _ => Fate::StoppedByLauncher,
        };
        let others = (0..512).filter(|rank| *rank != 1).map(|rank| OtherRank {
            rank,
            pid: 1,
            fate: ending(rank),
        });
        let report = FailureReport {
            host: "node-with-a-name.of-a-cluster.with-a-long-domain.example.org".to_owned(),
            failure: Some(Failure {
                rank: 1,
                blames: Some(3),
                code: 1,
                message: format!("{long}\n{long}\n{long}"),
                hint: Some(long.clone()),
            }),
            silent: Some(SilentRank {
                rank: 3,
                pid: 77,
                log: PathBuf::from("runs/x/logs/rank-003.log"),
                silence: Silence::InKernel,
            }),
            left: 12,
            last_lines: vec![long; 100],
            others: others.collect(),
            ..report()
        };
        for report in [
            FailureReport {
                failure: None,
                ..report.clone()
            },
            report,
        ] {
            let text = report.render();
            assert!(text.lines().count() <= ROWS, "{text}");
            assert!(
                text.lines().all(|line| line.chars().count() <= WIDTH),
                "{text}"
            );
            let log = text
                .lines()
                .filter(|line| line.starts_with("    many words"));
            assert!(log.count() >= 2, "{text}");
        }
    }
}
