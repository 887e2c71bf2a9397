//! `cordee plan`: the memory a run will need, before it begins.

use std::fmt::Write as _;

use cordee::{ConfigArgs, Console, Failure, PlanArgs, bytes, load};
use cordee_config::{DeviceChoice, DeviceKind, Machine, Plan};
use cordee_data::Tokenizer;
use cordee_protocol::ExitCode;
use cordee_train::{Knob, MemoryPlan, Place, knob};

use super::worker::numbers;

pub(crate) fn run(args: &PlanArgs) -> Result<u8, Failure> {
    let plan = resolved(args)?;
    let vocab_size = vocab_size(&plan)?;
    let place = place(&plan);
    let memory = match args.memory {
        Some(size) => Some(size.0),
        None if place.on_gpu => cordee::gpu_memory(),
        None => cordee::memory(),
    };
    let needed = MemoryPlan::new(&plan, vocab_size, place).map_err(failed)?;
    let fits = memory.is_none_or(|memory| needed.fits(place, plan.world_size, memory));
    let knob = match memory {
        Some(memory) if !fits => knob(&plan, vocab_size, place, memory).map_err(failed)?,
        _ => None,
    };
    let mut page = table(&plan, &needed);
    page.push_str(&verdict(&plan, &needed, memory, knob.as_ref()));
    Console::print_data(&page);
    Ok(if fits {
        ExitCode::Done.code()
    } else {
        ExitCode::Failed.code()
    })
}

/// Where ranks of the plan compute.
fn place(plan: &Plan) -> Place {
    let [numbers, states] = numbers(plan.config.precision);
    Place {
        numbers,
        states,
        on_gpu: plan.device == DeviceKind::Cuda,
    }
}

/// The plan of the config, over the workers that were asked for.
fn resolved(args: &PlanArgs) -> Result<Plan, Failure> {
    let mut sets = args.config.sets.clone();
    sets.extend(
        args.workers
            .map(|workers| format!("parallel.workers={workers}")),
    );
    let config = ConfigArgs {
        config: args.config.config.clone(),
        sets,
    };
    let loaded = load(&config)?;
    if loaded.config.parallel.device == DeviceChoice::Cuda {
        // A run on GPUs is planned wherever one sits.
        let gpu = Machine {
            device: DeviceKind::Cuda,
            workers: 1,
        };
        return loaded.plan(gpu).map_err(Failure::usage);
    }
    cordee::plan(&loaded)
}

/// Tokens of the tokenizer that the run will have.
fn vocab_size(plan: &Plan) -> Result<usize, Failure> {
    match &plan.config.data.tokenizer {
        None => Ok(plan.config.data.vocab_size),
        Some(path) => Ok(Tokenizer::open(path).map_err(Failure::usage)?.vocab_size()),
    }
}

fn table(plan: &Plan, needed: &MemoryPlan) -> String {
    let head = needed.head + needed.logits;
    let moment = |is_largest| {
        if is_largest {
            ""
        } else {
            "   not at the same time, and not counted"
        }
    };
    let rows = [
        ("weights", needed.weights, ""),
        ("gradients", needed.gradients, ""),
        ("first moment", needed.first_moment, ""),
        ("second moment", needed.second_moment, ""),
        ("activations kept", needed.activations, ""),
        (
            "a block's backward",
            needed.block,
            moment(needed.block >= head),
        ),
        ("the head", needed.head, moment(needed.block < head)),
        (
            "its chunk of logits",
            needed.logits,
            moment(needed.block < head),
        ),
        ("freed and kept for reuse", needed.recycled, ""),
        ("data and program", needed.program, ""),
    ];
    let mut page = format!(
        "each of {} ranks on {}, {}: micro-batches of {} sequences of {}, recompute {}\n\n",
        plan.world_size,
        plan.device.name(),
        plan.config.precision.name(),
        plan.micro_batch_size,
        plan.config.data.seq_len,
        plan.config.train.recompute.name(),
    );
    for (label, size, note) in rows {
        let _ = writeln!(page, "{label:<26}{:>9}{note}", bytes(size));
    }
    let _ = writeln!(page, "{:<26}{:>9}", "peak", bytes(needed.peak()));
    if needed.shared > 0 {
        let _ = writeln!(
            page,
            "{:<26}{:>9}   with what it reads of other ranks' gradients",
            "counted as resident",
            bytes(needed.resident())
        );
    }
    page
}

/// Whether all ranks fit, and what to do if they do not.
fn verdict(plan: &Plan, needed: &MemoryPlan, memory: Option<u64>, knob: Option<&Knob>) -> String {
    let place = place(plan);
    let ranks = plan.world_size;
    let Some(memory) = memory else {
        let hint = "--memory tells what to fit into";
        return if place.on_gpu {
            format!("\nno GPU of this machine says how much memory it has: {hint}\n")
        } else {
            format!("\nthis machine does not say how much memory it has: {hint}\n")
        };
    };
    let room = if place.on_gpu {
        format!("{} of each rank's GPU", bytes(memory))
    } else {
        format!(
            "{} of {} for each of {ranks} ranks",
            bytes(memory / ranks as u64),
            bytes(memory)
        )
    };
    if needed.fits(place, ranks, memory) {
        return format!("\nit fits: {room}\n");
    }
    let Some(knob) = knob else {
        return format!(
            "\nit does not fit: {room}\nnothing is left to save: take a smaller model or a larger machine\n"
        );
    };
    let sets: String = knob.sets.iter().fold(String::new(), |mut sets, set| {
        let _ = write!(sets, " --set '{set}'");
        sets
    });
    let then = bytes(knob.peak);
    let all = if place.on_gpu {
        1
    } else {
        knob.world_size as u64
    };
    if knob.peak * all <= memory {
        format!("\nit does not fit: {room}\nwith{sets} a rank's peak is {then}, which does\n")
    } else {
        format!(
            "\nit does not fit: {room}\neven with{sets} a rank's peak is {then}: take a smaller model or a larger machine\n"
        )
    }
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(ExitCode::Failed, error)
}
