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
    let on_gpu = compute.device.facts().is_some();
    for shape in shapes(model, compute.numbers, tokens, on_gpu) {
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

/// Those of the blocks, by the names of the first that has them, and those of the head for a chunk of
/// logits. Of projections that read one input both ways: each by itself, as the host computes them, and as
/// one, as a GPU does unless norms of heads come between; the other way has no calls.
fn shapes(model: &Model, numbers: DType, tokens: usize, on_gpu: bool) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    for block in &model.blocks {
        let parameters = block.parameters();
        let named = |end: &str| parameters.iter().any(|it| it.name.ends_with(end));
        let matrices = || parameters.iter().filter(|it| it.shape.len() == 2);
        let together: Vec<(Vec<&Parameter>, bool)> = TOGETHER
            .iter()
            .map(|names| {
                let of = |it: &&Parameter| names.iter().any(|name| it.name.ends_with(name));
                let of: Vec<&Parameter> = matrices().filter(of).collect();
                let normed = names.contains(&"q_proj.weight") && named("q_norm.weight");
                let as_one = on_gpu && !normed;
                (of, as_one)
            })
            .filter(|(of, _)| of.len() > 1)
            .collect();
        for matrix in matrices() {
            let mut joined = together.iter().filter(|(_, as_one)| *as_one);
            let joined = joined.any(|(of, _)| of.iter().any(|it| it.name == matrix.name));
            let sizes = [tokens, matrix.shape[1], matrix.shape[0]];
            add(
                &mut shapes,
                of_block(&matrix.name),
                sizes,
                usize::from(!joined),
            );
        }
        for (of, as_one) in together {
            let names: Vec<_> = of.iter().map(|matrix| of_block(&matrix.name)).collect();
            let output = of.iter().map(|matrix| matrix.shape[0]).sum();
            let sizes = [tokens, of[0].shape[1], output];
            add(&mut shapes, &names.join("+"), sizes, usize::from(as_one));
        }
    }
    // The table that is looked up in has the vocabulary and the width, tied or not.
    let table = &model.embedding.parameters()[0];
    let (vocab, dim) = (table.shape[0], table.shape[1]);
    let chunk = head::chunk_tokens(tokens, vocab, numbers, on_gpu);
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
        let told = |on_gpu| -> Vec<_> {
            let shapes = shapes(&model, DType::F32, 32, on_gpu).into_iter();
            shapes
                .map(|shape| (shape.name, shape.sizes, shape.calls))
                .collect()
        };
        let all = "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj";
        let expected = |apart, as_one| {
            [
                ("self_attn.q_proj", [32, 64, 64], apart),
                ("self_attn.k_proj", [32, 64, 32], apart),
                ("self_attn.v_proj", [32, 64, 32], apart),
                ("self_attn.o_proj", [32, 64, 64], 3),
                ("mlp.gate_proj", [32, 64, 96], apart),
                ("mlp.up_proj", [32, 64, 96], apart),
                ("mlp.down_proj", [32, 96, 64], 3),
                (all, [32, 64, 128], as_one),
                ("mlp.gate_proj+mlp.up_proj", [32, 64, 192], as_one),
                ("the head, a chunk", [32, 64, 300], 1),
            ]
            .map(|(name, sizes, calls)| (name.to_owned(), sizes, calls))
        };
        assert_eq!(told(false), expected(3, 0));
        assert_eq!(told(true), expected(0, 3));
    }
}
