use super::{backward, forward};
use crate::{
    float::Float,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, dot, leaf,
        normals, tensor, values,
    },
};

/// gate, a few times wider than usual, and up.
fn inputs(count: usize) -> Vec<Vec<f64>> {
    let gate = normals("gate", count)
        .iter()
        .map(|value| 8.0 * value)
        .collect();
    vec![gate, normals("up", count)]
}

fn ours<T: Float>(inputs: &[Vec<f64>]) -> Outcome {
    let shape = [inputs[0].len() / 5, 5];
    let (gate, up) = (
        tensor::<T>(&inputs[0], &shape),
        tensor::<T>(&inputs[1], &shape),
    );
    let y = forward(&gate, &up).unwrap();
    let dy = tensor::<T>(&normals("dy", inputs[0].len()), &shape);
    let (dgate, dup) = backward(&dy, &gate, &up).unwrap();
    vec![
        ("y", values(&y)),
        ("dgate", values(&dgate)),
        ("dup", values(&dup)),
    ]
}

#[test]
fn gradients_are_slopes() {
    let inputs = inputs(35);
    let outcome = ours::<f64>(&inputs);
    let dy = normals("dy", 35);
    assert_gradients(
        &inputs,
        &[outcome[1].1.clone(), outcome[2].1.clone()],
        |inputs| dot(&ours::<f64>(inputs)[0].1, &dy),
    );
}

#[test]
fn agrees_with_autograd() {
    let inputs = inputs(50_000);
    let (gate, up) = (leaf(&inputs[0], &[50_000]), leaf(&inputs[1], &[50_000]));
    let denominator = (gate.neg().unwrap().exp().unwrap() + 1.0).unwrap();
    let y = ((gate.as_tensor() / denominator).unwrap() * up.as_tensor()).unwrap();
    let gradients = autograd(&y, &normals("dy", 50_000), &[&gate, &up]);
    let expected = vec![
        ("y", values(&y)),
        ("dgate", gradients[0].clone()),
        ("dup", gradients[1].clone()),
    ];
    assert_close(&ours::<f64>(&inputs), &expected, 1e-14);
    assert_close(&ours::<f32>(&inputs), &expected, 1e-6);
}

#[test]
fn threads_do_not_matter() {
    let inputs = inputs(50_000);
    assert_thread_independent(|| ours::<f32>(&inputs));
}

#[test]
fn extreme_gates_stay_finite() {
    let gate = tensor::<f32>(&[-1000.0, -90.0, 90.0, 1000.0], &[4]);
    let ones = tensor::<f32>(&[1.0; 4], &[4]);
    let y = values(&forward(&gate, &ones).unwrap());
    assert_close(
        &vec![("y", y)],
        &vec![("y", vec![0.0, 0.0, 90.0, 1000.0])],
        1e-7,
    );
    let (dgate, _) = backward(&ones, &gate, &ones).unwrap();
    let expected = vec![("dgate", vec![0.0, 0.0, 1.0, 1.0])];
    assert_close(&vec![("dgate", values(&dgate))], &expected, 1e-7);
}

#[test]
fn shapes_must_agree() {
    let (gate, up) = (
        tensor::<f32>(&[0.0; 4], &[4]),
        tensor::<f32>(&[0.0; 4], &[2, 2]),
    );
    let error = forward(&gate, &up).unwrap_err().to_string();
    assert_eq!(error, "swiglu: `up` has shape [2, 2], expected [4]");
}
