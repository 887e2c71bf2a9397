//! Each product of matrices of a step by itself: what a step cannot be faster than as long as its
//! products are these, what they would gain if some were one, and what a search among the algorithms
//! of the library would gain.

use std::{ops::Range, time::Instant};

use candle_core::Tensor;
use cordee_memory::{Buffer, DType, View};
use cordee_model::{Model, Parameter};
use cordee_ops::{
    Write, head,
    linear::{self, Branch},
    transfer,
};
use cordee_protocol::BenchProduct;

use super::median;
use crate::{Compute, TrainError};

/// Seconds that a product is repeated for, in each of [`ROUNDS`].
const SECONDS: f64 = 5e-3;
/// Rounds, of which the median counts.
const ROUNDS: usize = 5;

/// Projections that read one input, by the ends of their names: they could be one product.
const TOGETHER: [&[&str]; 2] = [
    &["q_proj.weight", "k_proj.weight", "v_proj.weight"],
    &["gate_proj.weight", "up_proj.weight"],
];

/// Products of one shape.
struct Shape {
    name: String,
    /// Rows of the input, its width, and that of the output.
    sizes: [usize; 3],
    calls: usize,
}

/// Measures the products of a step of `model` on `tokens` tokens, in each of `passes` micro-batches.
pub(super) fn products(
    model: &Model,
    compute: &Compute,
    tokens: usize,
    passes: usize,
) -> Result<Vec<BenchProduct>, TrainError> {
    let mut measured = Vec::new();
    for shape in shapes(model, compute, tokens) {
        let [n, input, output] = shape.sizes;
        let operands = Operands::new(compute, shape.sizes)?;
        let Operands { x, dy, .. } = &operands;
        let weight = operands.weight()?;
        let forward = operands.measure(|| {
            linear::forward(x, weight, None, None)?;
            Ok(())
        })?;
        let branch = Branch { dy, weight };
        let of_input = operands.measure(|| {
            linear::backward_input(&[branch])?;
            Ok(())
        })?;
        let mut gradient = compute.device.zeroed(DType::F32, input * output)?;
        let of_weight = operands.measure(|| {
            let mut dweight = gradient.view_mut(0..input * output, &[output, input])?;
            Ok(linear::backward_weight(
                dy,
                x,
                &mut dweight,
                Write::Replace,
            )?)
        })?;
        for (result, took) in [
            ("forward", forward),
            ("input", of_input),
            ("weight", of_weight),
        ] {
            let (best, best_s) = took.best();
            measured.push(BenchProduct {
                name: shape.name.clone(),
                result: result.to_owned(),
                sizes: [n, input, output].map(|size| size as u64),
                calls: (shape.calls * passes) as u64,
                seconds: took.0[0],
                best_s,
                best: best as u64,
            });
        }
    }
    Ok(measured)
}

/// Those of the blocks, by the names of the first that has them; those that could be one as one,
/// which no step calls; those of the head for a chunk of logits.
fn shapes(model: &Model, compute: &Compute, tokens: usize) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    for block in &model.blocks {
        let matrices = || block.parameters().iter().filter(|p| p.shape.len() == 2);
        for matrix in matrices() {
            let sizes = [tokens, matrix.shape[1], matrix.shape[0]];
            add(&mut shapes, of_block(&matrix.name), sizes, 1);
        }
        for names in TOGETHER {
            let found: Vec<&Parameter> = matrices()
                .filter(|matrix| names.iter().any(|name| matrix.name.ends_with(name)))
                .collect();
            if found.len() == names.len() {
                let all: Vec<_> = found.iter().map(|matrix| of_block(&matrix.name)).collect();
                let output = found.iter().map(|matrix| matrix.shape[0]).sum();
                add(
                    &mut shapes,
                    &all.join("+"),
                    [tokens, found[0].shape[1], output],
                    0,
                );
            }
        }
    }
    // The table that is looked up in has the vocabulary and the width, tied or not.
    let table = &model.embedding.parameters()[0];
    let (vocab, dim) = (table.shape[0], table.shape[1]);
    let on_gpu = compute.device.facts().is_some();
    let chunk = head::chunk_tokens(tokens, vocab, compute.numbers, on_gpu);
    let chunks = tokens.div_ceil(chunk);
    add(
        &mut shapes,
        "the head, a chunk",
        [chunk, dim, vocab],
        chunks,
    );
    shapes
}

/// One more of a name and sizes, or of which there are some already.
fn add(shapes: &mut Vec<Shape>, name: &str, sizes: [usize; 3], calls: usize) {
    let same = |shape: &&mut Shape| shape.name == name && shape.sizes == sizes;
    match shapes.iter_mut().find(same) {
        Some(shape) => shape.calls += calls,
        None => shapes.push(Shape {
            name: name.to_owned(),
            sizes,
            calls,
        }),
    }
}

/// Of `model.layers.3.mlp.up_proj.weight` what comes behind the number of the block.
fn of_block(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let behind = |part: Range<usize>| name.get(part.end + 1..);
    let number = name.split('.').find(|part| part.parse::<usize>().is_ok());
    let found = number.and_then(|number| {
        let start = name.find(&format!(".{number}."))? + 1;
        behind(start..start + number.len())
    });
    found.unwrap_or(name)
}

/// What a product reads.
struct Operands<'a> {
    compute: &'a Compute,
    sizes: [usize; 3],
    x: Tensor,
    dy: Tensor,
    weight: Buffer,
}

impl<'a> Operands<'a> {
    /// Small numbers, not all alike: a GPU takes less power for zeros, and is faster.
    fn new(compute: &'a Compute, [n, input, output]: [usize; 3]) -> Result<Self, TrainError> {
        let tensor = |rows: usize, columns: usize| {
            let buffer = filled(compute, rows * columns)?;
            let view = buffer.view(0..rows * columns, &[rows, columns])?;
            Ok::<_, TrainError>(transfer::to_tensor(view)?)
        };
        Ok(Self {
            compute,
            sizes: [n, input, output],
            x: tensor(n, input)?,
            dy: tensor(n, output)?,
            weight: filled(compute, input * output)?,
        })
    }

    fn weight(&self) -> Result<View<'_>, TrainError> {
        let [_, input, output] = self.sizes;
        Ok(self.weight.view(0..input * output, &[output, input])?)
    }

    /// Seconds of a call, by each of the algorithms that the library suggests for it. What is read stays
    /// in caches, if it fits.
    fn measure(
        &self,
        mut call: impl FnMut() -> Result<(), TrainError>,
    ) -> Result<Took, TrainError> {
        let device = &self.compute.device;
        let mut rounds = |count: usize| {
            device.synchronise()?;
            let started = Instant::now();
            for _ in 0..count {
                call()?;
            }
            device.synchronise()?;
            Ok::<_, TrainError>(started.elapsed().as_secs_f64() / count as f64)
        };
        // The first asks for algorithms, and memory.
        rounds(1)?;
        let mut took = Vec::new();
        for suggestion in 0..device.suggestions() {
            device.take_suggestion(suggestion)?;
            let once = rounds(1)?;
            let count = (SECONDS / once).ceil().clamp(1.0, 1e4) as usize;
            let measured = (0..ROUNDS).map(|_| rounds(count));
            took.push(median(measured.collect::<Result<_, _>>()?));
        }
        device.take_suggestion(0)?;
        Ok(Took(took))
    }
}

/// Seconds by each algorithm.
struct Took(Vec<f64>);

impl Took {
    /// The number of the fastest, and its seconds.
    fn best(&self) -> (usize, f64) {
        let numbered = self.0.iter().copied().enumerate();
        let best = numbered.min_by(|(_, a), (_, b)| a.total_cmp(b));
        best.expect("there is one at least")
    }
}

/// Memory of so many numbers, which repeat.
fn filled(compute: &Compute, len: usize) -> Result<Buffer, TrainError> {
    let value = |index: usize| ((index * 7 + 3) % 61) as f32 / 61.0 - 0.5;
    let mut host = Buffer::zeroed(compute.numbers, len)?;
    match compute.numbers {
        DType::Bf16 => {
            let numbers = host.as_mut_slice::<half::bf16>()?.iter_mut();
            for (index, number) in numbers.enumerate() {
                *number = half::bf16::from_f32(value(index));
            }
        }
        _ => {
            for (index, number) in host.as_mut_slice::<f32>()?.iter_mut().enumerate() {
                *number = value(index);
            }
        }
    }
    if compute.device.facts().is_none() {
        return Ok(host);
    }
    let mut buffer = compute.device.zeroed(compute.numbers, len)?;
    buffer.copy_from_host(&host)?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use cordee_config::ModelConfig;

    use super::*;

    #[test]
    fn a_step_has_these_products() {
        let config = ModelConfig {
            kv_heads: Some(2),
            tie_embeddings: true,
            ..ModelConfig::llama(64, 3, 4, 96)
        };
        let model = Model::new(&config, 300, 16).unwrap();
        let told: Vec<_> = shapes(&model, &Compute::HOST, 32)
            .into_iter()
            .map(|shape| (shape.name, shape.sizes, shape.calls))
            .collect();
        let expected = [
            ("self_attn.q_proj", [32, 64, 64], 3),
            ("self_attn.k_proj", [32, 64, 32], 3),
            ("self_attn.v_proj", [32, 64, 32], 3),
            ("self_attn.o_proj", [32, 64, 64], 3),
            ("mlp.gate_proj", [32, 64, 96], 3),
            ("mlp.up_proj", [32, 64, 96], 3),
            ("mlp.down_proj", [32, 96, 64], 3),
            (
                "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj",
                [32, 64, 128],
                0,
            ),
            ("mlp.gate_proj+mlp.up_proj", [32, 64, 192], 0),
            ("the head, a chunk", [32, 64, 300], 1),
        ];
        let expected = expected.map(|(name, sizes, calls)| (name.to_owned(), sizes, calls));
        assert_eq!(told, expected);
    }
}
