//! Messages to test with.

use cordee_protocol::{Banner, Evaluation, Failure, SourceEvaluation, StepProgress, Summary};

pub(super) fn banner() -> Banner {
    let lines = [
        ("model", "llama, 6 layers of width 256"),
        ("data", "1.6M tokens"),
        ("resumed at", "step 100\nof another run"),
    ];
    let lines = lines.map(|(label, text)| (label.to_owned(), text.to_owned()));
    Banner {
        lines: lines.into(),
        first_step: 100,
        last_step: 400,
    }
}

pub(super) fn step() -> StepProgress {
    StepProgress {
        step: 120,
        steps: 400,
        loss: 4.213_68,
        grad_norm: 0.812,
        lr: 2.9e-4,
        tokens_per_s: 12_345.6,
        ranks: 2,
        step_s: 0.331_8,
        data_s: 0.001_3,
        comm_s: 0.028,
        comm_exposed_s: 0.007,
        memory_bytes: 222_300_000,
        due: true,
    }
}

pub(super) fn evaluation() -> Evaluation {
    let source = |name: &str, loss, bits_per_byte, unigram_bits_per_byte| SourceEvaluation {
        name: name.to_owned(),
        loss,
        bits_per_byte: Some(bits_per_byte),
        unigram_bits_per_byte: Some(unigram_bits_per_byte),
    };
    Evaluation {
        step: 400,
        loss: 3.211_4,
        seconds: 1.204,
        sources: vec![
            source("speeches", 3.102_3, 1.812_3, 4.587_1),
            source("dictionnaire", 3.401_1, 2.091_2, 4.611_2),
        ],
    }
}

pub(super) fn summary() -> Summary {
    Summary {
        step: 400,
        stopped: false,
        seconds: 132.4,
        tokens: 1_638_400,
        evaluation: Some(evaluation()),
        checkpoint: Some("runs/tiny/checkpoints/step-000000400".to_owned()),
    }
}

pub(super) fn failure(rank: usize, message: &str) -> Failure {
    Failure {
        blames: None,
        rank,
        code: 1,
        message: message.to_owned(),
        hint: Some("try again".to_owned()),
    }
}
