//! The backward of whole models of every family against finite differences, in f64.

#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]

use cordee_config::{Gelu, ModelConfig, ModelFamily, RopeScaling, RopeScalingKind};
use cordee_memory::{Buffer, DType, Layout, View, ViewMut};
use cordee_model::{Context, Gradients, Keep, Model, Reached, Weights};
use cordee_ops::Sequences;

const VOCAB: usize = 19;
const SEQ_LEN: usize = 7;
const TOKENS: usize = 2 * SEQ_LEN;

/// Two sequences of one length, and three of other lengths.
const ROWS: Sequences<'_> = Sequences::Rows(SEQ_LEN);
const DOCUMENTS: Sequences<'_> = Sequences::Documents(&[0, 3, 9, 14]);

fn small(family: ModelFamily) -> ModelConfig {
    ModelConfig {
        family,
        kv_heads: Some(2),
        head_dim: Some(4),
        rope_theta: 100.0,
        // Large, so that no gradient is lost in the differences.
        init_std: 0.4,
        ..ModelConfig::llama(12, 2, 4, 10)
    }
}

/// Every family, with what sets it apart and more than once where it has variants.
fn configs() -> Vec<(&'static str, ModelConfig)> {
    use ModelFamily::{Gemma3, Gpt2, Llama, Mistral, Qwen2, Qwen3};
    let llama31 = RopeScaling {
        kind: RopeScalingKind::Llama3,
        factor: 4.0,
        low_freq_factor: Some(1.0),
        high_freq_factor: Some(2.0),
        original_max_positions: Some(8),
    };
    let linear = RopeScaling {
        kind: RopeScalingKind::Linear,
        factor: 2.0,
        low_freq_factor: None,
        high_freq_factor: None,
        original_max_positions: None,
    };
    let gpt2 = |tie_embeddings, gelu| ModelConfig {
        kv_heads: None,
        head_dim: None,
        max_positions: Some(9),
        tie_embeddings,
        gelu: Some(gelu),
        ..small(Gpt2)
    };
    vec![
        ("llama", small(Llama)),
        (
            "llama 3.1, tied",
            ModelConfig {
                tie_embeddings: true,
                rope_scaling: Some(llama31),
                ..small(Llama)
            },
        ),
        ("qwen2", small(Qwen2)),
        ("qwen3", small(Qwen3)),
        (
            "mistral",
            ModelConfig {
                sliding_window: Some(3),
                ..small(Mistral)
            },
        ),
        (
            "gemma3",
            ModelConfig {
                tie_embeddings: true,
                sliding_window: Some(3),
                full_attention_layers: Some(vec![1]),
                rope_local_theta: Some(10.0),
                rope_scaling: Some(linear),
                query_pre_attn_scalar: Some(5),
                ..small(Gemma3)
            },
        ),
        ("gpt2, tied", gpt2(true, Gelu::Tanh)),
        ("gpt2, exact", gpt2(false, Gelu::Exact)),
    ]
}

struct Case {
    model: Model,
    layout: Layout,
    parameters: Buffer,
    sequences: Sequences<'static>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    mask: Vec<u8>,
}

impl Case {
    fn new(config: &ModelConfig, sequences: Sequences<'static>) -> Self {
        let model = Model::new(config, VOCAB, SEQ_LEN).unwrap();
        let layout = model.layout(DType::F64).unwrap();
        let mut parameters = Buffer::zeroed(DType::F64, layout.len()).unwrap();
        model.initialise(&layout, &mut parameters, 5).unwrap();
        // Gains away from 1 and biases away from 0, so that one that is dropped shows.
        for slot in layout.slots() {
            for index in slot.range() {
                let value = &mut parameters.as_mut_slice::<f64>().unwrap()[index];
                *value = *value * (1.0 + 0.2 * (index as f64).sin()) + 0.1 * (index as f64).cos();
            }
        }
        let token = |index: usize| ((index * index * 7 + 3 * index + 1) % VOCAB) as u32;
        Self {
            sequences,
            inputs: (0..TOKENS).map(token).collect(),
            targets: (0..TOKENS).map(|index| token(index + 5)).collect(),
            mask: (0..TOKENS).map(|index| u8::from(index % 5 != 0)).collect(),
            model,
            layout,
            parameters,
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            sequences: self.sequences,
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
        let x = self
            .model
            .forward(&context, &views, Keep::Dear, drop)
            .unwrap();
        let head = self.model.segments() - 1;
        let weights = Weights::new(&views, self.model.ids(head));
        let mut sum = [0.0];
        let mut nll = ViewMut::from_slice(&mut sum, &[1]).unwrap();
        let head = &self.model.head;
        head.loss(&context, weights, &x, &mut nll).unwrap();
        sum[0]
    }

    fn gradient(&self, keep: Keep) -> Buffer {
        let (views, context) = (self.views(), self.context());
        let weights = |segment| Weights::new(&views, self.model.ids(segment));
        let mut buffer = Buffer::zeroed(DType::F64, self.layout.len()).unwrap();
        // What an earlier step left.
        buffer.as_mut_slice::<f64>().unwrap().fill(f64::NAN);
        let mut reached = Reached::new(self.layout.slots().len());
        let ids = |segment| self.model.ids(segment);
        let slots = |segment| ids(segment).iter().map(|&id| self.layout.slot(id));
        let mut kept = Vec::new();
        let x = self
            .model
            .forward(&context, &views, keep, |saved| kept.push(saved))
            .unwrap();
        let head = self.model.segments() - 1;
        let mut gradients = buffer.views_mut(slots(head)).unwrap();
        let mut lent = Gradients::new(&mut gradients, ids(head), &mut reached);
        let mut sum = [0.0];
        let mut nll = ViewMut::from_slice(&mut sum, &[1]).unwrap();
        let (_, mut dx) = self
            .model
            .head
            .loss_and_gradient(&context, weights(head), &x, &mut lent, &mut nll)
            .unwrap();
        for (index, block) in self.model.blocks.iter().enumerate().rev() {
            let mut gradients = buffer.views_mut(slots(index + 1)).unwrap();
            let mut lent = Gradients::new(&mut gradients, ids(index + 1), &mut reached);
            let saved = kept.pop().unwrap();
            dx = block
                .backward(&context, weights(index + 1), saved, dx, &mut lent)
                .unwrap();
        }
        let mut gradients = buffer.views_mut(slots(0)).unwrap();
        let mut lent = Gradients::new(&mut gradients, ids(0), &mut reached);
        self.model
            .embedding
            .backward(&context, &dx, &mut lent)
            .unwrap();
        assert_eq!(reached.never(), None, "every parameter is reached");
        buffer
    }
}

#[test]
fn every_gradient_equals_its_finite_difference() {
    for (name, config) in configs() {
        for sequences in [ROWS, DOCUMENTS] {
            let mut case = Case::new(&config, sequences);
            let gradient = case.gradient(Keep::All);
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
                        "{name}, {sequences:?}: {} element {}: {found}, by differences {expected}",
                        slot.name(),
                        index - slot.offset()
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for (name, config) in configs() {
        let case = Case::new(&config, DOCUMENTS);
        let [all, dear] = [Keep::All, Keep::Dear].map(|keep| case.gradient(keep));
        assert!(
            all.as_bytes().unwrap() == dear.as_bytes().unwrap(),
            "{name}"
        );
    }
}

#[test]
fn initial_weights_follow_the_seed_and_the_name_alone() {
    let config = small(ModelFamily::Llama);
    let deep = Model::new(&config, VOCAB, SEQ_LEN).unwrap();
    let shallow = ModelConfig {
        layers: 1,
        ..config
    };
    let shallow = Model::new(&shallow, VOCAB, SEQ_LEN).unwrap();
    let start = |model: &Model, seed| {
        let layout = model.layout(DType::F32).unwrap();
        let mut buffer = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        model.initialise(&layout, &mut buffer, seed).unwrap();
        let query = layout.find("model.layers.0.self_attn.q_proj.weight");
        let slot = layout.slot(query.unwrap());
        buffer.slot_view(slot).unwrap().to_bytes().unwrap()
    };
    assert_eq!(start(&deep, 1), start(&shallow, 1));
    assert_ne!(start(&deep, 1), start(&deep, 2));
}
