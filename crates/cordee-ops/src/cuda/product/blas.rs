//! Products by cuBLASLt.
//!
//! cuBLASLt thinks in columns: what is row-major here is the transposed matrix there. So a product
//! is asked for as to^T = right^T left^T, with `right` in the place of its A and `left` in that of
//! its B; a bias, which it adds to columns, is then added to rows.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    fmt,
    mem::{MaybeUninit, size_of},
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use cordee_memory::DType;
use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self, cublasLtEpilogue_t as LibraryEpilogue,
            cublasLtMatmulDescAttributes_t as Attribute,
            cublasLtMatmulPreferenceAttributes_t as Preference, cublasStatus_t as Status,
        },
    },
    driver::{CudaSlice, DevicePtr},
};

use super::{Epilogue, Layout, Matrix, Product};
use crate::{
    cuda::{Address, Gpu},
    error::{OpError, Result},
    operand::Operator,
};

/// Memory that algorithms may use, as NVIDIA recommends for Hopper:
/// <https://docs.nvidia.com/cuda/cublas/#cublassetworkspace>.
const WORKSPACE: usize = 32 << 20;

/// Algorithms that are asked for. The first is used; the others are what a search by time would try,
/// and what is left where the first turns out not to run.
pub(in crate::cuda) const CANDIDATES: usize = 8;

/// The largest alignment that cuBLASLt asks about.
const MOST_ALIGNED: u64 = 256;

/// cuBLASLt on one GPU. All products go to the GPU's one stream, so that they may share a workspace.
pub(in crate::cuda) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    plans: Mutex<HashMap<Key, Plan>>,
    /// Which of the algorithms is used: the first, but where one measures the others.
    suggestion: AtomicUsize,
}

// SAFETY: handles and descriptors of cuBLASLt may be used from any thread; descriptors are changed
// under the lock of `plans` alone.
unsafe impl Send for Blas {}
// SAFETY: as for `Send`; a handle may be used from several threads at once.
unsafe impl Sync for Blas {}

impl fmt::Debug for Blas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Blas").finish_non_exhaustive()
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle was made by `new` and is not used again.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    left: Layout,
    right: Layout,
    to: Layout,
    epilogue: u32,
    auxiliary_stride: usize,
    alignments: Alignments,
}

/// Bytes that the addresses of a product are multiples of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Alignments {
    left: u32,
    right: u32,
    to: u32,
    /// 0 where nothing is added.
    added: u32,
    bias: u32,
    auxiliary: u32,
}

impl Key {
    fn of(product: &Product) -> Self {
        let alignment = |address: u64| (1 << address.trailing_zeros().min(8)).min(MOST_ALIGNED);
        let alignment = |address: Option<u64>| alignment(address.unwrap_or(0)) as u32;
        let epilogue = product.epilogue;
        let bias = epilogue.bias().or(epilogue.dbias());
        let input = epilogue.input();
        Self {
            left: product.left.layout,
            right: product.right.layout,
            to: product.to.layout,
            epilogue: library_epilogue(epilogue) as u32,
            auxiliary_stride: input.map_or(0, |input| input.stride),
            alignments: Alignments {
                left: alignment(Some(product.left.address.get())),
                right: alignment(Some(product.right.address.get())),
                to: alignment(Some(product.to.address.get())),
                added: product
                    .added()
                    .map_or(0, |added| alignment(Some(added.get()))),
                bias: alignment(bias.map(Address::get)),
                auxiliary: alignment(input.map(|input| input.address.get())),
            },
        }
    }
}

fn library_epilogue(epilogue: Epilogue) -> LibraryEpilogue {
    match epilogue {
        Epilogue::None => LibraryEpilogue::CUBLASLT_EPILOGUE_DEFAULT,
        Epilogue::Bias { .. } => LibraryEpilogue::CUBLASLT_EPILOGUE_BIAS,
        Epilogue::Gelu { .. } => LibraryEpilogue::CUBLASLT_EPILOGUE_GELU_AUX,
        Epilogue::BiasGelu { .. } => LibraryEpilogue::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        Epilogue::GeluGradient { .. } => LibraryEpilogue::CUBLASLT_EPILOGUE_DGELU,
        Epilogue::GeluBiasGradient { .. } => LibraryEpilogue::CUBLASLT_EPILOGUE_DGELU_BGRAD,
        // `left` is its B.
        Epilogue::BiasGradient { .. } => LibraryEpilogue::CUBLASLT_EPILOGUE_BGRADB,
    }
}

fn library_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F64 => sys::cudaDataType::CUDA_R_64F,
    }
}

/// What is kept for products of one kind: later calls set pointers, nothing else.
struct Plan {
    description: Description,
    left: MatrixLayout,
    right: MatrixLayout,
    to: MatrixLayout,
    /// The best first, as cuBLASLt has it.
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
}

type LibraryResult<T> = std::result::Result<T, CublasError>;

impl Blas {
    pub(in crate::cuda) fn new(gpu: &Gpu, op: Operator) -> Result<Self> {
        gpu.bind(op)?;
        let workspace = gpu.allocate::<u8>(op, WORKSPACE)?;
        let handle = result::create_handle().map_err(|error| {
            let action = || "opening cuBLASLt".to_owned();
            refused(op, action, error)
        })?;
        Ok(Self {
            handle,
            workspace,
            plans: Mutex::default(),
            suggestion: AtomicUsize::new(0),
        })
    }

    /// Has products use the algorithm of this number among those that were suggested, or the last.
    pub(in crate::cuda) fn take_suggestion(&self, index: usize) {
        self.suggestion.store(index, Ordering::Relaxed);
    }

    /// Asks for a product, no size of which is 0. False, and nothing was done, where cuBLASLt has no
    /// algorithm for it.
    ///
    /// # Safety
    ///
    /// As for [`super::multiply`].
    pub(super) unsafe fn multiply(
        &self,
        gpu: &Gpu,
        op: Operator,
        product: &Product,
    ) -> Result<bool> {
        gpu.bind(op)?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |error| refused(op, || product.action(), error);
        let plan = match plans.entry(Key::of(product)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let plan = self.plan(product, entry.key()).map_err(refused)?;
                entry.insert(plan)
            }
        };
        plan.description
            .set_pointers(product.epilogue)
            .map_err(refused)?;
        let suggestion = self.suggestion.load(Ordering::Relaxed);
        while let Some(last) = plan.algorithms.len().checked_sub(1) {
            let index = suggestion.min(last);
            // SAFETY: the caller's word on addresses; the plan is that of the product.
            match unsafe { self.run(gpu, product, plan, &plan.algorithms[index]) } {
                Ok(()) => return Ok(true),
                Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)) => {
                    plan.algorithms.remove(index);
                }
                Err(error) => return Err(refused(error)),
            }
        }
        Ok(false)
    }

    /// # Safety
    ///
    /// The addresses of `product` are valid, and `plan` was made for its kind.
    unsafe fn run(
        &self,
        gpu: &Gpu,
        product: &Product,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> LibraryResult<()> {
        let alpha = 1.0_f32;
        let added = product.added();
        let beta = if added.is_some() { 1.0_f32 } else { 0.0 };
        let place = |matrix: Matrix| matrix.address.get() as *mut c_void;
        let to = place(product.to);
        let added = added.map_or(to, |address| address.get() as *mut c_void);
        let (workspace, _) = self.workspace.device_ptr(gpu.stream());
        // SAFETY: descriptors live in the plan; scalars are on the host, as is the default; the
        // stream is the one that everything that uses the workspace goes to.
        unsafe {
            result::matmul(
                self.handle,
                plan.description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                place(product.right),
                plan.right.0,
                place(product.left),
                plan.left.0,
                added,
                plan.to.0,
                to,
                plan.to.0,
                algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                gpu.stream().cu_stream().cast(),
            )
        }
    }

    /// Descriptors and algorithms; none of the latter where there are none.
    fn plan(&self, product: &Product, key: &Key) -> LibraryResult<Plan> {
        let mut plan = Plan {
            description: Description::new(product)?,
            left: MatrixLayout::new(key.left)?,
            right: MatrixLayout::new(key.right)?,
            to: MatrixLayout::new(key.to)?,
            algorithms: Vec::new(),
        };
        // Where it would be refused with an error.
        if key.auxiliary_stride.is_multiple_of(8) {
            plan.algorithms = self.algorithms(&plan, key.alignments)?;
        }
        Ok(plan)
    }

    /// What cuBLASLt suggests, the best first. A search by time would order them anew.
    fn algorithms(
        &self,
        plan: &Plan,
        alignments: Alignments,
    ) -> LibraryResult<Vec<sys::cublasLtMatmulAlgo_t>> {
        let preference = Preferences::new()?;
        preference.set(
            Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &WORKSPACE,
        )?;
        // Sums that are split are added in f32, not in the type of the output.
        let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(
            Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &scheme,
        )?;
        for (attribute, alignment) in [
            (
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                alignments.right,
            ),
            (
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                alignments.left,
            ),
            (
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                if alignments.added == 0 {
                    alignments.to
                } else {
                    alignments.added
                },
            ),
            // What the epilogue reads and writes has no attribute of its own.
            (
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                alignments.to.min(alignments.bias).min(alignments.auxiliary),
            ),
        ] {
            preference.set(attribute, &alignment)?;
        }
        let mut found =
            [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: descriptors and preference are alive; there is room for as many results as are
        // asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.description.0,
                plan.right.0,
                plan.left.0,
                plan.to.0,
                plan.to.0,
                preference.0,
                CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &raw mut count,
            )
        };
        match status.result() {
            Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)) => return Ok(Vec::new()),
            other => other?,
        }
        let algorithms = found.into_iter().take(count as usize).filter_map(|found| {
            // SAFETY: cuBLASLt wrote the first `count`, and the rest is zeros, which are one as well.
            let found = unsafe { found.assume_init() };
            (found.state == Status::CUBLAS_STATUS_SUCCESS).then_some(found.algo)
        });
        Ok(algorithms.collect())
    }
}

/// The description of an operation.
struct Description(sys::cublasLtMatmulDesc_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not used again.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

impl Description {
    /// Products and sums in f32: `COMPUTE_32F` alone never means TF32.
    fn new(product: &Product) -> LibraryResult<Self> {
        let this = Self(result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )?);
        let operation = |matrix: Matrix| i32::from(matrix.layout.transposed);
        this.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            &operation(product.right),
        )?;
        this.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            &operation(product.left),
        )?;
        let epilogue = library_epilogue(product.epilogue);
        this.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if let Some(input) = product.epilogue.input() {
            let stride = input.stride as i64;
            this.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &stride)?;
        }
        // Before algorithms are asked for: the alignment of these counts.
        this.set_pointers(product.epilogue)?;
        Ok(this)
    }

    fn set_pointers(&self, epilogue: Epilogue) -> LibraryResult<()> {
        if let Some(bias) = epilogue.bias().or(epilogue.dbias()) {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.get())?;
        }
        if let Some(input) = epilogue.input() {
            let address = input.address.get();
            self.set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
                &address,
            )?;
        }
        Ok(())
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> LibraryResult<()> {
        // SAFETY: the value is copied; its type is what the attribute is documented to have.
        unsafe {
            result::set_matmul_desc_attribute(
                self.0,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }
}

/// The layout of one matrix.
struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not used again.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl MatrixLayout {
    /// Rows as they lie in memory are what cuBLASLt calls columns.
    fn new(layout: Layout) -> LibraryResult<Self> {
        let (rows, length) = if layout.transposed {
            (layout.columns, layout.rows)
        } else {
            (layout.rows, layout.columns)
        };
        let dtype = library_type(layout.dtype);
        let stride = layout.stride as i64;
        result::create_matrix_layout(dtype, length as u64, rows as u64, stride).map(Self)
    }
}

/// What an algorithm has to satisfy.
struct Preferences(sys::cublasLtMatmulPreference_t);

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not used again.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Preferences {
    fn new() -> LibraryResult<Self> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T>(&self, attribute: Preference, value: &T) -> LibraryResult<()> {
        // SAFETY: as for a description.
        unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }
}

/// The error of an operator for one of the library, and what to try.
fn refused(
    op: Operator,
    action: impl FnOnce() -> String,
    CublasError(status): CublasError,
) -> OpError {
    let hint = match status {
        Status::CUBLAS_STATUS_NOT_INITIALIZED | Status::CUBLAS_STATUS_ALLOC_FAILED => {
            ": is the GPU's memory full? Try a smaller micro-batch"
        }
        Status::CUBLAS_STATUS_ARCH_MISMATCH => {
            ": this cuBLASLt does not know the GPU; install the libraries of a newer CUDA"
        }
        Status::CUBLAS_STATUS_EXECUTION_FAILED | Status::CUBLAS_STATUS_INTERNAL_ERROR => {
            ": an earlier kernel may be the cause; CUDA_LAUNCH_BLOCKING=1 shows which"
        }
        _ => "",
    };
    OpError::Cuda {
        op: op.0,
        action: action(),
        why: format!("{status:?}{hint}"),
    }
}
