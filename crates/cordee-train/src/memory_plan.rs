//! How much memory a rank will need, before it needs any: a pure function of the plan and of the
//! size of the vocabulary, which asks the segments and operators themselves for what they hold.

use cordee_comm::shard_range;
use cordee_config::{Plan, Recompute, Shard};
use cordee_memory::{DType, Recycler};
use cordee_model::{Keep, Model};
use cordee_ops::head;

use crate::{TrainError, buckets, trainer::PREFETCHED_STEPS};

/// The program, its threads and its files: what a rank of a model of no size holds.
const PROGRAM_BYTES: u64 = 8 << 20;

/// What libraries hold of a GPU's memory beside the pool's tensors: the scratch of products.
const GPU_SCRATCH_BYTES: u64 = 64 << 20;

/// Where a rank computes, and in which numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Those of weights and activations.
    pub numbers: DType,
    /// Those of what the optimizer keeps.
    pub states: DType,
    /// Whether each rank has a GPU of its own; else all share the host's memory.
    pub on_gpu: bool,
}

impl Place {
    /// In `f32` on the host.
    pub const HOST: Self = Self {
        numbers: DType::F32,
        states: DType::F32,
        on_gpu: false,
    };

    /// Makes the next change that saves memory there.
    fn turn(self, plan: &mut Plan) -> Option<String> {
        let ranks = plan.world_size;
        // Fewer ranks leave more memory of the host to each, and of GPUs none.
        turn(plan).filter(|_| !self.on_gpu || plan.world_size == ranks)
    }

    /// What has to fit in the memory of the place, of ranks that hold `peak` each.
    fn needed(self, peak: u64, ranks: usize) -> u64 {
        if self.on_gpu {
            peak
        } else {
            peak * ranks as u64
        }
    }
}

/// Bytes that a rank holds at its fullest, by what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights, and their rounded copy where the model computes in other numbers than they are kept in.
    pub weights: u64,
    /// Sums of gradients.
    pub gradients: u64,
    /// First moments of the gradient.
    pub first_moment: u64,
    /// Second moments of the gradient.
    pub second_moment: u64,
    /// What the blocks' forwards keep for their backwards.
    pub activations: u64,
    /// What the backward of a block holds beside what is kept.
    pub block: u64,
    /// What the head holds beside it, the chunk of logits apart.
    pub head: u64,
    /// The chunk of logits.
    pub logits: u64,
    /// Freed memory that is kept for the next who asks.
    pub recycled: u64,
    /// Batches read ahead, and the program itself.
    pub program: u64,
    /// Of other ranks' gradients what this rank sums, where they lie: counted by the system as
    /// resident here too, and no memory of its own.
    pub shared: u64,
}

impl MemoryPlan {
    /// What a rank of `plan` will hold, over a tokenizer of `vocab_size` tokens, on `place`.
    pub fn new(plan: &Plan, vocab_size: usize, place: Place) -> Result<Self, TrainError> {
        let config = &plan.config;
        let seq_len = config.data.seq_len;
        let model = Model::new(&config.model, vocab_size, seq_len)?;
        let Place {
            numbers,
            states,
            on_gpu,
        } = place;
        let layout = model.layout(DType::F32)?;
        let elements = layout.len() as u64;
        let width = DType::F32.size_in_bytes() as u64;
        let flat = elements * width;
        let size = numbers.size_in_bytes() as u64;
        let world = plan.world_size as u64;
        // Rank 0 has as much as any other.
        let held = match config.parallel.shard {
            Shard::None => elements,
            Shard::Optimizer => buckets::plan(&model, &layout, config.parallel.bucket_size.0)
                .into_iter()
                .map(|bucket| shard_range(bucket.range, plan.world_size, 0).len() as u64)
                .sum(),
        };
        let moment = held * states.size_in_bytes() as u64;
        let weights = if numbers == states {
            elements * size
        } else {
            moment + elements * size
        };
        let tokens = plan.micro_batch_size * seq_len;
        let per_token = |elements: usize| (elements * tokens) as u64 * size;
        let kept = |keep| {
            model
                .blocks
                .iter()
                .map(move |block| block.kept_per_token(keep))
        };

        let dim = config.model.dim;
        let largest = kept(Keep::All).max().unwrap_or(0);
        let activations = match config.train.recompute {
            Recompute::None => kept(Keep::All).sum(),
            Recompute::Light => kept(Keep::Dear).sum(),
            Recompute::Full => dim * model.blocks.len(),
        };
        // A backward makes a gradient of each thing that a forward keeps. What was not kept is
        // there too, once the backward has computed it again.
        let again = match config.train.recompute {
            Recompute::None => 0,
            Recompute::Light => largest - kept(Keep::Dear).max().unwrap_or(0),
            Recompute::Full => largest,
        };
        let rows = config.model.vocab_size.unwrap_or(vocab_size);
        let batches = 2 + PREFETCHED_STEPS * plan.accumulation_steps;
        let block = per_token(largest + again);
        // Its input, the norm of that, and the gradients of both.
        let head = per_token(4 * dim);
        let logits = if on_gpu {
            head::gpu_scratch_bytes(tokens, rows, numbers)
        } else {
            head::scratch_bytes(tokens, rows, numbers)
        } as u64;
        // The pool of a GPU gives freed memory in any size, but keeps libraries' scratch.
        let (recycled, program, shared) = if on_gpu {
            (0, GPU_SCRATCH_BYTES, 0)
        } else {
            // What the one moment leaves behind is seldom of the sizes that the other asks for.
            let recycled = block.min(head + logits).min(Recycler::SLACK as u64);
            let program = PROGRAM_BYTES + (batches * tokens) as u64 * 5;
            let sums = flat * (world - 1) / world;
            // Of what others update, this rank's copy comes from theirs.
            let gathered = if held < elements { sums } else { 0 };
            (recycled, program, sums + gathered)
        };
        Ok(Self {
            weights,
            gradients: flat,
            first_moment: moment,
            second_moment: moment,
            activations: per_token(activations),
            block,
            head,
            logits,
            recycled,
            program,
            shared,
        })
    }

    /// Beside all that lasts: a block's backward, or the head, whichever holds more.
    pub fn largest_moment(&self) -> u64 {
        self.block.max(self.head + self.logits)
    }

    /// The most that the rank holds of its own.
    pub fn peak(&self) -> u64 {
        let flat = self.weights + self.gradients + self.first_moment + self.second_moment;
        flat + self.activations + self.largest_moment() + self.recycled + self.program
    }

    /// Whether it fits into the `memory` bytes of the rank's GPU, or `ranks` of them into those of the
    /// host.
    pub fn fits(&self, place: Place, ranks: usize, memory: u64) -> bool {
        place.needed(self.peak(), ranks) <= memory
    }

    /// The most that the system will count as the rank's resident memory.
    pub fn resident(&self) -> u64 {
        self.peak() + self.shared
    }
}

/// Something to change in a config so that it needs less memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knob {
    /// The changes, as `--set` takes them.
    pub sets: Vec<String>,
    /// Ranks with them.
    pub world_size: usize,
    /// The most that a rank then holds of its own.
    pub peak: u64,
}

/// What to change so that a rank fits into the `memory` bytes of its GPU, or all ranks together into
/// those of the host: the first that is enough of sharing out the optimizer's state, computing again,
/// smaller micro-batches and fewer workers, each on top of those before; if none is, all of them.
pub fn knob(
    plan: &Plan,
    vocab_size: usize,
    place: Place,
    memory: u64,
) -> Result<Option<Knob>, TrainError> {
    let mut plan = plan.clone();
    let mut last = None;
    while let Some(changed) = place.turn(&mut plan) {
        let peak = MemoryPlan::new(&plan, vocab_size, place)?.peak();
        let mut sets = last.map_or_else(Vec::new, |knob: Knob| knob.sets);
        let key = changed.split('=').next().unwrap_or_default().to_owned();
        sets.retain(|set: &String| !set.starts_with(&key));
        sets.push(changed);
        let world_size = plan.world_size;
        let enough = place.needed(peak, world_size) <= memory;
        last = Some(Knob {
            sets,
            world_size,
            peak,
        });
        if enough {
            break;
        }
    }
    Ok(last)
}

/// What saves memory, as `--set` takes it, in the order to try it in; each on top of those before.
pub(crate) fn remedies(plan: &Plan, place: Place) -> Vec<String> {
    let mut plan = plan.clone();
    let mut sets = Vec::new();
    while let Some(set) = place.turn(&mut plan) {
        sets.push(set);
    }
    sets
}

/// Makes the next change that saves memory. The batch of a step stays what it is.
fn turn(plan: &mut Plan) -> Option<String> {
    let shard = &mut plan.config.parallel.shard;
    if plan.world_size > 1 && *shard == Shard::None {
        *shard = Shard::Optimizer;
        return Some("parallel.shard=\"optimizer\"".to_owned());
    }
    let recompute = &mut plan.config.train.recompute;
    match recompute {
        Recompute::None => {
            *recompute = Recompute::Light;
            return Some("train.recompute=\"light\"".to_owned());
        }
        Recompute::Light => {
            *recompute = Recompute::Full;
            return Some("train.recompute=\"full\"".to_owned());
        }
        Recompute::Full => {}
    }
    if let Some(factor) = smallest_divisor(plan.micro_batch_size) {
        plan.micro_batch_size /= factor;
        plan.accumulation_steps *= factor;
        return Some(format!("train.micro_batch_size={}", plan.micro_batch_size));
    }
    let factor = smallest_divisor(plan.world_size)?;
    plan.world_size /= factor;
    plan.accumulation_steps *= factor;
    Some(format!("parallel.workers={}", plan.world_size))
}

/// Above 1; none of 1.
fn smallest_divisor(number: usize) -> Option<usize> {
    (2..=number).find(|divisor| number.is_multiple_of(*divisor))
}
