//! Linear layers.

use super::{
    Bounds, Case, Compared, Setting,
    inputs::{normals, sum, values},
};
use crate::{
    error::Result,
    linear::{self, Branch, reference::Layer},
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
    ]
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
