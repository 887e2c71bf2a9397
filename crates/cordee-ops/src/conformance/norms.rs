//! The norms, with the residual stream.

use super::{
    Bounds, Case, Compared, Setting,
    inputs::{normals, sum, values},
};
use crate::{
    error::Result,
    layer_norm,
    rms_norm::{self, Norm},
};

/// In `bf16` the sum with the residual is rounded before it is normalised.
const BOUND: Bounds = Bounds {
    f32: 1e-6,
    bf16: 1e-2,
};

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
    fn elements(&self, on: &Setting, name: &str) -> Vec<f64> {
        on.normals(name, self.n * self.dim)
    }

    fn x(&self, on: &Setting) -> Vec<f64> {
        on.affine(self.elements(on, "x"), self.scale, self.offset)
    }

    fn residual(&self, on: &Setting) -> Vec<f64> {
        on.affine(self.elements(on, "residual"), self.scale, 0.0)
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
        Case::new("rms_norm", name, BOUND, move |on| {
            rms_norm(on, rows, unit_offset)
        })
    };
    let layer =
        |name, rows: Rows| Case::new("layer_norm", name, BOUND, move |on| layer_norm(on, rows));
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

fn rms_norm(on: &Setting, rows: Rows, unit_offset: bool) -> Result<Vec<Compared>> {
    let (shape, dim) = (rows.shape(), [rows.dim]);
    let (x, residual) = (rows.x(on), rows.residual(on));
    let (dy, dh) = (rows.elements(on, "dy"), rows.elements(on, "dh"));
    let (stored, held) = (on.normals("weight", rows.dim), normals("held", rows.dim));

    let norm = Norm {
        eps: rows.eps,
        unit_offset,
    };
    let weight = on.parameter(&stored, &dim)?;
    let weight = weight.view();
    let (h, normed) = rms_norm::forward_residual(
        &on.tensor(&x, &shape)?,
        &on.tensor(&residual, &shape)?,
        weight,
        norm,
    )?;
    let plain = rms_norm::forward(&h, weight, norm)?;
    let call = rms_norm::Backward {
        norm,
        dy: &on.tensor(&dy, &shape)?,
        x: &h,
        weight,
        rstd: &normed.rstd,
        residual: Some(&on.tensor(&dh, &shape)?),
    };
    let mut dweight = on.state(&held, &dim)?;
    let dx = rms_norm::backward(&call, &mut dweight.view_mut())?;

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
        Compared::new("dweight", dweight.values()?, sum(&held, &dgains)),
    ])
}

fn layer_norm(on: &Setting, rows: Rows) -> Result<Vec<Compared>> {
    let (shape, dim) = (rows.shape(), [rows.dim]);
    let (x, residual) = (rows.x(on), rows.residual(on));
    let (dy, dh) = (rows.elements(on, "dy"), rows.elements(on, "dh"));
    let [weight, bias, held] = ["weight", "bias", "held"].map(|name| on.normals(name, rows.dim));

    let (held_weight, held_bias) = (on.parameter(&weight, &dim)?, on.parameter(&bias, &dim)?);
    let views = (held_weight.view(), held_bias.view());
    let (h, normed) = layer_norm::forward_residual(
        &on.tensor(&x, &shape)?,
        &on.tensor(&residual, &shape)?,
        views.0,
        views.1,
        rows.eps,
    )?;
    let plain = layer_norm::forward(&h, views.0, views.1, rows.eps)?;
    let call = layer_norm::Backward {
        dy: &on.tensor(&dy, &shape)?,
        x: &h,
        weight: views.0,
        mean: &normed.mean,
        rstd: &normed.rstd,
        residual: Some(&on.tensor(&dh, &shape)?),
    };
    let (mut dweight, mut dbias) = (on.state(&held, &dim)?, on.state(&held, &dim)?);
    let dx = layer_norm::backward(&call, &mut dweight.view_mut(), &mut dbias.view_mut())?;

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
        Compared::new("dweight", dweight.values()?, sum(&held, &expected_dweight)),
        Compared::new("dbias", dbias.values()?, sum(&held, &expected_dbias)),
    ])
}
