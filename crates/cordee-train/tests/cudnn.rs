//! That what is prepared for cuDNN is what a step asks it for, and no more.

#![cfg(feature = "cuda")]

use cordee_comm::SharedMemoryGroup;
use cordee_config::{DeviceKind, Machine};
use cordee_memory::DType;
use cordee_model::Model;
use cordee_ops::{
    Device, GpuOptions,
    attention::cudnn::{self, Status},
};
use cordee_train::{Bench, Compute, bench};

/// Of queries and keys side by side, of those that norms keep apart, and of windows too.
const MODELS: [(&str, usize); 3] = [
    ("family=\"llama\"", 1),
    ("family=\"qwen3\"", 1),
    (
        "family=\"gemma3\",sliding_window=64,full_attention_layers=[5]",
        2,
    ),
];

#[test]
fn steps_use_the_plans_that_were_prepared() {
    if Device::gpus() == 0 || matches!(cudnn::status(), Status::Unavailable { .. }) {
        assert!(std::env::var_os("CI").is_none(), "{}", cudnn::status());
        println!("skipped: {}", cudnn::status());
        return;
    }
    let compute = Compute {
        device: Device::gpu(0, &GpuOptions::default()).unwrap(),
        numbers: DType::Bf16,
        states: DType::F32,
    };
    for (number, (family, kinds)) in MODELS.into_iter().enumerate() {
        let model = format!(
            "model={{{family},vocab_size=64,dim=32,layers=6,heads=4,kv_heads=2,head_dim=8,ffn=32}}"
        );
        // Other lengths make other plans.
        let sets = [
            model,
            format!("data.seq_len={}", 128 * (number + 1)),
            "data.sources=[{name=\"random\",path=\"random\"}]".to_owned(),
            "train={steps=2,global_batch_size=2,micro_batch_size=2}".to_owned(),
            "schedule={kind=\"constant\",warmup_steps=0}".to_owned(),
            "precision.compute=\"bf16\"".to_owned(),
            "parallel={device=\"cuda\",workers=1}".to_owned(),
        ];
        let machine = Machine {
            device: DeviceKind::Cuda,
            workers: 1,
        };
        let loaded = cordee_config::from_sets(&sets).unwrap();
        let plan = loaded.plan(machine).unwrap();
        let (config, before) = (&plan.config, cudnn::plans());
        let model = Model::new(&config.model, 64, config.data.seq_len).unwrap();
        // Dropped, it has waited.
        drop(model.prepare(&compute.device, DType::Bf16, [2, config.data.seq_len]));
        let prepared = cudnn::plans();
        assert_eq!(prepared - before, 2 * kinds, "{family}");
        let measured = Bench {
            plan: &plan,
            compute: &compute,
            vocab_size: 64,
            warmup: 0,
            steps: 1,
            products: false,
            communication: false,
            link: None,
        };
        bench(&measured, &mut SharedMemoryGroup::solo()).unwrap();
        assert_eq!(cudnn::plans(), prepared, "{family}");
        assert_eq!(cudnn::refusals(), Vec::<String>::new());
    }
}
