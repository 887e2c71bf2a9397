//! What stands on a terminal, in a log file and in a pipe after a run has said its part.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use cordee_protocol::{StepProgress, WorkerMessage};
use indicatif::{ProgressDrawTarget, TermLike};
use insta::assert_snapshot;

use super::*;

/// A terminal that remembers what stands on it. Bars and text reach it on different ways, as they
/// do a real one.
#[derive(Clone, Debug, Default)]
struct Terminal(Arc<Mutex<Grid>>);

#[derive(Debug, Default)]
struct Grid {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Grid {
    fn write(&mut self, text: &str) {
        for character in strip_str(text).to_string().chars() {
            if self.lines.len() <= self.row {
                self.lines.resize(self.row + 1, vec![]);
            }
            let line = &mut self.lines[self.row];
            match character {
                '\n' => (self.row, self.column) = (self.row + 1, 0),
                '\r' => self.column = 0,
                _ => {
                    line.resize(line.len().max(self.column + 1), ' ');
                    line[self.column] = character;
                    self.column += 1;
                }
            }
        }
    }
}

impl Terminal {
    fn text(&self) -> String {
        let grid = self.0.lock().unwrap();
        let lines = grid
            .lines
            .iter()
            .map(|line| line.iter().collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n")
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the traits of a terminal allow it to fail"
    )]
    fn change(&self, change: impl FnOnce(&mut Grid)) -> io::Result<()> {
        change(&mut self.0.lock().unwrap());
        Ok(())
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.change(|grid| grid.write(std::str::from_utf8(bytes).unwrap()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        100
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.change(|grid| grid.row -= count)
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.change(|grid| grid.row += count)
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.change(|grid| grid.column += count)
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.change(|grid| grid.column = grid.column.saturating_sub(count))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.change(|grid| grid.write(&format!("{text}\n")))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.change(|grid| grid.write(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.change(|grid| {
            grid.column = 0;
            if let Some(line) = grid.lines.get_mut(grid.row) {
                line.clear();
            }
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A console, what people see of it, and what a pipe gets.
fn console(show: Show) -> (Console, Terminal, Terminal) {
    let (people, data) = (Terminal::default(), Terminal::default());
    let drawn = people.clone();
    let target = move || ProgressDrawTarget::term_like_with_hz(Box::new(drawn.clone()), 255);
    let screen = Screen::new(people.clone(), data.clone(), target);
    (Console::on(show, screen), people, data)
}

fn step(step: u64) -> WorkerMessage {
    WorkerMessage::Step(StepProgress {
        step,
        due: step.is_multiple_of(10),
        ..samples::step()
    })
}

/// What a run of 400 steps says from step 100 on, up to step `last`.
fn run(console: &mut Console, last: u64) {
    console.preparing("tokenizing speeches: 1 of 2 MiB");
    console.preparing("tokenizing speeches: 2 of 2 MiB");
    console.message(0, &WorkerMessage::Banner(samples::banner()));
    for index in 101..=last {
        console.message(0, &step(index));
        if index == 115 {
            console.log_line(0, "a line of rank 0");
            console.log_line(1, "a line of rank 1");
            let text = "the gradient is large".to_owned();
            console.message(1, &WorkerMessage::Warning { rank: 1, text });
            let path = "checkpoints/step-000000115".to_owned();
            let (bytes, seconds) = (1 << 20, 0.5);
            console.message(
                0,
                &WorkerMessage::Checkpoint {
                    step: 115,
                    path,
                    bytes,
                    seconds,
                },
            );
        }
    }
}

#[test]
fn lines_go_above_the_bar_and_the_bar_stays_whole() {
    let (mut console, people, data) = console(Show::Bar);
    run(&mut console, 120);
    console.finish();
    assert_snapshot!(people.text(), @"
    model       llama, 6 layers of width 256
    data        1.6M tokens
    resumed at  step 100
                of another run

    a line of rank 0
    warning: rank 1: the gradient is large
    saved step 115  checkpoints/step-000000115  1.00MiB in 0.50s
    [=======>                ] 120/400  30.0%  loss 4.2137  12.3k tok/s  eta 1m33s
    ");
    assert_eq!(data.text(), "");
}

#[test]
fn a_bar_that_did_its_work_leaves_the_screen_to_the_summary() {
    let (mut console, people, _) = console(Show::Bar);
    console.message(0, &WorkerMessage::Banner(samples::banner()));
    console.message(0, &step(400));
    console.message(0, &WorkerMessage::Evaluation(samples::evaluation()));
    let (prompt, text) = ("Fellow".to_owned(), " citizens".to_owned());
    console.message(0, &WorkerMessage::Sample { prompt, text });
    console.message(0, &WorkerMessage::Summary(samples::summary()));
    console.finish();
    assert_snapshot!(people.text(), @r#"
    model       llama, 6 layers of width 256
    data        1.6M tokens
    resumed at  step 100
                of another run

    eval step 400  validation loss 3.2114  bits/byte speeches 1.8123, dictionnaire 2.0912  (1.20s)
    sample after "Fellow":
      citizens

    done after step 400: 1.6M tokens in 2m12s (12.4k tok/s)
    validation loss 3.2114 after step 400

      source          loss  bits/byte  unigram bits/byte  below unigram
      speeches      3.1023     1.8123             4.5871          60.5%
      dictionnaire  3.4011     2.0912             4.6112          54.6%

    checkpoint runs/tiny/checkpoints/step-000000400
    "#);
}

#[test]
fn without_a_terminal_there_are_lines() {
    let (mut console, people, data) = console(Show::Plain);
    run(&mut console, 120);
    console.finish();
    assert_snapshot!(people.text(), @"
    tokenizing speeches: 1 of 2 MiB
    model       llama, 6 layers of width 256
    data        1.6M tokens
    resumed at  step 100
                of another run

    step 101/400   25.2%  loss  4.2137  gnorm  0.81  lr 2.90e-4   12.3k tok/s (6.2k/rank)    mem  212MiB  0.33s (data  0.4%, comm  2.1%,  75% hidden)  eta --
    step 110/400   27.5%  loss  4.2137  gnorm  0.81  lr 2.90e-4   12.3k tok/s (6.2k/rank)    mem  212MiB  0.33s (data  0.4%, comm  2.1%,  75% hidden)  eta 1m36s
    a line of rank 0
    warning: rank 1: the gradient is large
    saved step 115  checkpoints/step-000000115  1.00MiB in 0.50s
    step 120/400   30.0%  loss  4.2137  gnorm  0.81  lr 2.90e-4   12.3k tok/s (6.2k/rank)    mem  212MiB  0.33s (data  0.4%, comm  2.1%,  75% hidden)  eta 1m33s
    ");
    assert_eq!(data.text(), "");
}

#[test]
fn json_is_every_message_on_standard_output_and_nothing_else_there() {
    let (mut console, people, data) = console(Show::Json);
    run(&mut console, 120);
    console.finish();
    let lines = data.text();
    let read: Vec<_> = lines
        .lines()
        .map(|line| WorkerMessage::from_line(line).unwrap())
        .collect();
    assert_eq!(read.len(), 23);
    assert_eq!(read[0], WorkerMessage::Banner(samples::banner()));
    assert_eq!(read[20], step(118));
    assert_snapshot!(people.text(), @"
    a line of rank 0
    warning: rank 1: the gradient is large
    ");
}

#[test]
fn nothing_still_means_warnings_and_errors() {
    let (mut console, people, data) = console(Show::Nothing);
    run(&mut console, 120);
    console.note("stopped");
    console.message(0, &WorkerMessage::Failed(samples::failure(0, "no room")));
    console.finish();
    assert_snapshot!(people.text(), @"
    a line of rank 0
    warning: rank 1: the gradient is large
    error: rank 0: no room
    ");
    assert_eq!(data.text(), "");
}

#[test]
fn the_lines_of_a_failure_are_said_once() {
    let (mut console, people, _) = console(Show::Plain);
    let failure = samples::failure(0, "no room\nhead asked for 2 GiB\nby the plan: 3 GiB");
    console.message(0, &WorkerMessage::Failed(failure));
    for line in [
        "error: no room",
        "  head asked for 2 GiB",
        "  by the plan: 3 GiB",
        "",
        "bye",
    ] {
        console.log_line(0, line);
    }
    console.finish();
    assert_snapshot!(people.text(), @r"
    error: rank 0: no room
      head asked for 2 GiB
      by the plan: 3 GiB

    bye
    ");
}

#[test]
fn what_many_ranks_fail_with_is_said_once_whichever_way_it_comes() {
    let (mut console, people, _) = console(Show::Plain);
    console.log_line(3, "\u{1b}[31merror\u{1b}[0m: data/text.txt is gone");
    for rank in [2, 0, 1, 3] {
        let message = "data/text.txt is gone\n  it was there before";
        console.message(
            rank,
            &WorkerMessage::Failed(samples::failure(rank, message)),
        );
        console.log_line(rank, "error: data/text.txt is gone");
        console.log_line(rank, "hint: try again");
    }
    for rank in 5..7 {
        console.log_line(
            rank,
            &format!("thread 'main' ({rank}) panicked at src/comm.rs:1:2:"),
        );
        console.log_line(rank, "a bucket is empty");
        console.log_line(rank, "note: run with a backtrace");
    }
    console.finish();
    assert_snapshot!(people.text(), @"
    [rank 3] error: data/text.txt is gone
    [rank 5] thread 'main' (5) panicked at src/comm.rs:1:2:
    [rank 5] a bucket is empty
    note: ranks 0-2 said the same as rank 3: data/text.txt is gone
    note: rank 6 said the same as rank 5: panicked at src/comm.rs:1:2:
    ");
}

#[test]
fn what_goes_wrong_again_after_a_restart_is_said_again() {
    let (mut console, people, _) = console(Show::Nothing);
    let failed = WorkerMessage::Failed(samples::failure(0, "no room"));
    console.message(0, &failed);
    console.message(0, &WorkerMessage::Banner(samples::banner()));
    console.message(0, &failed);
    assert_snapshot!(people.text(), @"
    error: rank 0: no room
    error: rank 0: no room
    ");
}

#[test]
fn a_stage_is_shown_once_however_its_numbers_run() {
    let (mut console, people, _) = console(Show::Plain);
    for done in 1..100 {
        console.preparing(&format!("tokenizing speeches: {done}.5 of 100 MiB"));
    }
    console.preparing("tokenizing dictionnaire: 1 of 8 MiB");
    assert_snapshot!(people.text(), @"
    tokenizing speeches: 1.5 of 100 MiB
    tokenizing dictionnaire: 1 of 8 MiB
    ");
}

#[test]
fn a_bar_needs_a_terminal() {
    for (mode, terminal, expected) in [
        (ProgressMode::Auto, true, Show::Bar),
        (ProgressMode::Auto, false, Show::Plain),
        (ProgressMode::Bar, true, Show::Bar),
        (ProgressMode::Bar, false, Show::Plain),
        (ProgressMode::Plain, true, Show::Plain),
        (ProgressMode::Json, true, Show::Json),
        (ProgressMode::None, true, Show::Nothing),
    ] {
        assert_eq!(shown(mode, terminal), expected);
    }
}

#[test]
fn what_people_look_for_first_in_a_log() {
    let errors = [
        "error: no room",
        "FATAL: no room",
        "thread 'main' panicked at src/main.rs:1",
        "ValueError: layer 7 is missing",
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory",
        "subprocess.TimeoutExpired is no error to us, this is one of Exception",
    ];
    let found: Vec<_> = errors.iter().filter(|it| looks_like_error(it)).collect();
    assert_eq!(found.len(), 5, "{found:?}");
    assert!(!looks_like_error("Traceback (most recent call last):"));
}
