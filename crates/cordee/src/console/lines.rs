//! What each message looks like, as text. Nothing here prints.

use cordee_protocol::{Banner, Evaluation, StepProgress};

use super::numbers::{bytes, compact, duration, norm, percent, seconds};
use super::style::{LABEL, harmless};

/// What is about to run: labels, and texts in a column beside them.
pub(super) fn banner(banner: &Banner) -> String {
    let width = banner
        .lines
        .iter()
        .map(|(label, _)| label.chars().count())
        .max()
        .unwrap_or(0);
    let lines = banner.lines.iter().map(|(label, text)| {
        let indented = text.replace('\n', &format!("\n{:width$}  ", ""));
        format!("{LABEL}{label:width$}{LABEL:#}  {indented}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A step, in columns that stay in place from line to line.
pub(super) fn step(progress: &StepProgress, eta: Option<f64>) -> String {
    let StepProgress {
        step,
        steps,
        loss,
        ranks,
        step_s,
        data_s,
        comm_s,
        comm_exposed_s,
        ..
    } = *progress;
    let digits = steps.to_string().len();
    let per_rank = match ranks {
        0 | 1 => String::new(),
        _ => format!(
            " {:<13}",
            format!("({}/rank)", compact(progress.tokens_per_s / ranks as f64))
        ),
    };
    // Of the seconds of collectives, those that the backward covered.
    let hidden = if ranks > 1 && comm_s > 0.0 {
        let share = (1.0 - comm_exposed_s / comm_s).clamp(0.0, 1.0);
        format!(", {:>3.0}% hidden", 100.0 * share)
    } else {
        String::new()
    };
    format!(
        "step {step:>digits$}/{steps}  {:>5}%  loss {loss:>7.4}  gnorm {:>5}  lr {:>7}  \
         {:>6} tok/s{per_rank}  mem {:>7}  {:>5} (data {:>4}%, comm {:>4}%{hidden})  eta {}",
        percent(step as f64, steps as f64),
        norm(progress.grad_norm),
        format!("{:.2e}", progress.lr),
        compact(progress.tokens_per_s),
        bytes(progress.memory_bytes),
        seconds(step_s),
        percent(data_s, step_s),
        percent(comm_exposed_s, step_s),
        time_left(eta),
    )
}

/// A step, beside a bar.
pub(super) fn beside_bar(progress: &StepProgress, eta: Option<f64>) -> String {
    format!(
        "{}/{}  {}%  loss {:.4}  {} tok/s  eta {}",
        progress.step,
        progress.steps,
        percent(progress.step as f64, progress.steps as f64),
        progress.loss,
        compact(progress.tokens_per_s),
        time_left(eta),
    )
}

fn time_left(eta: Option<f64>) -> String {
    eta.map_or_else(|| "--".to_owned(), duration)
}

/// A validation during training.
pub(super) fn evaluation(evaluation: &Evaluation) -> String {
    let sources = evaluation.sources.iter();
    let sources = sources.filter_map(|source| {
        let bits = source.bits_per_byte?;
        Some(format!("{} {bits:.4}", source.name))
    });
    let sources = sources.collect::<Vec<_>>().join(", ");
    let bits = if sources.is_empty() {
        String::new()
    } else {
        format!("  bits/byte {sources}")
    };
    format!(
        "eval step {}  validation loss {:.4}{bits}  ({})",
        evaluation.step,
        evaluation.loss,
        seconds(evaluation.seconds)
    )
}

/// A checkpoint that is on disk.
pub(super) fn checkpoint(step: u64, path: &str, size: u64, time: f64) -> String {
    format!(
        "saved step {step}  {path}  {} in {}",
        bytes(size),
        seconds(time)
    )
}

/// Generated text, beneath what it continues.
pub(super) fn sample(prompt: &str, text: &str) -> String {
    let text = harmless(text.trim()).replace('\n', "\n  ");
    let prompt = harmless(prompt);
    format!("{LABEL}sample{LABEL:#} after {prompt:?}:\n  {text}")
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;
    use insta::assert_snapshot;

    use super::*;
    use crate::console::samples;

    #[test]
    fn a_banner_has_its_texts_in_a_column() {
        assert_snapshot!(strip_str(&banner(&samples::banner())), @"
        model       llama, 6 layers of width 256
        data        1.6M tokens
        resumed at  step 100
                    of another run
        ");
    }

    #[test]
    fn steps_stand_in_columns_whatever_their_numbers() {
        let usual = samples::step();
        let first = StepProgress {
            step: 1,
            loss: 11.0904,
            grad_norm: 153.2,
            lr: 0.0,
            tokens_per_s: 954.0,
            memory_bytes: 65_900_000_000,
            step_s: 12.75,
            data_s: 6.0,
            ..usual
        };
        let broken = StepProgress {
            step: 400,
            loss: f64::NAN,
            grad_norm: f64::INFINITY,
            ..usual
        };
        let lines = [
            step(&first, None),
            step(&usual, Some(98.2)),
            step(&broken, Some(0.0)),
        ];
        assert_snapshot!(lines.join("\n"), @"
        step   1/400    0.2%  loss 11.0904  gnorm 153.20  lr  0.00e0     954 tok/s (477/rank)     mem 61.4GiB  12.8s (data 47.1%, comm  0.1%,  75% hidden)  eta --
        step 120/400   30.0%  loss  4.2137  gnorm  0.81  lr 2.90e-4   12.3k tok/s (6.2k/rank)    mem  212MiB  0.33s (data  0.4%, comm  2.1%,  75% hidden)  eta 1m38s
        step 400/400  100.0%  loss     NaN  gnorm   inf  lr 2.90e-4   12.3k tok/s (6.2k/rank)    mem  212MiB  0.33s (data  0.4%, comm  2.1%,  75% hidden)  eta 0s
        ");
    }

    #[test]
    fn a_single_rank_is_not_compared_with_itself() {
        let alone = StepProgress {
            ranks: 1,
            steps: 20_000,
            ..samples::step()
        };
        assert_snapshot!(step(&alone, Some(23_880.0)), @"step   120/20000    0.6%  loss  4.2137  gnorm  0.81  lr 2.90e-4   12.3k tok/s  mem  212MiB  0.33s (data  0.4%, comm  2.1%)  eta 6h38m");
    }

    #[test]
    fn beside_a_bar_there_is_what_fits() {
        assert_snapshot!(beside_bar(&samples::step(), Some(98.2)), @"120/400  30.0%  loss 4.2137  12.3k tok/s  eta 1m38s");
    }

    #[test]
    fn evaluations_and_checkpoints_take_a_line() {
        assert_snapshot!(evaluation(&samples::evaluation()), @"eval step 400  validation loss 3.2114  bits/byte speeches 1.8123, dictionnaire 2.0912  (1.20s)");
        let all = Evaluation {
            sources: vec![],
            ..samples::evaluation()
        };
        assert_snapshot!(evaluation(&all), @"eval step 400  validation loss 3.2114  (1.20s)");
        let path = "runs/tiny/checkpoints/step-000000120";
        assert_snapshot!(checkpoint(120, path, 12_900_000, 0.418), @"saved step 120  runs/tiny/checkpoints/step-000000120  12.3MiB in 0.42s");
    }

    #[test]
    fn a_sample_stands_beneath_its_prompt() {
        let shown = sample("Fellow \"citizens\"", " of the\nSenate\u{7}\n");
        assert_snapshot!(strip_str(&shown), @r#"
        sample after "Fellow \"citizens\"":
          of the
          Senate�
        "#);
    }
}
