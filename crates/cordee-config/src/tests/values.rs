//! Values that do not make sense, alone or together.

use super::{errors, example};
use crate::{ConfigError, Machine, reference::EXAMPLE};

/// Errors of the smallest config with each group of arguments.
fn set_errors(groups: &[&[&str]]) -> String {
    let cases: Vec<_> = groups.iter().map(|sets| (EXAMPLE, *sets)).collect();
    errors(&cases)
}

#[test]
fn shapes() {
    assert_text!(set_errors(&[
        &["model.dim=0"],
        &["model.layers=0"],
        &["model.heads=0"],
        &["model.ffn=0"],
        &["model.kv_heads=0"],
        &["model.head_dim=0"],
        &["model.kv_heads=3"],
        &["model.heads=12", "model.dim=96", "model.kv_heads=8"],
        &["model.heads=5"],
        &["model.head_dim=15"],
        &["model.heads=64"],
        &["model.rope_theta=0"],
        &["model.norm_eps=0.0"],
        &["model.init_std=nan"],
    ]));
}

#[test]
fn families() {
    assert_text!(set_errors(&[
        &["model.gelu=exact"],
        &["model.sliding_window=4"],
        &["model.family=qwen2", "model.full_attention_layers=[0]"],
        &[
            "model.family=qwen2",
            "model.sliding_window=4",
            "model.full_attention_layers=[1,2,1]"
        ],
        &["model.family=gemma3", "model.gelu=exact"],
        &["model.family=gemma3", "model.rope_local_theta=1e4"],
        &["model.family=gpt2", "model.kv_heads=2"],
        &["model.family=gpt2", "model.max_positions=31"],
        &["model.family=gpt2", "model.heads=5"],
        &["model.rope_scaling={kind='llama3',factor=8}"],
        &["model.rope_scaling={kind='linear',factor=0,low_freq_factor=1}"],
        &["model.rope_scaling={kind='yarn',factor=8}"],
        &["model.rope_scaling={factor=8}"],
        &["model.vocab_size=0"],
    ]));
}

#[test]
fn data() {
    assert_text!(set_errors(&[
        &["data.seq_len=1"],
        &["data.vocab_size=256"],
        &["data.validation_fraction=0"],
        &["data.validation_fraction=1.0"],
        &["data.validation_fraction=nan"],
        &["data.sources=[]"],
        &["data.sources=[{name='',path='a'}]"],
        &["data.sources=[{name='a',path='a'},{name='b',path='b'},{name='a',path='c'}]"],
        &["data.sources=[{name='a',path='a',weight=1},{name='b',path='b'}]"],
        &["data.sources=[{name='a',path='a',weight=0}]"],
        &["data.sources=[{name='a',path='a',weight=inf}]"],
        &["data.sources=[{name='a',path='a',document_separator=''}]"],
        &["data.sources=[{name='a',path='a',prompt_key='q',too_long='error'}]"],
        &["data.sources=[{name='a',path='a',format='jsonl',document_separator='x'}]"],
        &["data.sources=[{name='a',path='a',format='jsonl',messages_key='m',prompt_key='q'}]"],
        &["data.sources=[{name='a',path='a',format='json'}]"],
    ]));
}

#[test]
fn training() {
    assert_text!(set_errors(&[
        &["train.steps=0"],
        &["train.global_batch_size=0"],
        &["train.micro_batch_size=0"],
        &["optimizer.lr=0"],
        &["optimizer.lr=-1e-3"],
        &["optimizer.lr=inf"],
        &["optimizer.eps=0"],
        &["optimizer.betas=[0.9, 1.0]"],
        &["optimizer.betas=[nan, 0.9]"],
        &["optimizer.weight_decay=-0.1"],
        &["optimizer.clip_grad_norm=-1"],
        &["optimizer.clip_grad_norm=nan"],
        &["schedule.warmup_steps=11"],
        &["schedule.min_lr_ratio=1.5"],
        &["parallel.workers=0"],
        &["parallel.threads=0"],
        &["parallel.timeout=0"],
        &["checkpoint.piece_size=\"4KB\""],
        &["checkpoint.piece_size=2GiB"],
        &["log.every=0"],
    ]));
}

#[test]
fn batches_over_workers() {
    assert_text!(set_errors(&[
        &["train.global_batch_size=30"],
        &["train.global_batch_size=3"],
        &["parallel.workers=3"],
        &["parallel.workers=1", "train.micro_batch_size=3"],
        &["train.steps=\"9G\"", "data.seq_len=4_000_000_000"],
        &[
            "train.micro_batch_size=9223372036854775807",
            "parallel.workers=4"
        ],
    ]));
    let Err(ConfigError::Invalid(found)) = example(&[]).plan(Machine::cpu(0)) else {
        panic!("no worker, a plan")
    };
    assert_eq!(
        found[0].to_string(),
        "`workers` in `[parallel]` must be at least 1, found 0"
    );
}

#[test]
fn numbers_that_the_device_lacks() {
    assert_text!(set_errors(&[
        &["precision.compute=bf16"],
        &["precision.compute=fp8"],
        &["precision.states=bf16"],
        &["parallel.device=rocm"],
    ]));
}

#[test]
fn limits_belong_to_what_is_allowed() {
    for set in [
        "data.vocab_size=257",
        "data.seq_len=2",
        "optimizer.betas=[0, 0]",
        "optimizer.clip_grad_norm=0",
        "optimizer.weight_decay=0",
        "schedule.warmup_steps=10",
        "schedule.min_lr_ratio=1",
        "checkpoint.piece_size=4KiB",
        "checkpoint.piece_size=1GiB",
        "checkpoint.every=0",
        "checkpoint.keep=0",
        "model.kv_heads=1",
        "model={dim=63, head_dim=16}",
        "model={family='gpt2', dim=60, heads=4, max_positions=32}",
        "model={family='gemma3', sliding_window=8, full_attention_layers=[1]}",
        "model.rope_scaling={kind='linear', factor=2}",
        "parallel.device=gpu",
        "precision.compute=bfloat16",
    ] {
        example(&[set]);
    }
}

#[test]
fn a_config_changed_after_loading_is_checked_again() {
    let mut loaded = example(&[]);
    loaded.config.model.heads = 0;
    assert!(loaded.plan(Machine::cpu(2)).is_err());
}
