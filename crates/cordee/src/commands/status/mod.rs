//! `cordee status`: how a run stands.

mod page;

use std::{
    io::{IsTerminal as _, stdout},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use cordee_metrics::{RunStatus, STATUS_FILE};
use cordee_protocol::ExitCode;
use serde_json::{Value, json};

use crate::{
    args::StatusArgs,
    console::Console,
    failure::Failure,
    run_dir::RunDir,
    run_record::{Launcher, RunRecord},
};

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// What puts a terminal's cursor into its corner, and what clears from there on.
const TO_THE_CORNER: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

pub(crate) fn run(args: &StatusArgs) -> Result<u8, Failure> {
    let run = RunDir::meant(args.run.as_deref())?;
    let redraw = args.watch && !args.json && stdout().is_terminal();
    let mut is_first = true;
    loop {
        let record = RunRecord::read(run.clone());
        let standing = record.standing();
        let text = match &record.status {
            Some(status) if args.json => format!("{}\n", as_json(&record, status)),
            Some(status) => page::page(&record, status),
            // The launcher is at work on what comes before there are ranks.
            None if args.watch && record.launcher == Launcher::Alive => page::preparing(&record),
            None => return Err(without_status(&record)),
        };
        if redraw {
            Console::print_data(&over_the_last(&text, is_first));
        } else if !args.json && !is_first {
            Console::print_data(&format!("\n{text}"));
        } else {
            Console::print_data(&text);
        }
        if !args.watch || !standing.is_under_way() {
            return Ok(ExitCode::Done.code());
        }
        is_first = false;
        thread::sleep(PAUSE);
    }
}

/// A page in the place of the one before, line by line so that nothing flickers.
fn over_the_last(text: &str, is_first: bool) -> String {
    let lines = text.replace('\n', &format!("{CLEAR_LINE}\n"));
    let clear = if is_first { CLEAR_BELOW } else { "" };
    format!("{TO_THE_CORNER}{clear}{lines}{CLEAR_BELOW}")
}

/// What the launcher wrote, and what only a look from outside tells.
fn as_json(record: &RunRecord, status: &RunStatus) -> Value {
    let mut value = json!(status);
    value["launcher_alive"] = json!(record.launcher.is_alive());
    value["age_s"] = json!(record.status_age());
    value
}

/// Why there is nothing to tell.
fn without_status(record: &RunRecord) -> Failure {
    let name = record.run.path().display();
    if record.run.path().join(STATUS_FILE).exists() {
        let error = anyhow!("{name}/{STATUS_FILE} is not one that this cordee reads");
        return Failure::usage(error).with_hint(
            "ask with the cordee that trains the run; `cordee runs show` tells what its other files say",
        );
    }
    if record.launcher == Launcher::Alive {
        let error = anyhow!("{name} has told nothing yet: its launcher prepares the data");
        return Failure::new(ExitCode::Failed, error)
            .with_hint("ask again in a moment, or wait for it with --watch");
    }
    let error = anyhow!(
        "{name} has no {STATUS_FILE}: it never came to start its ranks, or a cordee trained it that kept none"
    );
    Failure::usage(error).with_hint("`cordee runs show` tells what its other files say")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_record::samples;

    #[test]
    fn json_is_what_the_launcher_wrote_and_two_fields_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = samples::record(folder.path());
        record.launcher = Launcher::Unknown;
        let status = record.status.clone().unwrap();
        let mut value = as_json(&record, &status);
        assert_eq!(value["launcher_alive"], Value::Null);
        assert!((value["age_s"].as_f64().unwrap() - 0.4).abs() < 1e-6);
        let read: RunStatus = serde_json::from_value(value.take()).unwrap();
        assert_eq!(read, status);
    }

    #[test]
    fn a_page_takes_the_place_of_the_last() {
        assert_eq!(
            over_the_last("a\nb\n", false),
            "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"
        );
    }

    #[test]
    fn who_asks_for_nothing_learns_why() {
        let folder = tempfile::tempdir().unwrap();
        let run = samples::write(folder.path(), "run");
        let refused = |launcher| {
            let mut record = RunRecord::read(run.clone());
            assert!(record.status.is_none());
            record.launcher = launcher;
            without_status(&record).to_string()
        };
        fs_err::write(run.path().join(STATUS_FILE), "{\"version\": 7}").unwrap();
        assert!(refused(Launcher::Gone).contains("not one that this cordee reads"));
        fs_err::remove_file(run.path().join(STATUS_FILE)).unwrap();
        assert!(refused(Launcher::Alive).contains("--watch"));
        assert!(refused(Launcher::Gone).contains("cordee runs show"));
    }
}
