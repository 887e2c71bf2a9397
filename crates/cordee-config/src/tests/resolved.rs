//! What comes out: the shown config, the written one, the plan.

use std::path::Path;

use proptest::prelude::*;

use super::{Directory, example, load_text};
use crate::{
    ByteSize, Config, Count, DeviceKind, Loaded, Machine, Plan, ScheduleKind, reference::EXAMPLE,
};

/// `text` read as a file of its own, with paths as they stand in it.
fn reread(text: &str) -> Config {
    let directory = Directory::new(&[("again.toml", text)]);
    let mut config = directory.load("again.toml", &[]).unwrap().config;
    let strip = |path: &mut std::path::PathBuf| {
        *path = directory.relative(path.to_str().unwrap()).into();
    };
    config
        .data
        .sources
        .iter_mut()
        .for_each(|source| strip(&mut source.path));
    config.data.tokenizer.iter_mut().for_each(strip);
    config.data.cache_dir.iter_mut().for_each(strip);
    config
}

const SETS: &[&str] = &[
    "optimizer.lr=1.25e-5",
    "optimizer.betas=[0.9, 0.999]",
    "eval.sample_prompt=\"a \\\"quoted\\\"\\ttab\\nand \\u0001 \\\\ # no comment\"",
    "data.sources=[\
        {name='a',path='a b.txt',weight=1,document_separator=\"\\n\\n\"},\
        {name='b',path='b.txt',weight=0.5}]",
    "checkpoint.piece_size=1MB",
    "parallel={timeout='1h1s', workers=4}",
];

#[test]
fn show_tells_every_origin() {
    let directory = Directory::new(&[
        ("base/small.toml", EXAMPLE),
        (
            "run.toml",
            "extends = 'base/small.toml'\n[optimizer]\nlr = 0.002\n",
        ),
    ]);
    let loaded = directory.load("run.toml", &SETS[1..]).unwrap();
    assert_text!(directory.relative(&loaded.show(&loaded.plan(Machine::cpu(2)).unwrap())));
}

#[test]
fn what_is_shown_and_what_is_written_read_back() {
    for loaded in [example(&[]), example(SETS)] {
        assert_eq!(reread(&loaded.config.to_toml()), loaded.config);
        let plan = loaded.plan(Machine::cpu(2)).unwrap();
        assert_eq!(reread(&loaded.show(&plan)), plan.config);
        assert_eq!(reread(&plan.config.to_toml()), plan.config);
    }
    let written = example(SETS).config.to_toml();
    assert_eq!(reread(&written).to_toml(), written);
    assert!(!written.contains("not set"));
}

#[test]
fn absolute_paths_survive_another_directory() {
    let mut config = example(&["data.cache_dir=cache", "data.tokenizer=/t.json"]).config;
    config.make_paths_absolute(Path::new("/here"));
    let again = load_text(&config.to_toml(), &[]).unwrap().config;
    assert_eq!(again, config);
    assert_eq!(again.data.sources[0].path, Path::new("/here/books.txt"));
    assert_eq!(
        again.data.cache_dir.as_deref(),
        Some(Path::new("/here/cache"))
    );
    assert_eq!(again.data.tokenizer.as_deref(), Some(Path::new("/t.json")));
}

#[test]
fn a_plan_leaves_nothing_open() {
    let plan = example(&["train.steps=3"]).plan(Machine::cpu(2)).unwrap();
    assert_eq!(
        (plan.config.model.kv_heads, plan.config.model.head_dim),
        (Some(4), Some(16))
    );
    assert_eq!(
        (plan.config.parallel.workers, plan.world_size),
        (Some(2), 2)
    );
    assert_eq!(
        (
            plan.global_batch_size,
            plan.micro_batch_size,
            plan.accumulation_steps
        ),
        (8, 2, 2)
    );
    assert_eq!((plan.steps, plan.tokens_per_step), (3, 8 * 32));
    let gpt2 = example(&["model.family=gpt2"])
        .plan(Machine::cpu(2))
        .unwrap();
    assert_eq!(gpt2.config.model.max_positions, Some(32));
    let given = example(&["parallel.workers=1", "model={kv_heads=2,head_dim=8}"])
        .plan(Machine::cpu(2))
        .unwrap();
    assert_eq!((given.world_size, given.accumulation_steps), (1, 4));
    assert_eq!(
        (given.config.model.kv_heads, given.config.model.head_dim),
        (Some(2), Some(8))
    );
}

#[test]
fn a_plan_says_what_is_computed_on() {
    let gpus = Machine {
        device: DeviceKind::Cuda,
        workers: 8,
    };
    let device = |sets: &[&str], machine| {
        let plan = example(sets).plan(machine).unwrap();
        assert_eq!(plan.config.parallel.device, plan.device.into());
        (plan.device, plan.world_size)
    };
    let sets = ["train.global_batch_size=16", "precision.compute=bf16"];
    assert_eq!(device(&sets, gpus), (DeviceKind::Cuda, 8));
    assert_eq!(device(&[], Machine::cpu(2)), (DeviceKind::Cpu, 2));
    let (cpu, cuda) = ("parallel.device=cpu", "parallel.device=cuda");
    assert_eq!(device(&[sets[0], cpu], gpus), (DeviceKind::Cpu, 8));
    assert_eq!(
        device(&[cuda, sets[1]], Machine::cpu(2)),
        (DeviceKind::Cuda, 2)
    );
}

fn fingerprint(loaded: &Loaded) -> String {
    loaded.plan(Machine::cpu(2)).unwrap().fingerprint
}

#[test]
fn a_fingerprint_is_for_ever() {
    // Only a new key in the schema may change it: checkpoints are held against it.
    assert_eq!(
        fingerprint(&example(&[])),
        "94bd62d0173f527ddae8753f00bbb456"
    );
}

#[test]
fn a_fingerprint_ignores_what_changes_no_weight() {
    let plain = fingerprint(&example(&[]));
    for set in [
        "log={every=3,tensorboard=false}",
        "checkpoint={every=3,keep=9,piece_size='1MiB'}",
        "eval={every=3,sample_prompt='x',sample_tokens=3}",
        "parallel={threads=3,timeout=3}",
        "data.cache_dir=elsewhere",
        "data.sources=[{name='books',path='elsewhere.txt'}]",
        // What was the default already, or follows from the rest.
        "optimizer.lr=3e-4",
        "parallel.workers=2",
        "model={kv_heads=4,head_dim=16}",
    ] {
        assert_eq!(fingerprint(&example(&[set])), plain, "{set}");
    }
    let tokenizer = |path: &str| fingerprint(&example(&[&format!("data.tokenizer={path}")]));
    assert_eq!(tokenizer("a.json"), tokenizer("b.json"));
}

#[test]
fn a_fingerprint_sees_everything_else() {
    let mut seen = vec![fingerprint(&example(&[]))];
    for set in [
        "model.dim=128",
        "model.layers=3",
        "model.heads=8",
        "model.kv_heads=2",
        "model.head_dim=8",
        "model.ffn=64",
        "model.rope_theta=1e5",
        "model.norm_eps=1e-6",
        "model.tie_embeddings=true",
        "model.init_std=0.01",
        "model.family=qwen3",
        "model={family='gpt2', gelu='exact'}",
        "model={family='gpt2', max_positions=64}",
        "model={family='gemma3', sliding_window=8}",
        "model={family='gemma3', sliding_window=8, full_attention_layers=[1]}",
        "model={family='gemma3', sliding_window=8, rope_local_theta=100}",
        "model={family='gemma3', query_pre_attn_scalar=8}",
        "model.rope_scaling={kind='linear', factor=2}",
        "model.vocab_size=500",
        "data.seq_len=16",
        "data.sources=[{name='other',path='books.txt'}]",
        "data.sources=[{name='books',path='books.txt',weight=1}]",
        "data.sources=[{name='books',path='books.txt',document_separator='x'}]",
        "data.sources=[{name='books',path='books.txt',format='jsonl'}]",
        "data.sources=[{name='books',path='books.txt',format='jsonl',prompt_key='q'}]",
        "data.sources=[{name='books',path='books.txt',format='jsonl',completion_key='a'}]",
        "data.sources=[{name='books',path='books.txt',format='jsonl',messages_key='m'}]",
        "data.sources=[{name='books',path='books.txt',format='jsonl',too_long='error'}]",
        "data.tokenizer=t.json",
        "data.vocab_size=1000",
        "data.validation_fraction=0.1",
        "train.steps=11",
        "train.global_batch_size=16",
        "train.micro_batch_size=4",
        "train.seed=2",
        "optimizer.lr=3.0000000000000003e-4",
        "optimizer.betas=[0.9, 0.99]",
        "optimizer.eps=1e-7",
        "optimizer.weight_decay=0",
        "optimizer.clip_grad_norm=0",
        "schedule.kind=linear",
        "schedule.warmup_steps=1",
        "schedule.min_lr_ratio=0",
        "parallel.workers=1",
    ] {
        let one = fingerprint(&example(&[set]));
        assert!(!seen.contains(&one), "{set} is not in the fingerprint");
        seen.push(one);
    }
}

prop_compose! {
    /// Any valid config with awkward numbers and texts.
    fn configs()(
        lr in 1e-12f64..1e3,
        weight_decay in prop_oneof![Just(0.0), 0.0..f64::MAX, 0.0..f64::MIN_POSITIVE],
        betas in [0.0f64..1.0, 0.0..1.0],
        fraction in 1e-9f64..0.999,
        seed in 0..=i64::MAX as u64,
        every in any::<u64>(),
        piece_size in 4u64 << 10..=1 << 30,
        nanos in 1u64..u64::MAX,
        prompt in any::<String>(),
        name in ".{1,8}",
        kind in prop::sample::select(vec![ScheduleKind::Linear, ScheduleKind::Constant]),
    ) -> Loaded {
        let mut loaded = example(&[]);
        let config = &mut loaded.config;
        config.optimizer.lr = lr;
        config.optimizer.weight_decay = weight_decay;
        config.optimizer.betas = betas;
        config.data.validation_fraction = fraction;
        config.data.sources[0].name = name;
        config.train.seed = seed;
        config.schedule.kind = kind;
        config.checkpoint.every = Count(every);
        config.checkpoint.piece_size = ByteSize(piece_size);
        config.parallel.timeout.0 = std::time::Duration::from_nanos(nanos);
        config.eval.sample_prompt = prompt;
        loaded
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_config_survives_toml_and_json(loaded in configs()) {
        prop_assert_eq!(&reread(&loaded.config.to_toml()), &loaded.config);
        let plan = loaded.plan(Machine::cpu(2)).unwrap();
        prop_assert_eq!(&reread(&loaded.show(&plan)), &plan.config);
        let again: Plan = serde_json::from_slice(&serde_json::to_vec(&plan).unwrap()).unwrap();
        prop_assert_eq!(again.config.optimizer.lr.to_bits(), plan.config.optimizer.lr.to_bits());
        prop_assert_eq!(&again, &plan);
        prop_assert_eq!(reread(&plan.config.to_toml()), plan.config);
    }
}
