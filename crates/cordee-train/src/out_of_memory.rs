//! What to say when a GPU has no room: what was asked for, what is held for what, what to change.

use std::fmt;

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
            "out of GPU memory {}, micro-batches of {rows} x {len} tokens",
            self.when
        )?;
        match self.source {
            OpError::OutOfMemory {
                op,
                bytes,
                free,
                total,
                held,
            } => write!(
                formatter,
                "\n{op} asked for {}: of {} there are {} free and {} held by this process",
                size(bytes as u64),
                size(total as u64),
                size(free as u64),
                size(held as u64)
            ),
            ref other => write!(formatter, "\n{other}"),
        }?;
        let head = plan.head + plan.logits;
        let moment = if plan.block > head {
            ("a block's backward", plan.block)
        } else {
            ("the head", head)
        };
        let mut categories = [
            ("weights", plan.weights),
            ("gradients", plan.gradients),
            ("moments", plan.first_moment + plan.second_moment),
            ("activations", plan.activations),
            moment,
            ("libraries", plan.program),
        ];
        categories.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let categories = categories.map(|(name, bytes)| format!("{name} {}", size(bytes)));
        write!(
            formatter,
            "\nby the plan it needs {}: {}",
            size(plan.peak()),
            categories.join(", ")
        )
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
            states: self.compute.states,
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
            states: DType::F32,
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
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "out of GPU memory in step 3, micro-batches of 32 x 1024 tokens",
                "head asked for 256 MiB: of 80.00 GiB there are 1 MiB free and 79.00 GiB held by \
                 this process",
            ]
        );
        // The largest first.
        assert!(lines[2].starts_with("by the plan it needs "), "{text}");
        let places = ["the head ", "activations ", "moments ", "gradients "];
        let places = places.map(|category| lines[2].find(category).unwrap());
        assert!(places.is_sorted(), "{text}");
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
