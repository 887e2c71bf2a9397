//! Attention by cuDNN, where libcudnn is found (feature `cudnn`).
//!
//! libcudnn is opened at the first call that could use it, and where it is not found, or refuses a
//! call, our own kernels compute: that is no error, but a reason that [`status`] and [`refusals`]
//! tell. It computes calls in bf16 on GPUs of compute capability 8.0 or more, of sequences of one
//! length that is a multiple of 128, with heads of a multiple of 8; a plan is made for each shape
//! when it is first seen, which takes a third of a second, or beside the start of a run
//! ([`prepare`](super::prepare)). Its backward is asked for in the deterministic form.
//!
//! The log-sum-exp that it keeps is the natural logarithm of the sum of the exponentials of the
//! scaled scores (max + ln(sum)), as ours is, so that either may compute the backward of the
//! other's forward.
//!
//! cuDNN is called by `cudnn/attention.cpp`, which the build script compiles.

#[cfg(feature = "cudnn")]
mod library;
#[cfg(feature = "cudnn")]
mod plans;
#[cfg(feature = "cudnn")]
mod run;
#[cfg(all(test, feature = "cudnn"))]
mod tests;

use std::{fmt, path::PathBuf};

#[cfg(feature = "cudnn")]
pub(super) use run::{Call, backward, forward, plan};

/// The kernel that reorders a log-sum-exp; tests compile it in every build with CUDA.
#[cfg(all(feature = "cuda", any(test, feature = "cudnn")))]
pub(crate) static SOURCE: crate::cuda::Source = crate::cuda::Source {
    name: "attention_statistics",
    text: include_str!("statistics.cu"),
};

/// As the system's loader looks for it.
#[cfg(feature = "cudnn")]
const LIBRARY: &str = "libcudnn.so.9";

/// What became of libcudnn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was opened.
    Available {
        /// Its version, like `9.28.1`.
        version: String,
        /// Where it is.
        path: PathBuf,
    },
    /// It cannot be used.
    Unavailable {
        /// Why, with the answer for each path.
        reason: String,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available { version, path } => {
                write!(formatter, "cuDNN {version} ({})", path.display())
            }
            Self::Unavailable { reason, .. } => write!(formatter, "no cuDNN: {reason}"),
        }
    }
}

/// Opens libcudnn, if that was not tried before, and says what came of it.
pub fn status() -> Status {
    #[cfg(feature = "cudnn")]
    return match library::Library::get() {
        Ok(library) => library.status(),
        Err(unavailable) => unavailable.clone(),
    };
    #[cfg(not(feature = "cudnn"))]
    Status::Unavailable {
        reason: "this build has none: build with `--features cudnn`".to_owned(),
        tried: Vec::new(),
    }
}

/// The calls that cuDNN refused and our own kernels computed, each with the reason.
pub fn refusals() -> Vec<String> {
    #[cfg(feature = "cudnn")]
    return plans::refusals();
    #[cfg(not(feature = "cudnn"))]
    Vec::new()
}

/// How many plans it made in this process: one for each shape and pass that it computed or that was
/// prepared.
pub fn plans() -> usize {
    #[cfg(feature = "cudnn")]
    return plans::made();
    #[cfg(not(feature = "cudnn"))]
    0
}
