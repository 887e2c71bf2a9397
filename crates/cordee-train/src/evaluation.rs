//! Loss on held-out text, shared out over the ranks.

use std::time::Instant;

use cordee_comm::ProcessGroup;
use cordee_data::Validation;
use cordee_memory::DType;
use cordee_ops::Device;
use cordee_protocol::{Evaluation, SourceEvaluation};

use crate::{TrainError, TrainState, engine::Engine};

/// A test of what was learned.
pub(crate) struct Exam<'a> {
    pub(crate) device: &'a Device,
    pub(crate) validation: &'a Validation,
    /// Sequences that are read at once.
    pub(crate) rows: usize,
    /// Asked now and then; once it says so on any rank, all of them break off.
    pub(crate) stop: &'a dyn Fn() -> bool,
}

impl Exam<'_> {
    /// The loss of every source's whole validation split, over the tokens that count; `None` where it
    /// was broken off.
    ///
    /// Micro-batches are the same for every world size and dealt to the ranks in turn, so that only the
    /// order of one sum depends on the number of ranks.
    pub(crate) fn evaluate(
        &self,
        engine: &Engine<'_>,
        state: &TrainState,
        group: &mut dyn ProcessGroup,
    ) -> Result<Option<Evaluation>, TrainError> {
        let (started, validation) = (Instant::now(), self.validation);
        let sources = 0..validation.sources();
        let parameters = state.parameter_views()?;
        let mut sums = self.device.zeroed(DType::F64, validation.sources())?;
        let mut turn = 0;
        for source in sources.clone() {
            let windows = validation.windows(source);
            for first in (0..windows).step_by(self.rows) {
                if turn % group.world_size() == 0 && self.is_broken_off(group)? {
                    return Ok(None);
                }
                turn += 1;
                if turn % group.world_size() != group.rank() {
                    continue;
                }
                let last = windows.min(first + self.rows as u64);
                let batch = validation.read(source, first..last)?;
                let mut nll = sums.view_mut(source..source + 1, &[1])?;
                engine.loss(&batch, &parameters, &mut nll)?;
            }
        }
        let count = validation.sources();
        let mut nll_sums = sums.view(0..count, &[count])?.to_vec::<f64>()?;
        group.sum_scalars(&mut nll_sums)?;

        let tokens: u64 = sources
            .clone()
            .map(|source| validation.tokens_predicted(source))
            .sum();
        let evaluated = sources.map(|source| {
            let bits = nll_sums[source] / std::f64::consts::LN_2;
            SourceEvaluation {
                name: validation.name(source).to_owned(),
                loss: nll_sums[source] / validation.tokens_predicted(source) as f64,
                bits_per_byte: validation.bytes(source).map(|bytes| bits / bytes as f64),
                unigram_bits_per_byte: validation.unigram_bits_per_byte(source),
            }
        });
        Ok(Some(Evaluation {
            step: state.step,
            loss: nll_sums.iter().sum::<f64>() / tokens as f64,
            seconds: started.elapsed().as_secs_f64(),
            sources: evaluated.collect(),
        }))
    }

    /// Whether any rank was asked to stop.
    fn is_broken_off(&self, group: &mut dyn ProcessGroup) -> Result<bool, TrainError> {
        let mut stop = [f64::from(u8::from((self.stop)()))];
        group.sum_scalars(&mut stop)?;
        Ok(stop[0] > 0.0)
    }
}
