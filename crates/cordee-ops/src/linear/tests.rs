use cordee_memory::{View, ViewMut};

use super::{Branch, backward, backward_bias, backward_input, forward};
use crate::{
    float::Float,
    matrix::Write,
    testing::{
        Outcome, assert_close, assert_gradients, assert_thread_independent, autograd, cast, dot,
        leaf, normals, tensor, values, widen,
    },
};

/// x, weight and bias for sizes `[n, in, out]`.
fn inputs([n, input, output]: [usize; 3]) -> Vec<Vec<f64>> {
    vec![
        normals("x", n * input),
        normals("weight", output * input),
        normals("bias", output),
    ]
}

fn ours<T: Float>(inputs: &[Vec<f64>], [n, input, output]: [usize; 3]) -> Outcome {
    let x = tensor::<T>(&inputs[0], &[n, input]);
    let weight = cast::<T>(&inputs[1]);
    let weight = View::from_slice(&weight, &[output, input]).unwrap();
    let bias = cast::<T>(&inputs[2]);
    let bias = View::from_slice(&bias, &[output]).unwrap();
    let y = forward(&x, weight, Some(bias), None).unwrap();
    let dy = tensor::<T>(&normals("dy", n * output), &[n, output]);
    let mut dweight = vec![T::ZERO; output * input];
    let mut view = ViewMut::from_slice(&mut dweight, &[output, input]).unwrap();
    let dx = backward(&dy, &x, weight, &mut view, Write::Add).unwrap();
    let mut dbias = vec![T::ZERO; output];
    backward_bias(
        &dy,
        &mut ViewMut::from_slice(&mut dbias, &[output]).unwrap(),
    )
    .unwrap();
    vec![
        ("y", values(&y)),
        ("dx", values(&dx)),
        ("dweight", widen(&dweight)),
        ("dbias", widen(&dbias)),
    ]
}

#[test]
fn gradients_are_slopes() {
    let sizes = [3, 5, 7];
    let inputs = inputs(sizes);
    let outcome = ours::<f64>(&inputs, sizes);
    let dy = normals("dy", 3 * 7);
    let gradients: Vec<_> = outcome
        .into_iter()
        .skip(1)
        .map(|(_, values)| values)
        .collect();
    assert_gradients(&inputs, &gradients, |inputs| {
        dot(&ours::<f64>(inputs, sizes)[0].1, &dy)
    });
}

#[test]
fn agrees_with_autograd() {
    // One row, several tiles in both directions, and tiles that are cut off.
    for sizes in [[1, 33, 65], [300, 70, 1030], [129, 513, 3]] {
        let [n, input, output] = sizes;
        let inputs = inputs(sizes);
        let (x, weight, bias) = (
            leaf(&inputs[0], &[n, input]),
            leaf(&inputs[1], &[output, input]),
            leaf(&inputs[2], &[output]),
        );
        let y = x.matmul(&weight.t().unwrap()).unwrap();
        let y = y.broadcast_add(&bias).unwrap();
        let gradients = autograd(&y, &normals("dy", n * output), &[&x, &weight, &bias]);
        let expected = vec![
            ("y", values(&y)),
            ("dx", gradients[0].clone()),
            ("dweight", gradients[1].clone()),
            ("dbias", gradients[2].clone()),
        ];
        assert_close(&ours::<f64>(&inputs, sizes), &expected, 1e-13);
        assert_close(&ours::<f32>(&inputs, sizes), &expected, 2e-6);
    }
}

#[test]
fn threads_do_not_matter() {
    let sizes = [700, 65, 1100];
    let inputs = inputs(sizes);
    assert_thread_independent(|| ours::<f32>(&inputs, sizes));
}

#[test]
fn weight_gradients_accumulate() {
    let x = tensor::<f64>(&normals("x", 6), &[2, 3]);
    let dy = tensor::<f64>(&normals("dy", 10), &[2, 5]);
    let mut dweight = vec![0.0_f64; 15];
    // What was there before the first does not matter.
    dweight.fill(f64::NAN);
    for write in [Write::Replace, Write::Add] {
        let mut view = ViewMut::from_slice(&mut dweight, &[5, 3]).unwrap();
        super::backward_weight(&dy, &x, &mut view, write).unwrap();
    }
    let once = values(&dy.t().unwrap().matmul(&x).unwrap());
    let twice = once.iter().map(|value| 2.0 * value).collect();
    assert_close(
        &vec![("dweight", dweight)],
        &vec![("dweight", twice)],
        1e-15,
    );
}

#[test]
fn a_residual_is_added() {
    let sizes = [70, 33, 65];
    let [n, input, output] = sizes;
    let inputs = inputs(sizes);
    let x = tensor::<f64>(&inputs[0], &[n, input]);
    let weight = View::from_slice(&inputs[1], &[output, input]).unwrap();
    let bias = View::from_slice(&inputs[2], &[output]).unwrap();
    let residual = tensor::<f64>(&normals("residual", n * output), &[n, output]);
    for bias in [None, Some(bias)] {
        let fused = forward(&x, weight, bias, Some(&residual)).unwrap();
        let apart = (forward(&x, weight, bias, None).unwrap() + &residual).unwrap();
        assert_close(
            &vec![("y", values(&fused))],
            &vec![("y", values(&apart))],
            1e-14,
        );
    }
    let narrow = residual.narrow(1, 0, 64).unwrap();
    let error = forward(&x, weight, None, Some(&narrow))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "linear: `residual` has shape [70, 64], expected [70, 65]"
    );
}

#[test]
fn branches_of_one_input_are_summed() {
    let (n, input) = (50, 19);
    let outputs = [4, 9, 31];
    let weights = outputs.map(|output| normals("weight", output * input));
    let dys = outputs.map(|output| tensor::<f64>(&normals("dy", n * output), &[n, output]));
    let branches: Vec<_> = (0..3)
        .map(|i| Branch {
            dy: &dys[i],
            weight: View::from_slice(&weights[i], &[outputs[i], input]).unwrap(),
        })
        .collect();
    let dx = values(&backward_input(&branches).unwrap());
    let mut sum = vec![0.0; n * input];
    for branch in branches {
        for (sum, value) in sum
            .iter_mut()
            .zip(values(&backward_input(&[branch]).unwrap()))
        {
            *sum += value;
        }
    }
    assert_close(&vec![("dx", dx)], &vec![("dx", sum)], 1e-14);
    let error = backward_input(&[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "linear: `number of branches` is 0, expected at least 1"
    );
}

#[test]
fn transposed_and_empty_inputs_work() {
    let weight = cast::<f32>(&normals("weight", 12));
    let weight = View::from_slice(&weight, &[4, 3]).unwrap();
    let x = tensor::<f32>(&normals("x", 6), &[3, 2]).t().unwrap();
    let y = forward(&x, weight, None, None).unwrap();
    assert_eq!(
        values(&y),
        values(&forward(&x.contiguous().unwrap(), weight, None, None).unwrap())
    );
    let none = tensor::<f32>(&[], &[0, 3]);
    assert_eq!(forward(&none, weight, None, None).unwrap().dims(), [0, 4]);
}

#[test]
fn wrong_shapes_are_named() {
    let weight = [0.0_f32; 12];
    let weight = View::from_slice(&weight, &[4, 3]).unwrap();
    let x = tensor::<f32>(&[0.0; 8], &[2, 4]);
    let error = forward(&x, weight, None, None).unwrap_err().to_string();
    assert_eq!(error, "linear: `weight` has shape [4, 3], expected [4, 4]");
    let right = tensor::<f32>(&[0.0; 6], &[2, 3]);
    let bias = View::from_slice(&[0.0_f32; 3], &[3]).unwrap();
    let error = forward(&right, weight, Some(bias), None)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "linear: `bias` has shape [3], expected [4]");
    let mut dweight = [0.0_f32; 12];
    let mut view = ViewMut::from_slice(&mut dweight, &[4, 3]).unwrap();
    let error = backward(&x, &x, weight, &mut view, Write::Add)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "linear: `dweight` has shape [4, 3], expected [4, 4]");
    let mut dweight = [0.0_f32; 16];
    let mut view = ViewMut::from_slice(&mut dweight, &[4, 4]).unwrap();
    let ones = tensor::<f32>(&[1.0; 8], &[2, 4]);
    let short = View::from_slice(&[0.0_f32; 9], &[3, 3]).unwrap();
    let error = backward(&ones, &ones, short, &mut view, Write::Add)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "linear: `dy` has shape [2, 4], expected [2, 3]");
    assert_eq!(
        widen(&dweight),
        vec![0.0; 16],
        "a refused call wrote something"
    );
}
