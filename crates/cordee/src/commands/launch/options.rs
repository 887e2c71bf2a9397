//! What is asked for, by options and by the environment.

use std::{path::PathBuf, str::FromStr, thread, time::Duration};

use anyhow::anyhow;
use cordee_protocol::ExitCode;

use super::meeting::Wish;
use crate::{args::LaunchArgs, devices, failure::Failure};

/// Where a variable of the environment is looked up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What torchrun takes.
const JOIN_TIMEOUT: Duration = Duration::from_mins(10);
const LAST_CALL: Duration = Duration::from_secs(30);

/// Options with all that was left open filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) processes: usize,
    pub(super) max_restarts: usize,
    pub(super) run_id: Option<String>,
    pub(super) log_dir: Option<PathBuf>,
    pub(super) place: Wish,
    /// How long is waited for all machines, and for more of them once there are enough.
    pub(super) join_timeout: Duration,
    pub(super) last_call: Duration,
    pub(super) role: String,
    pub(super) module: bool,
    pub(super) no_python: bool,
    /// What a person should know of what is accepted and has no effect.
    pub(super) remarks: Vec<String>,
}

impl Options {
    /// What is typed, then what is in the environment, then what holds otherwise.
    pub(super) fn of(args: &LaunchArgs, lookup: Lookup<'_>) -> Result<Self, Failure> {
        let text = |typed: &Option<String>, flag: &str| Given::of(typed.as_ref(), flag, lookup);
        let processes = match text(&args.nproc_per_node, "--nproc-per-node") {
            None => 1,
            Some(given) => processes(&given)?,
        };
        let max_restarts = text(&args.max_restarts, "--max-restarts");
        let max_restarts = max_restarts.map(|it| it.parse("a number")).transpose()?;
        let value = |given: Option<Given>| given.map(|it| it.value);
        let conf = text(&args.rdzv_conf, "--rdzv-conf");
        let waits = |key| conf.as_ref().map_or(Ok(None), |conf| seconds(conf, key));
        let log_dir = args.log_dir.clone();
        Ok(Self {
            processes,
            max_restarts: max_restarts.unwrap_or(0),
            run_id: value(text(&args.rdzv_id, "--rdzv-id"))
                .or_else(|| lookup("PET_RUN_ID").filter(|it| !it.is_empty())),
            log_dir: log_dir
                .or_else(|| value(Given::of(None, "--log-dir", lookup)).map(Into::into)),
            place: place(args, lookup)?,
            join_timeout: waits("join_timeout")?.unwrap_or(JOIN_TIMEOUT),
            last_call: waits("last_call_timeout")?.unwrap_or(LAST_CALL),
            role: value(text(&args.role, "--role")).unwrap_or_else(|| "default".to_owned()),
            module: is_set(args.module, "--module", lookup)?,
            no_python: is_set(args.no_python, "--no-python", lookup)?,
            remarks: remarks(args, lookup)?,
        })
    }
}

/// A value, and where it is from.
#[derive(Clone, Debug)]
struct Given {
    value: String,
    source: String,
}

impl Given {
    fn of(typed: Option<&String>, flag: &str, lookup: Lookup<'_>) -> Option<Self> {
        if let Some(value) = typed {
            return Some(Self {
                value: value.clone(),
                source: flag.to_owned(),
            });
        }
        let source = variable(flag);
        let value = lookup(&source).filter(|value| !value.is_empty())?;
        Some(Self { value, source })
    }

    fn parse<T: FromStr>(&self, expected: &str) -> Result<T, Failure> {
        self.value
            .parse()
            .map_err(|_| self.refused(&format!("it takes {expected}")))
    }

    fn refused(&self, why: &str) -> Failure {
        Failure::usage(anyhow!("{} is `{}`: {why}", self.source, self.value))
    }
}

/// torchrun's name for a flag in the environment.
fn variable(flag: &str) -> String {
    let name = flag.trim_start_matches('-').replace('-', "_");
    format!("PET_{}", name.to_uppercase())
}

/// A flag without a value; in the environment it has one.
fn is_set(typed: bool, flag: &str, lookup: Lookup<'_>) -> Result<bool, Failure> {
    let Some(given) = Given::of(None, flag, lookup).filter(|_| !typed) else {
        return Ok(typed);
    };
    match given.value.to_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(given.refused("it takes 1 or 0")),
    }
}

/// The seconds that a key of torchrun's `--rdzv-conf` gives.
fn seconds(conf: &Given, key: &str) -> Result<Option<Duration>, Failure> {
    let pairs = conf
        .value
        .split(',')
        .filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.into_iter().find(|(name, _)| name.trim() == key) else {
        return Ok(None);
    };
    match value.trim().parse() {
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(conf.refused(&format!("{key} takes seconds"))),
    }
}

fn processes(given: &Given) -> Result<usize, Failure> {
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let count = match given.value.as_str() {
        "cpu" => cores(),
        "gpu" => match devices::visible_gpus()? {
            0 => {
                let error = anyhow!("{} is `gpu`, and there is no GPU to be seen", given.source);
                return Err(Failure::new(ExitCode::Environment, error).with_hint(
                    "`cordee doctor` tells what is there; `cpu` starts one process for each core",
                ));
            }
            count => count,
        },
        "auto" => match devices::visible_gpus() {
            Ok(0) | Err(_) => cores(),
            Ok(count) => count,
        },
        _ => given.parse("a number from 1 on, `gpu`, `cpu` or `auto`")?,
    };
    if count == 0 {
        return Err(given.refused("it takes a number from 1 on, `gpu`, `cpu` or `auto`"));
    }
    Ok(count)
}

/// Where processes meet: an endpoint names both, or each is named by itself. What is typed comes before
/// all that is in the environment.
fn place(args: &LaunchArgs, lookup: Lookup<'_>) -> Result<Wish, Failure> {
    let nowhere: Lookup<'_> = &|_| None;
    let typed = Named::of(
        Given::of(args.rdzv_endpoint.as_ref(), "--rdzv-endpoint", nowhere),
        Given::of(args.master_addr.as_ref(), "--master-addr", nowhere),
        Given::of(args.master_port.as_ref(), "--master-port", nowhere).as_ref(),
    )?;
    let set = Named::of(
        Given::of(None, "--rdzv-endpoint", lookup),
        Given::of(None, "--master-addr", lookup),
        Given::of(None, "--master-port", lookup).as_ref(),
    )?;
    let address = typed.address.or(set.address);
    let port = typed.port.or(set.port);
    Ok(Wish {
        address,
        port: port.filter(|port| *port != 0),
    })
}

/// What one source says of the place. Port 0 is one that is free.
#[derive(Debug, Default)]
struct Named {
    address: Option<String>,
    port: Option<u16>,
}

impl Named {
    fn of(
        endpoint: Option<Given>,
        address: Option<Given>,
        port: Option<&Given>,
    ) -> Result<Self, Failure> {
        let mut named = Self {
            address: address.as_ref().map(|it| it.value.clone()),
            port: port.map(|it| it.parse("a port, 0 to 65535")).transpose()?,
        };
        let Some(endpoint) = endpoint else {
            return Ok(named);
        };
        let (host, its_port) = match endpoint.value.rsplit_once(':') {
            // An address of version 6 has colons of its own, and brackets where a port follows.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                let parsed = port.parse::<u16>();
                let parsed = parsed.map_err(|_| endpoint.refused("it takes HOST:PORT"))?;
                (host.trim_matches(['[', ']']), Some(parsed))
            }
            _ => (endpoint.value.as_str(), None),
        };
        let disagree = |other: &Given| {
            let text = format!("{} is `{}`", other.source, other.value);
            endpoint
                .refused(&format!("that is another place, since {text}"))
                .with_hint("give one of the two")
        };
        if let Some(address) = address.filter(|it| it.value != host) {
            return Err(disagree(&address));
        }
        if let (Some(port), Some(its_port)) = (port, its_port)
            && its_port != 0
            && named.port != Some(its_port)
        {
            return Err(disagree(port));
        }
        named.address = Some(host.to_owned());
        named.port = named.port.or(its_port);
        Ok(named)
    }
}

/// Words about options that have no effect here.
fn remarks(args: &LaunchArgs, lookup: Lookup<'_>) -> Result<Vec<String>, Failure> {
    let mut remarks = Vec::new();
    let streams = [
        Given::of(args.tee.as_ref(), "--tee", lookup),
        Given::of(args.redirects.as_ref(), "--redirects", lookup),
    ];
    let mut wanted = Vec::new();
    for given in streams.into_iter().flatten() {
        if !are_streams(&given.value) {
            return Err(given.refused(
                "it takes 0 (none), 1 (stdout), 2 (stderr), 3 (both), or such a number for each process as 0:3,1:1",
            ));
        }
        wanted.push(given.source);
    }
    if !wanted.is_empty() {
        remarks.push(format!(
            "{} changes nothing: all output goes to files, and that of rank 0 to the console too",
            wanted.join(" and ")
        ));
    }
    let backend = Given::of(args.rdzv_backend.as_ref(), "--rdzv-backend", lookup);
    if let Some(given) = backend.filter(|it| it.value != "static") {
        remarks.push(format!(
            "{} `{}` changes nothing: launchers of several machines meet in a way of their own",
            given.source, given.value
        ));
    }
    Ok(remarks)
}

/// Whether these are streams as torchrun has them: `3`, or `0:3,1:1`.
fn are_streams(text: &str) -> bool {
    let is_stream = |text: &str| matches!(text, "0" | "1" | "2" | "3");
    is_stream(text)
        || text.split(',').all(|part| {
            let (rank, stream) = part.split_once(':').unwrap_or(("", ""));
            rank.parse::<usize>().is_ok() && is_stream(stream)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(change: impl FnOnce(&mut LaunchArgs)) -> LaunchArgs {
        let mut args = LaunchArgs::default();
        change(&mut args);
        args
    }

    fn options(args: &LaunchArgs, set: &[(&str, &str)]) -> Result<Options, String> {
        let lookup = |name: &str| {
            let found = set.iter().find(|(known, _)| *known == name)?;
            Some(found.1.to_owned())
        };
        Options::of(args, &lookup).map_err(|failure| failure.to_string())
    }

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn what_is_typed_comes_before_the_environment() {
        let set = [
            ("PET_NPROC_PER_NODE", "4"),
            ("PET_MAX_RESTARTS", "2"),
            ("PET_RDZV_ID", "job-7"),
            ("PET_STANDALONE", "1"),
            ("PET_MODULE", "1"),
            ("PET_LOG_DIR", "/logs"),
            ("PET_NNODES", "1"),
            ("PET_NODE_RANK", "0"),
            ("PET_MASTER_ADDR", "host"),
            ("PET_MASTER_PORT", "29500"),
        ];
        let found = options(&typed(|_| ()), &set).unwrap();
        assert_eq!((found.processes, found.max_restarts), (4, 2));
        assert_eq!(found.run_id.as_deref(), Some("job-7"));
        assert_eq!(found.log_dir, Some("/logs".into()));
        assert!(found.module && !found.no_python);
        assert_eq!(
            (found.place.address.as_deref(), found.place.port),
            (Some("host"), Some(29500))
        );
        let args = typed(|args| {
            args.nproc_per_node = Some(text("3"));
            args.max_restarts = Some(text("0"));
            args.rdzv_endpoint = Some(text("localhost:0"));
        });
        let found = options(&args, &set).unwrap();
        assert_eq!((found.processes, found.max_restarts), (3, 0));
        assert_eq!(
            (found.place.address.as_deref(), found.place.port),
            (Some("localhost"), None)
        );
    }

    #[test]
    fn nothing_is_one_process_at_a_free_port() {
        let found = options(&typed(|_| ()), &[("PET_MASTER_PORT", "")]).unwrap();
        assert_eq!((found.processes, found.max_restarts), (1, 0));
        assert_eq!(
            (found.place.address.as_deref(), found.place.port),
            (None, None)
        );
        assert_eq!((found.role.as_str(), found.remarks.len()), ("default", 0));
    }

    #[test]
    fn endpoints_name_address_and_port() {
        let place = |endpoint: &str, port: Option<&str>| {
            let args = typed(|args| {
                args.rdzv_endpoint = Some(text(endpoint));
                args.master_port = port.map(str::to_owned);
            });
            options(&args, &[]).map(|it| (it.place.address, it.place.port))
        };
        let expected = |address: &str, port| Ok((Some(address.to_owned()), port));
        assert_eq!(place("host:5", None), expected("host", Some(5)));
        assert_eq!(place("host", None), expected("host", None));
        assert_eq!(place("host:0", Some("7")), expected("host", Some(7)));
        assert_eq!(place("[::1]:5", None), expected("::1", Some(5)));
        assert_eq!(place("::1", None), expected("::1", None));
        assert!(place("host:x", None).unwrap_err().contains("HOST:PORT"));
        let both = place("host:5", Some("7")).unwrap_err();
        assert!(
            both.contains("`host:5`") && both.contains("--master-port is `7`"),
            "{both}"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let cases: [(&str, &str, &str); 6] = [
            (
                "PET_RDZV_CONF",
                "join_timeout=soon",
                "join_timeout takes seconds",
            ),
            ("PET_NPROC_PER_NODE", "0", "from 1 on"),
            ("PET_NPROC_PER_NODE", "many", "`gpu`, `cpu` or `auto`"),
            ("PET_MAX_RESTARTS", "-1", "a number"),
            ("PET_MASTER_PORT", "65536", "a port"),
            ("PET_TEE", "4", "3 (both)"),
        ];
        for (name, value, says) in cases {
            let refused = options(&typed(|_| ()), &[(name, value)]).unwrap_err();
            assert!(
                refused.contains(name) && refused.contains(value),
                "{refused}"
            );
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let args = typed(|args| {
            args.tee = Some(text("3"));
            args.redirects = Some(text("0:1,1:2"));
            args.rdzv_backend = Some(text("c10d"));
            args.nproc_per_node = Some(text("cpu"));
        });
        let found = options(&args, &[]).unwrap();
        assert!(found.processes >= 1);
        assert_eq!(found.remarks.len(), 2);
        assert!(
            found.remarks[0].starts_with("--tee and --redirects"),
            "{:?}",
            found.remarks
        );
    }
}
