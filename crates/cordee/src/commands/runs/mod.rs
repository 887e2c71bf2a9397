//! `cordee runs`: runs, past and present, from what they left in their directories.

mod list;
mod page;
mod story;

use std::path::Path;

use anyhow::anyhow;
use cordee_protocol::ExitCode;
use serde_json::json;

use self::{list::Row, story::Story};
use crate::{
    args::RunsCommand, console::Console, failure::Failure, run_dir::RunDir, run_record::RunRecord,
};

pub(crate) fn run(command: &RunsCommand) -> Result<u8, Failure> {
    match command {
        RunsCommand::Ls { dir, json } => list(dir, *json)?,
        RunsCommand::Show { run, json } => {
            let record = RunRecord::read(RunDir::meant(run.as_deref())?);
            let story = Story::of(&record);
            Console::print_data(&if *json {
                format!("{}\n", json!(story))
            } else {
                page::page(&story, &jiff::tz::TimeZone::system())
            });
        }
    }
    Ok(ExitCode::Done.code())
}

fn list(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let runs = RunDir::all_in(dir).map_err(|error| {
        Failure::usage(error).with_hint(
            "`cordee runs ls DIR` lists the runs in DIR; `cordee train` makes them in runs/",
        )
    })?;
    let rows: Vec<Row> = runs
        .into_iter()
        .map(|run| Row::of(&RunRecord::read(run)))
        .collect();
    if as_json {
        Console::print_data(&format!("{}\n", json!(rows)));
        return Ok(());
    }
    if rows.is_empty() {
        let error = anyhow!("there is no run in {}", dir.display());
        return Err(Failure::usage(error).with_hint(
            "`cordee runs ls DIR` looks in DIR, which holds run directories; `cordee runs show RUN` takes one of them",
        ));
    }
    Console::print_data(&list::page(&rows, &jiff::tz::TimeZone::system()));
    Ok(())
}

/// When something was, to the second: `2026-09-21 14:13:20`.
fn date(time: f64, zone: &jiff::tz::TimeZone) -> String {
    match jiff::Timestamp::from_millisecond((time * 1000.0) as i64) {
        Ok(time) => time
            .to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => "unknown".to_owned(),
    }
}
