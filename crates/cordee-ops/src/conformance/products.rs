//! Linear layers.

use super::{
    Bounds, Case, Compared, Setting,
    inputs::{normals, sum, values},
};
use crate::{
    error::Result,
    linear::{self, Branch, WeightGradient, reference::Layer},
    matrix::Write,
};

const BOUND: Bounds = Bounds {
    f32: 2e-6,
    bf16: 8e-3,
};

pub(super) fn cases() -> Vec<Case> {
    let case = |name, sizes: [usize; 3]| {
        Case::new("linear", name, BOUND, move |on| linear_layer(on, sizes))
    };
    vec![
        case("1 x 1 to 1", [1, 1, 1]),
        case("one token, 33 to 65", [1, 33, 65]),
        case("17 tokens, 31 to 1", [17, 31, 1]),
        case("129 tokens, 513 to 3", [129, 513, 3]),
        case("64 tokens, 64 to 64", [64, 64, 64]),
        case("261 tokens, 530 to 1030", [261, 530, 1030]),
        case("5 tokens, 2051 to 7", [5, 2051, 7]),
        Case::new("linear", "three layers of one input", BOUND, together),
    ]
}

/// Queries, keys and values as heads of 16: weights, biases and gradients that follow each other in memory,
/// and outputs and their gradients that lie side by side where the device has them so.
fn together(on: &Setting) -> Result<Vec<Compared>> {
    let ([n, input], rows) = ([37, 24], [32, 16, 16]);
    let output: usize = rows.iter().sum();
    let (x, weight) = (
        on.normals("x", n * input),
        on.normals("weight", output * input),
    );
    let (bias, dy) = (on.normals("bias", output), on.normals("dy", n * output));
    let held = normals("held", output * input);
    let layer = Layer {
        x: &x,
        weight: &weight,
        bias: &bias,
        input,
    };
    let columns = |of: &[f64], first: usize, count: usize| -> Vec<f64> {
        let rows = of.chunks_exact(output);
        rows.flat_map(|row| &row[first..first + count])
            .copied()
            .collect()
    };
    let firsts = [0, rows[0], rows[0] + rows[1]];

    let (held_weight, held_bias) = (
        on.parameter(&weight, &[output, input])?,
        on.parameter(&bias, &[output])?,
    );
    let of = |index: usize| {
        let range = firsts[index]..firsts[index] + rows[index];
        let weight = held_weight.view().rows(range.clone());
        let bias = held_bias.view().rows(range);
        (weight.expect("rows of it"), bias.expect("rows of it"))
    };
    let fast_x = on.tensor(&x, &[n, input])?;
    let layers = [0, 1, 2].map(|index| {
        let (weight, bias) = of(index);
        let bias = Some(bias);
        linear::Layer { weight, bias }
    });
    let outputs = linear::forward_together(&fast_x, &layers)?;
    let expected_y = layer.forward();
    let [dx, dweight, _] = layer.backward(&dy);
    let mut compared = vec![
        Compared::new("q", values(&outputs.get(0)?)?, columns(&expected_y, 0, 32)),
        Compared::new(
            "k, as heads",
            values(&outputs.heads(1, 16)?)?,
            columns(&expected_y, 32, 16),
        ),
        Compared::new("v", values(&outputs.get(2)?)?, columns(&expected_y, 48, 16)),
    ];

    // Side by side, as heads, and each by itself.
    let all = on.tensor(&dy, &[n, output / 16, 16])?;
    let beside = |index: usize| all.narrow(1, firsts[index] / 16, rows[index] / 16);
    let beside = [0, 1, 2].map(|index| beside(index).expect("heads of it"));
    let apart = |index: usize| {
        let dy = columns(&dy, firsts[index], rows[index]);
        on.tensor(&dy, &[n, rows[index]])
    };
    let apart = [apart(0)?, apart(1)?, apart(2)?];
    for (dys, names) in [
        (&beside, ["dx", "dweight", "dbias of v"]),
        (
            &apart,
            [
                "dx of dys apart",
                "dweight of dys apart",
                "dbias of v alone",
            ],
        ),
    ] {
        let branches = [0, 1, 2].map(|index| Branch {
            dy: &dys[index],
            weight: of(index).0,
        });
        let found = linear::backward_input(&branches)?;
        compared.push(Compared::new(names[0], values(&found)?, dx.clone()));
        let mut sums = on.state(&held, &[output, input])?;
        let parts = sums.parts_mut(&rows).into_iter().zip(dys);
        let mut gradients: Vec<_> = parts
            .map(|(dweight, dy)| WeightGradient {
                dy,
                dweight,
                write: Write::Add,
            })
            .collect();
        linear::backward_weights(&fast_x, &mut gradients)?;
        let expected = sum(&held, &dweight);
        compared.push(Compared::new(names[1], sums.values()?, expected));
        let mut dbias = on.state(&held[..16], &[16])?;
        linear::backward_bias(&dys[2], &mut dbias.view_mut())?;
        let of_v = (0..16).map(|column| {
            let rows = dy.chunks_exact(output).map(|row| row[48 + column]);
            held[column] + rows.sum::<f64>()
        });
        compared.push(Compared::new(names[2], dbias.values()?, of_v.collect()));
    }
    Ok(compared)
}

/// Sizes are tokens, inputs, outputs.
fn linear_layer(on: &Setting, [n, input, output]: [usize; 3]) -> Result<Vec<Compared>> {
    let (x, weight) = (
        on.normals("x", n * input),
        on.normals("weight", output * input),
    );
    let (bias, dy) = (on.normals("bias", output), on.normals("dy", n * output));
    let held = normals("held", output * input);
    let shape = [output, input];

    let outputs = [output];
    let (held_weight, held_bias) = (
        on.parameter(&weight, &shape)?,
        on.parameter(&bias, &outputs)?,
    );
    let view_of_weight = held_weight.view();
    let fast_x = on.tensor(&x, &[n, input])?;
    let fast_dy = on.tensor(&dy, &[n, output])?;
    let y = linear::forward(&fast_x, view_of_weight, Some(held_bias.view()), None)?;
    let y_without = linear::forward(&fast_x, view_of_weight, None, None)?;
    let mut dweight = on.state(&held, &shape)?;
    let held_residual = on.normals("residual", n * output);
    let residual = on.tensor(&held_residual, &[n, output])?;
    let bias_view = Some(held_bias.view());
    let y_onto = linear::forward(&fast_x, view_of_weight, bias_view, Some(&residual))?;
    let (write, view) = (Write::Add, &mut dweight.view_mut());
    let dx = linear::backward(&fast_dy, &fast_x, view_of_weight, view, write)?;
    // Anew, and what was there does not matter.
    let mut anew = on.state(&vec![f64::NAN; output * input], &shape)?;
    linear::backward_weight(&fast_dy, &fast_x, &mut anew.view_mut(), Write::Replace)?;
    let mut dbias = on.state(&bias, &outputs)?;
    linear::backward_bias(&fast_dy, &mut dbias.view_mut())?;
    // The same branch twice: twice its gradient.
    let branch = Branch {
        dy: &fast_dy,
        weight: view_of_weight,
    };
    let dx_of_two = linear::backward_input(&[branch, branch])?;

    let layer = |bias| Layer {
        x: &x,
        weight: &weight,
        bias,
        input,
    };
    let [expected_dx, expected_dweight, expected_dbias] = layer(&bias).backward(&dy);
    let twice = sum(&expected_dx, &expected_dx);
    Ok(vec![
        Compared::new("y", values(&y)?, layer(&bias).forward()),
        Compared::new(
            "y without bias",
            values(&y_without)?,
            layer(&vec![0.0; output]).forward(),
        ),
        Compared::new(
            "y onto a residual",
            values(&y_onto)?,
            sum(&layer(&bias).forward(), &held_residual),
        ),
        Compared::new("dx", values(&dx)?, expected_dx),
        Compared::new("dweight anew", anew.values()?, expected_dweight.clone()),
        Compared::new("dx of two branches", values(&dx_of_two)?, twice),
        Compared::new("dweight", dweight.values()?, sum(&held, &expected_dweight)),
        Compared::new("dbias", dbias.values()?, sum(&bias, &expected_dbias)),
    ])
}
