//! Training steps held against those that PyTorch recorded.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::fixture::Fixture;

/// The recorded families.
fn traces() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cordee-train/tests/golden");
    let entries = fs::read_dir(folder).unwrap();
    let mut traces: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    traces.sort();
    assert_eq!(traces.len(), 8);
    traces
}

/// Replays a trace that must agree; returns its steps.
fn verified(trace: &Path, more: &[&str]) -> Value {
    let trace = trace.to_str().unwrap();
    let arguments = [&["verify", "trace", trace, "--json"], more].concat();
    let finished = Fixture::new().run(&arguments).expect(0);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(report["steps"].as_array().unwrap().len(), 20);
    assert_eq!(report["compared"].as_object().unwrap().len(), 5, "{trace}");
    report["steps"].clone()
}

#[test]
fn every_family_trains_as_in_pytorch_whatever_is_computed_again() {
    for trace in traces() {
        for workers in ["1", "2"] {
            let steps = |recompute| {
                let arguments = ["--workers", workers, "--recompute", recompute];
                verified(&trace, &arguments)
            };
            let kept = steps("none");
            assert_eq!(kept, steps("light"), "{}", trace.display());
            assert_eq!(kept, steps("full"), "{}", trace.display());
        }
    }
}

#[test]
fn rows_need_not_be_shared_out_evenly() {
    let traces = traces();
    verified(&traces[0], &["--workers", "3"]);
    verified(&traces[0], &["--workers", "4"]);
}

/// A copy of a trace whose `trace.json` is another.
fn altered(fixture: &Fixture, alter: impl FnOnce(&mut Value)) -> String {
    let copy = fixture.path("trace");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&traces()[0]).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let file = copy.join("trace.json");
    let mut trace = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    alter(&mut trace);
    fs::write(&file, trace.to_string()).unwrap();
    copy.to_str().unwrap().to_owned()
}

#[test]
fn a_loss_that_differs_is_found() {
    let fixture = Fixture::new();
    let trace = altered(&fixture, |trace| {
        let loss = &mut trace["trace"][7]["loss"];
        *loss = (loss.as_f64().unwrap() * (1.0 + 5e-6)).into();
    });
    let found = fixture.run(&["verify", "trace", &trace]).expect(1).stdout;
    assert!(
        found.contains("too far") && found.contains("different:"),
        "{found}"
    );
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let fixture = Fixture::new();
    let trace = altered(&fixture, |trace| trace["optimizer"]["kind"] = "lion".into());
    let refused = fixture.run(&["verify", "trace", &trace]);
    refused.expect(2).says(&["trace.json", "`lion`", "`adamw`"]);
    let trace = traces()[0].to_str().unwrap().to_owned();
    let refused = fixture.run(&["verify", "trace", &trace, "--workers", "5"]);
    refused.expect(2).says(&["4 rows", "5 ranks"]);
    let refused = fixture.run(&["verify", "trace", "nowhere"]);
    refused.expect(2).says(&["nowhere"]);
}

#[test]
fn every_operator_agrees_with_its_reference() {
    let finished = Fixture::new().run(&["verify", "operators", "--json"]);
    let report: Value = serde_json::from_str(&finished.expect(0).stdout).unwrap();
    assert_eq!(report["passed"], true);
    let findings = report["findings"].as_array().unwrap();
    let of = |operator: &str| {
        findings
            .iter()
            .any(|finding| finding["operator"] == operator)
    };
    assert!(of("attention") && of("gelu") && of("adamw"), "{report}");
    assert!(findings.iter().all(|finding| finding["error"].is_f64()));
    let people = Fixture::new()
        .run(&["verify", "operators"])
        .expect(0)
        .stdout;
    let names: BTreeSet<_> = findings
        .iter()
        .map(|finding| finding["operator"].as_str())
        .collect();
    let last = format!(
        "equal: {} results of {} operators",
        findings.len(),
        names.len()
    );
    assert_eq!(people.lines().last(), Some(last.as_str()));
}

#[test]
fn every_collective_is_right_on_the_cpu() {
    let fixture = Fixture::new();
    let arguments = ["verify", "collectives", "--device=cpu", "--workers=3"];
    let told = fixture.run(&arguments).expect(0).stdout;
    let line_of = |words: &[&str]| {
        let mut lines = told.lines();
        lines.any(|line| line.split_whitespace().eq(words.iter().copied()))
    };
    assert!(line_of(&["all_reduce", "bf16", "right"]), "{told}");
    assert!(line_of(&["gather_bytes", "-", "right"]), "{told}");
    let last = told.lines().last().unwrap();
    assert!(
        last.starts_with("right: ") && last.ends_with("3 workers on cpu, shared memory"),
        "{last}"
    );
    let report = fixture.run(&[&arguments[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&report.expect(0).stdout).unwrap();
    assert_eq!(report["passed"], true);
}
