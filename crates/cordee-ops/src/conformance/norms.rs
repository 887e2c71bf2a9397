//! The norms, with the residual stream.

use super::{
    Case, Compared,
    inputs::{affine, normals, single, sum, tensor, values, view, view_mut, wide},
};
use crate::{
    error::Result,
    layer_norm,
    rms_norm::{self, Norm},
};

const BOUND: f64 = 1e-6;

/// Rows of normal deviates, times `scale` plus `offset`.
#[derive(Clone, Copy)]
struct Rows {
    n: usize,
    dim: usize,
    eps: f64,
    scale: f64,
    offset: f64,
}

const ROWS: Rows = Rows {
    n: 67,
    dim: 100,
    eps: 1e-5,
    scale: 1.0,
    offset: 0.0,
};

impl Rows {
    fn elements(&self, name: &str) -> Vec<f64> {
        normals(name, self.n * self.dim)
    }

    fn x(&self) -> Vec<f64> {
        affine(self.elements("x"), self.scale, self.offset)
    }

    fn residual(&self) -> Vec<f64> {
        affine(self.elements("residual"), self.scale, 0.0)
    }

    fn shape(&self) -> [usize; 2] {
        [self.n, self.dim]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let one = Rows {
        n: 1,
        dim: 33,
        ..ROWS
    };
    let many = Rows {
        n: 300,
        dim: 1029,
        ..ROWS
    };
    // Where the mean square is as small as eps, a wrong eps shows.
    let small = Rows {
        scale: 1e-3,
        ..ROWS
    };
    let shifted = Rows {
        offset: 3.0,
        ..ROWS
    };
    let rms = |name, rows: Rows, unit_offset| {
        Case::new("rms_norm", name, BOUND, move || rms_norm(rows, unit_offset))
    };
    let layer = |name, rows: Rows| Case::new("layer_norm", name, BOUND, move || layer_norm(rows));
    vec![
        rms("one token, 33 wide", one, false),
        rms("67 tokens, 100 wide", ROWS, false),
        rms("67 tokens, 100 wide, gains from 1", ROWS, true),
        rms("67 tokens, 100 wide, as small as eps", small, false),
        rms("300 tokens, 1029 wide", many, false),
        layer("one token, 33 wide", one),
        layer("67 tokens, 100 wide", ROWS),
        layer("67 tokens, 100 wide, as small as eps", small),
        layer("67 tokens, 100 wide, mean of 3", shifted),
        layer("300 tokens, 1029 wide", many),
    ]
}

fn rms_norm(rows: Rows, unit_offset: bool) -> Result<Vec<Compared>> {
    let (shape, dim) = (rows.shape(), [rows.dim]);
    let (x, residual) = (rows.x(), rows.residual());
    let (dy, dh) = (rows.elements("dy"), rows.elements("dh"));
    let (stored, held) = (normals("weight", rows.dim), normals("held", rows.dim));

    let norm = Norm {
        eps: rows.eps,
        unit_offset,
    };
    let weight = single(&stored);
    let weight = view(&weight, &dim);
    let (h, normed) = rms_norm::forward_residual(
        &tensor(&x, &shape)?,
        &tensor(&residual, &shape)?,
        weight,
        norm,
    )?;
    let plain = rms_norm::forward(&h, weight, norm)?;
    let call = rms_norm::Backward {
        norm,
        dy: &tensor(&dy, &shape)?,
        x: &h,
        weight,
        rstd: &normed.rstd,
        residual: Some(&tensor(&dh, &shape)?),
    };
    let mut dweight = single(&held);
    let dx = rms_norm::backward(&call, &mut view_mut(&mut dweight, &dim))?;

    let expected_h = sum(&x, &residual);
    let offset = if unit_offset { 1.0 } else { 0.0 };
    let gains: Vec<f64> = stored.iter().map(|stored| stored + offset).collect();
    let reference = rms_norm::reference::Rows {
        x: &expected_h,
        gains: &gains,
        eps: rows.eps,
    };
    let (expected_dx, dgains) = reference.backward(&dy);
    let y = reference.forward();
    Ok(vec![
        Compared::new("y", values(&normed.y)?, y.clone()),
        Compared::new("y without residual", values(&plain.y)?, y),
        Compared::new("h", values(&h)?, expected_h.clone()),
        Compared::new("dx", values(&dx)?, sum(&expected_dx, &dh)),
        Compared::new("dweight", wide(&dweight), sum(&held, &dgains)),
    ])
}

fn layer_norm(rows: Rows) -> Result<Vec<Compared>> {
    let (shape, dim) = (rows.shape(), [rows.dim]);
    let (x, residual) = (rows.x(), rows.residual());
    let (dy, dh) = (rows.elements("dy"), rows.elements("dh"));
    let [weight, bias, held] = ["weight", "bias", "held"].map(|name| normals(name, rows.dim));

    let (single_weight, single_bias) = (single(&weight), single(&bias));
    let views = (view(&single_weight, &dim), view(&single_bias, &dim));
    let (h, normed) = layer_norm::forward_residual(
        &tensor(&x, &shape)?,
        &tensor(&residual, &shape)?,
        views.0,
        views.1,
        rows.eps,
    )?;
    let plain = layer_norm::forward(&h, views.0, views.1, rows.eps)?;
    let call = layer_norm::Backward {
        dy: &tensor(&dy, &shape)?,
        x: &h,
        weight: views.0,
        mean: &normed.mean,
        rstd: &normed.rstd,
        residual: Some(&tensor(&dh, &shape)?),
    };
    let (mut dweight, mut dbias) = (single(&held), single(&held));
    let dx = layer_norm::backward(
        &call,
        &mut view_mut(&mut dweight, &dim),
        &mut view_mut(&mut dbias, &dim),
    )?;

    let expected_h = sum(&x, &residual);
    let reference = layer_norm::reference::Rows {
        x: &expected_h,
        weight: &weight,
        bias: &bias,
        eps: rows.eps,
    };
    let [expected_dx, expected_dweight, expected_dbias] = reference.backward(&dy);
    let y = reference.forward();
    Ok(vec![
        Compared::new("y", values(&normed.y)?, y.clone()),
        Compared::new("y without residual", values(&plain.y)?, y),
        Compared::new("h", values(&h)?, expected_h.clone()),
        Compared::new("dx", values(&dx)?, sum(&expected_dx, &dh)),
        Compared::new("dweight", wide(&dweight), sum(&held, &expected_dweight)),
        Compared::new("dbias", wide(&dbias), sum(&held, &expected_dbias)),
    ])
}
