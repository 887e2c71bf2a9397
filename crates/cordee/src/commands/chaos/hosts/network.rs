//! A network of namespaces: one for each host, and one for what joins them, so that nothing of it is seen
//! outside. All of them bear the number of this process and go with it; what an earlier one left that was
//! killed is removed.
//!
//! A link is cut at the switch's end, where a port lets nothing through (bridge(8), state 0): neither end
//! is told, as where a switch fails.

use std::{
    path::Path,
    process::{self, Command, Stdio},
};

use anyhow::{Context, anyhow, bail};
use fs_err as fs;
use rustix::process::geteuid;

use super::super::processes::Process;

/// Where iproute2 keeps namespaces that have names (ip-netns(8)).
const NAMES: &str = "/run/netns";

const PREFIX: &str = "cordee-chaos-";

/// The states of a bridge's port, as bridge(8) has them.
const DISABLED: &str = "0";
const FORWARDING: &str = "3";

/// What this machine lacks for it, if anything.
pub(in super::super) fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("this is not root, who alone can make network namespaces".to_owned());
    }
    let tools = [
        ("ip", "-V", "iproute2"),
        ("bridge", "-V", "iproute2"),
        ("nsenter", "--version", "util-linux"),
        ("unshare", "--version", "util-linux"),
    ];
    let lacking = tools.iter().find(|(tool, version, _)| {
        let tried = Command::new(tool)
            .arg(version)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        !tried.is_ok_and(|status| status.success())
    });
    lacking.map(|(tool, _, package)| format!("{tool} cannot be started (a part of {package})"))
}

/// Hosts and the switch between them; removed when it is dropped.
pub(super) struct Network {
    /// Of the switch; a host's has its number behind it.
    name: String,
    count: usize,
}

impl Network {
    pub(super) fn make(count: usize) -> anyhow::Result<Self> {
        remove_leftovers();
        let pid = process::id();
        let network = Self {
            name: format!("{PREFIX}{pid}"),
            count,
        };
        network
            .build(pid)
            .context("making network namespaces for the hosts")?;
        Ok(network)
    }

    fn build(&self, pid: u32) -> anyhow::Result<()> {
        let switch = &self.name;
        ip(&["netns", "add", switch])?;
        ip(&["-n", switch, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", switch, "link", "set", "switch", "up"])?;
        let [.., third, second] = pid.to_be_bytes();
        let third = 64 + third % 128;
        for node in 0..self.count {
            let (host, port) = (&self.host(node), &port(node));
            let address = format!("10.{third}.{second}.{}/24", node + 1);
            ip(&["netns", "add", host])?;
            ip(&["-n", host, "link", "set", "lo", "up"])?;
            ip(&[
                "link", "add", port, "netns", switch, "type", "veth", "peer", "name", "eth0",
                "netns", host,
            ])?;
            ip(&["-n", switch, "link", "set", port, "master", "switch", "up"])?;
            ip(&["-n", host, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", host, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    fn host(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    /// What is put before a command for it to run on a host of that name. No process comes between.
    pub(super) fn enter(&self, node: usize, name: &str) -> Vec<String> {
        let namespace = format!("--net={NAMES}/{}", self.host(node));
        let script = r#"echo "$0" > /proc/sys/kernel/hostname && exec "$@""#;
        let words = [
            "nsenter", &namespace, "--", "unshare", "--uts", "--", "sh", "-c", script, name,
        ];
        words.map(str::to_owned).to_vec()
    }

    /// Cuts the link of a host.
    pub(super) fn cut(&self, node: usize) -> Result<(), String> {
        self.set_port(node, DISABLED)
    }

    /// Mends the link of a host.
    pub(super) fn mend(&self, node: usize) -> Result<(), String> {
        self.set_port(node, FORWARDING)
    }

    fn set_port(&self, node: usize, state: &str) -> Result<(), String> {
        let words = [
            "-n",
            &self.name,
            "link",
            "set",
            "dev",
            &port(node),
            "state",
            state,
        ];
        call("bridge", &words)
            .map_err(|error| format!("{error:#}"))
            .map(drop)
    }

    /// Processes in any of the namespaces.
    pub(super) fn processes(&self) -> Vec<u32> {
        let of = |node| ip(&["netns", "pids", &self.host(node)]).unwrap_or_default();
        let text: String = (0..self.count).map(of).collect();
        text.split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }

    /// Removes it, and says what would not go.
    pub(super) fn remove(&mut self) -> Vec<String> {
        let names = (0..self.count).map(|node| self.host(node));
        let names = names.chain([self.name.clone()]);
        let there = |name: &String| Path::new(NAMES).join(name).exists();
        names
            .filter(there)
            .filter_map(|name| {
                let removed = ip(&["netns", "delete", &name]);
                removed.err().map(|error| format!("{error:#}"))
            })
            .collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// The end of a host's link at the switch.
fn port(node: usize) -> String {
    format!("host{node}")
}

/// Removes the namespaces of processes that are gone.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(NAMES) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if maker(&name).is_some_and(|pid| Process::find(pid).is_none()) {
            // Another process may be at the same.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

/// The process that made a namespace of this name.
fn maker(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    rest.split('-').next()?.parse().ok()
}

fn ip(words: &[&str]) -> anyhow::Result<String> {
    call("ip", words)
}

fn call(program: &str, words: &[&str]) -> anyhow::Result<String> {
    let said = || format!("{program} {}", words.join(" "));
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(said)?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!(anyhow!("{why}").context(said()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_who_made_it() {
        assert_eq!(maker("cordee-chaos-17"), Some(17));
        assert_eq!(maker("cordee-chaos-17-3"), Some(17));
        assert_eq!(maker("cordee-chaos-"), None);
        assert_eq!(maker("cordee-17"), None);
    }
}
