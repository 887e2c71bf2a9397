//! Hears of the end of worker processes, in the order in which they ended.
//!
//! The order decides which rank is named as the cause. One thread watches pidfds through epoll, whose
//! ready list keeps the order of events; a thread per worker would be woken in whatever order the
//! scheduler likes, and on a busy node that is another one. Kernels before 5.3 have no pidfd: there a
//! thread per worker it is.

use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::supervise::Event;
use crate::threads;

/// The workers whose end is awaited.
#[derive(Debug)]
pub(crate) struct Deaths {
    epoll: Option<OwnedFd>,
    awaited: Vec<Option<Awaited>>,
}

#[derive(Debug)]
struct Awaited {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    /// Its closing tells the worker's reader.
    lifeline: PipeWriter,
}

impl Deaths {
    pub(crate) fn new() -> Self {
        Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).ok(),
            awaited: Vec::new(),
        }
    }

    /// Adds the next worker; `lifeline` is closed when its process has ended.
    pub(crate) fn add(&mut self, pid: Pid, lifeline: PipeWriter) {
        let pidfd = self.epoll.as_ref().and_then(|epoll| {
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            let local = epoll::EventData::new_u64(self.awaited.len() as u64);
            epoll::add(epoll, &pidfd, local, epoll::EventFlags::IN).ok()?;
            Some(pidfd)
        });
        self.awaited.push(Some(Awaited {
            pid,
            pidfd,
            lifeline,
        }));
    }

    /// Sends [`Event::Exited`] for each that ends. They are left to the supervisor to reap.
    pub(crate) fn start(mut self, events: &Sender<Event>) -> io::Result<()> {
        for (local, awaited) in self.awaited.iter_mut().enumerate() {
            if let Some(awaited) = awaited.take_if(|awaited| awaited.pidfd.is_none()) {
                let events = events.clone();
                threads::start(&format!("wait {local}"), move || {
                    wait_for(awaited.pid);
                    awaited.end(local, &events);
                })?;
            }
        }
        let Some(epoll) = self.epoll else {
            return Ok(());
        };
        let (awaited, events) = (self.awaited, events.clone());
        threads::start("wait", move || watch(&epoll, awaited, &events))?;
        Ok(())
    }
}

impl Awaited {
    fn end(self, local: usize, events: &Sender<Event>) {
        drop((self.lifeline, self.pidfd));
        let _ = events.send(Event::Exited { local });
    }
}

fn watch(epoll: &OwnedFd, mut awaited: Vec<Option<Awaited>>, events: &Sender<Event>) {
    let mut ready = Vec::with_capacity(awaited.len().max(1));
    while awaited.iter().any(Option::is_some) {
        ready.clear();
        match epoll::wait(epoll, spare_capacity(&mut ready), None) {
            Ok(_) | Err(Errno::INTR) => {}
            // Only a descriptor that is no epoll could bring us here; then every worker is waited for in turn.
            Err(_) => break,
        }
        for event in &ready {
            let local = event.data.u64() as usize;
            if let Some(dead) = awaited[local].take() {
                if let Some(pidfd) = &dead.pidfd {
                    let _ = epoll::delete(epoll, pidfd);
                }
                dead.end(local, events);
            }
        }
    }
    for (local, awaited) in awaited.into_iter().enumerate() {
        if let Some(awaited) = awaited {
            wait_for(awaited.pid);
            awaited.end(local, events);
        }
    }
}

/// Returns when the process has ended.
fn wait_for(pid: Pid) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), options).is_err_and(|error| error == Errno::INTR) {}
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};
    use std::process::{Child, Command};
    use std::sync::mpsc::channel;

    use super::*;

    /// Ends children before anybody listens, in this order; gives the order that was heard.
    fn heard(mut deaths: Deaths, order: &[usize]) -> Vec<usize> {
        let mut children: Vec<Child> = order
            .iter()
            .map(|_| Command::new("sleep").arg("60").spawn().unwrap())
            .collect();
        let mut readers = Vec::new();
        for child in &children {
            let (reader, lifeline) = pipe().unwrap();
            readers.push(reader);
            deaths.add(Pid::from_child(child), lifeline);
        }
        for &rank in order {
            children[rank].kill().unwrap();
            wait_for(Pid::from_child(&children[rank]));
        }
        let (sender, events) = channel();
        deaths.start(&sender).unwrap();
        drop(sender);
        let ranks = events.iter().map(|event| match event {
            Event::Exited { local } => local,
            other => panic!("{other:?}"),
        });
        let ranks = ranks.collect();
        for (child, mut reader) in children.iter_mut().zip(readers) {
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the reader must be told");
            child.wait().unwrap();
        }
        ranks
    }

    #[test]
    fn the_order_heard_is_the_order_of_death() {
        let order = [4, 1, 5, 0, 3, 2];
        assert_eq!(heard(Deaths::new(), &order), order);
    }

    #[test]
    fn without_pidfds_every_death_is_heard() {
        let mut ranks = heard(
            Deaths {
                epoll: None,
                awaited: Vec::new(),
            },
            &[2, 0, 1],
        );
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1, 2]);
    }
}
