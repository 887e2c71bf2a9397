use std::{fs, path::Path};

use super::{DType, Operator, PRELUDE, Source, compile, read_image, write_image};
use crate::{
    adamw, attention, cuda, digest, embedding, geglu, gelu, gradient_norm, head, layer_norm,
    linear, random, residual, rms_norm, rotary, swiglu, transfer,
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
        (&digest::cuda::SOURCE, PLAIN, &[DType::F32]),
        (&embedding::cuda::SOURCE, OF_ROWS, BOTH),
        (&geglu::cuda::SOURCE, OF_ROWS, BOTH),
        (&gelu::cuda::SOURCE, PLAIN, BOTH),
        (&gradient_norm::cuda::SOURCE, PLAIN, BOTH),
        (&head::cuda::SOURCE, PLAIN, BOTH),
        (&layer_norm::cuda::SOURCE, OF_ROWS, BOTH),
        (&linear::cuda::SOURCE, OF_ROWS, BOTH),
        (&random::cuda::SOURCE, PLAIN, BOTH),
        (&residual::cuda::SOURCE, PLAIN, BOTH),
        (&rms_norm::cuda::SOURCE, OF_ROWS, BOTH),
        (&rotary::cuda::SOURCE, OF_ROWS, BOTH),
        (&swiglu::cuda::SOURCE, OF_ROWS, BOTH),
        (&transfer::SOURCE, PLAIN, BOTH),
    ]
}

/// What a kernel takes of a multiprocessor, by the assembler's own words.
#[derive(Debug, Default)]
struct Resources {
    kernel: String,
    /// Of a thread.
    registers: usize,
    /// Bytes of a block, beside what a launch asks for.
    shared: usize,
    /// Bytes of a thread that live in local memory: arrays, and what found no register.
    stack: usize,
    /// Bytes that a thread stores and loads again, there being no register.
    spilled: [usize; 2],
}

/// Of all kernels that a log tells of; the stand-in for NVRTC tells of none.
fn resources(log: &str) -> Vec<Resources> {
    let number = |line: &str, unit: &str| -> usize {
        let before = line.split(unit).next().unwrap_or_default();
        let digits = before.trim_end().rsplit([' ', ',']).next();
        let found = digits.and_then(|digits| digits.parse().ok());
        if line.contains(unit) {
            found.unwrap()
        } else {
            0
        }
    };
    let mut all: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Compiling entry function '") {
            all.push(Resources {
                kernel: name.split('\'').next().unwrap().to_owned(),
                ..Resources::default()
            });
        } else if let Some(last) = all.last_mut() {
            if line.contains("bytes stack frame") {
                last.stack = number(line, " bytes stack frame");
                last.spilled =
                    [" bytes spill stores", " bytes spill loads"].map(|u| number(line, u));
            } else if line.contains(" registers") {
                last.registers = number(line, " registers");
                last.shared = number(line, " bytes smem");
            }
        }
    }
    all
}

/// Bytes that a kernel may spill: more costs more than what it is for.
const MOST_SPILLED: usize = 128;

/// By the NVRTC that is found first: the real one needs no GPU to compile for one, and tells what each
/// kernel takes.
#[test]
fn every_kernel_is_compiled_for_the_h100() {
    let op = Operator("test");
    for (source, variants, numbers) in sources() {
        for &numbers in numbers {
            for definitions in variants {
                let mut options = super::options("sm_90a", numbers, definitions);
                options.push("--ptxas-options=-v".to_owned());
                let text = format!("{PRELUDE}{}", source.text);
                let compiled = compile(op, source.name, &text, &options).unwrap();
                println!(
                    "{:24} {numbers:4} {definitions:?}: {} bytes",
                    source.name,
                    compiled.image.len()
                );
                assert!(!compiled.image.is_empty());
                for told in resources(&compiled.log) {
                    let Resources {
                        kernel,
                        registers,
                        shared,
                        stack,
                        spilled: [stored, loaded],
                    } = &told;
                    println!(
                        "    {kernel:24} {registers:3} registers, {shared:5} bytes shared, \
                         {stack:3} stack, {stored:3} spilled, {loaded:3} loaded again"
                    );
                    assert!(*registers > 0, "{}", compiled.log);
                    assert!(*stored.max(loaded) <= MOST_SPILLED, "{told:?}");
                }
            }
        }
    }
}

#[test]
fn what_the_assembler_tells_is_read() {
    let log = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'sums' for 'sm_90a'\n\
        ptxas info    : Function properties for sums\n    \
        16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
        ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 256 bytes smem\n\
        ptxas info    : Compiling entry function 'add' for 'sm_90a'\n\
        ptxas info    : Function properties for add\n    \
        0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 12 registers, used 0 barriers\n";
    let told: Vec<_> = resources(log)
        .into_iter()
        .map(|r| (r.kernel, [r.registers, r.shared, r.stack], r.spilled))
        .collect();
    let expected = [("sums", [40, 256, 16], [4, 8]), ("add", [12, 0, 0], [0, 0])];
    assert_eq!(
        told,
        expected.map(|(kernel, a, b)| (kernel.to_owned(), a, b))
    );
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
