//! All about a run, as a person reads it.

use std::fmt::Write as _;

use cordee_metrics::Outcome;
use jiff::tz::TimeZone;

use super::{
    date,
    story::{Attempt, Evaluation, Story},
};
use crate::{
    console::{Side, bytes, duration, goodput_table, harmless, table},
    run_record::Standing,
};

pub(super) fn page(story: &Story, zone: &TimeZone) -> String {
    let mut page = format!("{}: {}\n", harmless(&story.name), story.state);
    about(&mut page, story, zone);
    for attempt in &story.attempts {
        about_attempt(&mut page, attempt, story.state, zone);
    }
    if !story.evaluations.is_empty() {
        let _ = write!(page, "\nvalidations\n{}", evaluations(&story.evaluations));
    }
    if !story.checkpoints.is_empty() {
        let _ = write!(page, "\ncheckpoints\n{}", checkpoints(story, zone));
    }
    if let Some(ledger) = &story.ledger {
        let _ = write!(page, "\ngoodput\n{}", goodput_table(ledger, story.starts));
    }
    page
}

fn about(page: &mut String, story: &Story, zone: &TimeZone) {
    let mut line = |label: &str, text: &str| {
        let _ = writeln!(page, "  {label:<8}  {}", harmless(text));
    };
    line("config", story.config.as_deref().unwrap_or("unknown"));
    if let Some(model) = &story.model {
        line("model", model);
    }
    let noun = if story.ranks == 1 { "rank" } else { "ranks" };
    line(
        "on",
        &format!("{}, {} {noun}, {}", story.host, story.ranks, story.device),
    );
    if let Some(started) = story.started {
        line("started", &date(started, zone));
    }
    let mut step = match story.steps {
        Some(steps) => format!("{} of {steps}", story.step),
        None => story.step.to_string(),
    };
    if let Some(loss) = story.loss {
        let _ = write!(step, ", loss {loss:.4}");
    }
    line("step", &step);
    if !story.command.is_empty() {
        line("command", &command(&story.command));
    }
    line("in", &story.path);
}

/// Words as a shell takes them.
fn command(words: &[String]) -> String {
    let is_plain =
        |character: char| character.is_alphanumeric() || "-_./=:,@%+".contains(character);
    let quoted = words.iter().map(|word| {
        if word.chars().all(is_plain) && !word.is_empty() {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn about_attempt(page: &mut String, attempt: &Attempt, state: Standing, zone: &TimeZone) {
    let when = |time: Option<f64>| time.map_or_else(|| "unknown".to_owned(), |it| date(it, zone));
    let how = match attempt.outcome {
        Some(outcome) => Standing::from(outcome).to_string(),
        // The last one stands as the run does; one before it said nothing more.
        None if state.is_under_way() => state.to_string(),
        None => Standing::Lost.to_string(),
    };
    let mut took = String::new();
    // Of an attempt without an end, what is known is when that was found out.
    let was_lost = attempt.outcome == Some(Outcome::Lost);
    if let Some((started, ended)) = attempt.started.zip(attempt.ended).filter(|_| !was_lost) {
        took = format!(" after {}", duration(ended - started));
    }
    let _ = writeln!(
        page,
        "\nattempt {}: {how}{took}\n  started   {}{}",
        attempt.number,
        when(attempt.started),
        match (&attempt.checkpoint, attempt.first_step) {
            (Some(_), Some(step)) => format!(", from the checkpoint of step {step}"),
            (_, Some(step)) if step > 0 => format!(", after step {step}"),
            _ => String::new(),
        },
    );
    let mut line = |label: &str, text: &str| {
        let _ = writeln!(page, "  {label:<8}  {}", harmless(text));
    };
    for remark in &attempt.remarks {
        line("remark", remark);
    }
    if let Some(step) = attempt.last_step {
        let label = if was_lost { "found" } else { "ended" };
        line(
            label,
            &format!("{}, after step {step}", when(attempt.ended)),
        );
    }
    if let Some(failure) = &attempt.failure {
        line(
            "why",
            failure.verdict.lines().next().unwrap_or(&failure.class),
        );
    }
    match attempt.decision.as_deref() {
        Some("restart") => line("then", "restarted"),
        Some(why) => line("then", &format!("not restarted: {why}")),
        None => {}
    }
}

/// A row for each, with the loss of every source where there are several.
fn evaluations(evaluations: &[Evaluation]) -> String {
    let heads = [
        ("  step", Side::Right),
        ("loss", Side::Right),
        ("bits/byte", Side::Left),
    ];
    let rows: Vec<_> = evaluations
        .iter()
        .map(|evaluation| {
            let bits = evaluation.sources.iter().filter_map(|source| {
                let bits = source.bits_per_byte.filter(|it| it.is_finite())?;
                Some(format!("{} {bits:.4}", harmless(&source.name)))
            });
            [
                evaluation.step.to_string(),
                format!("{:.4}", evaluation.loss),
                bits.collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    table(heads, &rows, &[])
}

/// Those that are there; of the others, how many there were.
fn checkpoints(story: &Story, zone: &TimeZone) -> String {
    let heads = [
        ("  step", Side::Right),
        ("size", Side::Right),
        ("written", Side::Left),
        ("", Side::Left),
    ];
    let kept = story.checkpoints.iter().filter(|it| it.exists);
    let rows: Vec<_> = kept
        .map(|checkpoint| {
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "--".to_owned());
            [
                checkpoint.step.to_string(),
                or_none(checkpoint.bytes.map(bytes)),
                or_none(checkpoint.time.map(|time| date(time, zone))),
                harmless(&checkpoint.path),
            ]
        })
        .collect();
    let mut text = String::new();
    if !rows.is_empty() {
        text = table(heads, &rows, &[]);
    }
    let gone = story.checkpoints.len() - rows.len();
    if gone > 0 {
        let _ = writeln!(text, "  {gone} written before are no longer kept");
    }
    text
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::run_record::{RunRecord, samples};

    fn shown(change: impl FnOnce(&mut Story)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let run = samples::write(folder.path(), "my run");
        samples::write_attempts(&run, &samples::attempts(Some(Outcome::Failed)));
        let mut story = Story::of(&RunRecord::read(run));
        change(&mut story);
        let root = folder.path().canonicalize().unwrap();
        page(&story, &TimeZone::UTC).replace(root.to_str().unwrap(), "/home/me/runs")
    }

    #[test]
    fn a_run_that_failed_twice() {
        assert_snapshot!(shown(|_| ()), @"
        my run: failed
          config    configs/quickstart.toml
          model     llama, dim 192, 4 layers, 6 heads (2 kv), ffn 512, vocabulary 2048
          on        node-7, 2 ranks, cpu
          started   2026-09-21 14:13:20
          step      142 of 320, loss 5.5800
          command   /opt/cordee train configs/quickstart.toml --run-dir 'runs/my run'
          in        /home/me/runs/my run

        attempt 1: failed after 37s
          started   2026-09-21 14:13:20
          remark    no control groups: the file system of them is read-only
          ended     2026-09-21 14:13:57, after step 142
          why       rank 1 (node-7, pid 4243) was killed by SIGKILL (signal 9)
          then      restarted

        attempt 2: failed after 37s
          started   2026-09-21 14:13:58, from the checkpoint of step 100
          remark    no control groups: the file system of them is read-only
          ended     2026-09-21 14:14:35, after step 320
          why       rank 1 (node-7, pid 4243) was killed by SIGKILL (signal 9)
          then      not restarted: the same failure again, and no checkpoint between

        validations
          step    loss  bits/byte
           100  5.5000  english 2.5000

        checkpoints
          step     size  written
           100  22.5MiB  2026-09-21 14:13:46  /home/me/runs/my run/checkpoints/step-000000100

        goodput
        90.3% of 1m14s in 2 attempts
          training        1m03s   84.9%
          evaluation       4.0s    5.4%
          start            1.5s    2.0%
          load             0.2s    0.3%
          save             0.5s    0.7%
          recomputation    3.0s    4.0%
          down             2.0s    2.7%
        ");
    }

    #[test]
    fn a_run_of_which_little_is_left() {
        assert_snapshot!(shown(|story| {
            story.attempts.clear();
            story.evaluations.clear();
            story.checkpoints.clear();
            story.command.clear();
            (story.config, story.model, story.steps, story.loss) = (None, None, None, None);
            (story.started, story.ledger) = (None, None);
            story.ranks = 1;
        }), @"
        my run: failed
          config    unknown
          on        node-7, 1 rank, cpu
          step      142
          in        /home/me/runs/my run
        ");
    }

    #[test]
    fn a_run_that_goes_on() {
        let text = shown(|story| {
            story.state = Standing::Running;
            let last = story.attempts.last_mut().unwrap();
            (last.outcome, last.ended, last.last_step) = (None, None, None);
            (last.failure, last.decision) = (None, None);
            story.checkpoints[0].exists = false;
        });
        assert!(text.contains("attempt 2: running\n"), "{text}");
        assert!(text.contains("no longer kept"), "{text}");
    }

    #[test]
    fn words_with_blanks_are_quoted() {
        let words = ["a b", "it's", "", "--set=x"].map(str::to_owned);
        assert_eq!(command(&words), r"'a b' 'it'\''s' '' --set=x");
    }
}
