//! The rate of the products of a linear layer, in GFLOP/s: what a training step is measured against.
//!
//! `cargo run --release -p cordee-ops --example linear_rate`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that measures, prints, and ends where something is wrong"
)]

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use cordee_memory::{View, ViewMut};
use cordee_ops::{
    Write,
    linear::{self, Branch},
};

#[global_allocator]
static ALLOCATOR: cordee_memory::Recycler = cordee_memory::Recycler::new();

/// Tokens, input width, output width.
const SHAPES: [[usize; 3]; 6] = [
    [2048, 288, 288],
    [2048, 288, 768],
    [2048, 768, 288],
    [512, 288, 32000],
    [1024, 768, 2048],
    [1024, 768, 768],
];

fn median_rate(flops: f64, mut call: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..9)
        .map(|_| {
            let started = Instant::now();
            call();
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    flops / seconds[seconds.len() / 2] / 1e9
}

fn main() {
    println!(
        "{:>22}  {:>8} {:>8} {:>8}",
        "tokens x in x out", "forward", "dinput", "dweight"
    );
    for [n, input, output] in SHAPES {
        let values = |count: usize| {
            (0..count)
                .map(|i| (i % 89) as f32 / 89.0 - 0.5)
                .collect::<Vec<_>>()
        };
        let weight = values(output * input);
        let weight = View::from_slice(&weight, &[output, input]).unwrap();
        let mut dweight = values(output * input);
        let mut dweight = ViewMut::from_slice(&mut dweight, &[output, input]).unwrap();
        let x = Tensor::from_vec(values(n * input), (n, input), &Device::Cpu).unwrap();
        let dy = Tensor::ones((n, output), DType::F32, &Device::Cpu).unwrap();
        let flops = 2.0 * (n * input * output) as f64;
        let rates = [
            median_rate(flops, || {
                drop(linear::forward(&x, weight, None, None).unwrap());
            }),
            median_rate(flops, || {
                drop(linear::backward_input(&[Branch { dy: &dy, weight }]).unwrap());
            }),
            median_rate(flops, || {
                linear::backward_weight(&dy, &x, &mut dweight, Write::Add).unwrap();
            }),
        ];
        println!(
            "{:>22}  {:>8.0} {:>8.0} {:>8.0}",
            format!("{n} x {input} x {output}"),
            rates[0],
            rates[1],
            rates[2]
        );
    }
}
