//! The house rules of ARCHITECTURE.md, as far as a test can hold them.

#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use object::{elf::DT_NEEDED, read::elf::ElfFile64};
use serde_json::Value;

/// The floor of each crate, from the ground up.
const FLOORS: [(&str, u8); 14] = [
    ("cordee-memory", 0),
    ("cordee-protocol", 0),
    ("cordee-config", 0),
    ("cordee-metrics", 0),
    ("nccl-sys", 0),
    ("cordee-model", 1),
    ("cordee-ops", 1),
    ("cordee-comm", 1),
    ("cordee-data", 1),
    ("cordee-checkpoint", 1),
    ("cordee-launch", 2),
    ("cordee-train", 2),
    ("cordee-smoke", 2),
    ("cordee", 3),
];

/// The one pair of crates of the same floor that may know each other.
const NEIGHBOURS: (&str, &str) = ("cordee-model", "cordee-ops");

/// Crates that hold `unsafe` code, and in which files if not in all.
const UNSAFE: [(&str, &[&str]); 5] = [
    ("nccl-sys", &[]),
    ("cordee-memory", &[]),
    ("cordee-comm", &[]),
    ("cordee-ops", &[]),
    ("cordee-launch", &["spawn.rs"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace exists")
}

fn host() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8(output.stdout).expect("rustc prints UTF-8");
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc names its host")
        .to_owned()
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        // Only what this machine needs, which a build has fetched.
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            &host(),
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("`{key}` is text"))
}

/// Normal dependencies (not of tests, not of builds) of each workspace crate.
fn dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    let packages = metadata["packages"].as_array().unwrap();
    let own = packages
        .iter()
        .filter(|package| members.contains(text(package, "id")));
    own.map(|package| {
        let normal = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| dependency["kind"].is_null());
        (
            text(package, "name").to_owned(),
            normal
                .map(|dependency| text(dependency, "name").to_owned())
                .collect(),
        )
    })
    .collect()
}

fn floor(name: &str) -> Option<u8> {
    FLOORS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, floor)| *floor)
}

#[test]
fn arrows_point_down() {
    for (name, dependencies) in dependencies(&metadata()) {
        let own = floor(&name).unwrap_or_else(|| {
            panic!("`{name}` has no floor: give it one in ARCHITECTURE.md and here")
        });
        for (dependency, below) in dependencies
            .iter()
            .filter_map(|name| Some((name, floor(name)?)))
        {
            let neighbours = (name.as_str(), dependency.as_str()) == NEIGHBOURS;
            assert!(
                below < own || neighbours,
                "`{name}` (floor {own}) depends on `{dependency}` (floor {below})"
            );
        }
    }
}

#[test]
fn the_launcher_never_touches_candle_or_cuda() {
    let metadata = metadata();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let name_of = |id: &str| {
        let packages = metadata["packages"].as_array().unwrap();
        text(
            packages
                .iter()
                .find(|package| text(package, "id") == id)
                .unwrap(),
            "name",
        )
        .to_owned()
    };
    // What the command line uses before it starts ranks.
    for start in [
        "cordee-launch",
        "cordee-protocol",
        "cordee-config",
        "cordee-data",
        "cordee-checkpoint",
        "cordee-metrics",
    ] {
        let mut reached = BTreeSet::new();
        let mut waiting: Vec<&Value> = nodes
            .iter()
            .filter(|node| name_of(text(node, "id")) == start)
            .collect();
        assert_eq!(waiting.len(), 1, "`{start}` is a crate of the workspace");
        while let Some(node) = waiting.pop() {
            if !reached.insert(text(node, "id")) {
                continue;
            }
            for dependency in node["deps"].as_array().unwrap() {
                let normal = dependency["dep_kinds"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|kind| kind["kind"].is_null());
                let id = text(dependency, "pkg");
                waiting.extend(nodes.iter().filter(|node| normal && text(node, "id") == id));
            }
        }
        for forbidden in ["candle-core", "cudarc"] {
            assert!(
                !reached.iter().any(|id| name_of(id) == forbidden),
                "`{start}` reaches `{forbidden}`"
            );
        }
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    for (name, _) in FLOORS {
        let dir = root().join("crates").join(name).join("src");
        if !dir.exists() {
            continue;
        }
        let allowed = UNSAFE
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, files)| *files);
        for path in sources(&dir) {
            let source = std::fs::read_to_string(&path).unwrap();
            let file = path.file_name().unwrap().to_str().unwrap();
            let is_root = file == "lib.rs"
                || PROGRAMS
                    .iter()
                    .any(|program| name == "cordee" && path == dir.join(program));
            match allowed {
                None if is_root => {
                    assert!(
                        source.contains("#![forbid(unsafe_code)]"),
                        "{} forbids unsafe code",
                        path.display()
                    );
                }
                Some(files) if !files.is_empty() && !files.contains(&file) => {
                    let code = source
                        .lines()
                        .filter(|line| !line.trim_start().starts_with("//"));
                    for line in code {
                        let uses = line.contains("unsafe {")
                            || line.contains("unsafe fn")
                            || line.contains("unsafe impl");
                        assert!(!uses, "{}: `unsafe` belongs in {files:?}", path.display());
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn files_stay_small() {
    let mut lengths = Vec::new();
    for path in sources(&root().join("crates")) {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines <= 800,
            "{} has {lines} lines: split it by meaning",
            path.display()
        );
        lengths.push(lines);
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= 200, "the median file has {median} lines");
}

/// The files of `cordee` that the programs have and its library has not.
const PROGRAMS: [&str; 2] = ["main.rs", "worker.rs"];

/// The folder of `cordee` that may name what is built on candle.
const ENGINE: &str = "engine";

#[test]
fn the_command_line_names_nothing_that_needs_candle() {
    let dir = root().join("crates/cordee/src");
    let (engine, rest): (Vec<_>, Vec<_>) = sources(&dir)
        .into_iter()
        .filter(|path| !PROGRAMS.iter().any(|name| *path == dir.join(name)))
        .partition(|path| path.starts_with(dir.join(ENGINE)));
    let names = |path: &PathBuf, crates: &[&'static str]| {
        let source = std::fs::read_to_string(path).unwrap();
        let named = crates.iter().find(|name| source.contains(**name));
        named.copied()
    };
    let forbidden = [
        "cordee_train",
        "cordee_smoke",
        "cordee_model",
        "cordee_ops",
        "cordee_comm",
        "candle_core",
        "cudarc",
    ];
    for path in rest {
        let named = names(&path, &forbidden);
        assert!(named.is_none(), "{} names {named:?}", path.display());
    }
    assert!(
        engine.iter().any(|path| names(path, &forbidden).is_some()),
        "the engine is in {ENGINE}"
    );
}

/// What the system has wherever programs run.
const SYSTEM_LIBRARIES: [&str; 7] = [
    "libc.",
    "libm.",
    "libgcc_s.",
    "ld-linux",
    "libdl.",
    "libpthread.",
    "librt.",
];

/// What an ELF file asks the loader for, as `readelf -d` shows it.
fn needed_libraries(program: &Path) -> Vec<String> {
    let bytes = std::fs::read(program).unwrap();
    let file = ElfFile64::<object::Endianness>::parse(&*bytes).expect("the program is ELF");
    let table = file.elf_dynamic_table().unwrap();
    let needed = table.iter().filter(|entry| entry.tag == DT_NEEDED);
    needed
        .map(|entry| String::from_utf8(table.string(entry).unwrap().to_vec()).unwrap())
        .collect()
}

/// Package metadata cannot tell what is linked. In a CUDA build this is what lets `cordee` start on a
/// machine without CUDA.
#[test]
fn the_command_line_needs_the_system_s_libraries_alone() {
    let needed = needed_libraries(Path::new(env!("CARGO_BIN_EXE_cordee")));
    assert!(!needed.is_empty());
    for library in &needed {
        assert!(
            SYSTEM_LIBRARIES
                .iter()
                .any(|known| library.starts_with(known)),
            "`cordee` needs {library}"
        );
    }
}

/// That the test above would see it.
#[cfg(feature = "cuda")]
#[test]
fn the_worker_of_a_cuda_build_needs_cuda() {
    let needed = needed_libraries(Path::new(env!("CARGO_BIN_EXE_cordee-worker")));
    assert!(
        needed
            .iter()
            .any(|library| library.starts_with("libcuda.so")),
        "{needed:?}"
    );
}

#[test]
fn libraries_read_no_environment_and_never_exit() {
    for (name, _) in FLOORS.iter().filter(|(name, _)| *name != "cordee") {
        let dir = root().join("crates").join(name).join("src");
        for path in if dir.exists() {
            sources(&dir)
        } else {
            Vec::new()
        } {
            if path.ends_with("tests.rs") {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            // Unit tests stand at the end of their file, or in one of their own.
            let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for forbidden in ["env::var", "env::args", "process::exit"] {
                assert!(
                    !code.contains(forbidden),
                    "{} uses {forbidden}",
                    path.display()
                );
            }
        }
    }
}
