//! Who one process of a job is: which of how many nodes, by what was typed and by what the scheduler sets.
//!
//! The order of sources: flags, then torchrun's names for them in the environment (`PET_*`), what torchrun
//! tells a worker, Open MPI, Slurm, Kubernetes' indexed jobs, `SkyPilot`. The first that knows a fact
//! decides it; another one of the same kind that says otherwise is refused by name, since one of the two is
//! wrong. Ranks are the scheduler's: names of hosts are compared nowhere.
//!
//! It must not read the environment itself: who asks brings a way to look things up.

mod sources;
#[cfg(test)]
mod tests;

use sources::Fact;

/// Where a variable of the environment is looked up.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--nnodes`: `N` or `MIN:MAX`.
    pub nnodes: Option<String>,
    /// `--node-rank`.
    pub node_rank: Option<String>,
    /// `--rdzv-endpoint`: `HOST:PORT`.
    pub rdzv_endpoint: Option<String>,
    /// `--rdzv-id`.
    pub rdzv_id: Option<String>,
}

/// What one process of a job knows of its place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Index of this agent; 0 leads.
    pub node: usize,
    /// The fewest agents that the job runs with.
    pub fewest: usize,
    /// The most; whoever is there beyond them is a spare.
    pub most: usize,
    /// Whether there are other agents to meet, spares among them.
    pub several: bool,
    /// Started once for each rank: it has one worker, on the device of number `local`.
    pub one_worker: bool,
    /// The place of this agent among those that were started on its machine.
    pub local: usize,
    /// How many those are.
    pub locals: usize,
    /// What the job is called, by who started it.
    pub job: Option<String>,
    /// Where agent 0 listens, if that was named.
    pub endpoint: Option<(String, u16)>,
    /// Who says so, for a person to read; `None` where nobody says anything.
    pub source: Option<&'static str>,
    /// What a person should know.
    pub remarks: Vec<String>,
}

/// What was said of a process's place makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A value that is no value of its kind.
    #[error("{name} is `{value}`: it takes {expected}")]
    Invalid {
        /// The flag or variable.
        name: String,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// Two sources say different things.
    #[error(
        "{first} is {first_value}, and {second} is {second_value}: they say different things of {what}"
    )]
    Disagree {
        /// What they are about.
        what: &'static str,
        /// The one that comes first.
        first: String,
        /// Its value.
        first_value: String,
        /// The other.
        second: String,
        /// Its value.
        second_value: String,
    },
    /// Fewer nodes than the job needs, or an index beyond them.
    #[error("{first} is {first_value}, and {second} is {second_value}: {why}")]
    OutOfRange {
        /// The one that asks.
        first: String,
        /// Its value.
        first_value: String,
        /// The one that gives.
        second: String,
        /// Its value.
        second_value: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// Several nodes, and nothing says which of them this is.
    #[error("{name} is {value}, and nothing says which of the nodes this is")]
    NoIndex {
        /// What says how many.
        name: String,
        /// How many.
        value: String,
    },
    /// What a scheduler does that is not understood.
    #[error("{0}")]
    NotUnderstood(&'static str),
}

impl IdentityError {
    /// What to try next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "correct it, or unset it",
            Self::Disagree { .. } => "unset the one that is wrong, or start without the flag",
            Self::OutOfRange { .. } => {
                "let --nnodes be as many as there are, or a range MIN:MAX, and number nodes from 0; with --nnodes 1 alone each \
                 runs by itself"
            }
            Self::NoIndex { .. } => {
                "give each node its --node-rank, from 0; under Slurm start it by srun, which tells"
            }
            Self::NotUnderstood(_) => "name the nodes by --nnodes and --node-rank",
        }
    }
}

impl Identity {
    /// Finds out who this process is.
    pub fn find(flags: &Flags, lookup: Lookup<'_>) -> Result<Self, IdentityError> {
        let asked = Asked::of(flags, lookup)?;
        let mut remarks = Vec::new();
        let seen = match sources::all(lookup, &mut remarks) {
            // Who says all of it needs nobody else.
            Err(IdentityError::NotUnderstood(_)) if asked.says_all() => Vec::new(),
            seen => seen?,
        };
        // A count that was typed is for the kind of agent that there is: of one unit alone.
        let main = seen.first();
        for other in seen.iter().skip(1) {
            if let Some(main) = main
                && main.one_worker == other.one_worker
                && !(main.source == sources::OPEN_MPI && other.source == sources::SLURM)
            {
                same(
                    "which of the nodes this is",
                    main.node.as_ref(),
                    other.node.as_ref(),
                )?;
                same(
                    "how many nodes there are",
                    main.count.as_ref(),
                    other.count.as_ref(),
                )?;
            }
        }
        let given = main.and_then(|main| main.count.clone());
        let (fewest, most) = asked.range(given.as_ref())?;
        let node = match (&asked.node, main.and_then(|main| main.node.clone())) {
            (Some(typed), Some(set)) => {
                same("which of the nodes this is", Some(typed), Some(&set))?;
                Some(typed.clone())
            }
            (typed, set) => typed.clone().or(set),
        };
        let node = match node {
            // A pod of many that each have a run of their own.
            Some(_) if asked.node.is_none() && given.is_none() && asked.wants_one() => 0,
            Some(node) => {
                if given.is_none()
                    && asked.nodes.is_none()
                    && asked.node.is_none()
                    && node.value == 0
                {
                    remarks.push(format!(
                        "{} is 0, and this runs by itself: nothing says how many nodes there are (--nnodes)",
                        node.name
                    ));
                }
                within(node, given.as_ref().or(asked.most_fact().as_ref()))?
            }
            None if most == 1 => 0,
            None => {
                let count = asked.nodes.as_ref().map(|(fact, ..)| fact.clone());
                let (name, value) = count.map_or_else(
                    || ("the number of nodes".to_owned(), most.to_string()),
                    |fact| (fact.name, fact.text),
                );
                return Err(IdentityError::NoIndex { name, value });
            }
        };
        let one_worker = main.is_some_and(|main| main.one_worker);
        let (local, locals) = main.map_or((0, 1), |main| main.local);
        if one_worker && locals > 1 {
            remarks.extend(hidden_devices(lookup, locals));
        }
        let several = most > 1 || given.as_ref().is_some_and(|given| given.value > 1);
        if let Some(given) = given.filter(|given| given.value > most) {
            remarks.push(format!(
                "{} of {} nodes are spares",
                given.value - most,
                given.value
            ));
        }
        Ok(Self {
            node,
            fewest,
            most,
            several,
            one_worker,
            local,
            locals,
            job: asked.job.or_else(|| main.and_then(|main| main.job.clone())),
            endpoint: asked.endpoint,
            source: main
                .map(|main| main.source)
                .or(asked.nodes.map(|_| "flags")),
            remarks,
        })
    }
}

/// What flags say, or their names in the environment.
struct Asked {
    node: Option<Fact>,
    nodes: Option<(Fact, usize, usize)>,
    endpoint: Option<(String, u16)>,
    job: Option<String>,
}

impl Asked {
    fn of(flags: &Flags, lookup: Lookup<'_>) -> Result<Self, IdentityError> {
        let given = |typed: &Option<String>, flag: &str| {
            if let Some(value) = typed {
                return Some((flag.to_owned(), value.clone()));
            }
            let name = flag.trim_start_matches('-').replace('-', "_");
            let name = format!("PET_{}", name.to_uppercase());
            let value = lookup(&name).filter(|value| !value.is_empty())?;
            Some((name, value))
        };
        let node = given(&flags.node_rank, "--node-rank");
        let nodes = given(&flags.nnodes, "--nnodes").map(nodes).transpose()?;
        let endpoint = given(&flags.rdzv_endpoint, "--rdzv-endpoint");
        let text = |given: Option<(String, String)>| given.map(|(_, value)| value);
        Ok(Self {
            node: node
                .map(|(name, value)| Fact::read(name, value))
                .transpose()?,
            nodes,
            endpoint: endpoint.map(|it| place(&it)).transpose()?.flatten(),
            job: text(given(&flags.rdzv_id, "--rdzv-id"))
                .or_else(|| lookup("PET_RUN_ID").filter(|value| !value.is_empty())),
        })
    }

    /// The fewest and the most nodes, of those that a scheduler gives.
    fn range(&self, given: Option<&Fact>) -> Result<(usize, usize), IdentityError> {
        let (Some((asked, fewest, most)), Some(given)) = (&self.nodes, given) else {
            let (fewest, most) = self
                .nodes
                .as_ref()
                .map_or((1, 1), |(_, fewest, most)| (*fewest, *most));
            return Ok(given.map_or((fewest, most), |given| (given.value, given.value)));
        };
        if given.value < *fewest {
            return Err(IdentityError::OutOfRange {
                first: asked.name.clone(),
                first_value: asked.text.clone(),
                second: given.name.clone(),
                second_value: given.text.clone(),
                why: "that is too few",
            });
        }
        Ok((*fewest, (*most).min(given.value)))
    }

    /// How many there can be, where only flags say.
    fn most_fact(&self) -> Option<Fact> {
        match &self.nodes {
            Some((fact, 1, 1)) => Some(fact.clone()),
            // Beyond the most come spares, with indices that nobody else has.
            Some(_) => None,
            // Who numbers nodes means several of them.
            None => Some(Fact {
                name: "--nnodes".to_owned(),
                value: 1,
                text: "1 where it is not given".to_owned(),
            }),
        }
    }

    /// Whether flags say that the job has one node.
    fn wants_one(&self) -> bool {
        matches!(self.nodes, Some((_, 1, 1)))
    }

    /// Whether flags alone say who this is.
    fn says_all(&self) -> bool {
        self.node.is_some() && self.nodes.is_some()
    }
}

/// `N`, or `MIN:MAX`.
fn nodes((name, value): (String, String)) -> Result<(Fact, usize, usize), IdentityError> {
    let (fewest, most) = value.split_once(':').unwrap_or((&value, &value));
    match (fewest.parse(), most.parse()) {
        (Ok(fewest), Ok(most)) if 0 < fewest && fewest <= most => Ok((
            Fact {
                name,
                value: most,
                text: value,
            },
            fewest,
            most,
        )),
        _ => Err(IdentityError::Invalid {
            name,
            value,
            expected: "a number of nodes from 1 on, or MIN:MAX",
        }),
    }
}

/// `HOST:PORT`; port 0 is none, since others could not know it.
fn place((name, value): &(String, String)) -> Result<Option<(String, u16)>, IdentityError> {
    let invalid = || IdentityError::Invalid {
        name: name.clone(),
        value: value.clone(),
        expected: "HOST:PORT",
    };
    let (host, port) = value.rsplit_once(':').ok_or_else(invalid)?;
    let port = port.parse().map_err(|_| invalid())?;
    if host.is_empty() || (host.contains(':') && !host.ends_with(']')) {
        return Err(invalid());
    }
    let host = host.trim_matches(['[', ']']).to_owned();
    Ok((port != 0).then_some((host, port)))
}

fn same(
    what: &'static str,
    first: Option<&Fact>,
    second: Option<&Fact>,
) -> Result<(), IdentityError> {
    match (first, second) {
        (Some(first), Some(second)) if first.value != second.value => {
            Err(IdentityError::Disagree {
                what,
                first: first.name.clone(),
                first_value: first.text.clone(),
                second: second.name.clone(),
                second_value: second.text.clone(),
            })
        }
        _ => Ok(()),
    }
}

fn within(node: Fact, count: Option<&Fact>) -> Result<usize, IdentityError> {
    match count {
        Some(count) if node.value >= count.value => Err(IdentityError::OutOfRange {
            first: node.name,
            first_value: node.text,
            second: count.name.clone(),
            second_value: count.text.clone(),
            why: "nodes are counted from 0",
        }),
        _ => Ok(node.value),
    }
}

/// Tasks that see one GPU each cannot reach each other's by `NVLink`, and count devices from 0 all of them
/// (NVIDIA/nccl#1066).
fn hidden_devices(lookup: Lookup<'_>, locals: usize) -> Option<String> {
    let shown = lookup("CUDA_VISIBLE_DEVICES")?;
    let count = shown.split(',').filter(|it| !it.trim().is_empty()).count();
    (count > 0 && count < locals).then(|| {
        format!(
            "each of {locals} tasks on this node sees {count} GPU (CUDA_VISIBLE_DEVICES={shown}): ask Slurm for \
             --gpus-per-node and --gpu-bind=none, so that every task sees all of them"
        )
    })
}
