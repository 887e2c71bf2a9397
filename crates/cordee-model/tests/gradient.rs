//! The backward of whole models against finite differences, in f64.

#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]

use cordee_config::ModelConfig;
use cordee_memory::{Buffer, DType, Layout, View};
use cordee_model::{Context, Gradients, Model, Weights};

const VOCAB: usize = 19;
const ROWS: usize = 2;
const SEQ_LEN: usize = 7;

fn config(tie_embeddings: bool) -> ModelConfig {
    ModelConfig {
        kv_heads: Some(2),
        head_dim: Some(4),
        rope_theta: 100.0,
        tie_embeddings,
        // Large, so that no gradient is lost in the differences.
        init_std: 0.4,
        ..ModelConfig::llama(12, 2, 4, 10)
    }
}

struct Case {
    model: Model,
    layout: Layout,
    parameters: Buffer,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    mask: Vec<u8>,
}

impl Case {
    fn new(tie_embeddings: bool) -> Self {
        let model = Model::new(&config(tie_embeddings), VOCAB, SEQ_LEN).unwrap();
        let layout = model.layout(DType::F64).unwrap();
        let mut parameters = Buffer::zeroed(DType::F64, layout.len()).unwrap();
        model.initialise(&layout, &mut parameters, 5).unwrap();
        // Gains away from 1, so that one that is dropped shows.
        for (index, value) in parameters
            .as_mut_slice::<f64>()
            .unwrap()
            .iter_mut()
            .enumerate()
        {
            *value *= 1.0 + 0.2 * (index as f64).sin();
        }
        let token = |index: usize| ((index * index * 7 + 3 * index + 1) % VOCAB) as u32;
        Self {
            inputs: (0..ROWS * SEQ_LEN).map(token).collect(),
            targets: (0..ROWS * SEQ_LEN).map(|index| token(index + 5)).collect(),
            mask: (0..ROWS * SEQ_LEN)
                .map(|index| u8::from(index % 5 != 0))
                .collect(),
            model,
            layout,
            parameters,
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            rows: ROWS,
            seq_len: SEQ_LEN,
            inputs: &self.inputs,
            targets: &self.targets,
            loss_mask: Some(&self.mask),
        }
    }

    fn views(&self) -> Vec<View<'_>> {
        self.layout
            .slots()
            .iter()
            .map(|slot| self.parameters.slot_view(slot).unwrap())
            .collect()
    }

    fn loss(&self) -> f64 {
        let (views, context) = (self.views(), self.context());
        let x = self.model.forward(&context, &views, drop).unwrap();
        let head = self.model.segments() - 1;
        let weights = Weights::new(&views, self.model.ids(head));
        self.model.head.loss(&context, weights, &x).unwrap().nll_sum
    }

    fn gradient(&self) -> Buffer {
        let (views, context) = (self.views(), self.context());
        let weights = |segment| Weights::new(&views, self.model.ids(segment));
        let mut buffer = Buffer::zeroed(DType::F64, self.layout.len()).unwrap();
        let mut gradients = buffer.views_mut(self.layout.slots()).unwrap();
        let mut received = vec![false; gradients.len()];
        let mut kept = Vec::new();
        let x = self
            .model
            .forward(&context, &views, |saved| kept.push(saved))
            .unwrap();
        let head = self.model.segments() - 1;
        let mut lent = Gradients::new(&mut gradients, self.model.ids(head), &mut received);
        let (_, mut dx) = self
            .model
            .head
            .loss_and_gradient(&context, weights(head), &x, &mut lent)
            .unwrap();
        for (index, block) in self.model.blocks.iter().enumerate().rev() {
            let mut lent = Gradients::new(&mut gradients, self.model.ids(index + 1), &mut received);
            dx = block
                .backward(
                    &context,
                    weights(index + 1),
                    kept.pop().unwrap(),
                    dx,
                    &mut lent,
                )
                .unwrap();
        }
        let mut lent = Gradients::new(&mut gradients, self.model.ids(0), &mut received);
        self.model
            .embedding
            .backward(&context, &dx, &mut lent)
            .unwrap();
        assert_eq!(
            received,
            vec![true; received.len()],
            "every parameter is reached"
        );
        drop(gradients);
        buffer
    }
}

#[test]
fn every_gradient_equals_its_finite_difference() {
    for tied in [false, true] {
        let mut case = Case::new(tied);
        let gradient = case.gradient();
        let slots = case.layout.slots().to_vec();
        for slot in &slots {
            // A spread of elements of each parameter.
            for index in slot.range().step_by(slot.len().div_ceil(6)) {
                let step = 1e-5;
                let mut moved = |by: f64| {
                    case.parameters.as_mut_slice::<f64>().unwrap()[index] += by;
                    case.loss()
                };
                let (above, below) = (moved(step), moved(-2.0 * step));
                moved(step);
                let expected = (above - below) / (2.0 * step);
                let found = gradient.as_slice::<f64>().unwrap()[index];
                assert!(
                    (expected - found).abs() <= 1e-6 * (1.0 + expected.abs()),
                    "{} element {}: {found}, by differences {expected}",
                    slot.name(),
                    index - slot.offset()
                );
            }
        }
    }
}

#[test]
fn initial_weights_follow_the_seed_and_the_name_alone() {
    let deep = Model::new(&config(true), VOCAB, SEQ_LEN).unwrap();
    let shallow = Model::new(
        &ModelConfig {
            layers: 1,
            ..config(true)
        },
        VOCAB,
        SEQ_LEN,
    )
    .unwrap();
    let start = |model: &Model, seed| {
        let layout = model.layout(DType::F32).unwrap();
        let mut buffer = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        model.initialise(&layout, &mut buffer, seed).unwrap();
        let slot = layout
            .slot(
                layout
                    .find("model.layers.0.self_attn.q_proj.weight")
                    .unwrap(),
            )
            .clone();
        buffer
            .slot_view(&slot)
            .unwrap()
            .as_slice::<f32>()
            .unwrap()
            .to_vec()
    };
    assert_eq!(start(&deep, 1), start(&shallow, 1));
    assert_ne!(start(&deep, 1), start(&deep, 2));
}
