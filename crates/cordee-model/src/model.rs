//! A whole model: its segments in order, and the list of all parameters.

use std::sync::Arc;

use candle_core::Tensor;
use cordee_config::{ModelConfig, ModelFamily};
use cordee_memory::{Buffer, DType, Layout, View, ViewMut};
use cordee_ops::{
    random::{self, Stream},
    rotary,
};

use crate::{
    Context, Embedding, Head, Init, ModelError, Parameter, Saved, Segment, Weights,
    llama::LlamaBlock,
};

/// An embedding, blocks and a head.
///
/// Segments are counted from the embedding (0) through the blocks to the head; their parameters
/// lie one after the other in that order, so that a segment's gradients are one range of a flat
/// buffer.
pub struct Model {
    /// The first segment.
    pub embedding: Embedding,
    /// The segments between.
    pub blocks: Vec<Box<dyn Segment>>,
    /// The last segment.
    pub head: Head,
    parameters: Vec<Parameter>,
    ids: Vec<Vec<usize>>,
    max_seq_len: usize,
}

impl Model {
    /// Builds the model that `config` describes, over `vocab_size` tokens and sequences of at most
    /// `max_seq_len`. The config has been validated.
    pub fn new(
        config: &ModelConfig,
        vocab_size: usize,
        max_seq_len: usize,
    ) -> Result<Self, ModelError> {
        if config.family != ModelFamily::Llama {
            return Err(ModelError::Family(config.family.name()));
        }
        let head_dim = config.head_dim.unwrap_or(config.dim / config.heads);
        let rotary = Arc::new(rotary::Table::new(
            head_dim,
            max_seq_len,
            config.rope_theta,
            rotary::Scaling::None,
        )?);
        let blocks = (0..config.layers)
            .map(|layer| {
                Box::new(LlamaBlock::new(layer, config, Arc::clone(&rotary))) as Box<dyn Segment>
            })
            .collect();
        let embedding = Embedding::new(vocab_size, config.dim, config.init_std);
        let head = Head::new(vocab_size, config.dim, config);
        Ok(Self::from_segments(embedding, blocks, head, max_seq_len))
    }

    /// A model of given segments.
    pub fn from_segments(
        embedding: Embedding,
        blocks: Vec<Box<dyn Segment>>,
        head: Head,
        max_seq_len: usize,
    ) -> Self {
        let mut parameters = Vec::new();
        let mut ids: Vec<Vec<usize>> = Vec::new();
        let own = std::iter::once(embedding.parameters())
            .chain(blocks.iter().map(|block| block.parameters()))
            .chain([head.parameters()]);
        for segment in own {
            ids.push((parameters.len()..parameters.len() + segment.len()).collect());
            parameters.extend_from_slice(segment);
        }
        if head.tied() {
            let table = ids[0][0];
            ids.last_mut().expect("the head is a segment").push(table);
        }
        Self {
            embedding,
            blocks,
            head,
            parameters,
            ids,
            max_seq_len,
        }
    }

    /// All parameters, segment by segment.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of trainable elements; a tied matrix counts once.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(Parameter::elements).sum()
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.ids.len()
    }

    /// Which parameters a segment is lent; a tied head's last one is the embedding's.
    pub fn ids(&self, segment: usize) -> &[usize] {
        &self.ids[segment]
    }

    /// The residual stream after the last block, `[rows × seq_len, dim]`. What each block keeps for
    /// its backward goes to `keep`, in order.
    pub fn forward(
        &self,
        context: &Context<'_>,
        parameters: &[View<'_>],
        mut keep: impl FnMut(Saved),
    ) -> Result<Tensor, ModelError> {
        let weights = |segment| Weights::new(parameters, self.ids(segment));
        let mut x = self.embedding.forward(context, weights(0))?;
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, saved) = block.forward(context, weights(index + 1), x)?;
            keep(saved);
            x = y;
        }
        Ok(x)
    }

    /// Longest sequence the model was built for.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }

    /// Where each parameter lies in a flat buffer.
    pub fn layout(&self, dtype: DType) -> Result<Layout, ModelError> {
        let tensors = self
            .parameters
            .iter()
            .map(|parameter| (parameter.name.clone(), parameter.shape.clone()));
        Ok(Layout::new(dtype, tensors)?)
    }

    /// Writes the initial weights. Each element depends on the seed, the parameter's name and its
    /// own index alone, so every rank computes the same without being told.
    pub fn initialise(
        &self,
        layout: &Layout,
        buffer: &mut Buffer,
        seed: u64,
    ) -> Result<(), ModelError> {
        for (parameter, slot) in self.parameters.iter().zip(layout.slots()) {
            let mut view = buffer.slot_view_mut(slot)?;
            match parameter.init {
                Init::Normal { std } => {
                    random::normal_fill(&mut view, Stream::named(seed, &parameter.name), std)?;
                }
                Init::Ones => fill_with_ones(&mut view)?,
            }
        }
        Ok(())
    }
}

fn fill_with_ones(view: &mut ViewMut<'_>) -> Result<(), ModelError> {
    match view.dtype() {
        DType::F32 => view.as_mut_slice::<f32>()?.fill(1.0),
        DType::F64 => view.as_mut_slice::<f64>()?.fill(1.0),
    }
    Ok(())
}
