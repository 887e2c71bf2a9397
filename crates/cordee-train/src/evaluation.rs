//! Loss on held-out text, shared out over the ranks.

use std::time::Instant;

use cordee_comm::ProcessGroup;
use cordee_data::Validation;
use cordee_memory::View;
use cordee_protocol::{Evaluation, SourceEvaluation};

use crate::{TrainError, engine::Engine};

/// The loss of every source's whole validation split.
///
/// Micro-batches are the same for every world size and dealt to the ranks in turn, so that only the
/// order of one sum depends on the number of ranks.
pub(crate) fn evaluate(
    engine: &Engine<'_>,
    parameters: &[View<'_>],
    validation: &Validation,
    rows: usize,
    group: &mut dyn ProcessGroup,
    step: u64,
) -> Result<Evaluation, TrainError> {
    let started = Instant::now();
    let mut nll_sums = vec![0.0; validation.sources().len()];
    let mut turn = 0;
    for (index, source) in validation.sources().iter().enumerate() {
        for first in (0..source.windows).step_by(rows) {
            turn = (turn + 1) % group.world_size();
            if turn != group.rank() {
                continue;
            }
            let last = source.windows.min(first + rows as u64);
            let batch = validation.read(index, first..last)?;
            nll_sums[index] += engine.loss(&batch, parameters)?.nll_sum;
        }
    }
    group.sum_scalars(&mut nll_sums)?;

    let sources = validation.sources().iter().zip(&nll_sums).map(|(source, &nll)| SourceEvaluation {
        name: source.name.clone(),
        loss: nll / source.tokens_predicted as f64,
        bits_per_byte: nll / std::f64::consts::LN_2 / source.bytes as f64,
        unigram_bits_per_byte: source.unigram_bits_per_byte,
    });
    let tokens: u64 = validation.sources().iter().map(|source| source.tokens_predicted).sum();
    Ok(Evaluation {
        step,
        loss: nll_sums.iter().sum::<f64>() / tokens as f64,
        seconds: started.elapsed().as_secs_f64(),
        sources: sources.collect(),
    })
}
