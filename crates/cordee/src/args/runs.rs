//! What is typed to look at runs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// A run directory, or its name in runs/ [default: the run in runs/ that was started last].
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<PathBuf>,
    /// Look again every second until the run ends.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print a JSON object in place of text; with --watch, one a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// List runs: how each stands, how far it came, and how much of its time trained.
    Ls {
        /// The directory that holds them.
        #[arg(value_name = "DIR", default_value = "runs")]
        dir: PathBuf,
        /// Print a JSON array in place of a table.
        #[arg(long)]
        json: bool,
    },
    /// Tell all about a run: what it was, every attempt at it and how that ended, validations,
    /// checkpoints, and where the time went.
    Show {
        /// A run directory, or its name in runs/ [default: the run in runs/ that was started last].
        #[arg(value_name = "RUN")]
        run: Option<PathBuf>,
        /// Print a JSON object in place of text.
        #[arg(long)]
        json: bool,
    },
}
