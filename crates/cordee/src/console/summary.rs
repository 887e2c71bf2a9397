//! The end of a run, as text.

use std::fmt::Write as _;

use cordee_protocol::{SourceEvaluation, Summary};

use super::numbers::{compact, duration};
use super::style::{LABEL, SUCCESS};

/// What was done, what the model is worth, and where it is.
pub(super) fn summary(summary: &Summary) -> String {
    let (style, word) = if summary.stopped {
        (LABEL, "stopped")
    } else {
        (SUCCESS, "done")
    };
    let mut shown = format!(
        "{style}{word}{style:#} after step {}: {} tokens in {} ({} tok/s)",
        summary.step,
        compact(summary.tokens as f64),
        duration(summary.seconds),
        compact(summary.tokens as f64 / summary.seconds),
    );
    if let Some(evaluation) = &summary.evaluation {
        let (loss, step) = (evaluation.loss, evaluation.step);
        let _ = write!(
            shown,
            "\n{LABEL}validation loss{LABEL:#} {loss:.4} after step {step}"
        );
        if !evaluation.sources.is_empty() {
            let _ = write!(shown, "\n\n{}\n", table(&evaluation.sources));
        }
    }
    if let Some(path) = &summary.checkpoint {
        let _ = write!(shown, "\n{LABEL}checkpoint{LABEL:#} {path}");
    }
    shown
}

/// Sources beside what a model without context would need: the lower share, the more was learned.
fn table(sources: &[SourceEvaluation]) -> String {
    let head = [
        "source",
        "loss",
        "bits/byte",
        "unigram bits/byte",
        "below unigram",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(sources.iter().map(|source| {
        let SourceEvaluation {
            loss,
            bits_per_byte,
            unigram_bits_per_byte,
            ..
        } = source;
        let below = 100.0 * (1.0 - bits_per_byte / unigram_bits_per_byte);
        [
            source.name.clone(),
            format!("{loss:.4}"),
            format!("{bits_per_byte:.4}"),
            format!("{unigram_bits_per_byte:.4}"),
            if below.is_finite() {
                format!("{below:.1}%")
            } else {
                "--".to_owned()
            },
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = [0, 1, 2, 3, 4].map(|column| width(column).unwrap_or(0));
    let lines = rows.iter().map(|[name, numbers @ ..]| {
        let mut line = format!("  {name:<0$}", widths[0]);
        for (number, width) in numbers.iter().zip(&widths[1..]) {
            let _ = write!(line, "  {number:>width$}");
        }
        line
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;
    use cordee_protocol::Evaluation;
    use insta::assert_snapshot;

    use super::*;
    use crate::console::samples;

    #[test]
    fn a_finished_run_says_what_was_learned_of_each_source() {
        assert_snapshot!(strip_str(&summary(&samples::summary())), @"
        done after step 400: 1.6M tokens in 2m12s (12.4k tok/s)
        validation loss 3.2114 after step 400

          source          loss  bits/byte  unigram bits/byte  below unigram
          speeches      3.1023     1.8123             4.5871          60.5%
          dictionnaire  3.4011     2.0912             4.6112          54.6%

        checkpoint runs/tiny/checkpoints/step-000000400
        ");
    }

    #[test]
    fn a_stopped_run_says_where_it_can_go_on() {
        let stopped = Summary {
            stopped: true,
            evaluation: None,
            ..samples::summary()
        };
        assert_snapshot!(strip_str(&summary(&stopped)), @"
        stopped after step 400: 1.6M tokens in 2m12s (12.4k tok/s)
        checkpoint runs/tiny/checkpoints/step-000000400
        ");
    }

    #[test]
    fn a_model_worse_than_its_unigrams_is_said_to_be_above_them() {
        let source = |bits_per_byte, unigram_bits_per_byte| SourceEvaluation {
            bits_per_byte,
            unigram_bits_per_byte,
            ..samples::evaluation().sources.swap_remove(0)
        };
        let evaluation = Evaluation {
            sources: vec![source(5.0, 4.0), source(1.0, 0.0)],
            ..samples::evaluation()
        };
        let worse = Summary {
            evaluation: Some(evaluation),
            checkpoint: None,
            ..samples::summary()
        };
        assert_snapshot!(strip_str(&summary(&worse)), @"
        done after step 400: 1.6M tokens in 2m12s (12.4k tok/s)
        validation loss 3.2114 after step 400

          source      loss  bits/byte  unigram bits/byte  below unigram
          speeches  3.1023     5.0000             4.0000         -25.0%
          speeches  3.1023     1.0000             0.0000             --
        ");
    }
}
