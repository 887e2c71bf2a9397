//! Where a worker learns who it is: torchrun's variables, and a few of our own.

/// The names of the variables.
pub mod names {
    /// Rank in the world, 0-based.
    pub const RANK: &str = "RANK";
    /// Number of ranks.
    pub const WORLD_SIZE: &str = "WORLD_SIZE";
    /// Rank within the node; also the device index.
    pub const LOCAL_RANK: &str = "LOCAL_RANK";
    /// Ranks on this node.
    pub const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
    /// Index of the node.
    pub const GROUP_RANK: &str = "GROUP_RANK";
    /// Number of nodes.
    pub const GROUP_WORLD_SIZE: &str = "GROUP_WORLD_SIZE";
    /// Kind of the rank; there is one kind alone.
    pub const ROLE_NAME: &str = "ROLE_NAME";
    /// Rank among those of its kind.
    pub const ROLE_RANK: &str = "ROLE_RANK";
    /// Number of ranks of its kind.
    pub const ROLE_WORLD_SIZE: &str = "ROLE_WORLD_SIZE";
    /// Host of the rendezvous.
    pub const MASTER_ADDR: &str = "MASTER_ADDR";
    /// Port of the rendezvous.
    pub const MASTER_PORT: &str = "MASTER_PORT";
    /// How often the run was restarted by the launcher.
    pub const RESTART_COUNT: &str = "TORCHELASTIC_RESTART_COUNT";
    /// How often the launcher would restart it.
    pub const MAX_RESTARTS: &str = "TORCHELASTIC_MAX_RESTARTS";
    /// Whether the launcher keeps the store of the rendezvous, or rank 0 has to.
    pub const USE_AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
    /// What PyTorch does with a collective that failed; 1 ends the process.
    pub const ASYNC_ERROR_HANDLING: &str = "TORCH_NCCL_ASYNC_ERROR_HANDLING";
    /// Threads of a process that computes with OpenMP.
    pub const OMP_NUM_THREADS: &str = "OMP_NUM_THREADS";
    /// Identifier of the run.
    pub const RUN_ID: &str = "TORCHELASTIC_RUN_ID";
    /// File descriptor of the memory that the ranks of this machine share.
    pub const SHARED_MEMORY_FD: &str = "CORDEE_SHARED_MEMORY_FD";
    /// File descriptor of the memory of a worker's status page.
    pub const STATUS_FD: &str = "CORDEE_STATUS_FD";
    /// File descriptor of the memory that holds what a worker is to do.
    pub const JOB_FD: &str = "CORDEE_JOB_FD";
    /// Which launcher started a process or one that it comes from, and as which rank.
    pub const LAUNCHER: &str = "CORDEE_LAUNCHER";
    /// File descriptor on which a worker tells its launcher what happens, one JSON object a line.
    pub const MESSAGE_FD: &str = "CORDEE_MESSAGE_FD";
}

/// A variable that is missing, or does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The variable is not set.
    #[error("environment variable {0} is not set: workers are started by `cordee train`")]
    Missing(&'static str),
    /// The variable is not a number in the range.
    #[error("environment variable {name} is `{value}`: {expected}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
}

/// Who a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEnvironment {
    /// Rank in the world, 0-based.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Rank within the node.
    pub local_rank: usize,
    /// Ranks on this node.
    pub local_world_size: usize,
    /// Index of the node.
    pub group_rank: usize,
    /// Number of nodes.
    pub group_world_size: usize,
    /// Host of the rendezvous.
    pub master_addr: String,
    /// Port of the rendezvous; 0 where ranks meet in shared memory alone.
    pub master_port: u16,
    /// How often the run was restarted.
    pub restart_count: usize,
    /// How often the launcher would restart it.
    pub max_restarts: usize,
    /// Identifier of the run.
    pub run_id: String,
}

impl WorkerEnvironment {
    /// The environment of one rank of a single-node job.
    pub fn single_node(rank: usize, world_size: usize, run_id: &str) -> Self {
        Self {
            rank,
            world_size,
            local_rank: rank,
            local_world_size: world_size,
            group_rank: 0,
            group_world_size: 1,
            master_addr: "127.0.0.1".to_owned(),
            master_port: 0,
            restart_count: 0,
            max_restarts: 0,
            run_id: run_id.to_owned(),
        }
    }

    /// The variables to set for the worker.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            (names::RANK, self.rank.to_string()),
            (names::WORLD_SIZE, self.world_size.to_string()),
            (names::LOCAL_RANK, self.local_rank.to_string()),
            (names::LOCAL_WORLD_SIZE, self.local_world_size.to_string()),
            (names::GROUP_RANK, self.group_rank.to_string()),
            (names::GROUP_WORLD_SIZE, self.group_world_size.to_string()),
            (names::ROLE_NAME, "default".to_owned()),
            (names::ROLE_RANK, self.rank.to_string()),
            (names::ROLE_WORLD_SIZE, self.world_size.to_string()),
            (names::MASTER_ADDR, self.master_addr.clone()),
            (names::MASTER_PORT, self.master_port.to_string()),
            (names::RESTART_COUNT, self.restart_count.to_string()),
            (names::MAX_RESTARTS, self.max_restarts.to_string()),
            (names::USE_AGENT_STORE, "False".to_owned()),
            (names::RUN_ID, self.run_id.clone()),
        ]
    }

    /// What torchrun sets besides for programs of PyTorch, unless `lookup` finds that somebody has: a
    /// collective that failed ends the process, and ranks that share a machine compute with one
    /// thread each. Our own workers want neither.
    pub fn torch_defaults(
        &self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Vec<(&'static str, String)> {
        let mut defaults = vec![names::ASYNC_ERROR_HANDLING];
        if self.local_world_size > 1 {
            defaults.push(names::OMP_NUM_THREADS);
        }
        defaults.retain(|name| lookup(name).is_none());
        defaults
            .into_iter()
            .map(|name| (name, "1".to_owned()))
            .collect()
    }

    /// Reads the variables through `lookup`; only rank and world size must be there.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, EnvironmentError> {
        let number = |name: &'static str, default: Option<usize>| match (lookup(name), default) {
            (None, Some(value)) => Ok(value),
            (None, None) => Err(EnvironmentError::Missing(name)),
            (Some(value), _) => value.parse().map_err(|_| EnvironmentError::Invalid {
                name,
                value,
                expected: "expected a whole number of 0 or more",
            }),
        };
        let rank = number(names::RANK, None)?;
        let world_size = number(names::WORLD_SIZE, None)?;
        if rank >= world_size {
            return Err(EnvironmentError::Invalid {
                name: names::RANK,
                value: rank.to_string(),
                expected: "expected less than WORLD_SIZE",
            });
        }
        let port = number(names::MASTER_PORT, Some(0))?;
        Ok(Self {
            rank,
            world_size,
            local_rank: number(names::LOCAL_RANK, Some(rank))?,
            local_world_size: number(names::LOCAL_WORLD_SIZE, Some(world_size))?,
            group_rank: number(names::GROUP_RANK, Some(0))?,
            group_world_size: number(names::GROUP_WORLD_SIZE, Some(1))?,
            master_addr: lookup(names::MASTER_ADDR).unwrap_or_else(|| "127.0.0.1".to_owned()),
            master_port: u16::try_from(port).map_err(|_| EnvironmentError::Invalid {
                name: names::MASTER_PORT,
                value: port.to_string(),
                expected: "expected a port, 0 to 65535",
            })?,
            restart_count: number(names::RESTART_COUNT, Some(0))?,
            max_restarts: number(names::MAX_RESTARTS, Some(0))?,
            run_id: lookup(names::RUN_ID).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let written = WorkerEnvironment::single_node(3, 8, "job-1");
        let variables: HashMap<_, _> = written.variables().into_iter().collect();
        let read = WorkerEnvironment::read(|name| variables.get(name).cloned()).unwrap();
        assert_eq!(written, read);
    }

    #[test]
    fn torch_is_told_what_nobody_else_told_it() {
        let of = |ranks, set: &[&str]| {
            let environment = WorkerEnvironment::single_node(0, ranks, "job-1");
            let lookup = |name: &str| set.contains(&name).then(|| "4".to_owned());
            let defaults = environment.torch_defaults(lookup);
            defaults
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        let (errors, threads) = (names::ASYNC_ERROR_HANDLING, names::OMP_NUM_THREADS);
        assert_eq!(of(2, &[]), [errors, threads]);
        assert_eq!(of(1, &[]), [errors]);
        assert_eq!(of(2, &[errors]), [threads]);
        assert!(of(2, &[errors, threads]).is_empty());
    }

    #[test]
    fn errors_name_the_variable() {
        let missing = WorkerEnvironment::read(|_| None).unwrap_err();
        assert!(missing.to_string().contains("RANK"), "{missing}");
        let rank = WorkerEnvironment::read(|_| Some("4".to_owned()));
        assert!(
            rank.unwrap_err()
                .to_string()
                .contains("less than WORLD_SIZE")
        );
        let word = WorkerEnvironment::read(|_| Some("two".to_owned())).unwrap_err();
        assert!(word.to_string().contains("`two`"), "{word}");
    }
}
