//! The pages under `docs/reference/` are made from the code, and this holds them to it.
//!
//! `CORDEE_UPDATE_REFERENCE=1 cargo test --release -p cordee reference` writes them anew.

use std::{fmt::Write as _, path::Path};

use clap::CommandFactory;
use cordee_protocol::ExitCode;

use crate::args::Cli;

#[test]
fn reference_pages_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    let pages = [
        ("cli.md", commands()),
        ("config.md", cordee_config::reference()),
        ("metrics.md", cordee_metrics::reference()),
        ("exit-codes.md", exit_codes()),
    ];
    for (name, expected) in pages {
        let path = folder.join(name);
        if std::env::var_os("CORDEE_UPDATE_REFERENCE").is_some() {
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "{name} is out of date: run with CORDEE_UPDATE_REFERENCE=1 and commit it"
        );
    }
}

fn exit_codes() -> String {
    let mut page = String::from(
        "# Exit codes\n\nWhat `cordee` ends with. The numbers never change meaning.\n\n| code | meaning |\n| ---: | --- |\n",
    );
    for exit in ExitCode::ALL {
        let _ = writeln!(page, "| {} | {} |", exit.code(), exit.meaning());
    }
    page.push_str("| 128+n | killed by signal n; 130 is also a second Ctrl-C |\n");
    page
}

fn commands() -> String {
    let mut page = String::from("# Commands\n");
    let mut root = Cli::command().term_width(100);
    root.build();
    describe(&mut root, "cordee", &mut page);
    page
}

fn describe(command: &mut clap::Command, name: &str, page: &mut String) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(
        page,
        "\n## `{name}`\n\n```\n{}\n```\n",
        lines.join("\n").trim_end()
    );
    for subcommand in command.get_subcommands_mut() {
        let (own, hidden) = (subcommand.get_name().to_owned(), subcommand.is_hide_set());
        if !hidden && own != "help" {
            describe(subcommand, &format!("{name} {own}"), page);
        }
    }
}
