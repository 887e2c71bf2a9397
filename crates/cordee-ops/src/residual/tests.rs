use super::forward;
use crate::testing::{assert_thread_independent, normals, tensor, values};

#[test]
fn elements_are_added_whatever_the_threads() {
    let count = 50_021;
    let (x, added) = (normals("x", count), normals("added", count));
    let sum: Vec<f64> = x.iter().zip(&added).map(|(x, added)| x + added).collect();
    let run = || {
        let y = forward(
            &tensor::<f64>(&x, &[count]),
            &tensor::<f64>(&added, &[count]),
        );
        vec![("y", values(&y.unwrap()))]
    };
    assert_eq!(run()[0].1, sum);
    assert_thread_independent(run);
}

#[test]
fn shapes_must_agree() {
    let (x, added) = (
        tensor::<f32>(&[0.0; 4], &[4]),
        tensor::<f32>(&[0.0; 4], &[2, 2]),
    );
    let error = forward(&x, &added).unwrap_err().to_string();
    assert_eq!(error, "residual: `added` has shape [2, 2], expected [4]");
}
