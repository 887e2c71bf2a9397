//! Both ways of computing against loops, on the first GPU; where there is none, nothing is tested.

use cordee_memory::{Buffer, DType};

use super::{Auxiliary, Epilogue, Matrix, Onto, Product, plain};
use crate::{
    GpuOptions,
    cuda::{Address, Gpu},
    operand::Operator,
    testing::normals,
};

const OP: Operator = Operator("product");

/// Elements between the end of a row and the begin of the next, of every matrix of a test.
const GAP: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Way {
    Library,
    Plain,
}

/// All kinds of epilogues; their addresses are filled in by [`Run`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    None,
    Bias,
    Gelu,
    BiasGelu,
    GeluGradient,
    GeluBiasGradient,
    BiasGradient,
}

const KINDS: [Kind; 7] = [
    Kind::None,
    Kind::Bias,
    Kind::Gelu,
    Kind::BiasGelu,
    Kind::GeluGradient,
    Kind::GeluBiasGradient,
    Kind::BiasGradient,
];

/// What the product is added to; the address of another is filled in by [`Run`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Adds {
    Nothing,
    Itself,
    Other,
}

/// Numbers on the GPU, `offset` elements into an allocation.
struct Numbers {
    buffer: Buffer,
    offset: usize,
    values: Vec<f64>,
}

impl Numbers {
    fn new(gpu: &Gpu, name: &str, dtype: DType, len: usize, offset: usize) -> Self {
        let values: Vec<f64> = normals(name, offset + len)
            .into_iter()
            .map(|value| round(dtype, value))
            .collect();
        let mut host = Buffer::zeroed(dtype, values.len()).unwrap();
        match dtype {
            DType::Bf16 => {
                for (to, &value) in host.as_mut_slice().unwrap().iter_mut().zip(&values) {
                    *to = half::bf16::from_f64(value);
                }
            }
            _ => {
                for (to, &value) in host.as_mut_slice::<f32>().unwrap().iter_mut().zip(&values) {
                    *to = value as f32;
                }
            }
        }
        let mut buffer = gpu.zeroed(dtype, values.len()).unwrap();
        buffer.copy_from_host(&host).unwrap();
        Self {
            buffer,
            offset,
            values: values[offset..].to_vec(),
        }
    }

    fn address(&self) -> Address {
        let len = self.buffer.len();
        let view = self.buffer.view(self.offset..len, &[len - self.offset]);
        Address(view.unwrap().device().unwrap().address())
    }

    /// What is there now.
    fn read(&self) -> Vec<f64> {
        let host = self.buffer.to_host().unwrap();
        match self.buffer.dtype() {
            DType::Bf16 => host.as_slice::<half::bf16>().unwrap()[self.offset..]
                .iter()
                .map(|value| value.to_f64())
                .collect(),
            _ => host.as_slice::<f32>().unwrap()[self.offset..]
                .iter()
                .map(|&value| f64::from(value))
                .collect(),
        }
    }
}

fn round(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::Bf16 => half::bf16::from_f64(value).to_f64(),
        _ => f64::from(value as f32),
    }
}

/// One product, and what it should be.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Rows, columns, inner.
    sizes: [usize; 3],
    /// Of the inputs and of the output.
    dtypes: [DType; 2],
    /// Whether left and right are.
    transposed: [bool; 2],
    adds: Adds,
    kind: Kind,
    /// Elements that everything begins behind an aligned address.
    offset: usize,
    /// Multiple of 8, or else cuBLASLt refuses a GELU.
    input_stride: usize,
}

/// What a run is given.
struct Operands {
    left: Stored,
    right: Stored,
    to: Stored,
    /// Laid out as `to` is.
    other: Numbers,
    input: Numbers,
    bias: Numbers,
}

/// A matrix with a gap after each row.
struct Stored {
    held: Numbers,
    matrix: Matrix,
}

impl Stored {
    fn new(held: Numbers, dtype: DType, sizes: [usize; 2], transposed: bool) -> Self {
        let [rows, columns] = Self::stored(sizes, transposed);
        let matrix = Matrix::new(held.address(), dtype, [rows, columns]).strided(columns + GAP);
        let matrix = if transposed {
            matrix.transposed()
        } else {
            matrix
        };
        Self { held, matrix }
    }

    fn stored([rows, columns]: [usize; 2], transposed: bool) -> [usize; 2] {
        if transposed {
            [columns, rows]
        } else {
            [rows, columns]
        }
    }

    /// Elements that a matrix of these sizes takes.
    fn len(sizes: [usize; 2], transposed: bool) -> usize {
        let [rows, columns] = Self::stored(sizes, transposed);
        rows * (columns + GAP)
    }

    fn index(&self, row: usize, column: usize) -> usize {
        let [of_row, of_column] = self.matrix.strides();
        row * of_row + column * of_column
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.held.values[self.index(row, column)]
    }
}

impl Run {
    fn operands(self, gpu: &Gpu) -> Operands {
        let [rows, columns, inner] = self.sizes;
        let [numbers, output] = self.dtypes;
        let new = |name, dtype, len| Numbers::new(gpu, name, dtype, len, self.offset);
        let stored = |name, dtype, sizes, transposed| {
            let held = new(name, dtype, Stored::len(sizes, transposed));
            Stored::new(held, dtype, sizes, transposed)
        };
        let length = if self.kind == Kind::BiasGradient {
            rows
        } else {
            columns
        };
        Operands {
            left: stored("left", numbers, [rows, inner], self.transposed[0]),
            right: stored("right", numbers, [inner, columns], self.transposed[1]),
            to: stored("to", output, [rows, columns], false),
            other: new("other", output, Stored::len([rows, columns], false)),
            input: new("input", output, rows * self.input_stride),
            bias: new("bias", output, length),
        }
    }

    /// What output, input of GELU, and bias or its gradient hold after the product.
    fn expected(self, operands: &Operands) -> [Vec<f64>; 3] {
        let [rows, columns, inner] = self.sizes;
        let Operands { left, right, .. } = operands;
        let mut to = operands.to.held.values.clone();
        let mut input = operands.input.values.clone();
        let mut bias = operands.bias.values.clone();
        let mut sums = vec![0.0; columns];
        for row in 0..rows {
            for column in 0..columns {
                let index = operands.to.index(row, column);
                let place = &mut to[index];
                let beside = &mut input[row * self.input_stride + column];
                let mut x: f64 = (0..inner)
                    .map(|k| left.at(row, k) * right.at(k, column))
                    .sum();
                match self.adds {
                    Adds::Nothing => {}
                    Adds::Itself => x += *place,
                    Adds::Other => x += operands.other.values[index],
                }
                if matches!(self.kind, Kind::Bias | Kind::BiasGelu) {
                    x += bias[column];
                }
                *place = match self.kind {
                    Kind::None | Kind::Bias | Kind::BiasGradient => x,
                    Kind::Gelu | Kind::BiasGelu => {
                        *beside = x;
                        gelu_of(x)
                    }
                    Kind::GeluGradient | Kind::GeluBiasGradient => x * slope_of(*beside),
                };
                sums[column] += *place;
            }
        }
        if self.kind == Kind::GeluBiasGradient {
            bias = sums;
        } else if self.kind == Kind::BiasGradient {
            let of_row = |row| (0..inner).map(|k| left.at(row, k)).sum();
            bias = (0..rows).map(of_row).collect();
        }
        [to, input, bias]
    }

    fn check(self, gpu: &Gpu, way: Way) {
        let operands = self.operands(gpu);
        let product = Product {
            left: operands.left.matrix,
            right: operands.right.matrix,
            to: operands.to.matrix,
            onto: match self.adds {
                Adds::Nothing => Onto::Nothing,
                Adds::Itself => Onto::Itself,
                Adds::Other => Onto::Other(operands.other.address()),
            },
            epilogue: self.epilogue(&operands.bias, &operands.input),
        };
        let has_input = !matches!(self.kind, Kind::None | Kind::Bias | Kind::BiasGradient);
        // SAFETY: all is on the GPU and as large as the sizes say.
        unsafe {
            match way {
                Way::Library => {
                    let done = gpu.blas(OP).unwrap().multiply(gpu, OP, &product).unwrap();
                    // Rows that no epilogue takes, and for a library to decide: addresses and epilogues
                    // for which it may have no algorithm.
                    let refused = has_input && !self.input_stride.is_multiple_of(8);
                    let simple = self.offset.is_multiple_of(8) && matches!(self.kind, Kind::None);
                    assert!(!(done && refused), "{self:?}");
                    assert!(done || refused || !simple, "nothing for {self:?}");
                    if !done {
                        return;
                    }
                }
                Way::Plain => plain::multiply(gpu, OP, &product).unwrap(),
            }
        }
        // What lies between the rows is compared too: nothing may be written there.
        let tolerance = match self.dtypes[1] {
            // Rounded once; sums of what was rounded once more.
            DType::Bf16 => 1e-2,
            _ => 3e-6,
        };
        let expected = self.expected(&operands);
        let found = [&operands.to.held, &operands.input, &operands.bias];
        for (name, (held, expected)) in ["to", "input", "bias"]
            .iter()
            .zip(found.iter().zip(&expected))
        {
            let largest = expected
                .iter()
                .fold(1e-30_f64, |most, value| most.max(value.abs()));
            for (index, (found, expected)) in held.read().iter().zip(expected).enumerate() {
                assert!(
                    (found - expected).abs() <= tolerance * largest,
                    "{self:?} {way:?}: `{name}` [{index}] is {found}, expected {expected}"
                );
            }
        }
    }

    fn epilogue(self, bias: &Numbers, input: &Numbers) -> Epilogue {
        let (bias, dbias) = (bias.address(), bias.address());
        let input = Auxiliary {
            address: input.address(),
            stride: self.input_stride,
        };
        match self.kind {
            Kind::None => Epilogue::None,
            Kind::Bias => Epilogue::Bias { bias },
            Kind::Gelu => Epilogue::Gelu { input },
            Kind::BiasGelu => Epilogue::BiasGelu { bias, input },
            Kind::GeluGradient => Epilogue::GeluGradient { input },
            Kind::GeluBiasGradient => Epilogue::GeluBiasGradient { input, dbias },
            Kind::BiasGradient => Epilogue::BiasGradient { dbias },
        }
    }
}

const ROOT: f64 = 0.797_884_560_802_865_4;

fn gelu_of(x: f64) -> f64 {
    0.5 * x * (1.0 + (ROOT * (x + 0.044_715 * x * x * x)).tanh())
}

fn slope_of(x: f64) -> f64 {
    let t = (ROOT * (x + 0.044_715 * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * ROOT * (1.0 + 3.0 * 0.044_715 * x * x)
}

fn gpu() -> Option<Gpu> {
    (Gpu::count() > 0).then(|| Gpu::open(0, &GpuOptions::default()).unwrap())
}

/// Each epilogue with each pair of types, in turns transposed, added to, and not aligned.
fn check_all(way: Way) {
    let Some(gpu) = gpu() else { return };
    let mut turn = 0;
    for sizes in [
        [1, 1, 1],
        [3, 5, 7],
        [64, 64, 64],
        [130, 67, 70],
        [7, 40, 1030],
    ] {
        for dtypes in [
            [DType::F32, DType::F32],
            [DType::Bf16, DType::Bf16],
            [DType::Bf16, DType::F32],
        ] {
            for kind in KINDS {
                for adds in [Adds::Nothing, Adds::Itself, Adds::Other] {
                    let run = Run {
                        sizes,
                        dtypes,
                        // Neither has the period of what surrounds it.
                        transposed: [turn % 3 == 1, turn % 5 < 2],
                        adds,
                        kind,
                        offset: [0, 8, 1][turn % 3],
                        input_stride: sizes[1].next_multiple_of(8),
                    };
                    run.check(&gpu, way);
                    turn += 1;
                }
            }
        }
    }
}

#[test]
fn the_library_agrees_with_loops() {
    check_all(Way::Library);
}

#[test]
fn the_own_kernel_agrees_with_loops() {
    check_all(Way::Plain);
}

/// A plan is made once; later products of its kind are at other addresses.
#[test]
fn all_transposes_work_twice() {
    let Some(gpu) = gpu() else { return };
    for transposed in [[false, false], [false, true], [true, false], [true, true]] {
        let run = Run {
            sizes: [17, 24, 33],
            dtypes: [DType::Bf16, DType::F32],
            transposed,
            adds: Adds::Itself,
            kind: Kind::Bias,
            offset: 0,
            input_stride: 24,
        };
        let _elsewhere = gpu.zeroed(DType::F32, 1000).unwrap();
        for way in [Way::Library, Way::Library, Way::Plain] {
            run.check(&gpu, way);
        }
    }
}

/// cuBLASLt knows no empty matrices and no input of GELU with rows of any length.
#[test]
fn what_the_library_refuses_is_left_to_the_kernel() {
    let Some(gpu) = gpu() else { return };
    let run = Run {
        sizes: [5, 9, 6],
        dtypes: [DType::F32, DType::F32],
        transposed: [false, true],
        adds: Adds::Nothing,
        kind: Kind::BiasGelu,
        offset: 0,
        input_stride: 9,
    };
    run.check(&gpu, Way::Library);
    run.check(&gpu, Way::Plain);
    for sizes in [[0, 9, 6], [5, 0, 6], [5, 9, 0]] {
        for kind in [Kind::Bias, Kind::GeluBiasGradient] {
            Run { sizes, kind, ..run }.check(&gpu, Way::Plain);
        }
    }
}
