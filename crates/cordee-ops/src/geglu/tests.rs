use super::{backward, forward};
use crate::{
    float::Float,
    gelu::{
        self,
        Approximation::{self, Exact, Tanh},
    },
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, dot, normals, tensor,
        values,
    },
};

/// gate, a few times wider than usual, and up.
fn inputs(count: usize) -> Vec<Vec<f64>> {
    let gate = normals("gate", count);
    let gate = gate.iter().map(|value| 3.0 * value).collect();
    vec![gate, normals("up", count)]
}

fn ours<T: Float>(inputs: &[Vec<f64>], approximation: Approximation) -> Outcome {
    let shape = [inputs[0].len() / 5, 5];
    let (gate, up) = (
        tensor::<T>(&inputs[0], &shape),
        tensor::<T>(&inputs[1], &shape),
    );
    let y = forward(&gate, &up, approximation).unwrap();
    let dy = tensor::<T>(&normals("dy", inputs[0].len()), &shape);
    let (dgate, dup) = backward(&dy, &gate, &up, approximation).unwrap();
    vec![
        ("y", values(&y)),
        ("dgate", values(&dgate)),
        ("dup", values(&dup)),
    ]
}

#[test]
fn gradients_are_slopes() {
    let (inputs, dy) = (inputs(35), normals("dy", 35));
    for approximation in [Exact, Tanh] {
        let outcome = ours::<f64>(&inputs, approximation);
        let gradients = [outcome[1].1.clone(), outcome[2].1.clone()];
        assert_gradients(&inputs, &gradients, |inputs| {
            dot(&ours::<f64>(inputs, approximation)[0].1, &dy)
        });
    }
}

/// Whose own tests compare it with autograd.
#[test]
fn is_the_unit_of_the_gate_times_up() {
    let inputs = inputs(50_000);
    let gate = tensor::<f64>(&inputs[0], &[50_000]);
    let up = tensor::<f64>(&inputs[1], &[50_000]);
    let dy = tensor::<f64>(&normals("dy", 50_000), &[50_000]);
    for approximation in [Exact, Tanh] {
        let activated = gelu::forward(&gate, approximation).unwrap();
        let y = (&activated * &up).unwrap();
        let dgate = gelu::backward(&(&dy * &up).unwrap(), &gate, approximation).unwrap();
        let expected = vec![
            ("y", values(&y)),
            ("dgate", values(&dgate)),
            ("dup", values(&(&dy * activated).unwrap())),
        ];
        assert_close(&ours::<f64>(&inputs, approximation), &expected, 1e-15);
        assert_close(&ours::<f32>(&inputs, approximation), &expected, 1e-6);
    }
}

#[test]
fn threads_do_not_matter() {
    let inputs = inputs(50_000);
    for approximation in [Exact, Tanh] {
        assert_thread_independent(|| ours::<f32>(&inputs, approximation));
    }
}

#[test]
fn shapes_must_agree() {
    let (gate, up) = (
        tensor::<f32>(&[0.0; 4], &[4]),
        tensor::<f32>(&[0.0; 4], &[2, 2]),
    );
    let error = forward(&gate, &up, Exact).unwrap_err().to_string();
    assert_eq!(error, "geglu: `up` has shape [2, 2], expected [4]");
}
