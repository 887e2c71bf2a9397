//! The embedding and the head.

use super::{
    Bounds, Case, Compared, Setting,
    inputs::{normals, sum, values},
};
use crate::{
    embedding,
    error::Result,
    head::{self, Targets, reference::Head},
    matrix::Write,
};

/// A copy, a product, and sums of a few.
const EMBEDDING: Bounds = Bounds {
    f32: 1e-6,
    bf16: 4e-3,
};

/// Sums over a vocabulary, which a library may take one by one. In `bf16` logits are rounded, and
/// their gradients.
const HEAD: Bounds = Bounds {
    f32: 8e-6,
    bf16: 2e-2,
};

/// Logits of 100 are rounded by 0.2 in `bf16`, and probabilities follow.
const SHARP_HEAD: Bounds = Bounds { bf16: 1e-1, ..HEAD };

/// Tokens, width, vocabulary.
type Sizes = [usize; 3];

pub(super) fn cases() -> Vec<Case> {
    let rows = |name, sizes: Sizes, scale: f64| {
        Case::new("embedding", name, EMBEDDING, move |on| {
            embed(on, sizes, scale)
        })
    };
    let loss = |name, sizes: Sizes, masked, spread: f64| {
        let bounds = if spread > 1.0 { SHARP_HEAD } else { HEAD };
        Case::new("head", name, bounds, move |on| {
            predict(on, sizes, masked, spread)
        })
    };
    vec![
        rows("one token, 3 wide, of 5", [1, 3, 5], 1.0),
        rows("300 tokens, 70 wide, of 11", [300, 70, 11], 1.0),
        rows(
            "700 tokens, 288 wide, scaled, of 1009",
            [700, 288, 1009],
            288.0_f64.sqrt(),
        ),
        loss("one token, 7 wide, of 13", [1, 7, 13], false, 0.3),
        loss(
            "70 tokens, 12 wide, of 131, masked",
            [70, 12, 131],
            true,
            0.3,
        ),
        loss("261 tokens, 65 wide, of 1031", [261, 65, 1031], false, 0.1),
        loss(
            "300 tokens, 8 wide, of 20011, masked",
            [300, 8, 20_011],
            true,
            0.3,
        ),
        loss(
            "70 tokens, 12 wide, of 131, large logits",
            [70, 12, 131],
            false,
            8.0,
        ),
    ]
}

/// Some tokens often, some never.
fn tokens(n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| (i * i % vocab) as u32).collect()
}

fn embed(on: &Setting, [n, dim, vocab]: Sizes, scale: f64) -> Result<Vec<Compared>> {
    let (tokens, shape) = (tokens(n, vocab), [vocab, dim]);
    let weight = on.normals("weight", vocab * dim);
    let (dy, held) = (on.normals("dy", n * dim), normals("held", vocab * dim));

    let table = on.parameter(&weight, &shape)?;
    let y = embedding::forward(&tokens, table.view(), scale)?;
    let mut dweight = on.state(&held, &shape)?;
    let fast_dy = on.tensor(&dy, &[n, dim])?;
    embedding::backward(&tokens, &fast_dy, scale, &mut dweight.view_mut())?;

    let mut expected_dweight = held;
    embedding::reference::backward(&tokens, &dy, scale, &mut expected_dweight);
    let expected_y = embedding::reference::forward(&tokens, &weight, dim, scale);
    Ok(vec![
        Compared::new("y", values(&y)?, expected_y),
        Compared::new("dweight", dweight.values()?, expected_dweight),
    ])
}

/// `spread` is the standard deviation of the weights, and decides how sharp the softmax is.
fn predict(
    on: &Setting,
    [n, dim, vocab]: Sizes,
    masked: bool,
    spread: f64,
) -> Result<Vec<Compared>> {
    let (targets, shape) = (tokens(n, vocab), [vocab, dim]);
    let counts: Vec<bool> = (0..n).map(|i| !masked || i % 3 != 0).collect();
    let mask: Vec<u8> = counts.iter().map(|&counts| u8::from(counts)).collect();
    let x = on.normals("x", n * dim);
    let weight = on.affine(on.normals("weight", vocab * dim), spread, 0.0);
    // Anew in some cases: then what was there does not matter.
    let write = if masked { Write::Replace } else { Write::Add };
    let held = match write {
        Write::Replace => vec![f64::NAN; vocab * dim],
        Write::Add => normals("held", vocab * dim),
    };

    let held_weight = on.parameter(&weight, &shape)?;
    let fast_targets = Targets {
        tokens: &targets,
        mask: masked.then_some(&mask),
    };
    let fast_x = on.tensor(&x, &[n, dim])?;
    let table = held_weight.view();
    let mut dweight = on.state(&held, &shape)?;
    let (mut nll, mut nll_alone) = (on.sum(0.0)?, on.sum(0.0)?);
    let sums = head::Sums {
        nll: nll.view_mut(),
        dweight: dweight.view_mut(),
        write,
    };
    let (losses, dx) = head::loss_and_gradient(&fast_x, table, &fast_targets, sums)?;
    let alone = head::loss(&fast_x, table, &fast_targets, &mut nll_alone.view_mut())?;

    let reference = Head {
        x: &x,
        weight: &weight,
        dim,
        targets: &targets,
        counts: &counts,
    };
    let expected = reference.run();
    let nll_sum = expected.nll.iter().sum();
    let expected_dweight = match write {
        Write::Replace => expected.dweight,
        Write::Add => sum(&held, &expected.dweight),
    };
    Ok(vec![
        Compared::new("sum of losses", nll.values()?, vec![nll_sum]),
        Compared::new("sum without gradients", nll_alone.values()?, vec![nll_sum]),
        Compared::new("losses", values(&losses.per_token)?, expected.nll.clone()),
        Compared::new(
            "losses without gradients",
            values(&alone.per_token)?,
            expected.nll,
        ),
        Compared::new("dx", values(&dx)?, expected.dx),
        Compared::new("dweight", dweight.values()?, expected_dweight),
    ])
}
