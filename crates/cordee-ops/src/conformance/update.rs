//! What follows a backward: the norm and the optimizer; random numbers, and what ranks compare.

use cordee_memory::DType;

use super::{Bounds, Case, Compared, Setting, inputs::normals};
use crate::{
    adamw::{self, AdamW, Bf16State, Chances, State},
    digest,
    error::Result,
    gradient_norm,
    random::{self, Stream},
};

const ADAMW: Bounds = Bounds::always(1e-6);

/// A chance that a last bit decides otherwise: one bit of a number.
const BF16: Bounds = Bounds::always(8e-3);

/// Squares are summed in `f64`.
const NORM: Bounds = Bounds::always(1e-12);

/// A deviate is computed in `f64` and rounded.
const RANDOM: Bounds = Bounds::always(1e-7);

/// Of integers.
const DIGEST: Bounds = Bounds::always(0.0);

pub(super) fn cases() -> Vec<Case> {
    let step =
        |name, count: usize| Case::new("adamw", name, ADAMW, move |on| three_steps(on, count));
    let norm =
        |name, count: usize| Case::new("gradient_norm", name, NORM, move |on| squares(on, count));
    let fill =
        |name, count: usize| Case::new("random", name, RANDOM, move |on| deviates(on, count));
    let number =
        |name, count: usize| Case::new("digest", name, DIGEST, move |on| of_bytes(on, count));
    vec![
        norm("1", 1),
        norm("50021", 50_021),
        step("three steps of 1", 1),
        step("three steps of 50021", 50_021),
        Case::new("adamw", "two steps of 50021 kept in bf16", BF16, |on| {
            two_steps_in_bf16(on, 50_021)
        })
        .only(|on| on.numbers == DType::Bf16),
        fill("5", 5),
        fill("50021", 50_021),
        number("1", 1),
        number("50021", 50_021),
    ]
}

fn three_steps(on: &Setting, count: usize) -> Result<Vec<Compared>> {
    let mut expected = normals("params", count)
        .into_iter()
        .map(|param| [param, 0.0, 0.0])
        .collect::<Vec<_>>();
    let (shape, zeros) = ([count], vec![0.0; count]);
    let mut params = on.state(&normals("params", count), &shape)?;
    let (mut m, mut v) = (on.state(&zeros, &shape)?, on.state(&zeros, &shape)?);
    let mut compute = on.parameter(&zeros, &shape)?;
    let scale = on.sum(0.25)?;
    for number in 1..=3 {
        let gradients = normals(&format!("gradients {number}"), count);
        let hyper = AdamW {
            lr: 3e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-3,
            weight_decay: 0.1,
            step: number,
        };
        let state = State {
            params: params.view_mut(),
            m: m.view_mut(),
            v: v.view_mut(),
            compute: Some(compute.view_mut()),
        };
        let held = on.state(&gradients, &shape)?;
        adamw::step(state, held.view(), scale.view(), &hyper)?;
        for (state, &gradient) in expected.iter_mut().zip(&gradients) {
            *state = adamw::reference::step(*state, 0.25 * gradient, &hyper);
        }
    }
    let column = |index: usize| expected.iter().map(|state| state[index]).collect();
    let rounded = on.affine(params.values()?, 1.0, 0.0);
    Ok(vec![
        Compared::new("params", params.values()?, column(0)),
        Compared::new("copy to compute with", compute.values()?, rounded),
        Compared::new("m", m.values()?, column(1)),
        Compared::new("v", v.values()?, column(2)),
    ])
}

fn two_steps_in_bf16(on: &Setting, count: usize) -> Result<Vec<Compared>> {
    let (shape, zeros) = ([count], vec![0.0; count]);
    let start = on.normals("params", count);
    let mut params = on.parameter(&start, &shape)?;
    let (mut m, mut v) = (on.parameter(&zeros, &shape)?, on.parameter(&zeros, &shape)?);
    let mut expected: Vec<_> = start.iter().map(|&x| [x as f32, 0.0, 0.0]).collect();
    let scale = on.sum(0.25)?;
    // An odd place, as the first of a shard may have.
    let first = 7;
    for number in 1..=2 {
        let hyper = AdamW {
            lr: 3e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-3,
            weight_decay: 0.1,
            step: number,
        };
        let gradients = normals(&format!("gradients {number}"), count);
        let held = on.state(&gradients, &shape)?;
        let state = Bf16State {
            params: params.view_mut(),
            m: m.view_mut(),
            v: v.view_mut(),
        };
        let stream = Stream::new(3, number);
        let chances = Chances { stream, first };
        adamw::step_bf16(state, chances, held.view(), scale.view(), &hyper)?;
        for ((place, state), gradient) in (first..).zip(&mut expected).zip(gradients) {
            let gradient = 0.25 * gradient as f32;
            *state = adamw::reference::step_bf16(*state, gradient, (stream, place), &hyper);
        }
    }
    let column = |index: usize| expected.iter().map(|state| state[index].into()).collect();
    Ok(vec![
        Compared::new("params", params.values()?, column(0)),
        Compared::new("m", m.values()?, column(1)),
        Compared::new("v", v.values()?, column(2)),
    ])
}

fn squares(on: &Setting, count: usize) -> Result<Vec<Compared>> {
    let gradient = normals("gradient", count);
    let (mut sum, mut total, mut scale) = (on.sum(0.0)?, on.sum(0.0)?, on.sum(0.0)?);
    let held = on.state(&gradient, &[count])?;
    gradient_norm::sum_of_squares(held.view(), &mut sum.view_mut())?;
    let (mut totalled, mut scaled) = (total.view_mut(), scale.view_mut());
    gradient_norm::scale(sum.view(), 7.0, 0.5, &mut totalled, &mut scaled)?;
    let expected = gradient_norm::reference::sum_of_squares(&gradient);
    let expected_scale = gradient_norm::reference::scale(expected, 7.0, 0.5);
    Ok(vec![
        Compared::new("squares", sum.values()?, vec![expected]),
        Compared::new("their sum", total.values()?, vec![expected]),
        Compared::new("scale", scale.values()?, vec![expected_scale]),
    ])
}

fn deviates(on: &Setting, count: usize) -> Result<Vec<Compared>> {
    let (stream, std) = (Stream::new(7, 3), 0.02);
    let expected = |first: u64| {
        let places = first..first + count as u64;
        places.map(|index| random::reference::normal(stream, index, std))
    };
    let found = |first: u64| {
        let mut held = on.state(&vec![0.0; count], &[count])?;
        random::normal_fill(&mut held.view_mut(), stream, first, std)?;
        held.values()
    };
    Ok(vec![
        Compared::new("values", found(0)?, expected(0).collect()),
        Compared::new("values from the 6th on", found(6)?, expected(6).collect()),
    ])
}

fn of_bytes(on: &Setting, count: usize) -> Result<Vec<Compared>> {
    let held = on.parameter(&normals("values", count), &[count])?;
    let halves = |digest: u64| vec![f64::from((digest >> 32) as u32), f64::from(digest as u32)];
    let expected = digest::reference::digest(&held.bytes()?);
    let found = digest::digest(held.buffer())?;
    Ok(vec![Compared::new(
        "halves",
        halves(found),
        halves(expected),
    )])
}
