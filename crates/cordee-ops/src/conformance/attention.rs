//! Attention: grouped queries, documents, windows.

use candle_core::Tensor;

use super::{Bounds, Case, Compared, Setting, inputs::values};
use crate::{
    attention::{self, Inputs, reference::Reference},
    error::Result,
    sequences::Sequences,
};

/// In `bf16` the probabilities are rounded too, and the gradient of the scores.
const BOUND: Bounds = Bounds {
    f32: 4e-6,
    bf16: 2e-2,
};

#[derive(Clone, Copy)]
struct Call {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    sequences: Sequences<'static>,
    window: Option<usize>,
    /// What queries are multiplied with: large ones make probabilities of 0 and 1.
    spread: f64,
}

const CALL: Call = Call {
    tokens: 150,
    heads: 2,
    kv_heads: 2,
    head_dim: 16,
    sequences: Sequences::Rows(75),
    window: None,
    spread: 1.0,
};

const DOCUMENTS: Sequences<'static> = Sequences::Documents(&[0, 1, 2, 67, 149, 150]);

fn case(name: &'static str, call: Call) -> Case {
    Case::new("attention", name, BOUND, move |on| attend(on, call))
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = narrow_heads();
    cases.extend(wide_heads());
    cases
}

fn narrow_heads() -> Vec<Case> {
    let ungrouped = CALL;
    let grouped = Call {
        heads: 6,
        head_dim: 5,
        ..CALL
    };
    vec![
        case(
            "one token",
            Call {
                tokens: 1,
                sequences: Sequences::Rows(1),
                ..CALL
            },
        ),
        case("2 rows of 75, 2 heads of 16", ungrouped),
        case("2 rows of 75, 6 heads of 5 in 2 groups", grouped),
        case(
            "documents of 1 to 82",
            Call {
                sequences: DOCUMENTS,
                ..grouped
            },
        ),
        case(
            "window of 1",
            Call {
                window: Some(1),
                ..ungrouped
            },
        ),
        case(
            "window of 37, one row of 261",
            Call {
                tokens: 261,
                sequences: Sequences::Rows(261),
                window: Some(37),
                ..grouped
            },
        ),
        case(
            "window of 64, one row of 261",
            Call {
                tokens: 261,
                sequences: Sequences::Rows(261),
                window: Some(64),
                ..grouped
            },
        ),
        case(
            "window of 20, documents of 1 to 82",
            Call {
                sequences: DOCUMENTS,
                window: Some(20),
                ..ungrouped
            },
        ),
        case(
            "large scores",
            Call {
                spread: 8.0,
                ..ungrouped
            },
        ),
    ]
}

/// As models have them: a GPU has kernels for some of these sizes alone.
fn wide_heads() -> Vec<Case> {
    vec![
        case(
            "one row of 331, 4 heads of 64 in 1 group",
            Call {
                tokens: 331,
                sequences: Sequences::Rows(331),
                heads: 4,
                kv_heads: 1,
                head_dim: 64,
                ..CALL
            },
        ),
        case(
            "documents of 1 to 82, 4 heads of 64 in 2 groups",
            Call {
                sequences: DOCUMENTS,
                heads: 4,
                head_dim: 64,
                ..CALL
            },
        ),
        case(
            "window of 70, one row of 261, 2 heads of 128 in 1 group",
            Call {
                tokens: 261,
                sequences: Sequences::Rows(261),
                window: Some(70),
                kv_heads: 1,
                head_dim: 128,
                ..CALL
            },
        ),
        case(
            "3 rows of 128, 4 heads of 64 in 2 groups",
            Call {
                tokens: 384,
                sequences: Sequences::Rows(128),
                heads: 4,
                head_dim: 64,
                ..CALL
            },
        ),
        case(
            "window of 100, 2 rows of 256, 2 heads of 32",
            Call {
                tokens: 512,
                sequences: Sequences::Rows(256),
                window: Some(100),
                head_dim: 32,
                ..CALL
            },
        ),
        case(
            "one row of 70, 2 heads of 160",
            Call {
                tokens: 70,
                sequences: Sequences::Rows(70),
                head_dim: 160,
                ..CALL
            },
        ),
    ]
}

/// Queries, keys and values as parts of the rows of one tensor, as models have them: here where queries
/// are grouped.
fn beside(on: &Setting, of: [&[f64]; 3], call: &Call) -> Result<[Tensor; 3]> {
    let heads = [call.heads, call.kv_heads, call.kv_heads];
    let mut all = Vec::new();
    for token in 0..call.tokens {
        for (values, heads) in of.iter().zip(heads) {
            let width = heads * call.head_dim;
            all.extend_from_slice(&values[token * width..(token + 1) * width]);
        }
    }
    let all = on.tensor(&all, &[call.tokens, heads.iter().sum(), call.head_dim])?;
    let part = |first, count| all.narrow(1, first, count).expect("heads of it");
    Ok([
        part(0, call.heads),
        part(call.heads, call.kv_heads),
        part(call.heads + call.kv_heads, call.kv_heads),
    ])
}

fn attend(on: &Setting, call: Call) -> Result<Vec<Compared>> {
    let queries = [call.tokens, call.heads, call.head_dim];
    let keys = [call.tokens, call.kv_heads, call.head_dim];
    let elements = |shape: [usize; 3]| shape.iter().product();
    let q = on.affine(on.normals("q", elements(queries)), call.spread, 0.0);
    let dout = on.normals("dout", elements(queries));
    let (k, v) = (
        on.normals("k", elements(keys)),
        on.normals("v", elements(keys)),
    );
    let scale = 1.0 / (call.head_dim as f64).sqrt();

    let [fast_q, fast_k, fast_v] = if call.heads > call.kv_heads {
        beside(on, [&q, &k, &v], &call)?
    } else {
        [
            on.tensor(&q, &queries)?,
            on.tensor(&k, &keys)?,
            on.tensor(&v, &keys)?,
        ]
    };
    let inputs = Inputs {
        q: &fast_q,
        k: &fast_k,
        v: &fast_v,
        scale,
        sequences: call.sequences,
        window: call.window,
    };
    let attended = attention::forward(&inputs)?;
    let gradients = attention::backward(&on.tensor(&dout, &queries)?, &inputs, &attended)?;

    let sequence_of: Vec<usize> = (0..call.sequences.count(call.tokens))
        .flat_map(|index| call.sequences.range(index).map(move |_| index))
        .collect();
    let reference = Reference {
        q: &q,
        k: &k,
        v: &v,
        heads: call.heads,
        kv_heads: call.kv_heads,
        head_dim: call.head_dim,
        scale,
        sequence_of: &sequence_of,
        window: call.window,
    };
    let expected = reference.run(&dout);
    Ok(vec![
        Compared::new("out", values(&attended.out)?, expected.out),
        Compared::new("lse", values(&attended.lse)?, expected.lse),
        Compared::new("dq", values(&gradients.dq)?, expected.dq),
        Compared::new("dk", values(&gradients.dk)?, expected.dk),
        Compared::new("dv", values(&gradients.dv)?, expected.dv),
    ])
}
