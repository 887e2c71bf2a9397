use std::collections::BTreeSet;

use cordee_memory::DType;

use super::{Compared, Setting, cases, normals};
use crate::{
    Device,
    gelu::{
        Approximation::{Exact, Tanh},
        reference,
    },
    rms_norm::reference::Rows,
};

fn host() -> Setting {
    Setting::new(Device::HOST, DType::F32)
}

/// The claim itself: what `cordee verify operators` runs.
#[test]
fn every_operator_agrees_with_its_reference() {
    all_agree(&host());
}

/// The same on a GPU, or on what stands in for one.
#[cfg(feature = "cuda")]
#[test]
fn every_operator_agrees_on_a_gpu() {
    if Device::gpus() == 0 {
        assert!(
            std::env::var_os("CI").is_none(),
            "there is no GPU, and nothing stands in for one"
        );
        println!("skipped: there is no GPU, and nothing stands in for one");
        return;
    }
    let gpu = Device::gpu(0, &crate::GpuOptions::default()).unwrap();
    for numbers in [DType::F32, DType::Bf16] {
        all_agree(&Setting::new(gpu.clone(), numbers));
    }
}

fn all_agree(on: &Setting) {
    let mut broken = Vec::new();
    for case in cases().into_iter().filter(|case| case.applies(on)) {
        let findings = match case.run(on) {
            Ok(findings) => findings,
            Err(error) => {
                broken.push(format!("{} {}: {error}", case.operator, case.name));
                continue;
            }
        };
        assert!(!findings.is_empty());
        for finding in findings {
            let line = format!(
                "{:13} {:45} {:24} {:.1e} of {:.0e}",
                finding.operator, finding.case, finding.result, finding.error, finding.bound
            );
            println!("{line}");
            if !finding.holds() {
                broken.push(line);
            }
        }
    }
    assert!(broken.is_empty(), "{:?}\n{}", on.numbers, broken.join("\n"));
}

/// Every folder of an operator has cases.
#[test]
fn no_operator_is_forgotten() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders: BTreeSet<String> = std::fs::read_dir(source)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| {
            entry.path().join("reference.rs").exists() || entry.path().join("cpu.rs").exists()
        })
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let covered: BTreeSet<String> = cases()
        .iter()
        .map(|case| case.operator.to_owned())
        .collect();
    assert_eq!(folders, covered);
}

#[test]
fn names_of_cases_are_unique() {
    let cases = cases();
    let names: BTreeSet<_> = cases
        .iter()
        .map(|case| (case.operator, case.name))
        .collect();
    assert_eq!(names.len(), cases.len());
}

fn bound(operator: &str) -> f64 {
    let of_operator = |case: &super::Case| (case.operator == operator).then_some(case.bounds.f32);
    cases().iter().find_map(of_operator).unwrap()
}

/// One curve in place of the other is far outside of the bound.
#[test]
fn the_wrong_gelu_is_caught() {
    let x = host().affine(normals("x", 231), 3.0, 0.0);
    let values = |curve| x.iter().map(|&x| reference::value(x, curve)).collect();
    let slopes = |curve| x.iter().map(|&x| reference::slope(x, curve)).collect();
    for wrong in [
        Compared::new("y", values(Tanh), values(Exact)),
        Compared::new("dx", slopes(Tanh), slopes(Exact)),
    ] {
        assert!(wrong.error() > 20.0 * bound("gelu"), "{}", wrong.error());
    }
}

/// An eps that is off by a hundredth is outside of the bound, in the case that looks for it.
#[test]
fn a_wrong_eps_is_caught() {
    let x = host().affine(normals("x", 67 * 100), 1e-3, 0.0);
    let gains = normals("weight", 100);
    let rows = |eps| Rows {
        x: &x,
        gains: &gains,
        eps,
    };
    let wrong = Compared::new("y", rows(1.01e-5).forward(), rows(1e-5).forward());
    assert!(
        wrong.error() > 20.0 * bound("rms_norm"),
        "{}",
        wrong.error()
    );
}

#[test]
fn what_is_not_a_number_never_holds() {
    let error = |found: f64| Compared::new("y", vec![found, 1.0], vec![1.0, 1.0]).error();
    assert!(error(f64::NAN).is_infinite());
    assert!(error(f64::INFINITY).is_infinite());
    assert!((error(1.5) - 0.5).abs() < 1e-15);
    let nothing = Compared::new("y", vec![1e-3], vec![0.0]);
    assert!(
        (nothing.error() - 1e-3).abs() < 1e-15,
        "0 is compared with 1"
    );
}
