//! What is typed to start any program with one process per rank, as torchrun has it.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

/// All options are optional here, so that what is typed and what is in the environment can be told
/// apart.
#[derive(Clone, Debug, Default, Args)]
#[command(
    after_help = "Every option may also come from the environment: PET_NPROC_PER_NODE=2 for --nproc-per-node 2, \
                  PET_STANDALONE=1 for --standalone. What is typed comes first. Underscores do for dashes."
)]
pub(crate) struct LaunchArgs {
    /// Processes: a number; `gpu`, one for each GPU; `cpu`, one for each core; `auto`, the former where
    /// there are GPUs, else the latter [default: 1].
    #[arg(long, alias = "nproc_per_node", value_name = "N|gpu|cpu|auto")]
    pub(crate) nproc_per_node: Option<String>,
    /// Machines that work together, or the fewest and the most [default: what the scheduler says, or 1].
    #[arg(long, value_name = "N|MIN:MAX")]
    pub(crate) nnodes: Option<String>,
    /// Which of the machines this is, from 0 [default: what the scheduler says].
    #[arg(long, alias = "node_rank", value_name = "N")]
    pub(crate) node_rank: Option<String>,
    /// How often the processes are started again after one failed. Exit codes 2 (usage), 3
    /// (environment) and 93 (do not requeue) say that it would not help [default: 0].
    #[arg(long, alias = "max_restarts", value_name = "N")]
    pub(crate) max_restarts: Option<String>,
    /// What the processes know the job by [default: the program and the time].
    #[arg(long, visible_alias = "run-id", aliases = ["rdzv_id", "run_id"], value_name = "ID")]
    pub(crate) rdzv_id: Option<String>,
    /// Where each process's output goes, to rank-000.log and so on; what is there is kept
    /// [default: a new folder in cordee-logs/].
    #[arg(long, alias = "log_dir", value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Where the processes meet: the host [default: 127.0.0.1, or an address of machine 0].
    #[arg(long, alias = "master_addr", value_name = "HOST")]
    pub(crate) master_addr: Option<String>,
    /// Where the processes meet: the port [default: a free one].
    #[arg(long, alias = "master_port", value_name = "PORT")]
    pub(crate) master_port: Option<String>,
    /// Both at once; port 0 is a free one. With several machines, where the launcher of machine 0 listens
    /// for the others, in place of the file by which they find it.
    #[arg(long, alias = "rdzv_endpoint", value_name = "HOST:PORT")]
    pub(crate) rdzv_endpoint: Option<String>,
    /// Accepted, and of no effect: the processes of one machine need none.
    #[arg(long, alias = "rdzv_backend", value_name = "NAME")]
    pub(crate) rdzv_backend: Option<String>,
    /// With several machines: `join_timeout` and `last_call_timeout`, in seconds; other keys have no effect.
    #[arg(long, alias = "rdzv_conf", value_name = "KEY=VALUE,...")]
    pub(crate) rdzv_conf: Option<String>,
    /// One machine, meeting at a free port: what is done anyway.
    #[arg(long)]
    pub(crate) standalone: bool,
    /// What the processes know their role by [default: default].
    #[arg(long, value_name = "NAME")]
    pub(crate) role: Option<String>,
    /// Accepted, and of no effect: output always goes to files, and rank 0's to the console too.
    #[arg(short, long, value_name = "STREAMS")]
    pub(crate) tee: Option<String>,
    /// Accepted, and of no effect, likewise.
    #[arg(short, long, value_name = "STREAMS")]
    pub(crate) redirects: Option<String>,
    /// Accepted, and of no effect: a process that ends is heard of at once.
    #[arg(long, alias = "monitor_interval", value_name = "SECONDS")]
    pub(crate) monitor_interval: Option<String>,
    /// CMD is the name of a Python module.
    #[arg(short, long)]
    pub(crate) module: bool,
    /// CMD is a program, whatever its name looks like.
    #[arg(long, alias = "no_python")]
    pub(crate) no_python: bool,
    /// The program and its arguments. A file that ends in .py and cannot be run by itself is run by
    /// `python3 -u`, or by what `PYTHON_EXEC` names.
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}
