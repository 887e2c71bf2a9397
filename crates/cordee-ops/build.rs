//! With the feature `cudnn`, compiles `cudnn/attention.cpp` into the shared object that the crate
//! embeds; without it, nothing.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = "cudnn/attention.cpp";

/// Names a shared object to embed instead of compiling one.
const READY_MADE: &str = "CORDEE_CUDNN_SHIM";

/// A header that is needed, the variable that says in which folder it is, and what installs it.
struct Header {
    name: &'static str,
    variable: &'static str,
    /// Below a folder of Python packages.
    packaged: &'static [&'static str],
    install: &'static str,
}

const HEADERS: [Header; 3] = [
    Header {
        name: "cudnn_frontend.h",
        variable: "CUDNN_FRONTEND_INCLUDE",
        packaged: &["include"],
        install: "pip install nvidia-cudnn-frontend",
    },
    Header {
        name: "cudnn.h",
        variable: "CUDNN_INCLUDE",
        packaged: &["nvidia/cudnn/include"],
        install: "pip install nvidia-cudnn-cu13, or cuDNN's development package",
    },
    Header {
        name: "cuda_runtime_api.h",
        variable: "CUDA_INCLUDE",
        packaged: &[
            "nvidia/cu13/include",
            "nvidia/cu12/include",
            "nvidia/cuda_runtime/include",
        ],
        install: "the CUDA toolkit, with CUDA_HOME set to its folder",
    },
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDNN").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={SOURCE}");
    let variables = [READY_MADE, "CXX", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"];
    for variable in HEADERS
        .iter()
        .map(|header| header.variable)
        .chain(variables)
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    if let Err(why) = make(&out) {
        for line in why.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn make(out: &Path) -> Result<(), String> {
    let object = out.join("attention.so");
    if let Some(ready) = env::var_os(READY_MADE).map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", ready.display());
        let copied = fs::copy(&ready, &object);
        return copied
            .map(drop)
            .map_err(|error| format!("{READY_MADE}: copying {}: {error}", ready.display()));
    }
    let packages = python_packages();
    let mut includes = Vec::new();
    for header in &HEADERS {
        let include = find(header, &packages)?;
        if !includes.contains(&include) {
            includes.push(include);
        }
    }
    compile(&includes, out, &object)
}

/// The folder that has a header.
fn find(header: &Header, packages: &[PathBuf]) -> Result<PathBuf, String> {
    let folder = |variable| env::var_os(variable).map(PathBuf::from);
    let mut tried: Vec<PathBuf> = folder(header.variable).into_iter().collect();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(folder);
    tried.extend(toolkits.map(|toolkit| toolkit.join("include")));
    for folder in packages {
        tried.extend(header.packaged.iter().map(|below| folder.join(below)));
    }
    tried.extend(["/usr/local/cuda/include", "/usr/include"].map(PathBuf::from));
    if let Some(found) = tried
        .iter()
        .find(|folder| folder.join(header.name).exists())
    {
        return Ok(found.clone());
    }
    let Header {
        name,
        variable,
        install,
        ..
    } = header;
    let mut why = format!("the feature `cudnn` needs {name}, which is in none of\n");
    for folder in &tried {
        writeln!(why, "  {}", folder.display()).expect("a string takes everything");
    }
    Err(format!(
        "{why}Install it ({install}), or set {variable} to the folder that has it, or {READY_MADE} to a \
         shared object that was compiled before; or build without the feature."
    ))
}

/// Folders of packages of the Python that comes first.
fn python_packages() -> Vec<PathBuf> {
    const LIST: &str = "import site, sysconfig; \
         print(sysconfig.get_path('purelib'), *site.getsitepackages(), site.getusersitepackages(), sep='\\n')";
    let python = env::var_os("VIRTUAL_ENV").map_or_else(
        || "python3".into(),
        |venv| PathBuf::from(venv).join("bin/python3"),
    );
    let Ok(output) = Command::new(python).args(["-c", LIST]).output() else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let folder = PathBuf::from(line.trim());
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Compiles without debug information and without an optimiser's best: the time of a call is spent
/// in libcudnn. libstdc++ is linked in and nothing but our functions is visible, so that the object
/// lives with any other in the process.
fn compile(includes: &[PathBuf], out: &Path, object: &Path) -> Result<(), String> {
    let exports = out.join("exports");
    fs::write(&exports, "{ global: cordee_cudnn_*; local: *; };\n")
        .map_err(|error| format!("writing {}: {error}", exports.display()))?;
    let compiler = env::var_os("CXX").unwrap_or_else(|| "g++".into());
    let mut command = Command::new(&compiler);
    command
        .args(["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-s"])
        .args([
            "-fvisibility=hidden",
            "-ffunction-sections",
            "-fdata-sections",
        ])
        .args(["-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections"])
        .arg(format!("-Wl,--version-script={}", exports.display()))
        .args([
            "-DNV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING",
            "-DCUDNN_FRONTEND_SKIP_JSON_LIB",
        ])
        .args(
            includes
                .iter()
                .map(|folder| format!("-I{}", folder.display())),
        )
        .arg(SOURCE)
        .arg("-o")
        .arg(object);
    let compiler = compiler.to_string_lossy();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "{compiler} could not compile {SOURCE} ({}):\n{}\nThe command was {command:?}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => Err(format!(
            "the feature `cudnn` needs a C++ compiler: {compiler}: {error}. Install g++ or set CXX."
        )),
    }
}
