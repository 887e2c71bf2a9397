//! Layers of candle operations as segments.

#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "../examples/own_layer.rs"]
mod own_layer;

use candle_core::{Device, Tensor};
use cordee_memory::{Buffer, DType, Layout};
use cordee_model::{
    CandleLayer, CandleSegment, Context, Gradients, Init, Keep, ModelError, Parameter, Reached,
    Segment, Weights,
};
use cordee_ops::Sequences;

#[test]
fn the_example_learns() {
    let (first, last) = own_layer::train(60).unwrap();
    assert!(first > 2.0 && last < 0.5, "{first} -> {last}");
}

const X: [f64; 4] = [0.5, -1.0, 2.0, 0.25];

/// y and dx of a layer with the one parameter `w` = [1.5, -2], whose dw is returned too; dw held 10
/// before, and dy is [[1, 2], [3, 4]].
fn run(layer: impl CandleLayer) -> Result<[Vec<f64>; 3], ModelError> {
    let parameter = Parameter::new("w", &[2], Init::Ones);
    let segment = CandleSegment::new("a layer", 2, vec![parameter], layer);
    let layout = Layout::new(DType::F64, [("w".to_owned(), vec![2])]).unwrap();
    let mut weights = Buffer::zeroed(DType::F64, layout.len()).unwrap();
    let mut gradients = Buffer::zeroed(DType::F64, layout.len()).unwrap();
    let fill = |buffer: &mut Buffer, values: [f64; 2]| {
        let mut view = buffer.slot_view_mut(layout.slot(0)).unwrap();
        view.as_mut_slice::<f64>().unwrap().copy_from_slice(&values);
    };
    fill(&mut weights, [1.5, -2.0]);
    fill(&mut gradients, [f64::NAN, f64::NAN]);
    let context = Context {
        sequences: Sequences::Rows(2),
        inputs: &[0, 0],
        targets: &[],
        loss_mask: None,
    };
    let tensor = |values: &[f64]| Tensor::from_slice(values, (2, 2), &Device::Cpu).unwrap();
    let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let views = [weights.slot_view(layout.slot(0)).unwrap()];
    let lent = Weights::new(&views, &[0]);
    let (y, saved) = segment.forward(&context, lent, tensor(&X), Keep::All)?;
    let mut reached = Reached::new(1);
    let mut views = gradients.views_mut(layout.slots()).unwrap();
    let mut of = Gradients::new(&mut views, &[0], &mut reached);
    let held = of.get(0)?.as_mut_slice::<f64>().unwrap();
    assert_eq!(held, [0.0, 0.0], "what an earlier step left");
    held.copy_from_slice(&[10.0, 10.0]);
    let dx = segment.backward(
        &context,
        lent,
        saved,
        tensor(&[1.0, 2.0, 3.0, 4.0]),
        &mut of,
    )?;
    assert_eq!(reached.never(), None);
    let dw = views[0].as_mut_slice::<f64>().unwrap().to_vec();
    Ok([numbers(&y), numbers(&dx), dw])
}

#[test]
fn gradients_are_those_of_the_chain_rule_and_are_added() {
    // y = w x^2: dx = 2 w x dy, dw = sum of x^2 dy.
    let [y, dx, dw] =
        run(|_: &Context<'_>, weights: &[Tensor], x: &Tensor| x.sqr()?.broadcast_mul(&weights[0]))
            .unwrap();
    assert_eq!(y, [0.375, -2.0, 6.0, -0.125]);
    assert_eq!(dx, [1.5, 8.0, 18.0, -4.0]);
    assert_eq!(dw, [10.0 + 0.25 + 12.0, 10.0 + 2.0 + 0.25]);
}

#[test]
fn what_gets_no_gradient_is_named() {
    let unused = run(|_: &Context<'_>, _: &[Tensor], x: &Tensor| x.sqr()).unwrap_err();
    assert!(
        unused.to_string().contains("a layer gives `w` no gradient"),
        "{unused}"
    );
    let cut = run(|_: &Context<'_>, weights: &[Tensor], x: &Tensor| {
        x.broadcast_mul(&weights[0].detach())
    });
    assert!(cut.unwrap_err().to_string().contains("`w`"));
}
