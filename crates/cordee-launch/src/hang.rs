//! Who is to blame when nothing happens any more, and in which words that is said.
//!
//! A rank that hangs is mostly a rank that waits, and the one that it waits for is another. What tells
//! them apart: a process that is stopped or gone, one that is stuck in the kernel, and otherwise the
//! collective that most have begun and some have not.

use std::fmt::Write as _;
use std::path::PathBuf;

use cordee_protocol::{CallStatus, Status};
use serde::{Deserialize, Serialize};

use crate::page::list;
use crate::process_state::{self, Thread};
use crate::watchdog::Expired;
use crate::{ProcessState, stacks};

/// Most ranks that a debugger looks into.
const LOOKED_INTO: usize = 2;

/// Functions of a stack that the verdict shows.
const SHOWN_FUNCTIONS: usize = 6;

/// What is known of a rank of a run that hangs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HungRank {
    /// The rank.
    pub rank: usize,
    /// Its machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Its GPU, where it has one.
    pub device: Option<String>,
    /// How the process is.
    pub process: ProcessState,
    /// What it is doing.
    pub phase: cordee_protocol::Phase,
    /// The step that it is at.
    pub step: u64,
    /// Seconds since it began to do that.
    pub phase_s: f64,
    /// Seconds since it last got anything done.
    pub quiet_s: f64,
    /// The last collective that it began.
    pub call: Option<CallStatus>,
    /// Its threads; of those to blame alone.
    threads: Vec<Thread>,
    /// The functions of the program that its threads are in, as a debugger tells them.
    pub stacks: Vec<String>,
}

impl HungRank {
    /// A rank as it stands: its number, its process and its GPU, and what its page says.
    pub fn new(
        (rank, pid, device): (usize, u32, Option<String>),
        host: &str,
        status: Status,
    ) -> Self {
        Self {
            rank,
            host: host.to_owned(),
            pid,
            device,
            process: ProcessState::of(pid),
            phase: status.phase,
            step: status.step,
            phase_s: status.phase_for.as_secs_f64(),
            quiet_s: status.quiet_for.as_secs_f64(),
            call: status.call,
            threads: Vec::new(),
            stacks: Vec::new(),
        }
    }

    /// The collective that it waits in.
    fn waits_in(&self) -> Option<&CallStatus> {
        self.call.as_ref().filter(|call| call.is_under_way())
    }

    /// Where it is, in words.
    fn place(&self) -> String {
        let at = match (self.waits_in(), &self.call) {
            (Some(call), _) => format!("in {call}, #{} completed", call.completed),
            (None, Some(call)) => format!("after {call}"),
            (None, None) => "before any collective".to_owned(),
        };
        let step = if self.phase.is_step() {
            format!("step {}", self.step)
        } else {
            format!("{} after step {}", self.phase.doing(), self.step)
        };
        format!("{step}, {at}, {}", self.process)
    }

    /// The last collective that it has begun; 0 for none.
    fn begun(&self) -> u64 {
        self.call.as_ref().map_or(0, |call| call.sequence)
    }
}

/// Why ranks are to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guilt {
    /// Their processes are stopped.
    Stopped,
    /// Their processes are stuck in the kernel.
    StuckInKernel,
    /// They did not come to a collective that others wait in.
    NeverArrived,
    /// All ranks wait in the same collective: it is none of them, but what lies between.
    Nobody,
    /// They have got nothing done for the longest time, and nobody waits in a collective.
    Quiet,
}

/// A run that hangs, and who is to blame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hang {
    /// The ranks to blame; none if that cannot be told.
    pub guilty: Vec<usize>,
    /// Why them.
    pub guilt: Guilt,
    /// Seconds without anything done, and how many are allowed.
    pub quiet_s: f64,
    /// The deadline, in seconds.
    pub limit_s: f64,
    /// Seconds that 99 of 100 steps stay within, where the deadline comes of that.
    pub p99_s: Option<f64>,
    /// The rank that got nothing done for the longest time, of those on the machine that noticed.
    pub quietest: usize,
    /// Every rank that is known of, in order.
    pub ranks: Vec<HungRank>,
    /// Where all of this is written.
    pub file: PathBuf,
    /// Why it is not.
    #[serde(skip)]
    pub unwritten: Option<String>,
}

impl Hang {
    pub(crate) fn of(expired: Expired, ranks: Vec<HungRank>, file: PathBuf) -> Self {
        let (guilty, guilt) = judge(&ranks, expired.rank);
        Self {
            guilty,
            guilt,
            quiet_s: expired.quiet.as_secs_f64(),
            limit_s: expired.limit.as_secs_f64(),
            p99_s: expired.p99.map(|time| time.as_secs_f64()),
            quietest: expired.rank,
            ranks,
            file,
            unwritten: None,
        }
    }

    /// The same with the ranks of other machines: judged anew, since who is to blame may be there.
    pub fn with_others(&mut self, others: Vec<HungRank>) {
        for other in others {
            if self.ranks.iter().all(|known| known.rank != other.rank) {
                self.ranks.push(other);
            }
        }
        self.ranks.sort_by_key(|rank| rank.rank);
        (self.guilty, self.guilt) = judge(&self.ranks, self.quietest);
    }

    fn rank(&self, rank: usize) -> &HungRank {
        let found = self.ranks.iter().find(|known| known.rank == rank);
        found.expect("who is to blame is one of those who were judged")
    }

    /// Looks where those to blame are, or else the rank that was quiet the longest.
    pub(crate) fn look_into_the_guilty(&mut self) {
        let mut odd = self.guilty.clone();
        if odd.is_empty() {
            odd.push(self.quietest);
        }
        let odd = self.ranks.iter_mut().filter(|it| odd.contains(&it.rank));
        for rank in odd.take(LOOKED_INTO) {
            rank.threads = process_state::threads(rank.pid);
            // A process that somebody stopped is where it was stopped.
            if rank.process != ProcessState::Stopped {
                rank.stacks = stacks::of(rank.pid);
            }
        }
    }

    /// Writes all that is known beside the logs. That it fails costs the file, and the verdict says so.
    pub fn write(&mut self) {
        let text = serde_json::to_vec_pretty(self).expect("a hang has string keys only");
        let written = fs_err::write(&self.file, text);
        self.unwritten = written.err().map(|error| error.to_string());
    }

    /// The verdict as plain text, without a final line feed: at most five lines.
    pub fn render(&self) -> String {
        let mut text = match self.guilty[..] {
            [] => "hang: nothing happens any more, and no rank alone is to blame".to_owned(),
            [rank] => format!("hang: {} is to blame: {}", self.name(rank), self.why(rank)),
            ref ranks => format!(
                "hang: ranks {} ({}) are to blame: each {}",
                list(ranks),
                self.hosts(ranks),
                self.why(ranks[0]).trim_start_matches("it ")
            ),
        };
        for line in self.places() {
            let _ = write!(text, "\n  {line}");
        }
        let more = match &self.unwritten {
            None => self.file.display().to_string(),
            Some(why) => format!("not on disk: {why}"),
        };
        let learned = self.p99_s.map_or_else(String::new, |p99| {
            format!(" (5 x what 99 of 100 steps take, {p99:.2} s, or launch.step_timeout)")
        });
        let _ = write!(
            text,
            "\n  nothing done for {:.1} s, allowed are {:.1} s{learned}; more: {}\nhint: {}",
            self.quiet_s,
            self.limit_s,
            more,
            self.hint()
        );
        text
    }

    fn hint(&self) -> &'static str {
        match self.guilt {
            Guilt::Stopped => {
                "find out who stopped it, `kill -STOP` or a debugger: all others wait for it"
            }
            Guilt::StuckInKernel => {
                "`dmesg` tells what the kernel says of the device or file system; `cordee smoke` tests the machine"
            }
            Guilt::NeverArrived | Guilt::Quiet => {
                "if it hangs there again, that place is the cause: its log and its stack say more"
            }
            Guilt::Nobody => {
                "it is what lies between them: `cordee verify collectives` and `cordee smoke` test it"
            }
        }
    }

    /// The machines of some ranks.
    fn hosts(&self, ranks: &[usize]) -> String {
        let mut hosts: Vec<_> = ranks
            .iter()
            .map(|&rank| self.rank(rank).host.as_str())
            .collect();
        hosts.dedup();
        hosts.join(", ")
    }

    /// The rank with what helps to find it.
    fn name(&self, rank: usize) -> String {
        let HungRank {
            host, pid, device, ..
        } = self.rank(rank);
        let device = device
            .as_ref()
            .map_or_else(String::new, |it| format!("{it}, "));
        format!("rank {rank} ({device}{host}, pid {pid})")
    }

    fn why(&self, rank: usize) -> String {
        let rank = self.rank(rank);
        match self.guilt {
            Guilt::Stopped => "it is stopped, by a signal or a debugger".to_owned(),
            Guilt::StuckInKernel => {
                "it is stuck in the kernel, in a device or a file system".to_owned()
            }
            Guilt::NeverArrived => format!("it never came to {}", self.awaited()),
            Guilt::Nobody | Guilt::Quiet => {
                format!("it is {} and gets nothing done", rank.phase.doing())
            }
        }
    }

    /// The collective that others wait in.
    fn awaited(&self) -> String {
        let waiting = self.ranks.iter().filter_map(HungRank::waits_in);
        waiting
            .max_by_key(|call| call.sequence)
            .map_or_else(|| "the others".to_owned(), ToString::to_string)
    }

    /// Where ranks are, in at most two lines: those to blame, and most of the others.
    fn places(&self) -> Vec<String> {
        let (guilty, others): (Vec<_>, Vec<_>) = self
            .ranks
            .iter()
            .partition(|rank| self.guilty.contains(&rank.rank));
        let mut lines = Vec::new();
        if let Some((place, ranks, _)) = together(&guilty) {
            let there = self.where_the_guilty_are();
            let there = there.map_or_else(String::new, |there| format!("; {there}"));
            lines.push(format!("{}: {place}{there}", named(&ranks)));
        }
        if let Some((place, ranks, elsewhere)) = together(&others) {
            let elsewhere = match elsewhere {
                0 => String::new(),
                count => format!("; {count} more elsewhere"),
            };
            lines.push(format!("{}: {place}{elsewhere}", named(&ranks)));
        }
        lines
    }

    /// Where the first of those to blame is in the program, or in the kernel.
    fn where_the_guilty_are(&self) -> Option<String> {
        let rank = self.rank(*self.guilty.first()?);
        if let Some(stack) = rank.stacks.first() {
            // The file has the rest.
            let functions: Vec<_> = stack.split(" < ").take(SHOWN_FUNCTIONS).collect();
            return Some(format!("in {}", functions.join(" < ")));
        }
        let thread = rank.threads.first()?;
        let place = thread.kernel_stack.first().unwrap_or(&thread.waits_in);
        (!place.is_empty()).then(|| format!("in the kernel's {place} (thread {})", thread.name))
    }

    /// What does not differ from time to time: for telling whether it is the same hang again.
    pub(crate) fn place(&self) -> String {
        let phase = self
            .guilty
            .first()
            .map_or("", |&rank| self.rank(rank).phase.doing());
        format!("{:?} while {phase}", self.guilt)
    }

    /// Whether it came from outside: what was stopped by a signal was stopped by somebody.
    pub(crate) fn is_from_outside(&self) -> bool {
        self.guilt == Guilt::Stopped
    }
}

/// `rank 1`, or `ranks 1 and 2`.
fn named(ranks: &[usize]) -> String {
    let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{noun} {}", list(ranks))
}

/// The place where most of these ranks are, which they are, and how many are elsewhere.
fn together(ranks: &[&HungRank]) -> Option<(String, Vec<usize>, usize)> {
    let mut places: Vec<(String, Vec<usize>)> = Vec::new();
    for rank in ranks {
        let place = rank.place();
        match places.iter_mut().find(|(known, _)| *known == place) {
            Some((_, together)) => together.push(rank.rank),
            None => places.push((place, vec![rank.rank])),
        }
    }
    // Of two that are as many, the one with the smaller rank.
    let (place, most) = places
        .into_iter()
        .rev()
        .max_by_key(|(_, ranks)| ranks.len())?;
    let elsewhere = ranks.len() - most.len();
    Some((place, most, elsewhere))
}

/// Who is to blame, and why. `quietest` is the rank that got nothing done for the longest time.
fn judge(ranks: &[HungRank], quietest: usize) -> (Vec<usize>, Guilt) {
    let those = |is: &dyn Fn(&HungRank) -> bool| -> Vec<usize> {
        ranks
            .iter()
            .filter(|rank| is(rank))
            .map(|rank| rank.rank)
            .collect()
    };
    let stopped = those(&|rank| rank.process == ProcessState::Stopped);
    if !stopped.is_empty() {
        return (stopped, Guilt::Stopped);
    }
    let Some(awaited) = ranks
        .iter()
        .filter_map(HungRank::waits_in)
        .map(|it| it.sequence)
        .max()
    else {
        let stuck = those(&|rank| rank.process == ProcessState::Uninterruptible);
        return if stuck.is_empty() {
            (vec![quietest], Guilt::Quiet)
        } else {
            (stuck, Guilt::StuckInKernel)
        };
    };
    let of = |rank: usize| {
        let known = ranks.iter().find(|known| known.rank == rank);
        known.expect("one of those that are judged")
    };
    let absent = those(&|rank| rank.begun() < awaited);
    if absent.is_empty() {
        return (Vec::new(), Guilt::Nobody);
    }
    let stuck: Vec<_> = absent
        .iter()
        .copied()
        .filter(|&rank| of(rank).process == ProcessState::Uninterruptible)
        .collect();
    if !stuck.is_empty() {
        return (stuck, Guilt::StuckInKernel);
    }
    // Of those that never came, some may wait in an earlier collective for the others.
    let free: Vec<_> = absent
        .iter()
        .copied()
        .filter(|&rank| of(rank).waits_in().is_none())
        .collect();
    let guilty = if free.is_empty() { absent } else { free };
    (guilty, Guilt::NeverArrived)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cordee_protocol::Phase;

    use super::*;
    use ProcessState::{Running, Sleeping, Stopped, Uninterruptible};

    fn rank(rank: usize, process: ProcessState, begun: u64, completed: u64) -> HungRank {
        HungRank {
            rank,
            host: "node-b".to_owned(),
            pid: 4000 + rank as u32,
            device: Some(format!("GPU {rank}")),
            process,
            phase: Phase::Training,
            step: 412,
            phase_s: 70.0,
            quiet_s: 62.0,
            call: (begun > 0).then(|| CallStatus {
                sequence: begun,
                operation: "all_reduce".to_owned(),
                bytes: 4 << 20,
                completed,
                ago: Duration::from_secs(62),
            }),
            threads: Vec::new(),
            stacks: Vec::new(),
        }
    }

    fn hang(ranks: Vec<HungRank>) -> Hang {
        let expired = Expired {
            rank: 0,
            quiet: Duration::from_secs(62),
            limit: Duration::from_mins(1),
            p99: Some(Duration::from_millis(310)),
        };
        Hang::of(
            expired,
            ranks,
            PathBuf::from("runs/x/logs/hang-attempt-002.json"),
        )
    }

    #[test]
    fn a_stopped_rank_is_to_blame_whatever_the_others_do() {
        let hang = hang(vec![
            rank(0, Sleeping, 1291, 1290),
            rank(1, Sleeping, 1291, 1290),
            rank(2, Stopped, 1290, 1290),
            rank(3, Sleeping, 1291, 1290),
        ]);
        assert_eq!(
            hang.render(),
            "hang: rank 2 (GPU 2, node-b, pid 4002) is to blame: it is stopped, by a signal or a debugger\n  \
             rank 2: step 412, after all_reduce #1290 of 4194304 bytes, stopped\n  \
             ranks 0, 1 and 3: step 412, in all_reduce #1291 of 4194304 bytes, #1290 completed, sleeping\n  \
             nothing done for 62.0 s, allowed are 60.0 s (5 x what 99 of 100 steps take, 0.31 s, or \
             launch.step_timeout); more: runs/x/logs/hang-attempt-002.json\n\
             hint: find out who stopped it, `kill -STOP` or a debugger: all others wait for it"
        );
        assert!(hang.is_from_outside());
    }

    #[test]
    fn who_never_came_to_a_collective_is_to_blame() {
        let mut ranks = vec![
            rank(0, Sleeping, 1291, 1290),
            rank(1, Running, 1290, 1290),
            rank(2, Sleeping, 1291, 1290),
        ];
        ranks[1].stacks = vec!["main: read_shard < next < accumulate < step".to_owned()];
        let hang = hang(ranks);
        assert_eq!(
            (&hang.guilty[..], hang.guilt),
            (&[1][..], Guilt::NeverArrived)
        );
        let text = hang.render();
        assert!(
            text.contains("it never came to all_reduce #1291 of 4194304 bytes"),
            "{text}"
        );
        assert!(
            text.contains("running; in main: read_shard < next"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 5, "{text}");
    }

    #[test]
    fn who_is_stuck_in_a_device_is_to_blame_if_it_did_not_come() {
        let found = judge(
            &[
                rank(0, Uninterruptible, 9, 8),
                rank(1, Sleeping, 10, 9),
                rank(2, Sleeping, 9, 9),
            ],
            1,
        );
        assert_eq!(found, (vec![0], Guilt::StuckInKernel));
        // One that came and waits is not, even if its wait is in a driver.
        let found = judge(
            &[rank(0, Uninterruptible, 10, 9), rank(1, Sleeping, 9, 9)],
            0,
        );
        assert_eq!(found, (vec![1], Guilt::NeverArrived));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_not_pointed_to() {
        let folder = tempfile::tempdir().unwrap();
        let mut hang = hang(vec![rank(0, Stopped, 7, 7), rank(1, Sleeping, 8, 7)]);
        hang.file = folder.path().join("no-such-folder/hang.json");
        hang.write();
        assert!(
            hang.render().contains("more: not on disk: "),
            "{}",
            hang.render()
        );
        hang.file = folder.path().join("hang.json");
        hang.write();
        assert!(hang.file.exists());
        assert!(hang.render().contains("/hang.json\n"), "{}", hang.render());
    }

    #[test]
    fn nobody_is_to_blame_for_what_all_wait_in() {
        let hang = hang(vec![rank(0, Sleeping, 7, 6), rank(1, Sleeping, 7, 6)]);
        assert_eq!((hang.guilty.len(), hang.guilt), (0, Guilt::Nobody));
        assert!(hang.render().contains("no rank alone is to blame"));
    }

    #[test]
    fn outside_of_collectives_the_quietest_is_to_blame() {
        let found = judge(&[rank(0, Sleeping, 7, 7), rank(1, Running, 7, 7)], 1);
        assert_eq!(found, (vec![1], Guilt::Quiet));
        let found = judge(&[rank(0, Uninterruptible, 0, 0), rank(1, Running, 0, 0)], 1);
        assert_eq!(found, (vec![0], Guilt::StuckInKernel));
    }
}
