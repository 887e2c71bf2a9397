use std::{fs, path::Path};

use super::{DType, Operator, PRELUDE, Source, compile, read_image, write_image};
use crate::{
    adamw, attention, cuda, embedding, geglu, gelu, gradient_norm, head, layer_norm, linear,
    residual, rms_norm, rotary, swiglu, transfer,
};

/// Definitions that a source is compiled with.
type Variant = &'static [(&'static str, usize)];

const PLAIN: &[Variant] = &[&[]];

/// Rows whose width is no multiple of a vector are read one by one.
const OF_ROWS: &[Variant] = &[&[], &[("CORDEE_SCALAR", 1)]];

const BOTH: &[DType] = &[DType::F32, DType::Bf16];

fn sources() -> Vec<(&'static Source, &'static [Variant], &'static [DType])> {
    let heads: &[Variant] = &[
        &[("HEAD_DIM", 64), ("TILE", 64)],
        &[("HEAD_DIM", 80), ("TILE", 64)],
        &[("HEAD_DIM", 128), ("TILE", 64)],
        &[("HEAD_DIM", 256), ("TILE", 32)],
        &[("HEAD_DIM", 33), ("TILE", 16)],
    ];
    let heads_of_tensor_cores: &[Variant] = &[&[("HEAD_DIM", 64)], &[("HEAD_DIM", 128)]];
    vec![
        (&adamw::cuda::SOURCE, PLAIN, BOTH),
        (&attention::cuda::GENERAL, heads, BOTH),
        (
            &attention::cuda::TENSOR_CORES,
            heads_of_tensor_cores,
            &[DType::Bf16],
        ),
        (&attention::cudnn::SOURCE, PLAIN, &[DType::F32]),
        (&cuda::product::plain::SOURCE, PLAIN, BOTH),
        (&cuda::rows::SOURCE, PLAIN, BOTH),
        (&embedding::cuda::SOURCE, OF_ROWS, BOTH),
        (&geglu::cuda::SOURCE, PLAIN, BOTH),
        (&gelu::cuda::SOURCE, PLAIN, BOTH),
        (&gradient_norm::cuda::SOURCE, PLAIN, &[DType::F32]),
        (&head::cuda::SOURCE, PLAIN, BOTH),
        (&layer_norm::cuda::SOURCE, OF_ROWS, BOTH),
        (&linear::cuda::SOURCE, OF_ROWS, BOTH),
        (&residual::cuda::SOURCE, PLAIN, BOTH),
        (&rms_norm::cuda::SOURCE, OF_ROWS, BOTH),
        (&rotary::cuda::SOURCE, OF_ROWS, BOTH),
        (&swiglu::cuda::SOURCE, PLAIN, BOTH),
        (&transfer::SOURCE, PLAIN, BOTH),
    ]
}

/// By the NVRTC that is found first: the real one needs no GPU to compile for one.
#[test]
fn every_kernel_is_compiled_for_the_h100() {
    let op = Operator("test");
    for (source, variants, numbers) in sources() {
        for &numbers in numbers {
            for definitions in variants {
                let options = super::options("sm_90a", numbers, definitions);
                let text = format!("{PRELUDE}{}", source.text);
                let image = compile(op, source.name, &text, &options).unwrap();
                println!(
                    "{:24} {numbers:4} {definitions:?}: {} bytes",
                    source.name,
                    image.len()
                );
                assert!(!image.is_empty());
            }
        }
    }
}

#[test]
fn no_file_of_kernels_is_forgotten() {
    let known: Vec<&str> = sources().iter().map(|(source, ..)| source.text).collect();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "cu") {
                let text = fs::read_to_string(&path).unwrap();
                let found = known.iter().any(|known| known.ends_with(&text));
                assert!(found, "{} is compiled by no test", path.display());
            }
        }
    }
}

#[test]
fn a_damaged_image_is_not_taken_from_the_cache() {
    let folder = std::env::temp_dir().join(format!("cordee-kernels-{}", std::process::id()));
    let path = folder.join("norm.cubin");
    write_image(&path, b"kernels").unwrap();
    assert_eq!(read_image(&path).as_deref(), Some(&b"kernels"[..]));
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(read_image(&path), None);
    fs::write(&path, &bytes[..5]).unwrap();
    assert_eq!(read_image(&path), None);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(read_image(&path), None);
}
