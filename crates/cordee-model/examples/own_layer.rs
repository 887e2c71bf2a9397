//! A layer of one's own in a model: a mixture of each token with the one before it, written in
//! candle's operations, between an embedding and a head that are cordee's.
//!
//! `cargo run --release --example own_layer`

#![allow(
    clippy::print_stdout,
    clippy::unreadable_literal,
    reason = "an example prints what it does"
)]

use std::error::Error;

use candle_core::{D, Tensor};
use cordee_config::ModelConfig;
use cordee_memory::{Buffer, DType, View, ViewMut};
use cordee_model::{
    CandleSegment, Context, Embedding, Gradients, Head, Init, Keep, Model, Parameter, Reached,
    Segment, Weights,
};
use cordee_ops::{
    Sequences,
    adamw::{self, AdamW},
};

const VOCAB: usize = 16;
const DIM: usize = 24;
const SEQ_LEN: usize = 12;

/// `x + W [x_t, x_(t-1)]`, with a gain for each channel.
fn mix(context: &Context<'_>, weights: &[Tensor], x: &Tensor) -> candle_core::Result<Tensor> {
    let [matrix, gain] = weights else {
        candle_core::bail!("two parameters were registered")
    };
    let rows = context.tokens() / SEQ_LEN;
    let sequences = x.reshape((rows, SEQ_LEN, DIM))?;
    let before = sequences
        .narrow(1, 0, SEQ_LEN - 1)?
        .pad_with_zeros(1, 1, 0)?
        .reshape((rows * SEQ_LEN, DIM))?;
    let both = Tensor::cat(&[x, &before], D::Minus1)?;
    x + both.matmul(&matrix.t()?)?.broadcast_mul(gain)?
}

/// Trains for `steps` steps; returns the loss of the first and of the last.
pub(crate) fn train(steps: u64) -> Result<(f64, f64), Box<dyn Error>> {
    let matrix = Parameter::new("mix.weight", &[DIM, 2 * DIM], Init::Normal { std: 0.1 });
    let gain = Parameter::new("mix.gain", &[DIM], Init::Ones);
    let own = CandleSegment::new("the mixing layer", DIM, vec![matrix, gain], mix);
    let blocks: Vec<Box<dyn Segment>> = vec![Box::new(own)];
    let config = ModelConfig::llama(DIM, 1, 1, DIM);
    let (embedding, head) = (
        Embedding::new(&config, VOCAB, SEQ_LEN),
        Head::new(&config, VOCAB),
    );
    let model = Model::from_segments(embedding, blocks, head, SEQ_LEN);

    let layout = model.layout(DType::F32)?;
    let zeros = || Buffer::zeroed(DType::F32, layout.len());
    let (mut parameters, mut gradients) = (zeros()?, zeros()?);
    let (mut first_moment, mut second_moment) = (zeros()?, zeros()?);
    model.initialise(&layout, &mut parameters, 1)?;

    // Each token is the sum of the two before it.
    let tokens: Vec<u32> = (0..4_u32)
        .flat_map(|row| {
            std::iter::successors(Some((row, 3 * row + 1)), |(a, b)| Some((*b, (a + b) % 16)))
                .map(|(token, _)| token)
                .take(SEQ_LEN + 1)
        })
        .collect();
    let rows = || tokens.chunks_exact(SEQ_LEN + 1);
    let inputs: Vec<u32> = rows().flat_map(|row| &row[..SEQ_LEN]).copied().collect();
    let targets: Vec<u32> = rows().flat_map(|row| &row[1..]).copied().collect();
    let context = Context {
        sequences: Sequences::Rows(SEQ_LEN),
        inputs: &inputs,
        targets: &targets,
        loss_mask: None,
    };

    let mut losses = Vec::new();
    let mut reached = Reached::new(model.parameters().len());
    for step in 1..=steps {
        let views = layout
            .slots()
            .iter()
            .map(|slot| parameters.slot_view(slot))
            .collect::<Result<Vec<_>, _>>()?;
        let slots = |segment| model.ids(segment).iter().map(|&id| layout.slot(id));
        reached.begin_step();
        let weights = |segment| Weights::new(&views, model.ids(segment));

        let mut kept = Vec::new();
        let x = model.forward(&context, &views, Keep::All, |saved| kept.push(saved))?;
        let mut lent = gradients.views_mut(slots(2))?;
        let mut of = Gradients::new(&mut lent, model.ids(2), &mut reached);
        let mut sum = [0.0];
        let mut nll = ViewMut::from_slice(&mut sum, &[1])?;
        let (loss, dx) =
            model
                .head
                .loss_and_gradient(&context, weights(2), &x, &mut of, &mut nll)?;
        let mut lent = gradients.views_mut(slots(1))?;
        let mut of = Gradients::new(&mut lent, model.ids(1), &mut reached);
        let saved = kept.pop().ok_or("one block keeps one thing")?;
        let dx = model.blocks[0].backward(&context, weights(1), saved, dx, &mut of)?;
        let mut lent = gradients.views_mut(slots(0))?;
        let mut of = Gradients::new(&mut lent, model.ids(0), &mut reached);
        model.embedding.backward(&context, &dx, &mut of)?;
        let scale = [1.0 / loss.trained as f64];
        losses.push(sum[0] * scale[0]);

        drop(views);
        for slot in layout.slots() {
            let updated = adamw::State {
                params: parameters.slot_view_mut(slot)?,
                m: first_moment.slot_view_mut(slot)?,
                v: second_moment.slot_view_mut(slot)?,
                compute: None,
            };
            let hyper = AdamW {
                lr: 0.02,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.0,
                step,
            };
            let scale = View::from_slice(&scale, &[1])?;
            adamw::step(updated, gradients.slot_view(slot)?, scale, &hyper)?;
        }
    }
    Ok((losses[0], losses[losses.len() - 1]))
}

#[allow(dead_code, reason = "the test that runs this example calls `train`")]
fn main() -> Result<(), Box<dyn Error>> {
    let (first, last) = train(60)?;
    println!("loss {first:.3} -> {last:.3}");
    Ok(())
}
