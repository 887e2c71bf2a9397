//! What schedulers and launchers set, each in its own words.

use super::{IdentityError, Lookup};

pub(super) const OPEN_MPI: &str = "Open MPI";
pub(super) const SLURM: &str = "Slurm";

/// A number, and who says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) name: String,
    pub(super) value: usize,
    /// As it was written.
    pub(super) text: String,
}

impl Fact {
    pub(super) fn read(name: impl Into<String>, text: String) -> Result<Self, IdentityError> {
        let name = name.into();
        match text.trim().parse() {
            Ok(value) => Ok(Self { name, value, text }),
            Err(_) => Err(IdentityError::Invalid {
                name,
                value: text,
                expected: "a whole number of 0 or more",
            }),
        }
    }
}

/// What one source says.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) source: &'static str,
    pub(super) node: Option<Fact>,
    pub(super) count: Option<Fact>,
    /// Whether agents are counted by rank and not by machine.
    pub(super) one_worker: bool,
    /// The place among the agents of the machine, and how many those are.
    pub(super) local: (usize, usize),
    pub(super) job: Option<String>,
}

/// All that say something, in the order in which they are believed.
pub(super) fn all(
    lookup: Lookup<'_>,
    remarks: &mut Vec<String>,
) -> Result<Vec<Seen>, IdentityError> {
    let read = Read(lookup);
    let seen = [
        torchrun(&read)?,
        // Started under Slurm, mpirun has srun start a daemon on each node, whose variables are not ours.
        open_mpi(&read)?,
        slurm(&read, remarks)?,
        kubernetes(&read)?,
        skypilot(&read)?,
    ];
    Ok(seen.into_iter().flatten().collect())
}

/// A way to look at variables.
struct Read<'a>(Lookup<'a>);

impl Read<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.trim().is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<Fact>, IdentityError> {
        self.text(name)
            .map(|text| Fact::read(name, text))
            .transpose()
    }

    /// The first of several names that is set.
    fn first(&self, names: &[&str]) -> Result<Option<Fact>, IdentityError> {
        for name in names {
            if let Some(fact) = self.number(name)? {
                return Ok(Some(fact));
            }
        }
        Ok(None)
    }
}

/// A worker of torchrun, or of whoever sets the same. Without a local rank the numbers may be of nodes,
/// as Kubeflow's are: they say nothing then.
fn torchrun(read: &Read<'_>) -> Result<Option<Seen>, IdentityError> {
    let (rank, size) = (read.number("RANK")?, read.number("WORLD_SIZE")?);
    let local = read.number("LOCAL_RANK")?;
    let (Some(rank), Some(size), Some(local)) = (rank, size, local) else {
        return Ok(None);
    };
    let locals = read
        .number("LOCAL_WORLD_SIZE")?
        .map_or(size.value, |fact| fact.value);
    let job = read
        .text("TORCHELASTIC_RUN_ID")
        .map(|id| format!("torchrun-{id}"));
    Ok(Some(Seen {
        source: "torchrun",
        node: Some(rank),
        count: Some(size),
        one_worker: true,
        local: (local.value, locals.max(1)),
        job,
    }))
}

/// srun(1), "Output environment variables". The batch script itself is one process on the first of the
/// nodes, whatever was allocated.
fn slurm(read: &Read<'_>, remarks: &mut Vec<String>) -> Result<Option<Seen>, IdentityError> {
    let Some(job) = read.text("SLURM_JOB_ID") else {
        return Ok(None);
    };
    let nodes = read.first(&[
        "SLURM_STEP_NUM_NODES",
        "SLURM_NNODES",
        "SLURM_JOB_NUM_NODES",
    ])?;
    let Some(step) = read.text("SLURM_STEP_ID") else {
        if let Some(nodes) = nodes.filter(|nodes| nodes.value > 1) {
            remarks.push(format!(
                "{} nodes are allocated ({}), and this runs on one of them: `srun` starts it on all",
                nodes.value, nodes.name
            ));
        }
        return Ok(None);
    };
    if read.text("SLURM_HET_SIZE").is_some() {
        return Err(IdentityError::NotUnderstood(
            "this is a heterogeneous job of Slurm (SLURM_HET_SIZE is set), whose parts count their nodes each by itself",
        ));
    }
    let job = Some(format!("slurm-{job}-{step}"));
    let tasks = read.first(&["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"])?;
    let many = match (&tasks, &nodes) {
        (Some(tasks), Some(nodes)) => tasks.value > nodes.value,
        _ => false,
    };
    if !many {
        return Ok(Some(Seen {
            source: SLURM,
            node: read.number("SLURM_NODEID")?,
            count: nodes,
            one_worker: false,
            local: (0, 1),
            job,
        }));
    }
    let node = read.number("SLURM_NODEID")?.map_or(0, |fact| fact.value);
    let local = read.number("SLURM_LOCALID")?.map_or(0, |fact| fact.value);
    let per_node = read
        .text("SLURM_STEP_TASKS_PER_NODE")
        .or_else(|| read.text("SLURM_TASKS_PER_NODE"));
    let locals = per_node.and_then(|text| tasks_per_node(&text).get(node).copied());
    Ok(Some(Seen {
        source: "Slurm, a task for each rank",
        node: read.number("SLURM_PROCID")?,
        count: tasks,
        one_worker: true,
        local: (local, locals.unwrap_or(local + 1).max(local + 1)),
        job,
    }))
}

/// `2(x3),1` is `[2, 2, 2, 1]`; nothing for what cannot be read.
pub(super) fn tasks_per_node(text: &str) -> Vec<usize> {
    let one = |part: &str| -> Option<Vec<usize>> {
        let (count, times) = match part.split_once("(x") {
            None => (part, 1),
            Some((count, rest)) => (count, rest.strip_suffix(')')?.parse().ok()?),
        };
        // No cluster has so many nodes; a typing error might.
        (times <= 1 << 20).then_some(())?;
        Some(vec![count.trim().parse().ok()?; times])
    };
    let parts: Option<Vec<_>> = text.split(',').map(one).collect();
    parts.map_or_else(Vec::new, |parts| parts.concat())
}

/// An indexed job's pod knows its number, and not how many there are.
fn kubernetes(read: &Read<'_>) -> Result<Option<Seen>, IdentityError> {
    let Some(node) = read.number("JOB_COMPLETION_INDEX")? else {
        return Ok(None);
    };
    Ok(Some(Seen {
        source: "Kubernetes",
        node: Some(node),
        count: None,
        one_worker: false,
        local: (0, 1),
        job: None,
    }))
}

/// <https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html>
fn skypilot(read: &Read<'_>) -> Result<Option<Seen>, IdentityError> {
    let (node, count) = (
        read.number("SKYPILOT_NODE_RANK")?,
        read.number("SKYPILOT_NUM_NODES")?,
    );
    if node.is_none() && count.is_none() {
        return Ok(None);
    }
    Ok(Some(Seen {
        source: "SkyPilot",
        node,
        count,
        one_worker: false,
        local: (0, 1),
        job: read.text("SKYPILOT_TASK_ID"),
    }))
}

/// mpirun(1), "Environment variables". With one process on each machine they are counted by machine.
fn open_mpi(read: &Read<'_>) -> Result<Option<Seen>, IdentityError> {
    let (rank, size) = (
        read.number("OMPI_COMM_WORLD_RANK")?,
        read.number("OMPI_COMM_WORLD_SIZE")?,
    );
    if rank.is_none() || size.is_none() {
        return Ok(None);
    }
    let number = |fact: Option<Fact>, otherwise| fact.map_or(otherwise, |fact: Fact| fact.value);
    let local = number(read.number("OMPI_COMM_WORLD_LOCAL_RANK")?, 0);
    let locals = number(read.number("OMPI_COMM_WORLD_LOCAL_SIZE")?, 1).max(local + 1);
    // All on one machine, or several on one of them, are one for each rank.
    Ok(Some(Seen {
        source: OPEN_MPI,
        node: rank,
        count: size,
        one_worker: locals > 1,
        local: if locals > 1 { (local, locals) } else { (0, 1) },
        job: read
            .text("PMIX_NAMESPACE")
            .map(|name| format!("mpi-{name}")),
    }))
}
