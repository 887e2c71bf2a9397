//! Rotary positions.

use super::{Bounds, Case, Compared, Setting, inputs::values};
use crate::{
    error::Result,
    rotary::{self, Scaling, Table, reference::Rotation},
    sequences::Sequences,
};

/// Of cosines, sines and two products rounded to `f32`.
const BOUND: Bounds = Bounds {
    f32: 3e-7,
    bf16: 4e-3,
};

/// Tokens, heads, width of a head.
type Sizes = [usize; 3];

pub(super) fn cases() -> Vec<Case> {
    let case = |name, sizes: Sizes, sequences: Sequences<'static>, scaling| {
        Case::new("rotary", name, BOUND, move |on| {
            rotate(on, sizes, sequences, scaling)
        })
    };
    let llama3 = Scaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 64,
    };
    let linear = Scaling::Linear { factor: 4.0 };
    let rows = Sequences::Rows;
    let documents = Sequences::Documents(&[0, 1, 2, 67, 150]);
    vec![
        case("one token, 3 heads of 6", [1, 3, 6], rows(1), Scaling::None),
        case(
            "2 rows of 300, 2 heads of 64",
            [600, 2, 64],
            rows(300),
            Scaling::None,
        ),
        case(
            "4 documents, 3 heads of 10",
            [150, 3, 10],
            documents,
            Scaling::None,
        ),
        case("linear, 1 head of 16", [150, 1, 16], rows(150), linear),
        case(
            "llama3, 4 documents, 2 heads of 128",
            [150, 2, 128],
            documents,
            llama3,
        ),
    ]
}

fn rotate(
    on: &Setting,
    [tokens, heads, head_dim]: Sizes,
    sequences: Sequences<'_>,
    scaling: Scaling,
) -> Result<Vec<Compared>> {
    let theta = 10_000.0;
    let shape = [tokens, heads, head_dim];
    let (x, dy) = (
        on.normals("x", tokens * heads * head_dim),
        on.normals("dy", tokens * heads * head_dim),
    );
    let table = Table::new(head_dim, tokens, theta, scaling)?;
    let y = rotary::apply(&on.tensor(&x, &shape)?, sequences, &table)?;
    let dx = rotary::apply_backward(&on.tensor(&dy, &shape)?, sequences, &table)?;

    let positions: Vec<usize> = (0..sequences.count(tokens))
        .flat_map(|index| 0..sequences.range(index).len())
        .collect();
    let reference = Rotation {
        positions: &positions,
        heads,
        head_dim,
        theta,
        scaling,
    };
    Ok(vec![
        Compared::new("y", values(&y)?, reference.forward(&x)),
        Compared::new("dx", values(&dx)?, reference.backward(&dy)),
    ])
}
