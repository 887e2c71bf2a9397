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
        let number = |number: Option<f64>| number.map(|number| format!("{number:.4}"));
        let (bits, unigram) = (source.bits_per_byte, source.unigram_bits_per_byte);
        let below = bits
            .zip(unigram)
            .map(|(bits, unigram)| 100.0 * (1.0 - bits / unigram));
        let below = below.filter(|share| share.is_finite());
        [
            Some(source.name.clone()),
            number(Some(source.loss)),
            number(bits),
            number(unigram),
            below.map(|share| format!("{share:.1}%")),
        ]
        .map(|cell| cell.unwrap_or_else(|| "--".to_owned()))
    }));
    // Bits per byte are of texts: sources of examples alone have no use for these columns.
    let of_text = sources.iter().any(|source| source.bits_per_byte.is_some());
    let columns = if of_text { 5 } else { 2 };
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = [0, 1, 2, 3, 4].map(|column| width(column).unwrap_or(0));
    let lines = rows.iter().map(|[name, numbers @ ..]| {
        let mut line = format!("  {name:<0$}", widths[0]);
        for (number, width) in numbers.iter().zip(&widths[1..columns]) {
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
            sources: vec![
                source(Some(5.0), Some(4.0)),
                source(Some(1.0), Some(0.0)),
                source(None, None),
            ],
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
          speeches  3.1023         --                 --             --
        ");
        let evaluation = Evaluation {
            sources: vec![source(None, None)],
            ..samples::evaluation()
        };
        let examples = Summary {
            evaluation: Some(evaluation),
            checkpoint: None,
            ..samples::summary()
        };
        assert_snapshot!(strip_str(&summary(&examples)), @"
        done after step 400: 1.6M tokens in 2m12s (12.4k tok/s)
        validation loss 3.2114 after step 400

          source      loss
          speeches  3.1023
        ");
    }
}
