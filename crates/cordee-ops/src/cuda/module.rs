//! Kernels, compiled by NVRTC when they are first asked for and kept on disk for the next time.

use std::{
    collections::HashMap,
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cordee_memory::DType;
use cudarc::{
    driver::{CudaFunction, CudaModule, sys::CUfunction_attribute},
    nvrtc::{Ptx, result as nvrtc, sys as nvrtc_sys},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{Gpu, Kernel, driver_error};
use crate::{
    error::{OpError, Result},
    operand::Operator,
};

/// What every kernel begins with.
const PRELUDE: &str = include_str!("prelude.cuh");

/// Shared memory that a block has without asking.
const PLAIN_SHARED_MEMORY: usize = 48 << 10;

/// The kernels of one file.
#[derive(Debug)]
pub(crate) struct Source {
    /// What they are called in errors and in the cache.
    pub(crate) name: &'static str,
    /// Their text, without the prelude.
    pub(crate) text: &'static str,
}

/// The modules of one GPU.
pub(super) struct Modules {
    architecture: String,
    cache: Option<PathBuf>,
    loaded: Mutex<HashMap<Key, Loaded>>,
}

/// What a module is compiled from: the text, by its address, and the definitions.
type Key = (*const u8, DType, Vec<(&'static str, usize)>);

struct Loaded {
    module: Arc<CudaModule>,
    functions: HashMap<&'static str, CudaFunction>,
}

// SAFETY: the pointer of a key is the address of a static text, compared and never followed.
unsafe impl Send for Modules {}
// SAFETY: as for `Send`.
unsafe impl Sync for Modules {}

impl Modules {
    pub(super) fn new((major, minor): (u32, u32), cache: Option<PathBuf>) -> Self {
        // Hopper's own instructions are in the variant of 9.0 alone.
        let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
        Self {
            architecture: format!("sm_{major}{minor}{suffix}"),
            cache,
            loaded: Mutex::default(),
        }
    }
}

impl Gpu {
    /// A kernel of `source` for weights and activations of type `numbers`.
    pub(crate) fn kernel(
        &self,
        op: Operator,
        source: &'static Source,
        numbers: DType,
        function: &'static str,
    ) -> Result<Kernel> {
        self.kernel_with(op, source, numbers, &[], function)
    }

    /// The same, with definitions of the preprocessor.
    pub(crate) fn kernel_with(
        &self,
        op: Operator,
        source: &'static Source,
        numbers: DType,
        definitions: &[(&'static str, usize)],
        function: &'static str,
    ) -> Result<Kernel> {
        let modules = self.modules();
        let key = (source.text.as_ptr(), numbers, definitions.to_vec());
        let mut loaded = modules
            .loaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !loaded.contains_key(&key) {
            let module = self.load(op, source, numbers, definitions)?;
            let functions = HashMap::new();
            loaded.insert(key.clone(), Loaded { module, functions });
        }
        let entry = loaded.get_mut(&key).expect("it was loaded");
        if let Some(function) = entry.functions.get(function) {
            return Ok(Kernel::new(self, op, function.clone()));
        }
        self.bind(op)?;
        let found = entry.module.load_function(function).map_err(|error| {
            driver_error(
                op.0,
                format!("loading kernel `{function}` of {}", source.name),
                error,
            )
        })?;
        self.allow_shared_memory(op, &found)?;
        entry.functions.insert(function, found.clone());
        Ok(Kernel::new(self, op, found))
    }

    /// Lets a kernel have all the dynamic shared memory that its static one leaves.
    fn allow_shared_memory(&self, op: Operator, function: &CudaFunction) -> Result<()> {
        let refused = |error| driver_error(op.0, "asking for shared memory", error);
        let taken = function.shared_size_bytes().map_err(refused)? as usize;
        let left = self.facts().shared_memory.saturating_sub(taken);
        if left <= PLAIN_SHARED_MEMORY {
            return Ok(());
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function
            .set_attribute(attribute, left as i32)
            .map_err(refused)
    }

    /// From the cache, or compiled.
    fn load(
        &self,
        op: Operator,
        source: &'static Source,
        numbers: DType,
        definitions: &[(&'static str, usize)],
    ) -> Result<Arc<CudaModule>> {
        let modules = self.modules();
        let options = options(&modules.architecture, numbers, definitions);
        let text = format!("{PRELUDE}{}", source.text);
        let cached = modules.cache.as_ref().map(|dir| {
            let version = nvrtc_version();
            let all = format!("{version:?}\n{options:?}\n{text}");
            dir.join(format!(
                "{}-{:032x}.cubin",
                source.name,
                xxh3_128(all.as_bytes())
            ))
        });
        let context = self.stream().context();
        if let Some(path) = &cached
            && let Some(image) = read_image(path)
            && let Ok(module) = context.load_module(Ptx::from_binary(image))
        {
            return Ok(module);
        }
        let Compiled { image, .. } = compile(op, source.name, &text, &options)?;
        if let Some(path) = &cached {
            // A cache that cannot be written costs time at the next start, nothing else.
            let _ = write_image(path, &image);
        }
        context
            .load_module(Ptx::from_binary(image))
            .map_err(|error| {
                driver_error(
                    op.0,
                    format!("loading the kernels of {}", source.name),
                    error,
                )
            })
    }
}

/// What NVRTC is told.
fn options(
    architecture: &str,
    numbers: DType,
    definitions: &[(&'static str, usize)],
) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
    ];
    if numbers == DType::Bf16 {
        options.push("--define-macro=CORDEE_BF16".to_owned());
    }
    let macros = definitions.iter();
    options.extend(macros.map(|(name, value)| format!("--define-macro={name}={value}")));
    options
}

/// Major and minor.
fn nvrtc_version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    let _ = unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (major, minor)
}

/// Kernels for a GPU, and what NVRTC said of them.
struct Compiled {
    image: Vec<u8>,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "without errors it is for tests to read")
    )]
    log: String,
}

fn compile(op: Operator, name: &str, text: &str, options: &[String]) -> Result<Compiled> {
    let refused = |why: String| OpError::Cuda {
        op: op.0,
        action: format!("compiling the kernels of {name} for {options:?}"),
        why,
    };
    let file = CString::new(format!("{name}.cu")).map_err(|error| refused(error.to_string()))?;
    let text = CString::new(text).map_err(|error| refused(error.to_string()))?;
    let program =
        nvrtc::create_program(&text, Some(&file)).map_err(|error| refused(format!("{error:?}")))?;
    // SAFETY: the program was made above and is destroyed below, once; text and name outlive it. The
    // image has the size that NVRTC says.
    unsafe {
        let compiled = nvrtc::compile_program(program, options);
        let image = compiled.and_then(|()| {
            let mut size = 0;
            nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut size).result()?;
            let mut image = vec![0_u8; size];
            nvrtc_sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result()?;
            Ok(image)
        });
        let log = nvrtc::get_program_log(program).unwrap_or_default();
        let _ = nvrtc::destroy_program(program);
        let log: Vec<u8> = log
            .into_iter()
            .map(|c| c as u8)
            .take_while(|c| *c != 0)
            .collect();
        let log = String::from_utf8_lossy(&log).trim().to_owned();
        match image {
            Ok(image) => Ok(Compiled { image, log }),
            Err(error) => Err(refused(format!("{error:?}: {log}"))),
        }
    }
}

/// An image behind the hash of its bytes; `None` where it is not there or not whole.
fn read_image(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let image = bytes.split_off(8.min(bytes.len()));
    let hash = u64::from_le_bytes(bytes.try_into().ok()?);
    (xxh3_64(&image) == hash).then_some(image)
}

/// Under its name only once it is whole: several ranks may write the same.
fn write_image(path: &Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let whole = [&xxh3_64(image).to_le_bytes()[..], image].concat();
    fs::write(&temporary, whole)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
#[path = "module_tests.rs"]
mod tests;
