//! Starts one worker process. The only module with unsafe code, for what runs between fork and exec.

use std::io::{self, PipeReader, pipe};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use cordee_protocol::{WorkerEnvironment, names};
use fs_err::File;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{Launch, LaunchError, Placement};

/// Our ends of a worker's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdout: PipeReader,
    pub(crate) stderr: PipeReader,
    pub(crate) messages: PipeReader,
}

/// What the launcher has ready for a worker.
#[derive(Debug)]
pub(crate) struct Provision<'a> {
    /// Descriptors that must not reach it.
    pub(crate) foreign: &'a [RawFd],
    /// What [`names::LAUNCHER`] is to say.
    pub(crate) mark: Option<String>,
    /// The door to its control group.
    pub(crate) entrance: Option<File>,
}

/// Starts one of this node's workers.
///
/// Must run on the main thread: the kernel kills the worker when the *thread* that started it ends.
pub(crate) fn spawn(
    launch: &Launch,
    local: usize,
    provision: &Provision<'_>,
) -> Result<(Child, Pipes), LaunchError> {
    let rank = launch.world.first_rank + local;
    let new_pipe = || {
        pipe().map_err(|source| LaunchError::Resource {
            what: "a pipe",
            rank,
            source,
        })
    };
    let (stdout, stdout_end) = new_pipe()?;
    let (stderr, stderr_end) = new_pipe()?;
    let (messages, messages_end) = new_pipe()?;
    let messages_end = OwnedFd::from(messages_end);

    let page = launch.pages.as_ref().map(|pages| pages.descriptor(local));
    let page = page.transpose().map_err(|source| LaunchError::Resource {
        what: "a status page",
        rank,
        source,
    })?;

    let own = launch.own.get(local);
    let stdin = own.and_then(|own| own.stdin.as_ref());
    let stdin = stdin.map(|it| it.try_clone().map(Stdio::from)).transpose();
    let stdin = stdin.map_err(|source| LaunchError::Resource {
        what: "a socket",
        rank,
        source,
    })?;
    let own = || own.iter().flat_map(|own| &own.inherit);

    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .envs(worker_environment(launch, local).variables())
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .envs(
            launch
                .inherit
                .iter()
                .map(|(name, fd)| (name, fd.as_raw_fd().to_string())),
        )
        .envs(own().map(|(name, fd)| (name, fd.as_raw_fd().to_string())))
        .envs(provision.mark.iter().map(|mark| (names::LAUNCHER, mark)))
        .env(names::MESSAGE_FD, messages_end.as_raw_fd().to_string())
        .envs(
            page.iter()
                .map(|page| (names::STATUS_FD, page.as_raw_fd().to_string())),
        )
        .stdin(stdin.unwrap_or_else(Stdio::null))
        .stdout(stdout_end)
        .stderr(stderr_end)
        // A group of its own: Ctrl-C in a terminal reaches the launcher alone, and a worker can be
        // killed together with what it started.
        .process_group(0);

    let inherited: Vec<RawFd> = launch
        .inherit
        .iter()
        .map(|(_, fd)| fd.as_raw_fd())
        .chain([messages_end.as_raw_fd()])
        .chain(own().map(|(_, fd)| fd.as_raw_fd()))
        .chain(page.as_ref().map(AsRawFd::as_raw_fd))
        .collect();
    let placement = launch.placement.get(local).and_then(Option::as_ref);
    let preparation = Preparation {
        launcher: getpid(),
        entrance: provision.entrance.as_ref().map(AsRawFd::as_raw_fd),
        foreign: provision.foreign.to_vec(),
        inherited,
        cpus: placement.and_then(Placement::cpu_set),
        memory: placement.and_then(Placement::node_mask),
    };
    let prepare = move || preparation.run();
    // SAFETY: `prepare` runs in the forked child, where only async-signal-safe things are allowed. It
    // makes system calls through rustix, which issues them directly, on memory allocated before the
    // fork; it takes no lock, allocates nothing, and its errors are plain numbers.
    unsafe { command.pre_exec(prepare) };

    let child = command.spawn().map_err(|source| LaunchError::Spawn {
        rank,
        program: launch.program.clone(),
        source,
    })?;
    // `messages_end`, `page` and the ends inside `command` close here, so that the pipes end with the worker.
    Ok((
        child,
        Pipes {
            stdout,
            stderr,
            messages,
        },
    ))
}

/// What a child does before exec.
#[derive(Debug)]
struct Preparation {
    launcher: Pid,
    entrance: Option<RawFd>,
    foreign: Vec<RawFd>,
    inherited: Vec<RawFd>,
    cpus: Option<CpuSet>,
    /// One bit a NUMA node.
    memory: Option<Vec<usize>>,
}

impl Preparation {
    fn run(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Had the launcher died before the line above, the signal would never come. The parent is
        // compared and not tested for pid 1, because in a container the launcher itself may be pid 1.
        if getppid() != Some(self.launcher) {
            return Err(Errno::SRCH.into());
        }
        if let Some(entrance) = self.entrance {
            // SAFETY: the descriptor is open in the launcher until the child has been started. The
            // launcher sees whether the child got in; a training run needs no control group.
            let entrance = unsafe { BorrowedFd::borrow_raw(entrance) };
            let _ = rustix::io::write(entrance, b"0");
        }
        if let Some(cpus) = &self.cpus {
            sched_setaffinity(None, cpus)?;
        }
        if let Some(nodes) = &self.memory {
            // Containers often forbid it. Memory from elsewhere is slower and nothing worse.
            prefer_memory(nodes);
        }
        for &fd in &self.foreign {
            // One that was closed in the meantime needs no flag.
            let _ = set_close_on_exec(fd, FdFlags::CLOEXEC);
        }
        for &fd in &self.inherited {
            set_close_on_exec(fd, FdFlags::empty())?;
        }
        Ok(())
    }
}

/// Who a worker of this launch is.
fn worker_environment(launch: &Launch, local: usize) -> WorkerEnvironment {
    let world = &launch.world;
    let mut environment = WorkerEnvironment {
        rank: world.first_rank + local,
        world_size: world.size,
        local_rank: world.first_local_rank + local,
        local_world_size: world.local_size,
        group_rank: world.node,
        group_world_size: world.nodes,
        master_addr: "127.0.0.1".to_owned(),
        master_port: 0,
        restart_count: launch.attempt.saturating_sub(1),
        max_restarts: launch.max_restarts,
        run_id: launch.run_id.clone(),
    };
    if let Some((host, port)) = &launch.master {
        environment.master_addr.clone_from(host);
        environment.master_port = *port;
    }
    environment
}

/// Asks for memory from these nodes while they have some, for this process and what it starts
/// (`set_mempolicy(2)`, for which rustix has no function).
fn prefer_memory(nodes: &[usize]) {
    // The kernel takes one bit less than it is told.
    let bits = nodes.len() * usize::BITS as usize + 1;
    // SAFETY: the call reads `bits - 1` bits from `nodes`, which has them, and keeps no pointer.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_PREFERRED,
            nodes.as_ptr(),
            bits,
        )
    };
}

fn set_close_on_exec(fd: RawFd, flags: FdFlags) -> io::Result<()> {
    // SAFETY: the number is used for this one call, which changes only a flag of the child's own
    // descriptor table. Inherited numbers belong to `OwnedFd`s that outlive the fork; a foreign number
    // may have been closed, and then the kernel answers EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(fcntl_setfd(fd, flags)?)
}

/// Descriptors of this process above standard error. Those that a parent left open without the
/// close-on-exec flag would leak into every worker; the flag is set on all of them in the child.
pub(crate) fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = fs_err::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter(|&fd: &RawFd| fd > 2).collect()
}
