//! How the ranks of a job reach each other.

use cordee_comm::{CommError, HostGroup, NcclGroup, ProcessGroup};
use cordee_ops::Device;
use cordee_train::TrainError;
use nccl_sys::Library;

/// The group of a job's ranks: over the memory that they share and the network between machines, and for
/// buffers of GPUs over NCCL.
pub(crate) enum Ranks {
    /// On the CPU, or alone.
    Host {
        group: Box<dyn HostGroup>,
        machines: usize,
    },
    /// With a GPU each.
    Nccl {
        group: Box<NcclGroup>,
        library: Library,
        machines: usize,
    },
}

impl Ranks {
    /// Makes the group that ranks with this device need, over the one in which they have met.
    pub(crate) fn new(
        mut group: Box<dyn HostGroup>,
        machines: usize,
        device: &Device,
    ) -> anyhow::Result<Self> {
        if group.world_size() == 1 {
            return Ok(Self::Host { group, machines });
        }
        let queue = device
            .queue()
            .inspect_err(|error| group.fail(&error.to_string()));
        let Some(queue) = queue.map_err(TrainError::from)? else {
            return Ok(Self::Host { group, machines });
        };
        let library = Library::open(&cordee::nccl_paths())
            .inspect_err(|error| group.fail(&error.to_string()))?;
        let group = NcclGroup::new("ranks", group, queue, library).map_err(TrainError::from)?;
        Ok(Self::Nccl {
            group: Box::new(group),
            library,
            machines,
        })
    }

    /// For whoever has something to tell the other ranks.
    pub(crate) fn group(&mut self) -> &mut dyn ProcessGroup {
        match self {
            Self::Host { group, .. } => group.as_mut(),
            Self::Nccl { group, .. } => group.as_mut(),
        }
    }

    /// What moves the bytes.
    pub(crate) fn transport(&self) -> String {
        match self {
            Self::Host { machines: 1, .. } => "shared memory".to_owned(),
            Self::Host { machines, .. } => {
                format!("shared memory, and TCP between {machines} machines")
            }
            Self::Nccl {
                library, machines, ..
            } => match machines {
                1 => format!("NCCL {}", library.version()),
                machines => format!("NCCL {} between {machines} machines", library.version()),
            },
        }
    }

    /// Leaves in order, when all is done.
    pub(crate) fn finish(&mut self) -> Result<(), CommError> {
        match self {
            Self::Host { .. } => Ok(()),
            Self::Nccl { group, .. } => group.finish(),
        }
    }
}
