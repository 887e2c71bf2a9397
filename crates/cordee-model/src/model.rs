//! A whole model: its segments in order, and the list of all parameters.

use candle_core::Tensor;
use cordee_config::ModelConfig;
use cordee_memory::{Buffer, DType, Layout, View};
use cordee_ops::{
    Device,
    attention::{self, Preparation},
};

use crate::{
    Context, Embedding, Head, Keep, ModelError, Parameter, Saved, Segment, Weights,
    families::blocks,
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
    /// Builds the model that `config` describes, for the `vocab_size` tokens of its tokenizer and
    /// sequences of at most `max_seq_len`. The config has been validated, and may ask for a table
    /// of another size.
    pub fn new(
        config: &ModelConfig,
        vocab_size: usize,
        max_seq_len: usize,
    ) -> Result<Self, ModelError> {
        let vocab_size = config.vocab_size.unwrap_or(vocab_size);
        let positions = config.max_positions.unwrap_or(max_seq_len);
        let embedding = Embedding::new(config, vocab_size, positions);
        let head = Head::new(config, vocab_size);
        let blocks = blocks(config, max_seq_len)?;
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

    /// The first of a segment's own parameters, which follow each other; for a segment without any, that
    /// of the next.
    pub fn first_id(&self, segment: usize) -> usize {
        self.ids[..segment].iter().map(Vec::len).sum()
    }

    /// The residual stream after the last block, `[tokens, dim]`. What each block keeps for its
    /// backward, as `keep` asks, goes to `saved`, in order.
    pub fn forward(
        &self,
        context: &Context<'_>,
        parameters: &[View<'_>],
        keep: Keep,
        mut saved: impl FnMut(Saved),
    ) -> Result<Tensor, ModelError> {
        let weights = |segment| Weights::new(parameters, self.ids(segment));
        let mut x = self.embedding.forward(context, weights(0))?;
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, kept) = block.forward(context, weights(index + 1), x, keep)?;
            saved(kept);
            x = y;
        }
        Ok(x)
    }

    /// Has what takes long to make for steps of so many sequences, of so many tokens each, made in a
    /// thread.
    pub fn prepare(&self, device: &Device, numbers: DType, sequences: [usize; 2]) -> Preparation {
        let mut layers: Vec<attention::Layer> = Vec::new();
        for layer in self.blocks.iter().filter_map(|block| block.attention()) {
            if !layers.contains(&layer) {
                layers.push(layer);
            }
        }
        attention::prepare(device, layers, numbers, sequences)
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
            parameter.initialise(&mut buffer.slot_view_mut(slot)?, seed, 0)?;
        }
        Ok(())
    }
}
