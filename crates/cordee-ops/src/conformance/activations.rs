//! Activations and sums, element by element.

use candle_core::Tensor;

use super::{Bounds, Case, Compared, Setting, inputs::values};
use crate::{
    error::Result,
    geglu,
    gelu::{
        self,
        Approximation::{self, Exact, Tanh},
    },
    residual, swiglu,
};

const BOUND: Bounds = Bounds {
    f32: 1e-6,
    bf16: 4e-3,
};

/// Where a curve goes flat, and beyond.
const EXTREMES: [f64; 13] = [
    -1000.0, -90.0, -20.0, -8.0, -5.5, -1.0, 0.0, 1.0, 5.5, 8.0, 20.0, 90.0, 1000.0,
];

/// What is activated.
#[derive(Clone, Copy)]
enum Input {
    /// So many normal deviates, three times as wide.
    Normal(usize),
    Extreme,
}

impl Input {
    fn values(self, on: &Setting) -> Vec<f64> {
        match self {
            Self::Normal(count) => on.affine(on.normals("x", count), 3.0, 0.0),
            Self::Extreme => on.affine(EXTREMES.to_vec(), 1.0, 0.0),
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = [
        ["exact, one", "tanh, one", "one"],
        ["exact, 231", "tanh, 231", "231"],
        ["exact, 50021", "tanh, 50021", "50021"],
        ["exact, 101 x 48", "tanh, 101 x 48", "101 x 48"],
        ["exact, extremes", "tanh, extremes", "extremes"],
    ]
    .into_iter()
    .zip([
        Input::Normal(1),
        Input::Normal(231),
        Input::Normal(50_021),
        Input::Normal(101 * 48),
        Input::Extreme,
    ]);
    let mut cases = Vec::new();
    for ([exact, tanh, swish], input) in inputs {
        for (name, curve) in [(exact, Exact), (tanh, Tanh)] {
            cases.push(Case::new("gelu", name, BOUND, move |on| {
                unit(on, input, curve)
            }));
            cases.push(Case::new("geglu", name, BOUND, move |on| {
                gaussian_gate(on, input, curve)
            }));
        }
        cases.push(Case::new("swiglu", swish, BOUND, move |on| {
            swish_gate(on, input)
        }));
        cases.push(Case::new("residual", swish, BOUND, move |on| {
            sum(on, input)
        }));
    }
    // Operator by operator.
    cases.sort_by_key(|case| case.operator);
    cases
}

fn sum(on: &Setting, input: Input) -> Result<Vec<Compared>> {
    let x = input.values(on);
    let (shape, added) = ([x.len()], on.normals("added", x.len()));
    let y = residual::forward(&on.tensor(&x, &shape)?, &on.tensor(&added, &shape)?)?;
    let expected = x.iter().zip(&added);
    let expected = expected.map(|(&x, &added)| residual::reference::value(x, added));
    Ok(vec![Compared::new("y", values(&y)?, expected.collect())])
}

fn unit(on: &Setting, input: Input, approximation: Approximation) -> Result<Vec<Compared>> {
    let x = input.values(on);
    let (shape, dy) = ([x.len()], on.normals("dy", x.len()));
    let fast_x = on.tensor(&x, &shape)?;
    let y = gelu::forward(&fast_x, approximation)?;
    let dx = gelu::backward(&on.tensor(&dy, &shape)?, &fast_x, approximation)?;

    let expected_y = x.iter().map(|&x| gelu::reference::value(x, approximation));
    let slopes = x.iter().map(|&x| gelu::reference::slope(x, approximation));
    let expected_dx = slopes.zip(&dy).map(|(slope, dy)| slope * dy);
    Ok(vec![
        Compared::new("y", values(&y)?, expected_y.collect()),
        Compared::new("dx", values(&dx)?, expected_dx.collect()),
    ])
}

fn gaussian_gate(
    on: &Setting,
    input: Input,
    approximation: Approximation,
) -> Result<Vec<Compared>> {
    let gate = input.values(on);
    let (up, dy) = (on.normals("up", gate.len()), on.normals("dy", gate.len()));
    let (fast_gate, fast_up, shape) = beside(on, &gate, &up)?;
    let y = geglu::forward(&fast_gate, &fast_up, approximation)?;
    let fast_dy = on.tensor(&dy, &shape)?;
    let (dgate, dup) = geglu::backward(&fast_dy, &fast_gate, &fast_up, approximation)?;
    let found = [values(&y)?, values(&dgate)?, values(&dup)?];
    Ok(gated(found, &dy, |i| {
        (
            geglu::reference::value(gate[i], up[i], approximation),
            geglu::reference::slopes(gate[i], up[i], approximation),
        )
    }))
}

fn swish_gate(on: &Setting, input: Input) -> Result<Vec<Compared>> {
    let gate = input.values(on);
    let (up, dy) = (on.normals("up", gate.len()), on.normals("dy", gate.len()));
    let (fast_gate, fast_up, shape) = beside(on, &gate, &up)?;
    let y = swiglu::forward(&fast_gate, &fast_up)?;
    let (dgate, dup) = swiglu::backward(&on.tensor(&dy, &shape)?, &fast_gate, &fast_up)?;
    let found = [values(&y)?, values(&dgate)?, values(&dup)?];
    Ok(gated(found, &dy, |i| {
        (
            swiglu::reference::value(gate[i], up[i]),
            swiglu::reference::slopes(gate[i], up[i]),
        )
    }))
}

/// Gate and up as rows, and their shape. Where they are more than one row, both are parts of the rows of
/// one tensor, as a feed-forward layer has them.
fn beside(on: &Setting, gate: &[f64], up: &[f64]) -> Result<(Tensor, Tensor, [usize; 2])> {
    const WIDTH: usize = 48;
    if !gate.len().is_multiple_of(WIDTH) {
        let shape = [1, gate.len()];
        return Ok((on.tensor(gate, &shape)?, on.tensor(up, &shape)?, shape));
    }
    let rows = gate.chunks_exact(WIDTH).zip(up.chunks_exact(WIDTH));
    let both: Vec<f64> = rows.flat_map(|(gate, up)| [gate, up].concat()).collect();
    let shape = [gate.len() / WIDTH, WIDTH];
    let both = on.tensor(&both, &[shape[0], 2 * WIDTH])?;
    let half = |column| both.narrow(1, column, WIDTH).expect("columns of it");
    Ok((half(0), half(WIDTH), shape))
}

/// Of y, dgate and dup; `expected` gives the value at an index, and its slopes.
fn gated(
    [y, dgate, dup]: [Vec<f64>; 3],
    dy: &[f64],
    expected: impl Fn(usize) -> (f64, (f64, f64)),
) -> Vec<Compared> {
    let each = |of: &dyn Fn(usize) -> f64| (0..dy.len()).map(of).collect::<Vec<f64>>();
    vec![
        Compared::new("y", y, each(&|i| expected(i).0)),
        Compared::new("dgate", dgate, each(&|i| dy[i] * expected(i).1.0)),
        Compared::new("dup", dup, each(&|i| dy[i] * expected(i).1.1)),
    ]
}
