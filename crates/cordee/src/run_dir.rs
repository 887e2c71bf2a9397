//! Where a run keeps what it writes, and which run is resumed.

use std::{
    ffi::OsString,
    fs::{File, TryLockError},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, anyhow};
use cordee_protocol::ExitCode;
use fs_err as fs;

use crate::failure::Failure;

/// A tokenizer, in a run directory as in one of Hugging Face's.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The folder in which runs are made when no directory is named.
pub(crate) const RUNS: &str = "runs";

/// What a start makes before it writes the config, in order.
const BEFORE_RUN: [&str; 9] = [
    LOCK,
    "logs",
    "checkpoints",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "config.source.toml",
    "overrides.txt",
    "env.json",
    "config.new",
];

/// Held by the process that is at work in a run directory.
const LOCK: &str = ".lock";

/// How long the lock may be somebody's who only looks whether it is held.
const LOOK: Duration = Duration::from_millis(20);

/// A run directory.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// From the root.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The resolved config.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.0.join(TOKENIZER_FILE)
    }

    /// What is known of the tokenizer beside its file.
    pub fn tokenizer_config(&self) -> PathBuf {
        self.0.join("tokenizer_config.json")
    }

    /// The directory of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// The directory of the ranks' logs.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Whether a run has begun here.
    pub fn has_run(&self) -> bool {
        self.config().exists() && self.0.join("env.json").exists()
    }

    /// Holds the run for this process: two at work in one directory would tear its files. Released
    /// when the process ends, however it ends.
    pub fn lock(&self) -> Result<File, Failure> {
        let environment = |error: std::io::Error| Failure::new(ExitCode::Environment, error);
        fs::create_dir_all(&self.0).map_err(environment)?;
        let path = self.0.join(LOCK);
        let mut options = fs::OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(environment)?;
        let mut file = file.into_file();
        let is_taken = || matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        // A file system without locks is no reason not to train.
        if is_taken() && (0..5).all(|_| still_taken(&is_taken)) {
            let pid = std::io::read_to_string(&file).unwrap_or_default();
            let error = anyhow!(
                "another cordee (pid {}) is at work in {}",
                pid.trim(),
                self.0.display()
            );
            return Err(Failure::new(ExitCode::Failed, error)
                .with_hint("wait for it to end, or stop it first"));
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(environment)?;
        Ok(file)
    }

    /// Whether a process is at work here; `None` where the file system does not tell.
    pub(crate) fn is_locked(&self) -> Option<bool> {
        let file = match File::open(self.0.join(LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Some(false),
            Err(_) => return None,
        };
        // Held for no longer than this function, and together with others who look.
        match file.try_lock_shared() {
            Ok(()) => Some(false),
            Err(TryLockError::WouldBlock) => Some(true),
            Err(TryLockError::Error(_)) => None,
        }
    }

    /// The refusal to begin a run where there is something already.
    pub fn occupied(&self) -> Failure {
        let error = anyhow!("the run directory {} already exists", self.0.display());
        let hint = "go on with that run by adding --resume, or choose another --run-dir; nothing was changed";
        Failure::usage(error).with_hint(hint)
    }

    /// How often the run has been started, the start at hand included.
    pub fn next_attempt(&self) -> usize {
        let environment = fs::read_to_string(self.0.join("env.json")).unwrap_or_default();
        let environment: serde_json::Value = serde_json::from_str(&environment).unwrap_or_default();
        environment["attempt"]
            .as_u64()
            .map_or(1, |attempt| attempt as usize + 1)
    }

    /// Takes note of the number of an attempt in a run that has begun.
    pub(crate) fn note_attempt(&self, attempt: usize) -> anyhow::Result<()> {
        let path = self.0.join("env.json");
        let mut facts: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        facts["attempt"] = attempt.into();
        let text = format!("{}\n", serde_json::to_string_pretty(&facts)?);
        replace(&path, text.as_bytes())
    }

    /// The runs in a directory, in the order of their names.
    pub(crate) fn all_in(directory: &Path) -> std::io::Result<Vec<Self>> {
        let entries = fs::read_dir(directory)?;
        let mut runs: Vec<Self> = entries
            .filter_map(|entry| absolute(&entry.ok()?.path()).ok().map(Self))
            .filter(Self::has_run)
            .collect();
        runs.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(runs)
    }

    /// The run that a person means by `given`: its directory, its name among the runs, or nothing,
    /// which means the one that was started last.
    pub(crate) fn meant(given: Option<&Path>) -> Result<Self, Failure> {
        let hint = "`cordee runs ls` lists those in runs/, `cordee runs ls DIR` those in DIR";
        let Some(given) = given else {
            let runs = Self::all_in(Path::new(RUNS)).unwrap_or_default();
            let newest = runs.into_iter().max_by_key(Self::last_start);
            return newest.ok_or_else(|| {
                Failure::usage(anyhow!("there is no run in {RUNS}/"))
                    .with_hint("name the directory of a run; `cordee train CONFIG` starts one")
            });
        };
        let among_runs = Path::new(RUNS).join(given);
        for path in [given, &among_runs] {
            let run = Self(absolute(path)?);
            if run.has_run() {
                return Ok(run);
            }
        }
        let error = if given.exists() {
            anyhow!("{} is not a run directory", given.display())
        } else {
            anyhow!("there is no run {}", given.display())
        };
        Err(Failure::usage(error).with_hint(hint))
    }

    /// When it was last started, as far as its files tell.
    fn last_start(&self) -> Option<SystemTime> {
        fs::metadata(self.0.join("env.json")).ok()?.modified().ok()
    }

    /// The directory for a fresh run: `given`, or a new one named after the config and the time.
    pub fn fresh(given: Option<&Path>, name: &str) -> Result<Self, Failure> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => Path::new(RUNS).join(format!(
                "{name}-{}",
                jiff::Zoned::now().strftime("%Y%m%d-%H%M%S")
            )),
        };
        let run = Self(absolute(&path)?);
        if run.0.exists() {
            let entries = fs::read_dir(&run.0).map_err(Failure::usage)?;
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            // What a start left that came to nothing is no run.
            let foreign = |name: &OsString| !BEFORE_RUN.iter().any(|ours| name == ours);
            if names
                .into_iter()
                .any(|name| name.map_or(true, |name| foreign(&name)))
                || run.has_run()
            {
                return Err(run.occupied());
            }
        }
        Ok(run)
    }

    /// The directory `--resume` speaks of, and the checkpoint if one was named.
    pub fn resumed(
        given: Option<&Path>,
        resume: &Path,
        name: &str,
    ) -> Result<(Self, Option<PathBuf>), Failure> {
        if resume != Path::new("auto") {
            let (run, checkpoint) = Self::containing(resume)?;
            if let Some(given) = given
                && absolute(given)? != run.0
            {
                let error = anyhow!(
                    "--run-dir {} and --resume={} are different runs",
                    given.display(),
                    resume.display()
                );
                return Err(Failure::usage(error).with_hint("give one of the two"));
            }
            return Ok((run, checkpoint));
        }
        if let Some(given) = given {
            let run = Self(absolute(given)?);
            let run = if run.has_run() {
                run
            } else {
                Self::fresh(Some(given), name)?
            };
            return Ok((run, None));
        }
        match newest_run(name) {
            Some(path) => Ok((Self(absolute(&path)?), None)),
            None => Ok((Self::fresh(None, name)?, None)),
        }
    }

    /// The run that `path` is, or that it is a checkpoint of.
    pub fn containing(path: &Path) -> Result<(Self, Option<PathBuf>), Failure> {
        let path = absolute(path)?;
        if path.join("MANIFEST.json").exists() {
            let run = path.parent().and_then(Path::parent).map(Path::to_owned);
            let run = run.ok_or_else(|| {
                Failure::usage(anyhow!("{} is in no run directory", path.display()))
            })?;
            let run = Self(run);
            if !run.has_run() {
                let error = anyhow!(
                    "{} is a checkpoint outside of a run directory",
                    path.display()
                );
                let hint = "checkpoints are used where they were written, in DIR/checkpoints of a run directory DIR";
                return Err(Failure::usage(error).with_hint(hint));
            }
            return Ok((run, Some(path)));
        }
        let run = Self(path);
        if run.has_run() {
            return Ok((run, None));
        }
        let error = anyhow!(
            "{} is neither a run directory nor a checkpoint",
            run.0.display()
        );
        Err(Failure::usage(error)
            .with_hint("a run directory holds config.toml, a checkpoint holds MANIFEST.json"))
    }
}

/// Writes a file whole or not at all: a resumed run has one already, and must not lose it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(())
}

/// Whether a lock is another's after a while, too.
fn still_taken(is_taken: &dyn Fn() -> bool) -> bool {
    thread::sleep(LOOK);
    is_taken()
}

/// The newest run of a config: names end in the time, so the last by name is the newest.
fn newest_run(name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(RUNS).ok()?;
    let prefix = format!("{name}-");
    let is_run = |path: &PathBuf| {
        let time = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.strip_prefix(&prefix));
        time.is_some_and(|time| {
            time.len() == 15
                && time
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'-')
        }) && path.join("config.toml").exists()
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_run)
        .max()
}

/// The path from the root; links are followed, so that one run has one name.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let context = || format!("finding {}", path.display());
    let failed = |error| Failure::new(ExitCode::Environment, error);
    let path = match std::fs::canonicalize(path) {
        Ok(path) => path,
        Err(_) => std::path::absolute(path)
            .with_context(context)
            .map_err(failed)?
            .components()
            .collect(),
    };
    if path.to_str().is_none() {
        return Err(Failure::usage(anyhow!(
            "{} is not UTF-8, and records name their files",
            path.display()
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_whether_a_run_is_held_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir(folder.path().to_owned());
        assert_eq!(run.is_locked(), Some(false));
        let held = run.lock().unwrap();
        assert_eq!(run.is_locked(), Some(true));
        assert!(run.lock().is_err());
        drop(held);
        assert_eq!(run.is_locked(), Some(false));
        let looker = File::open(folder.path().join(LOCK)).unwrap();
        looker.lock_shared().unwrap();
        let looked = thread::spawn(move || {
            thread::sleep(LOOK / 2);
            drop(looker);
        });
        let held = run.lock();
        assert!(held.is_ok(), "{held:?}");
        looked.join().unwrap();
    }
}
