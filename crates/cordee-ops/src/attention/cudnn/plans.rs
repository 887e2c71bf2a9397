//! A plan for each shape of each GPU.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::library::{Handle, Library, OPERANDS, Plan, Shape, Target};
use crate::{cuda::Gpu, error::Result, operand::Operator};

static OPEN: Mutex<Vec<Plans>> = Mutex::new(Vec::new());

/// The plans of a GPU.
struct Plans {
    ordinal: usize,
    handle: std::result::Result<Handle, String>,
    made: HashMap<Shape, std::result::Result<Plan, String>>,
}

/// A plan that can be run. No other thread uses cuDNN while this is there.
pub(super) struct Planned {
    library: &'static Library,
    handle: Handle,
    plan: Plan,
    _lock: MutexGuard<'static, Vec<Plans>>,
}

impl Planned {
    /// The plan for a shape, made at the first call; none, where cuDNN refused.
    pub(super) fn get(
        gpu: &Gpu,
        op: Operator,
        library: &'static Library,
        shape: Shape,
    ) -> Result<Option<Self>> {
        let mut open = lock();
        gpu.bind(op)?;
        let ordinal = gpu.facts().ordinal;
        let known = open.iter().position(|plans| plans.ordinal == ordinal);
        let index = known.unwrap_or_else(|| {
            let stream = gpu.stream().cu_stream();
            open.push(Plans {
                ordinal,
                // SAFETY: the GPU is current, and its stream is never closed.
                handle: unsafe { library.create_handle(stream.cast()) },
                made: HashMap::new(),
            });
            open.len() - 1
        });
        let Plans { handle, made, .. } = &mut open[index];
        let Ok(handle) = *handle else {
            return Ok(None);
        };
        let plan = made
            .entry(shape)
            .or_insert_with(|| library.create_plan(Target::Handle(handle), shape));
        let Ok(plan) = *plan else {
            return Ok(None);
        };
        Ok(Some(Self {
            library,
            handle,
            plan,
            _lock: open,
        }))
    }

    /// Bytes that a run needs.
    pub(super) fn workspace(&self) -> usize {
        self.plan.workspace
    }

    /// # Safety
    ///
    /// As for [`Library::run`].
    pub(super) unsafe fn run(
        &self,
        addresses: &[u64; OPERANDS],
        workspace: u64,
    ) -> std::result::Result<(), String> {
        // SAFETY: the plan was made for the handle; the rest is the caller's word.
        unsafe {
            self.library
                .run(self.handle, self.plan, addresses, workspace)
        }
    }
}

/// What cuDNN refused, with the reasons.
pub(super) fn refusals() -> Vec<String> {
    let mut refusals = Vec::new();
    for plans in lock().iter() {
        if let Err(why) = &plans.handle {
            refusals.push(format!("GPU {}: {why}", plans.ordinal));
        }
        for (shape, plan) in &plans.made {
            if let Err(why) = plan {
                refusals.push(format!("{shape}: {why}"));
            }
        }
    }
    refusals.sort();
    refusals
}

/// Number of plans that were made.
pub(super) fn made() -> usize {
    let plans = |plans: &Plans| plans.made.values().filter(|plan| plan.is_ok()).count();
    lock().iter().map(plans).sum()
}

fn lock() -> MutexGuard<'static, Vec<Plans>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            ..
        } = self;
        let pass = if self.backward { "backward" } else { "forward" };
        write!(
            formatter,
            "{pass} of {batch} x {seq} tokens, {heads} heads of {head_dim} on {kv_heads}"
        )?;
        match self.window {
            Some(window) => write!(formatter, ", window {window}"),
            None => Ok(()),
        }
    }
}
