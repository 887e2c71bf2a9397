//! The pages under `docs/reference/` are made from the code, and this holds them to it.
//!
//! `CORDEE_UPDATE_REFERENCE=1 cargo test --release -p cordee reference` writes them anew.

use std::{fmt::Write as _, path::Path};

use clap::CommandFactory;
use cordee_protocol::{ExitCode, WorkerEnvironment, names};

use crate::{
    args::Cli,
    devices::{DEVICES, VISIBLE, WORKERS_PER_GPU},
    libraries::{LIBRARY_PATH, LOADER_PATH},
};

#[test]
fn reference_pages_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    let pages = [
        ("cli.md", commands()),
        ("config.md", cordee_config::reference()),
        ("metrics.md", cordee_metrics::reference()),
        ("exit-codes.md", exit_codes()),
        ("environment.md", environment()),
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

fn environment() -> String {
    let mut page = String::from(
        "# Environment variables\n\nWhat decides a result is in the config. These are facts of the machine.\n\n| variable | what it does |\n| --- | --- |\n",
    );
    let given = [
        (
            DEVICES,
            "the devices of the machine in place of looking for them, one rank each where the config names no number of workers: `cpu,cpu` or `cuda,cuda`",
        ),
        (
            VISIBLE,
            "the GPUs that a run sees, by CUDA's own rules: `0,1`",
        ),
        (
            LIBRARY_PATH,
            "directories to look for CUDA's libraries in before all others, separated by colons",
        ),
        (
            LOADER_PATH,
            "the same, for every program; workers get it with the directories in which cordee found what they need",
        ),
        (
            "CUDA_HOME",
            "a CUDA toolkit to take libraries from, also by the name of `CUDA_PATH`",
        ),
        (
            "VIRTUAL_ENV",
            "an environment of Python to take NVIDIA's libraries from, also by the name of `CONDA_PREFIX`; others are found by way of `PATH`",
        ),
        (
            "XDG_CACHE_HOME",
            "tokenised data is kept in `$XDG_CACHE_HOME/cordee`, else in `~/.cache/cordee`; `data.cache_dir` comes first. Compiled kernels are kept in `kernels` there",
        ),
        (
            "CORDEE_JOB_TOKEN",
            "a text that stands for the secret of a job on several machines, the same on all of them; needed where \
             they meet at a named endpoint",
        ),
        (
            "SLURM_PROCID",
            "and what else schedulers and launchers set, such as `RANK`, `JOB_COMPLETION_INDEX` and \
             `OMPI_COMM_WORLD_RANK`: who this process of a job is ([clusters](../clusters.md))",
        ),
        (
            "PYTHON_EXEC",
            "the Python that `cordee launch` runs scripts with, in place of `python3`",
        ),
        (
            "PET_NPROC_PER_NODE",
            "`--nproc-per-node` of `cordee launch`, and so each of its options by its name; what is typed comes first",
        ),
        ("NO_COLOR", "turns colour off"),
        (
            WORKERS_PER_GPU,
            "for tests on machines with few GPUs, and for nothing else: so many workers share each GPU. Needs NCCL 2.30, which is told to allow it; more than two may hang, and no speed means anything",
        ),
    ];
    for (name, text) in given {
        let _ = writeln!(page, "| `{name}` | {text} |");
    }
    page.push_str("\nThe launcher sets these for each worker, by the names of torchrun:\n\n");
    for (name, _) in WorkerEnvironment::single_node(0, 1, "").variables() {
        let _ = writeln!(page, "- `{name}`");
    }
    page.push_str("\nand these, which hold numbers of inherited file descriptors:\n\n");
    for name in [names::SHARED_MEMORY_FD, names::JOB_FD, names::MESSAGE_FD] {
        let _ = writeln!(page, "- `{name}`");
    }
    let _ = writeln!(
        page,
        "\nand `{}`, by which a launcher knows the processes that its workers started.",
        names::LAUNCHER
    );
    page
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
