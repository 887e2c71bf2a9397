//! What the verdicts look like.

use cordee_protocol::{Check, CheckReport, Finding};
use insta::assert_snapshot;

use super::*;
use crate::commands::smoke::{thresholds::Thresholds, verdict::judge};

fn report(check: Check, of: Option<&str>, finding: Finding) -> CheckReport {
    CheckReport {
        check,
        of: of.map(str::to_owned),
        finding,
    }
}

fn judged(reports: &[CheckReport]) -> Vec<Judged> {
    let thresholds = Thresholds::load(None).unwrap();
    judge(reports, thresholds.of(&["NVIDIA H100 80GB HBM3"; 2]), 8)
}

fn some() -> Vec<CheckReport> {
    vec![
        report(
            Check::Training,
            None,
            Finding::with_detail(3e-8, "loss 5.77 to 4.61 over 8 ranks"),
        ),
        report(Check::Clock, None, Finding::measured(0.0042)),
        report(Check::LockedMemory, None, Finding::measured(65536.0)),
        report(Check::MatmulBf16, Some("GPU 0"), Finding::measured(689.7)),
        report(Check::MatmulBf16, Some("GPU 1"), Finding::measured(431.2)),
        report(
            Check::GpuXid,
            Some("GPU 0"),
            Finding::Unknown {
                why: "/dev/kmsg: Operation not permitted (os error 1)".to_owned(),
            },
        ),
        report(
            Check::StorageBytes,
            None,
            Finding::Broken {
                why: "writing: No space left on device (os error 28)".to_owned(),
            },
        ),
        report(Check::StorageRead, None, Finding::measured(1.93)),
    ]
}

#[test]
fn a_machine_that_is_not_fit() {
    let judged = judged(&some());
    assert!(!Counts::of(&judged).passed(false));
    assert_snapshot!(table(&judged, false));
}

#[test]
fn what_is_unknown_passes_unless_it_must_not() {
    let judged = judged(&some()[5..6]);
    let counts = Counts::of(&judged);
    assert!(counts.passed(false) && !counts.passed(true));
    assert_snapshot!(table(&judged, false), @"
    validation
      gpu_xid  GPU 0            at most 0  UNKNOWN
          /dev/kmsg: Operation not permitted (os error 1)

    unknown, nobody knows whether they are good; --strict makes that a failure: gpu_xid of GPU 0: /dev/kmsg: Operation not permitted (os error 1)
    0 ok, 1 unknown, 0 bad
    ");
    let strict = table(&judged, true);
    assert!(
        strict.contains("unknown, by --strict that is a failure: gpu_xid"),
        "{strict}"
    );
}

#[test]
fn programs_get_the_same() {
    let judged = judged(&some());
    let value = as_json(&judged, false);
    assert_eq!(value["passed"], false);
    assert_eq!(
        (&value["ok"], &value["unknown"], &value["bad"]),
        (&4.into(), &1.into(), &3.into())
    );
    let slow = &value["checks"].as_array().unwrap()[5];
    assert_eq!(slow["check"], "matmul_bf16");
    assert_eq!(slow["of"], "GPU 1");
    assert_eq!(slow["verdict"], "bad");
    assert_eq!(slow["why"], "431 TFLOP/s < 500 TFLOP/s");
}

#[test]
fn continuous_integration_gets_the_same() {
    let mut reports = some();
    reports[6].finding = Finding::Broken {
        why: "a <tag> & \"quotes\"\nand a line".to_owned(),
    };
    assert_snapshot!(junit(&judged(&reports), false));
    assert!(junit(&judged(&reports), true).contains("errors=\"1\" skipped=\"0\""));
}
