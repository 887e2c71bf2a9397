//! What a block says that it keeps is what it keeps.

#![expect(
    unsafe_code,
    reason = "an allocator is unsafe to say, and counting what it gives is the only way to see all"
)]

use std::{
    alloc::{GlobalAlloc, Layout as Block, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{Device, Tensor};
use cordee_config::{Gelu, ModelConfig, ModelFamily};
use cordee_memory::{Buffer, DType};
use cordee_model::{Context, Keep, Model, Weights};
use cordee_ops::Sequences;

/// Counts the bytes of blocks that are as large as tensors are here.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// Smaller blocks hold no tensor of a thousand tokens.
const SMALLEST: usize = 4000;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        if block.size() >= SMALLEST {
            IN_USE.fetch_add(block.size(), Ordering::Relaxed);
        }
        // SAFETY: as of this function.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, start: *mut u8, block: Block) {
        if block.size() >= SMALLEST {
            IN_USE.fetch_sub(block.size(), Ordering::Relaxed);
        }
        // SAFETY: as of this function.
        unsafe { System.dealloc(start, block) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 1000;
const DIM: usize = 16;

#[test]
fn blocks_keep_what_they_say() {
    // One thread: what others leave behind for their next task would be counted too.
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread()
        .build_global()
        .unwrap();
    for family in ModelFamily::ALL {
        let config = ModelConfig {
            family,
            kv_heads: (family != ModelFamily::Gpt2).then_some(2),
            max_positions: (family == ModelFamily::Gpt2).then_some(TOKENS),
            gelu: (family == ModelFamily::Gpt2).then_some(Gelu::Tanh),
            ..ModelConfig::llama(DIM, 1, 4, 24)
        };
        let model = Model::new(&config, 8, TOKENS).unwrap();
        let layout = model.layout(DType::F32).unwrap();
        let mut parameters = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        model.initialise(&layout, &mut parameters, 1).unwrap();
        let slots = layout.slots().iter();
        let views: Vec<_> = slots
            .map(|slot| parameters.slot_view(slot).unwrap())
            .collect();
        let context = Context {
            sequences: Sequences::Rows(TOKENS),
            inputs: &[0; TOKENS],
            targets: &[],
            loss_mask: None,
        };
        let run = |keep| {
            let before = IN_USE.load(Ordering::Relaxed);
            let x = Tensor::ones((TOKENS, DIM), candle_core::DType::F32, &Device::Cpu).unwrap();
            let weights = Weights::new(&views, model.ids(1));
            let (y, saved) = model.blocks[0].forward(&context, weights, x, keep).unwrap();
            drop(y);
            let kept = IN_USE.load(Ordering::Relaxed) - before;
            drop(saved);
            kept
        };
        // What an operator computes once and for all, or leaves for the next call, is there now.
        run(Keep::All);
        for keep in [Keep::All, Keep::Dear] {
            let said = model.blocks[0].kept_per_token(keep) * TOKENS * 4;
            assert_eq!(run(keep), said, "{family:?}, {keep:?}");
        }
    }
}
