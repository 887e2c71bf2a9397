//! Whether the operators of a device compute what they should: each, forward and backward, in
//! `f32` or `bf16` against its plain reference in `f64`.
//!
//! A reference (`reference.rs` in the operator's folder) is loops as the formula reads, on one
//! thread, and shares nothing with the fast path. The bounds leave room for the rounding of `f32`
//! and of its exponential, in whatever order sums are taken, and for nothing else. In `bf16` inputs
//! are numbers that it holds exactly, and the bounds leave room for the rounding of what is stored
//! in it: half of 2^-8 for each time.

mod activations;
mod attention;
mod inputs;
mod norms;
mod positions;
mod products;
#[cfg(test)]
mod tests;
mod update;
mod vocabulary;

use cordee_memory::DType;

#[cfg(test)]
pub(crate) use inputs::normals;

use crate::{Device, error::Result};

/// Where cases run, and in which numbers.
#[derive(Clone, Debug)]
pub struct Setting {
    device: Device,
    numbers: DType,
}

impl Setting {
    /// `numbers` are those of weights and activations: `f32`, or on a GPU `bf16`.
    pub fn new(device: Device, numbers: DType) -> Self {
        Self { device, numbers }
    }
}

/// What errors must not exceed.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    f32: f64,
    bf16: f64,
}

impl Bounds {
    /// The same whatever weights and activations are: of what is in `f32` or `f64` always.
    const fn always(bound: f64) -> Self {
        Self {
            f32: bound,
            bf16: bound,
        }
    }

    fn in_numbers(self, numbers: DType) -> f64 {
        match numbers {
            DType::Bf16 => self.bf16,
            _ => self.f32,
        }
    }
}

/// Computes both ways in a setting.
type Compute = dyn Fn(&Setting) -> Result<Vec<Compared>> + Send + Sync;

/// One call of an operator that is compared with its reference.
pub struct Case {
    /// Name of the operator.
    pub operator: &'static str,
    /// What is particular: sizes, masks, the kind of the operator.
    pub name: &'static str,
    bounds: Bounds,
    applies: fn(&Setting) -> bool,
    compute: Box<Compute>,
}

/// How far one result of a case is from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Name of the operator.
    pub operator: &'static str,
    /// Name of the case.
    pub case: &'static str,
    /// Name of the result: an output, or the gradient of an input or parameter.
    pub result: &'static str,
    /// The largest error of an element, relative to the largest expected one (to 1 where 0 is
    /// expected everywhere); infinite where a result is not a number.
    pub error: f64,
    /// What the error must not exceed.
    pub bound: f64,
}

impl Finding {
    /// Whether the bound is kept.
    pub fn holds(&self) -> bool {
        self.error <= self.bound
    }
}

/// One result, computed both ways.
struct Compared {
    result: &'static str,
    found: Vec<f64>,
    expected: Vec<f64>,
}

impl Compared {
    fn new(result: &'static str, found: Vec<f64>, expected: Vec<f64>) -> Self {
        Self {
            result,
            found,
            expected,
        }
    }

    fn error(&self) -> f64 {
        assert_eq!(self.found.len(), self.expected.len(), "{}", self.result);
        let largest = |values: &mut dyn Iterator<Item = f64>| {
            values.fold(0.0_f64, |largest, value| {
                let value = if value.is_nan() {
                    f64::INFINITY
                } else {
                    value.abs()
                };
                largest.max(value)
            })
        };
        let pairs = self.found.iter().zip(&self.expected);
        let difference = largest(&mut pairs.map(|(found, expected)| found - expected));
        match largest(&mut self.expected.iter().copied()) {
            0.0 => difference,
            scale => difference / scale,
        }
    }
}

impl Case {
    fn new(
        operator: &'static str,
        name: &'static str,
        bounds: Bounds,
        compute: impl Fn(&Setting) -> Result<Vec<Compared>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            operator,
            name,
            bounds,
            applies: |_| true,
            compute: Box::new(compute),
        }
    }

    /// The same, in some settings alone.
    fn only(mut self, applies: fn(&Setting) -> bool) -> Self {
        self.applies = applies;
        self
    }

    /// Whether a setting has what this is of.
    pub fn applies(&self, on: &Setting) -> bool {
        (self.applies)(on)
    }

    /// Computes both ways and compares, result by result.
    pub fn run(&self, on: &Setting) -> Result<Vec<Finding>> {
        let finding = |compared: Compared| Finding {
            operator: self.operator,
            case: self.name,
            result: compared.result,
            error: compared.error(),
            bound: self.bounds.in_numbers(on.numbers),
        };
        Ok((self.compute)(on)?.into_iter().map(finding).collect())
    }
}

/// All cases, operator by operator.
pub fn cases() -> Vec<Case> {
    [
        vocabulary::cases(),
        norms::cases(),
        products::cases(),
        positions::cases(),
        attention::cases(),
        activations::cases(),
        update::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
