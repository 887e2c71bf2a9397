//! Which program the words of a command mean.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use fs_err as fs;

use crate::{args::LaunchArgs, failure::Failure};

/// The variable that names the Python to run scripts with, as torchrun has it.
const PYTHON: &str = "PYTHON_EXEC";

/// A program, ready to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// What logs are called by.
    pub(super) name: String,
}

impl Program {
    /// The program that is meant, which is there and can be run.
    pub(super) fn find(args: &LaunchArgs, module: bool, no_python: bool) -> Result<Self, Failure> {
        let (first, rest) = args.command.split_first().expect("a command has a word");
        let name = Path::new(first).file_stem().unwrap_or(first);
        let name = name.to_string_lossy().into_owned();
        if module && no_python {
            let error = anyhow!("--module and --no-python are each other's opposite");
            return Err(Failure::usage(error).with_hint("give one of the two"));
        }
        let by_python = |words: &[&OsStr]| -> Result<Self, Failure> {
            let words = words.iter().copied().map(OsStr::to_owned);
            Ok(Self {
                path: python()?,
                arguments: words.chain(rest.iter().cloned()).collect(),
                name: name.clone(),
            })
        };
        if module {
            return by_python(&["-u".as_ref(), "-m".as_ref(), first]);
        }
        let script = Path::new(first);
        if !no_python && script.extension().is_some_and(|it| it == "py") {
            if !script.is_file() {
                let error = anyhow!("there is no file {}", script.display());
                return Err(
                    Failure::usage(error).with_hint("paths are as seen from the current directory")
                );
            }
            if !runs_by_itself(script) {
                return by_python(&["-u".as_ref(), first]);
            }
            return Ok(Self {
                path: fs::canonicalize(script).map_err(Failure::usage)?,
                arguments: rest.to_vec(),
                name,
            });
        }
        Ok(Self {
            path: executable(first)?,
            arguments: rest.to_vec(),
            name,
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.arguments.iter().map(|it| it.to_string_lossy());
        let program = self.path.file_name().unwrap_or_default().to_string_lossy();
        let words: Vec<_> = [program].into_iter().chain(words).collect();
        formatter.write_str(&words.join(" "))
    }
}

/// Whether the system can run a script: it may, and the script says by what.
fn runs_by_itself(script: &Path) -> bool {
    let start = || -> std::io::Result<[u8; 2]> {
        let mut start = [0; 2];
        fs::File::open(script)?.read_exact(&mut start)?;
        Ok(start)
    };
    is_executable(script) && start().is_ok_and(|it| it == *b"#!")
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// The Python that runs scripts.
fn python() -> Result<PathBuf, Failure> {
    if let Some(named) = env::var_os(PYTHON).filter(|it| !it.is_empty()) {
        return executable(&named);
    }
    let found = ["python3", "python"]
        .iter()
        .find_map(|name| in_path(name.as_ref()));
    found.ok_or_else(|| {
        Failure::usage(anyhow!("there is no python3 in PATH")).with_hint(format!(
            "activate an environment that has one, or name it by {PYTHON}"
        ))
    })
}

/// The file that a shell would run by this name.
fn executable(name: &OsStr) -> Result<PathBuf, Failure> {
    let path = Path::new(name);
    let hint = "after `--` comes the program and then its arguments; a script needs a mode that lets it be run (chmod +x)";
    if !name.as_bytes().contains(&b'/') {
        return in_path(name).ok_or_else(|| {
            let error = anyhow!("there is no program `{}` in PATH", path.display());
            let hint = if path.is_file() {
                format!("for the file of that name here, write ./{}", path.display())
            } else {
                hint.to_owned()
            };
            Failure::usage(error).with_hint(hint)
        });
    }
    if is_executable(path) {
        return Ok(path.to_owned());
    }
    let error = if path.exists() {
        anyhow!("{} is not a program that can be run", path.display())
    } else {
        anyhow!("there is no program {}", path.display())
    };
    Err(Failure::usage(error).with_hint(hint))
}

fn in_path(name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|it| it.join(name))
        .find(|it| is_executable(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(words: &[&str], module: bool, no_python: bool) -> Result<Program, String> {
        let args = LaunchArgs {
            command: words.iter().map(OsString::from).collect(),
            ..LaunchArgs::default()
        };
        Program::find(&args, module, no_python).map_err(|failure| failure.to_string())
    }

    #[test]
    fn scripts_are_run_by_python_unless_they_run_by_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let write = |name: &str, text: &str, mode| {
            fs::write(at(name), text).unwrap();
            fs::set_permissions(at(name), std::os::unix::fs::PermissionsExt::from_mode(mode))
                .unwrap();
        };
        write("plain.py", "pass", 0o644);
        // As on a file system that has one mode for all files.
        write("unmarked.py", "pass", 0o755);
        write("marked.py", "#!/bin/sh\n", 0o755);
        for name in ["plain.py", "unmarked.py"] {
            let program = find(&[&at(name), "--lr", "1"], false, false).unwrap();
            assert_eq!(program.arguments, ["-u", at(name).as_str(), "--lr", "1"]);
            assert_eq!(program.name, name.trim_end_matches(".py"));
        }
        let program = find(&[&at("marked.py"), "x"], false, false).unwrap();
        assert!(program.path.ends_with("marked.py"), "{program:?}");
        assert_eq!(program.arguments, ["x"]);
        let absent = find(&[&at("absent.py")], false, false).unwrap_err();
        assert!(absent.contains("there is no file"), "{absent}");
        let refused = find(&[&at("plain.py")], false, true).unwrap_err();
        assert!(
            refused.contains("not a program that can be run"),
            "{refused}"
        );
    }

    #[test]
    fn modules_and_programs() {
        let module = find(&["torch.distributed.run", "-h"], true, false).unwrap();
        assert_eq!(
            module.arguments,
            ["-u", "-m", "torch.distributed.run", "-h"]
        );
        let shell = find(&["sh", "-c", "true"], false, false).unwrap();
        assert!(
            shell.path.ends_with("sh") && shell.path.is_absolute(),
            "{shell:?}"
        );
        assert_eq!(shell.to_string(), "sh -c true");
        let absent = find(&["no-such-program"], false, false).unwrap_err();
        assert!(absent.contains("`no-such-program` in PATH"), "{absent}");
        assert!(
            find(&["/no/such"], false, false)
                .unwrap_err()
                .contains("/no/such")
        );
        assert!(find(&["x"], true, true).unwrap_err().contains("opposite"));
    }
}
