//! The embedded shared object, and libcudnn behind it.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    ptr,
    sync::OnceLock,
};

use libloading::os::unix::{Library as Object, RTLD_LOCAL, RTLD_NOW};

use super::{LIBRARY as NAME, Status};

/// `cudnn/attention.cpp`, compiled.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attention.so"));

static LIBRARY: OnceLock<Result<Library, Status>> = OnceLock::new();

/// Room for what it says.
const TEXT_LEN: usize = 8 << 10;

/// Bytes of scores that a deterministic backward on Hopper may keep, `2 * batch * heads * seq²`: a
/// backward with more sums the gradient of the queries in order instead, which takes longer but no
/// more memory than one that is not deterministic (from cuDNN 9.25 on).
const SCORE_MEMORY: i64 = 512 << 20;

/// Most bytes of workspace for each element of the queries, beside the scores: it takes 4 for the
/// gradient of the queries in f32 and, where heads share keys, 4 for those of keys and values. A
/// deterministic backward on other GPUs than Hopper, or by cuDNN before 9.25, keeps all scores.
const WORKSPACE_OF_ELEMENT: i64 = 16;

/// First version that reads a log-sum-exp with strides (the frontend's check of the backward).
const READS_STRIDED_LSE: u64 = 9_26_00;

/// What a call did.
const DONE: i32 = 0;

/// A place of an operand among the addresses, as in `attention.cpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    Q,
    K,
    V,
    Out,
    Lse,
    Dout,
    Dq,
    Dk,
    Dv,
}

/// Number of operands.
pub(super) const OPERANDS: usize = 9;

/// `cordee_cudnn_shape` of `attention.cpp`.
#[repr(C)]
#[derive(Clone, Debug)]
struct CShape {
    batch: i64,
    seq: i64,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    window: i64,
    token_strides: [i64; OPERANDS],
    lse_batch_stride: i64,
    lse_head_stride: i64,
    score_memory: i64,
    most_workspace: i64,
    scale: f64,
    compute_capability: i32,
    backward: i32,
    deterministic: i32,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) backward: bool,
    pub(super) batch: usize,
    /// Tokens of each sequence.
    pub(super) seq: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) window: Option<usize>,
    /// Bits of an f64, since that has no order.
    pub(super) scale: u64,
    /// 10 × major + minor.
    pub(super) compute_capability: u32,
    /// The log-sum-exp is `[heads, batch * seq]`, not `[batch, heads, seq]`.
    pub(super) heads_first: bool,
    /// Elements from one token to the next of q, k and v. Their gradients lie side by side.
    pub(super) strides: [usize; 3],
}

impl Shape {
    fn to_c(self) -> CShape {
        let [batch, seq, heads, kv_heads, head_dim] = [
            self.batch,
            self.seq,
            self.heads,
            self.kv_heads,
            self.head_dim,
        ]
        .map(|size| size as i64);
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let mut token_strides = [queries; OPERANDS];
        for (operand, stride) in [Operand::Q, Operand::K, Operand::V]
            .into_iter()
            .zip(self.strides)
        {
            token_strides[operand as usize] = stride as i64;
        }
        for operand in [Operand::Dq, Operand::Dk, Operand::Dv] {
            token_strides[operand as usize] = queries + 2 * keys;
        }
        let (lse_batch_stride, lse_head_stride) = if self.heads_first {
            (seq, batch * seq)
        } else {
            (heads * seq, seq)
        };
        CShape {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            window: self.window.map_or(0, |window| window as i64),
            token_strides,
            lse_batch_stride,
            lse_head_stride,
            score_memory: SCORE_MEMORY,
            most_workspace: SCORE_MEMORY + WORKSPACE_OF_ELEMENT * batch * seq * queries,
            scale: f64::from_bits(self.scale),
            compute_capability: self.compute_capability as i32,
            backward: i32::from(self.backward),
            deterministic: 1,
        }
    }
}

/// A handle of cuDNN, for one GPU and stream. It lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle(*mut c_void);

// SAFETY: a handle may be used by any thread, by one at a time: whoever has it locks it.
unsafe impl Send for Handle {}

/// A plan of cuDNN. It lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    plan: *mut c_void,
    /// Bytes that a run needs.
    pub(super) workspace: usize,
}

// SAFETY: as for `Handle`.
unsafe impl Send for Plan {}

/// Whose plan is made.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "a GPU that is not there is for tests")
)]
pub(super) enum Target {
    /// Of the GPU of a handle.
    Handle(Handle),
    /// Of a GPU that need not be there; the plan cannot be run.
    Described(&'static CStr),
    /// Nobody's: the graph is checked.
    Nothing,
}

type Open = unsafe extern "C" fn(*const c_char, *mut u64, *mut c_char, usize) -> i32;
type CreateHandle = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut c_char, usize) -> i32;
type CreatePlan = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    *const CShape,
    *mut *mut c_void,
    *mut i64,
    *mut c_char,
    usize,
) -> i32;
type Run = unsafe extern "C" fn(
    *mut c_void,
    *const c_void,
    *const *mut c_void,
    *mut c_void,
    *mut c_char,
    usize,
) -> i32;

/// libcudnn, opened.
#[derive(Debug)]
pub(super) struct Library {
    create_handle: CreateHandle,
    create_plan: CreatePlan,
    run: Run,
    version: u64,
    path: PathBuf,
}

impl Library {
    /// The process's own; opened at the first call.
    pub(super) fn get() -> Result<&'static Self, &'static Status> {
        LIBRARY.get_or_init(|| Self::open(&[NAME.into()])).as_ref()
    }

    /// Opens the first that can be.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, Status> {
        let unavailable = |reason| Status::Unavailable {
            reason,
            tried: paths.to_vec(),
        };
        // Never closed: its functions are used until the process ends.
        let object: &Object = Box::leak(Box::new(load().map_err(unavailable)?));
        let mut reasons = Vec::new();
        for path in paths {
            match Self::from_object(object, path) {
                Ok(library) => return Ok(library),
                Err(why) => reasons.push(why),
            }
        }
        if reasons.is_empty() {
            reasons.push("no path to look at was given".to_owned());
        }
        Err(unavailable(reasons.join("; ")))
    }

    fn from_object(object: &'static Object, path: &Path) -> Result<Self, String> {
        let missing = |error: libloading::Error| format!("the embedded object: {error}");
        // SAFETY: these are the functions of `attention.cpp`, of these types.
        let (open, create_handle, create_plan, run) = unsafe {
            (
                *object.get::<Open>(c"cordee_cudnn_open").map_err(missing)?,
                *object
                    .get::<CreateHandle>(c"cordee_cudnn_create_handle")
                    .map_err(missing)?,
                *object
                    .get::<CreatePlan>(c"cordee_cudnn_create_plan")
                    .map_err(missing)?,
                *object.get::<Run>(c"cordee_cudnn_run").map_err(missing)?,
            )
        };
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| format!("{}: a path with a zero byte", path.display()))?;
        let mut version = 0;
        // SAFETY: the path ends with a zero, and the version and the text have room.
        let found = answer(|text, len| unsafe { open(name.as_ptr(), &raw mut version, text, len) })
            .map_err(|why| {
                if why.contains(&*path.to_string_lossy()) {
                    why
                } else {
                    format!("{}: {why}", path.display())
                }
            })?;
        Ok(Self {
            create_handle,
            create_plan,
            run,
            version,
            path: PathBuf::from(found),
        })
    }

    pub(super) fn status(&self) -> Status {
        let (major, rest) = (self.version / 10_000, self.version % 10_000);
        Status::Available {
            version: format!("{major}.{}.{}", rest / 100, rest % 100),
            path: self.path.clone(),
        }
    }

    /// Whether the log-sum-exp may lie as ours does.
    pub(super) fn reads_strided_lse(&self) -> bool {
        self.version >= READS_STRIDED_LSE
    }

    /// # Safety
    ///
    /// The stream is one of the GPU that is current in this thread, and lives as long as the process.
    pub(super) unsafe fn create_handle(&self, stream: *mut c_void) -> Result<Handle, String> {
        let mut handle = ptr::null_mut();
        // SAFETY: the stream is the caller's word.
        answer(|text, len| unsafe { (self.create_handle)(stream, &raw mut handle, text, len) })?;
        Ok(Handle(handle))
    }

    /// A plan, or why there is none.
    pub(super) fn create_plan(&self, target: Target, shape: Shape) -> Result<Plan, String> {
        let (handle, device) = match target {
            Target::Handle(handle) => (handle.0, ptr::null()),
            Target::Described(device) => (ptr::null_mut(), device.as_ptr()),
            Target::Nothing => (ptr::null_mut(), ptr::null()),
        };
        let (mut plan, mut workspace) = (ptr::null_mut(), 0_i64);
        let shape = shape.to_c();
        // SAFETY: the handle is one of cuDNN's, the description ends with a zero, and the rest are
        // places of ours.
        answer(|text, len| unsafe {
            let (plan, workspace) = (&raw mut plan, &raw mut workspace);
            (self.create_plan)(handle, device, &raw const shape, plan, workspace, text, len)
        })?;
        let workspace =
            usize::try_from(workspace).map_err(|_| "a workspace of less than nothing")?;
        Ok(Plan { plan, workspace })
    }

    /// Asks for a run; nothing is waited for.
    ///
    /// # Safety
    ///
    /// The plan was made for the handle; the addresses are those of tensors of its shapes, which
    /// nobody else uses, and of as much workspace as it needs.
    pub(super) unsafe fn run(
        &self,
        handle: Handle,
        plan: Plan,
        addresses: &[u64; OPERANDS],
        workspace: u64,
    ) -> Result<(), String> {
        let addresses = addresses.map(|address| address as *mut c_void);
        // SAFETY: the caller's word.
        answer(|text, len| unsafe {
            let (addresses, workspace) = (addresses.as_ptr(), workspace as *mut c_void);
            (self.run)(handle.0, plan.plan, addresses, workspace, text, len)
        })
        .map(drop)
    }
}

/// What a function did, and the text that it wrote.
fn answer(call: impl FnOnce(*mut c_char, usize) -> i32) -> Result<String, String> {
    let mut text = vec![0_u8; TEXT_LEN];
    let outcome = call(text.as_mut_ptr().cast(), TEXT_LEN);
    let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    let text = text.to_string_lossy().trim().to_owned();
    match outcome {
        DONE => Ok(text),
        _ => Err(text),
    }
}

/// Opens the embedded object, from a file that is nowhere but in memory.
fn load() -> Result<Object, String> {
    let failed =
        |error: std::io::Error| format!("a file in memory for the embedded object: {error}");
    let descriptor: OwnedFd =
        rustix::fs::memfd_create(c"cordee-cudnn", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
    let mut file = File::from(descriptor);
    file.write_all(OBJECT).map_err(failed)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: what it runs when it is opened are the constructors of `attention.cpp`.
    unsafe { Object::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("opening the embedded object: {error}"))
}
