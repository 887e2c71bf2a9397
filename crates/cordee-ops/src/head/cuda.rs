//! Chunks of logits by cuBLASLt, the cross-entropy by kernels of our own, and the products that need its
//! gradient, which is where the logits were.

use std::ops::Range;

use candle_core::Tensor;
use cordee_memory::{DType, View, ViewMut};

use super::{Losses, OP, Sums, Targets, chunks};
use crate::{
    cuda::{
        Address, Gpu, Grid, Resident, Source,
        product::{Epilogue, Matrix, Onto, Product, multiply},
    },
    error::Result,
    matrix::Write,
};

pub(crate) static SOURCE: Source = Source {
    name: "head",
    text: include_str!("kernels.cu"),
};

/// Stands in the targets where a token is not trained; `UNTRAINED` of the kernels.
const UNTRAINED: u32 = u32::MAX;

/// Threads for a row of logits, and for one of a small vocabulary.
const THREADS: usize = 512;
const FEW_THREADS: usize = 128;
const SMALL_VOCAB: usize = 4096;

/// Threads that sum the losses.
const SUM_THREADS: usize = 1024;

/// The operands of a call, checked and on the GPU.
struct Head<'a> {
    gpu: &'a Gpu,
    numbers: DType,
    x: Resident,
    weight: Address,
    targets: Resident,
    /// Of each token, yet to be written.
    losses: Resident,
    nll: Address,
    trained: u64,
    /// Tokens whose logits there are at a time.
    chunk: usize,
    n: usize,
    dim: usize,
    vocab: usize,
}

/// What a call writes beside the losses.
#[derive(Clone, Copy)]
struct Gradients {
    dx: Address,
    dweight: Address,
    write: Write,
}

/// `sizes` are `[n, dim, vocab]`.
pub(super) fn loss(
    gpu: &Gpu,
    operands: (&Tensor, View<'_>),
    targets: &Targets<'_>,
    nll: &mut ViewMut<'_>,
    sizes: [usize; 3],
) -> Result<Losses> {
    let head = Head::new(gpu, operands, targets, nll, sizes)?;
    head.run(None)?;
    Ok(head.finish())
}

/// `sizes` are `[n, dim, vocab]`.
pub(super) fn loss_and_gradient(
    gpu: &Gpu,
    operands: (&Tensor, View<'_>),
    targets: &Targets<'_>,
    mut sums: Sums<'_>,
    sizes: [usize; 3],
) -> Result<(Losses, Tensor)> {
    let [n, dim, vocab] = sizes;
    let head = Head::new(gpu, operands, targets, &mut sums.nll, sizes)?;
    let (dweight, shape) = (&mut sums.dweight, [vocab, dim]);
    let dweight = OP.parameter_mut(gpu, "dweight", dweight, DType::F32, &shape)?;
    let dx = gpu.empty(OP, head.numbers, &[n, dim])?;
    head.run(Some(Gradients {
        dx: dx.address(),
        dweight,
        write: sums.write,
    }))?;
    Ok((head.finish(), dx.into_tensor()))
}

impl<'a> Head<'a> {
    fn new(
        gpu: &'a Gpu,
        (x, weight): (&Tensor, View<'_>),
        targets: &Targets<'_>,
        nll: &mut ViewMut<'_>,
        [n, dim, vocab]: [usize; 3],
    ) -> Result<Self> {
        let numbers = OP.numbers("x", x)?;
        let words: Vec<u32> = (0..n)
            .map(|index| {
                if targets.counts(index) {
                    targets.tokens[index]
                } else {
                    UNTRAINED
                }
            })
            .collect();
        Ok(Self {
            gpu,
            numbers,
            x: OP.resident(gpu, "x", x, numbers, &[n, dim])?,
            weight: OP.parameter(gpu, "weight", weight, numbers, &[vocab, dim])?,
            targets: gpu.words(OP, &words)?,
            losses: gpu.empty(OP, DType::F32, &[n])?,
            nll: OP.parameter_mut(gpu, "nll", nll, DType::F64, &[1])?,
            trained: targets.trained(),
            chunk: chunks::gpu_tokens(n, vocab, numbers),
            n,
            dim,
            vocab,
        })
    }

    fn run(&self, gradients: Option<Gradients>) -> Result<()> {
        let (n, dim, vocab, numbers) = (self.n, self.dim, self.vocab, self.numbers);
        let stride = chunks::gpu_stride(vocab);
        let scratch = self.gpu.empty(OP, numbers, &[self.chunk.min(n), stride])?;
        let weight = Matrix::new(self.weight, numbers, [vocab, dim]);
        for start in (0..n).step_by(self.chunk) {
            let chunk = start..(start + self.chunk).min(n);
            let rows = |whole: Address| {
                let address = whole.plus(start * dim, numbers);
                Matrix::new(address, numbers, [chunk.len(), dim])
            };
            let logits = Matrix::new(scratch.address(), numbers, [chunk.len(), vocab]);
            let logits = logits.strided(stride);
            let x = rows(self.x.address());
            self.multiply(x, weight.transposed(), logits, Onto::Nothing)?;
            self.cross_entropy(&chunk, &scratch, gradients.is_some())?;
            if let Some(Gradients { dx, dweight, write }) = gradients {
                let dlogits = logits;
                self.multiply(dlogits, weight, rows(dx), Onto::Nothing)?;
                let dweight = Matrix::new(dweight, DType::F32, [vocab, dim]);
                let write = if start == 0 { write } else { Write::Add };
                self.multiply(dlogits.transposed(), x, dweight, write.into())?;
            }
        }
        let add = self.gpu.kernel(OP, &SOURCE, numbers, "add_losses")?;
        let arguments = [(&self.losses).into(), self.nll.into(), (n as u32).into()];
        // SAFETY: the losses are [n], and the sum is one number.
        unsafe { add.launch(Grid::new(1, SUM_THREADS), &arguments) }
    }

    fn multiply(&self, left: Matrix, right: Matrix, to: Matrix, onto: Onto) -> Result<()> {
        let product = Product {
            left,
            right,
            to,
            onto,
            epilogue: Epilogue::None,
        };
        // SAFETY: shapes were checked, logits have room for the longest chunk, and what is written is
        // new or lent to this call alone.
        unsafe { multiply(self.gpu, OP, &product) }
    }

    /// The losses of a chunk; leaves the gradient where the logits are, if asked to.
    fn cross_entropy(&self, chunk: &Range<usize>, logits: &Resident, gradient: bool) -> Result<()> {
        let function = if gradient {
            "cross_entropy_gradient"
        } else {
            "cross_entropy"
        };
        let kernel = self.gpu.kernel(OP, &SOURCE, self.numbers, function)?;
        let threads = if self.vocab < SMALL_VOCAB {
            FEW_THREADS
        } else {
            THREADS
        };
        let arguments = [
            logits.into(),
            // Words are as wide as f32.
            self.targets.address().plus(chunk.start, DType::F32).into(),
            self.losses.address().plus(chunk.start, DType::F32).into(),
            (self.vocab as u32).into(),
            (chunks::gpu_stride(self.vocab) as u32).into(),
        ];
        // SAFETY: logits have a row of that stride for each token of the chunk, which targets and
        // losses have an element for; targets are of the vocabulary or `UNTRAINED`.
        unsafe { kernel.launch(Grid::new(chunk.len(), threads), &arguments) }
    }

    fn finish(self) -> Losses {
        Losses {
            trained: self.trained,
            per_token: self.losses.into_tensor(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cordee_memory::Buffer;

    use super::*;
    use crate::{GpuOptions, testing::normals};

    fn floats(gpu: &Gpu, name: &str, len: usize) -> Buffer {
        let mut host = Buffer::zeroed(DType::F32, len).unwrap();
        for (to, from) in host
            .as_mut_slice::<f32>()
            .unwrap()
            .iter_mut()
            .zip(normals(name, len))
        {
            *to = from as f32;
        }
        let mut buffer = gpu.zeroed(DType::F32, len).unwrap();
        buffer.copy_from_host(&host).unwrap();
        buffer
    }

    /// The sum of the losses, then losses, dx and dweight, with logits of `chunk` tokens at a time.
    fn outcome(gpu: &Gpu, chunk: usize, write: Write) -> Vec<f64> {
        let [n, dim, vocab] = [300, 5, 37];
        let (x, weight) = (
            floats(gpu, "x", n * dim),
            floats(gpu, "weight", vocab * dim),
        );
        let x = crate::transfer::to_tensor(x.view(0..n * dim, &[n, dim]).unwrap()).unwrap();
        let tokens: Vec<u32> = (0..n).map(|index| (index % 41) as u32).collect();
        let mask: Vec<u8> = tokens.iter().map(|&token| u8::from(token < 37)).collect();
        let targets = Targets {
            tokens: &tokens,
            mask: Some(&mask),
        };
        let shape = [vocab, dim];
        let mut nll = gpu.zeroed(DType::F64, 1).unwrap();
        let mut dweight = floats(gpu, "held", vocab * dim);
        let weight = weight.view(0..vocab * dim, &shape).unwrap();
        let mut sum = nll.view_mut(0..1, &[1]).unwrap();
        let mut head = Head::new(gpu, (&x, weight), &targets, &mut sum, [n, dim, vocab]).unwrap();
        head.chunk = chunk;
        let dx = gpu.empty(OP, DType::F32, &[n, dim]).unwrap();
        let mut view = dweight.view_mut(0..vocab * dim, &shape).unwrap();
        let address = OP.parameter_mut(gpu, "dweight", &mut view, DType::F32, &shape);
        head.run(Some(Gradients {
            dx: dx.address(),
            dweight: address.unwrap(),
            write,
        }))
        .unwrap();
        let losses = crate::transfer::to_vec(&head.finish().per_token).unwrap();
        let dx = crate::transfer::to_vec(dx.tensor()).unwrap();
        let dweight = view.as_view().to_vec::<f32>().unwrap();
        let all = [losses, dx, dweight].concat().into_iter().map(f64::from);
        let sum = nll.view(0..1, &[1]).unwrap().to_vec::<f64>().unwrap();
        sum.into_iter().chain(all).collect()
    }

    #[test]
    fn chunks_give_what_all_tokens_at_once_give() {
        if Gpu::count() == 0 {
            return;
        }
        let gpu = Gpu::open(0, &GpuOptions::default()).unwrap();
        for (chunk, write) in [1, 128, 299]
            .into_iter()
            .flat_map(|chunk| [Write::Add, Write::Replace].map(|write| (chunk, write)))
        {
            let (whole, found) = (outcome(&gpu, 300, write), outcome(&gpu, chunk, write));
            for (index, (found, whole)) in found.iter().zip(&whole).enumerate() {
                let close = (found - whole).abs() <= 1e-5 * (1.0 + whole.abs());
                assert!(
                    close,
                    "chunks of {chunk}: {index} is {found}, at once {whole}"
                );
            }
        }
    }
}
