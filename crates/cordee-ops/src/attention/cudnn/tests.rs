//! What can be told without a GPU, of the embedded object and, where `CORDEE_TEST_CUDNN` names
//! libcudnn, of cuDNN itself: it makes plans for a GPU that is only described, as long as there is a
//! driver's library to load (`scripts/cudnn-without-a-gpu` makes one that does nothing).

use std::{env, ffi::CStr, path::PathBuf};

use cordee_memory::DType;

use super::{
    Status,
    library::{Library, Shape, Target},
    plans, status,
};
use crate::{
    Device, GpuOptions,
    conformance::{self, Setting},
};

/// An H100 with 80 GiB, in the words of cuDNN.
const H100: &CStr = cr#"{
    "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000, "totalGlobalMem": 85899345920,
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "oversizedSharedMemoryPerBlock": 0, "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
    "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "memoryBusWidth": 5120,
    "l2CacheSize": 52428800, "deviceName": "NVIDIA H100 80GB HBM3"
}"#;

/// As a small Llama has them.
const SHAPE: Shape = Shape {
    backward: false,
    batch: 4,
    seq: 1024,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    window: None,
    scale: 0x3fc0_0000_0000_0000, // 1/8
    compute_capability: 90,
    heads_first: true,
    strides: [3072; 3],
};

/// The same with queries, keys and values side by side.
fn beside(shape: Shape) -> Shape {
    let heads = shape.heads + 2 * shape.kv_heads;
    Shape {
        strides: [heads * shape.head_dim; 3],
        ..shape
    }
}

fn unavailable(paths: &[&str]) -> String {
    let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    match Library::open(&paths) {
        Ok(library) => panic!("{} was opened", library.status()),
        Err(Status::Unavailable { reason, tried }) => {
            assert_eq!(tried, paths);
            reason
        }
        Err(status) => panic!("{status}"),
    }
}

#[test]
fn a_library_that_is_not_there_is_a_reason() {
    let reason = unavailable(&["/nowhere/libcudnn.so.9", "/nor/here/libcudnn.so.9"]);
    for path in ["/nowhere/libcudnn.so.9", "/nor/here/libcudnn.so.9"] {
        let expected = format!("{path}: cannot open shared object file");
        assert!(reason.contains(&expected), "{reason}");
    }
    assert_eq!(unavailable(&[]), "no path to look at was given");
}

#[test]
fn another_library_is_not_taken_for_cudnn() {
    let this = env::current_exe().unwrap();
    let mut folders = ["/lib/x86_64-linux-gnu", "/lib64", "/usr/lib"].into_iter();
    let found = folders.find(|folder| PathBuf::from(folder).join("libm.so.6").exists());
    let Some(folder) = found else { return };
    let reason = unavailable(&[&format!("{folder}/libm.so.6"), this.to_str().unwrap()]);
    assert!(
        reason.contains("libm.so.6: it has no cudnnGetVersion"),
        "{reason}"
    );
}

#[test]
fn shapes_are_told_in_words() {
    let shape = Shape {
        backward: true,
        window: Some(512),
        ..SHAPE
    };
    assert_eq!(
        shape.to_string(),
        "backward of 4 x 1024 tokens, 32 heads of 64 on 8, window 512"
    );
}

/// cuDNN, where the test is told of one.
fn real() -> Option<Library> {
    let path = env::var_os("CORDEE_TEST_CUDNN")?;
    Some(Library::open(&[path.into()]).expect("libcudnn"))
}

#[test]
fn cudnn_says_what_it_does_not_do() {
    let Some(library) = real() else { return };
    let why = |shape| {
        library
            .create_plan(Target::Nothing, beside(shape))
            .expect_err("a plan without a GPU")
    };
    let valid = "the graph is valid, but there is no GPU to make a plan for";
    assert_eq!(why(SHAPE), valid);
    let backward = Shape {
        backward: true,
        ..SHAPE
    };
    assert_eq!(why(backward), valid);
    let odd = Shape {
        head_dim: 100,
        ..SHAPE
    };
    assert_eq!(
        why(odd),
        "checking the graph: hidden_dim should be multiple of 8"
    );
    let none = library.create_plan(Target::Described(c"{}"), SHAPE);
    assert!(none.unwrap_err().starts_with("reading what the GPU is: "));
}

#[test]
fn cudnn_has_plans_for_an_h100() {
    let Some(library) = real() else { return };
    let plan = |shape| match library.create_plan(Target::Described(H100), beside(shape)) {
        Ok(plan) => plan.workspace,
        Err(why) => panic!("{shape}: {why}"),
    };
    let forwards = [
        SHAPE,
        Shape {
            window: Some(100),
            ..SHAPE
        },
        Shape {
            heads_first: false,
            head_dim: 128,
            ..SHAPE
        },
        Shape {
            kv_heads: 32,
            head_dim: 256,
            ..SHAPE
        },
        Shape {
            batch: 1,
            seq: 128,
            heads: 3,
            kv_heads: 1,
            head_dim: 40,
            ..SHAPE
        },
    ];
    for forward in forwards {
        plan(forward);
        plan(Shape {
            backward: true,
            ..forward
        });
    }
    // Scores of 16 GiB would not fit: the gradient of the queries is summed in order.
    let long = Shape {
        backward: true,
        batch: 1,
        seq: 16_384,
        ..SHAPE
    };
    let workspace = plan(long);
    assert!(workspace < 1 << 30, "{workspace} bytes");
}

/// The cases of the operator in bf16, on a GPU if there is one; cuDNN computes some of them.
#[test]
fn a_gpu_agrees_with_the_reference() {
    if Device::gpus() == 0 || matches!(status(), Status::Unavailable { .. }) {
        return;
    }
    let gpu = Device::gpu(0, &GpuOptions::default()).unwrap();
    let on = Setting::new(gpu, DType::Bf16);
    for case in conformance::cases() {
        if case.operator == "attention" && case.applies(&on) {
            for finding in case.run(&on).unwrap() {
                assert!(finding.holds(), "{finding:?}");
            }
        }
    }
    assert!(plans::made() >= 4, "{:?}", plans::refusals());
}
