//! Several machines played by this one, so that what is between machines can be tried without them: ranks
//! that share no memory, and reach each other by way of the loopback.

use std::{net::TcpListener, os::fd::AsFd};

use anyhow::{Context, anyhow};
use cordee_launch::Own;
use cordee_memory::SharedMemory;
use cordee_protocol::{ExitCode, Secret, names};

use crate::{failure::Failure, job::Across};

/// The machines that workers are dealt out to; none, where it is one. Where ranks listen is found out when
/// they are started.
pub(super) fn across(workers: usize, machines: usize) -> Result<Option<Across>, Failure> {
    if machines == 1 {
        return Ok(None);
    }
    if machines > workers {
        let error =
            anyhow!("--machines is {machines}, and there are {workers} workers to deal out");
        return Err(Failure::usage(error).with_hint("every machine has at least one"));
    }
    let more = |machine: usize| usize::from(machine < workers % machines);
    let secret = Secret::random().context("drawing a secret");
    Ok(Some(Across {
        ranks: (0..machines)
            .map(|machine| workers / machines + more(machine))
            .collect(),
        below: Vec::new(),
        secret: secret.map_err(|error| Failure::new(ExitCode::Environment, error))?,
    }))
}

/// Gives every rank a memory of its machine and a place to listen at, and says where that is.
pub(super) fn start(across: &mut Across) -> anyhow::Result<Vec<Own>> {
    let mut own = Vec::new();
    let mut below = Vec::new();
    for &ranks in &across.ranks {
        let memory = SharedMemory::create("cordee-ranks")?;
        let mut listening = Vec::new();
        for local in 0..ranks {
            let listener = TcpListener::bind("127.0.0.1:0").context("listening on the loopback")?;
            listening.push(listener.local_addr()?);
            across
                .below
                .push(below.get(local).copied().into_iter().collect());
            let memory = memory
                .as_fd()
                .try_clone_to_owned()
                .context("sharing memory")?;
            own.push(Own {
                inherit: vec![(names::SHARED_MEMORY_FD, memory)],
                stdin: Some(listener.into()),
            });
        }
        below = listening;
    }
    Ok(own)
}
