//! The library itself.

use std::{
    error::Error as _,
    ffi::{CStr, c_char, c_int, c_void},
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use libloading::os::unix::{Library as Object, RTLD_LOCAL, RTLD_NOW};

use crate::types::{Comm, Config, DataType, ReductionOperation, Status, Stream, UniqueId, Version};

/// The name of the library's file, and what the loader looks for in its own places.
pub const FILE_NAME: &str = "libnccl.so.2";

/// A place that was tried, and why nothing came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The path, or a bare name for the loader's own places.
    pub path: PathBuf,
    /// What the loader said.
    pub why: String,
}

/// There is no NCCL, or none that can be used.
#[derive(Debug, thiserror::Error)]
#[error("NCCL cannot be opened:{}", places(tried))]
pub struct OpenError {
    /// All places, in their order.
    pub tried: Vec<Tried>,
}

fn places(tried: &[Tried]) -> String {
    if tried.is_empty() {
        return " no place to look at was given".to_owned();
    }
    let mut text = String::new();
    for Tried { path, why } in tried {
        let path = path.display().to_string();
        // The loader mostly begins with the name.
        let why = why.strip_prefix(&format!("{path}: ")).unwrap_or(why);
        let _ = write!(text, "\n  {path}: {why}");
    }
    text
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($parameter:ty),*) -> $answer:ty;)*) => {
        /// The functions, all of which any NCCL from 2.19 on has.
        #[derive(Clone, Copy)]
        #[non_exhaustive]
        pub struct Functions {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($parameter),*) -> $answer,)*
        }

        impl Functions {
            /// All of them, or the name of one that is not there.
            fn of(object: &Object) -> Result<Self, &'static CStr> {
                // SAFETY: the types are those of `nccl.h`, and a NCCL keeps them within a major version,
                // which is the number in the file's name.
                unsafe {
                    Ok(Self { $($name: *object.get::<unsafe extern "C" fn($($parameter),*) -> $answer>($symbol).map_err(|_| $symbol)?,)* })
                }
            }
        }
    };
}

functions! {
    /// Writes the version's code.
    get_version = c"ncclGetVersion": fn(*mut c_int) -> Status;
    /// Makes an id for a new communicator, on one rank.
    get_unique_id = c"ncclGetUniqueId": fn(*mut UniqueId) -> Status;
    /// Makes a communicator: where it goes, ranks, id, this rank, config. The GPU is the one that is
    /// current in the calling thread.
    comm_init_rank_config = c"ncclCommInitRankConfig": fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Status;
    /// Ends all work of a communicator, together with the other ranks.
    comm_finalize = c"ncclCommFinalize": fn(Comm) -> Status;
    /// Frees a communicator.
    comm_destroy = c"ncclCommDestroy": fn(Comm) -> Status;
    /// Ends what is under way, whatever the other ranks do, and frees a communicator.
    comm_abort = c"ncclCommAbort": fn(Comm) -> Status;
    /// Writes how work that was begun stands.
    comm_get_async_error = c"ncclCommGetAsyncError": fn(Comm, *mut Status) -> Status;
    /// Makes communicators of some ranks each: colour, key, where it goes, config.
    comm_split = c"ncclCommSplit": fn(Comm, c_int, c_int, *mut Comm, *mut Config) -> Status;
    /// Has NCCL use memory of the caller in place: address, bytes, where the handle goes.
    comm_register = c"ncclCommRegister": fn(Comm, *mut c_void, usize, *mut *mut c_void) -> Status;
    /// Takes that back.
    comm_deregister = c"ncclCommDeregister": fn(Comm, *mut c_void) -> Status;
    /// From, to, elements of all, type, operation.
    all_reduce = c"ncclAllReduce": fn(*const c_void, *mut c_void, usize, DataType, ReductionOperation, Comm, Stream) -> Status;
    /// From, to, elements of one rank, type, operation.
    reduce_scatter = c"ncclReduceScatter": fn(*const c_void, *mut c_void, usize, DataType, ReductionOperation, Comm, Stream) -> Status;
    /// From, to, elements of one rank, type.
    all_gather = c"ncclAllGather": fn(*const c_void, *mut c_void, usize, DataType, Comm, Stream) -> Status;
    /// From, to, elements, type, root.
    broadcast = c"ncclBroadcast": fn(*const c_void, *mut c_void, usize, DataType, c_int, Comm, Stream) -> Status;
    /// From, to, elements, type, operation, root.
    reduce = c"ncclReduce": fn(*const c_void, *mut c_void, usize, DataType, ReductionOperation, c_int, Comm, Stream) -> Status;
    /// From, elements, type, to whom.
    send = c"ncclSend": fn(*const c_void, usize, DataType, c_int, Comm, Stream) -> Status;
    /// To, elements, type, from whom.
    recv = c"ncclRecv": fn(*mut c_void, usize, DataType, c_int, Comm, Stream) -> Status;
    /// Gathers the calls of this thread that follow.
    group_start = c"ncclGroupStart": fn() -> Status;
    /// Begins what was gathered, all at once.
    group_end = c"ncclGroupEnd": fn() -> Status;
    /// A status in words.
    get_error_string = c"ncclGetErrorString": fn(Status) -> *const c_char;
    /// What went wrong last, in words; the communicator may be null.
    get_last_error = c"ncclGetLastError": fn(Comm) -> *const c_char;
}

/// NCCL, opened. It stays open until the process ends, since its threads may run that long.
#[derive(Clone, Copy)]
pub struct Library {
    functions: &'static Functions,
    version: Version,
    path: &'static Path,
}

impl fmt::Debug for Library {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "NCCL {} of {}",
            self.version,
            self.path.display()
        )
    }
}

impl Library {
    /// Opens the first of `paths` that can be: paths of files, or [`FILE_NAME`] for the loader's own
    /// places. Those are searched by the loader alone, without what a Python package brings.
    pub fn open(paths: &[PathBuf]) -> Result<Self, OpenError> {
        let mut tried = Vec::new();
        for path in paths {
            match Self::open_one(path) {
                Ok(library) => return Ok(library),
                Err(why) => tried.push(Tried {
                    path: path.clone(),
                    why,
                }),
            }
        }
        Err(OpenError { tried })
    }

    fn open_one(path: &Path) -> Result<Self, String> {
        // SAFETY: what runs when it is opened are NCCL's constructors.
        let object = unsafe { Object::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| why(&error))?;
        let functions = Functions::of(&object).map_err(|missing| {
            let missing = missing.to_string_lossy();
            format!("it has no {missing}, as NCCL 2.19 and later do")
        })?;
        // Never closed.
        std::mem::forget(object);
        let mut code = 0;
        // SAFETY: writes one number.
        let status = unsafe { (functions.get_version)(&raw mut code) };
        if status != Status::SUCCESS {
            return Err(format!("it does not tell its version: result {}", status.0));
        }
        Ok(Self {
            functions: Box::leak(Box::new(functions)),
            version: Version(code),
            path: Box::leak(path.to_owned().into_boxed_path()),
        })
    }

    /// The functions.
    pub fn functions(&self) -> &'static Functions {
        self.functions
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The path under which it was opened.
    pub fn path(&self) -> &'static Path {
        self.path
    }

    /// A status in words.
    pub fn error_string(&self, status: Status) -> String {
        // SAFETY: any number may be asked for; the answer is a static text.
        unsafe { text((self.functions.get_error_string)(status)) }
    }

    /// What went wrong last in this process, in words; empty if nothing did.
    pub fn last_error(&self) -> String {
        // SAFETY: null stands for no communicator in particular (none is looked at in any version). The
        // text is NCCL's own, and copied before anything is asked of it again by this thread.
        unsafe { text((self.functions.get_last_error)(std::ptr::null_mut())) }
    }
}

/// What the loader said; the error itself only names the loader's function.
fn why(error: &libloading::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// # Safety
///
/// The pointer is null or leads to a text that ends with a zero.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller's word.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_string_lossy().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_told_with_its_reason() {
        let error = Library::open(&["/nowhere/libnccl.so.2", "/dev/null"].map(PathBuf::from))
            .unwrap_err()
            .to_string();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines[0], "NCCL cannot be opened:");
        assert!(
            lines[1].starts_with("  /nowhere/libnccl.so.2: cannot open shared object file"),
            "{error}"
        );
        assert!(lines[2].starts_with("  /dev/null: "), "{error}");
        let error = Library::open(&[]).unwrap_err().to_string();
        assert!(error.ends_with("no place to look at was given"), "{error}");
    }

    /// A library that is something else is told by the function it lacks.
    #[test]
    fn another_library_is_refused() {
        let error = Library::open(&[PathBuf::from("libc.so.6")]).unwrap_err();
        let why = &error.tried[0].why;
        assert!(
            why.contains("ncclGetVersion") && why.ends_with("NCCL 2.19 and later do"),
            "{why}"
        );
    }
}
