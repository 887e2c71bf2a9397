//! What to say when a GPU has no room: what was asked for, what is held for what, what to change.

use std::fmt::{self, Write as _};

use cordee_config::Plan;
use cordee_model::ModelError;
use cordee_ops::OpError;

use crate::{
    Compute, TrainError,
    memory_plan::{MemoryPlan, Place, remedies},
};

/// Remedies that are named.
const NAMED: usize = 3;

/// A GPU had no room for something.
#[derive(Debug)]
pub struct OutOfMemory {
    /// When: before the first step, or in which one.
    when: String,
    /// Sequences and tokens of each in a micro-batch.
    shape: (usize, usize),
    source: OpError,
    plan: MemoryPlan,
    remedies: Vec<String>,
}

impl OutOfMemory {
    /// What to change, each as `--set` takes it, in the order to try them in; each on top of those
    /// before.
    pub fn hint(&self) -> String {
        if self.remedies.is_empty() {
            return "the smallest micro-batch with everything computed again does not fit: take a \
                    smaller model or sequence, or a GPU with more memory"
                .to_owned();
        }
        let sets: Vec<String> = self
            .remedies
            .iter()
            .map(|set| format!("--set {set}"))
            .collect();
        format!(
            "try in this order, each on top of those before: {}",
            sets.join(", ")
        )
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((rows, len), plan) = (self.shape, &self.plan);
        write!(
            formatter,
            "out of GPU memory {}, micro-batches of {rows} x {len} tokens: {}. By the plan, of {}: ",
            self.when,
            self.source,
            size(plan.peak())
        )?;
        let categories = [
            ("weights", plan.weights),
            ("gradients", plan.gradients),
            ("moments", plan.first_moment + plan.second_moment),
            ("activations", plan.activations),
            ("a block's backward", plan.block),
            ("the head", plan.head + plan.logits),
        ];
        let mut text = String::new();
        for (name, bytes) in categories {
            let _ = write!(
                text,
                "{}{name} {}",
                if text.is_empty() { "" } else { ", " },
                size(bytes)
            );
        }
        formatter.write_str(&text)
    }
}

/// In GiB, or in MiB where that is less than one.
fn size(bytes: u64) -> String {
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    if gibibytes >= 1.0 {
        format!("{gibibytes:.2} GiB")
    } else {
        format!("{:.0} MiB", gibibytes * 1024.0)
    }
}

/// What a plan was for.
pub(crate) struct Circumstances<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) vocab_size: usize,
    pub(crate) compute: &'a Compute,
    /// The step that was being done; 0 before the first.
    pub(crate) step: u64,
}

impl Circumstances<'_> {
    /// Tells more of an error, if it is that a GPU had no room.
    pub(crate) fn explain(&self, error: TrainError) -> TrainError {
        let source = match error {
            TrainError::Op(source @ OpError::OutOfMemory { .. })
            | TrainError::Model(ModelError::Op(source @ OpError::OutOfMemory { .. })) => source,
            other => return other,
        };
        let place = Place {
            numbers: self.compute.numbers,
            on_gpu: true,
        };
        let plan = match MemoryPlan::new(self.plan, self.vocab_size, place) {
            Ok(plan) => plan,
            Err(error) => return error,
        };
        let mut remedies = remedies(self.plan, place);
        remedies.truncate(NAMED);
        TrainError::OutOfMemory(Box::new(OutOfMemory {
            when: match self.step {
                0 => "before the first step".to_owned(),
                step => format!("in step {step}"),
            },
            shape: (self.plan.micro_batch_size, self.plan.config.data.seq_len),
            source,
            plan,
            remedies,
        }))
    }
}

#[cfg(test)]
mod tests {
    use cordee_config::{Config, DeviceKind};
    use cordee_memory::DType;
    use cordee_ops::Device;

    use super::*;

    #[test]
    fn a_gpu_without_room_is_explained() {
        let text = "model = { dim = 64, layers = 2, heads = 2, ffn = 128, max_positions = 1024 }\n\
            data = { seq_len = 1024, sources = [] }\n\
            train = { steps = 12, global_batch_size = 32, micro_batch_size = 32 }\n";
        let config: Config = toml::from_str(text).unwrap();
        let plan = Plan {
            device: DeviceKind::Cuda,
            world_size: 1,
            micro_batch_size: 32,
            accumulation_steps: 1,
            global_batch_size: 32,
            tokens_per_step: 32 * 1024,
            steps: 12,
            fingerprint: String::new(),
            config,
        };
        let compute = Compute {
            device: Device::HOST,
            numbers: DType::Bf16,
        };
        let circumstances = Circumstances {
            plan: &plan,
            vocab_size: 50_304,
            compute: &compute,
            step: 3,
        };
        let source = OpError::OutOfMemory {
            op: "head",
            bytes: 256 << 20,
            free: 1 << 20,
            total: 80 << 30,
            held: 79 << 30,
        };
        let error = circumstances.explain(ModelError::Op(source).into());
        let text = error.to_string();
        assert!(
            text.starts_with(
                "out of GPU memory in step 3, micro-batches of 32 x 1024 tokens: head: "
            ),
            "{text}"
        );
        for category in [
            "weights ",
            "gradients ",
            "moments ",
            "activations ",
            "the head ",
        ] {
            assert!(text.contains(category), "{category}: {text}");
        }
        let hint = error.hint().unwrap().into_owned();
        let expected = [
            "--set train.recompute=\"light\"",
            "--set train.recompute=\"full\"",
            "--set train.micro_batch_size=16",
        ];
        assert!(hint.ends_with(&expected.join(", ")), "{hint}");
        let other = circumstances.explain(TrainError::NotSaved {
            step: 1,
            why: String::new(),
        });
        assert!(matches!(other, TrainError::NotSaved { .. }));
    }
}
