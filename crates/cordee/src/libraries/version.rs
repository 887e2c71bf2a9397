//! Which version a library has, as far as the names of files tell.

use std::path::Path;

/// The version in the name of the file that `path` leads to, else that of the Python package it came
/// with: `13.0.2.14`. `None` where neither says more than the major number.
pub(crate) fn version(path: &Path) -> Option<String> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = real.file_name()?.to_str()?;
    let (stem, version) = name.split_once(".so.")?;
    if version.contains('.') {
        return Some(version.to_owned());
    }
    of_package(&real, stem.strip_prefix("lib")?)
}

/// The version of a wheel: `nvidia/cu13/lib/libcublas.so.13` came with `nvidia_cublas-13.0.2.dist-info`,
/// `nvidia/nccl/lib/libnccl.so.2` with `nvidia_nccl_cu13-2.28.3.dist-info`.
fn of_package(library: &Path, stem: &str) -> Option<String> {
    let packages = library.ancestors().nth(4)?;
    let stem = match stem {
        "cudart" => "cuda_runtime",
        "nvrtc" | "nvrtc-builtins" => "cuda_nvrtc",
        "cublasLt" => "cublas",
        _ => stem,
    };
    let entries = fs_err::read_dir(packages).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (package, version) = name.strip_suffix(".dist-info")?.split_once('-')?;
        let rest = package.strip_prefix("nvidia_")?.strip_prefix(stem)?;
        let is_it = rest.is_empty() || rest.strip_prefix("_cu").is_some_and(is_number);
        is_it.then(|| version.to_owned())
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
