//! What `cordee bench` measures and prints.

use serde_json::Value;

use crate::fixture::Fixture;

/// A shape that takes no time.
const TINY: [&str; 18] = [
    "bench", "train", "--dim", "32", "--layers", "2", "--heads", "4", "--ffn", "64", "--vocab",
    "300", "--seq", "16", "--steps", "3", "--warmup", "1",
];

fn bench(fixture: &Fixture, more: &[&str]) -> Value {
    let finished = fixture.run(&[&TINY, more, &["--json"]].concat()).expect(0);
    serde_json::from_str(&finished.stdout).unwrap()
}

#[test]
fn the_figures_follow_from_each_other() {
    let peaks = ["--threads", "1", "--peak-tflops", "0.5", "--peak-gbs", "20"];
    let report = bench(&Fixture::new(), &peaks);
    let number = |key: &str| report[key].as_f64().unwrap();
    let spread = &report["step_ms_spread"];
    let (least, most) = (
        spread["min"].as_f64().unwrap(),
        spread["max"].as_f64().unwrap(),
    );
    assert!(0.0 < least && least <= number("step_ms") && number("step_ms") <= most);
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} and {b}");
    // The median of three is one of them, whichever way it is asked.
    close(number("tokens_per_s"), 8.0 * 16.0 / number("step_ms") * 1e3);
    // Norms, projections and feed-forward layers of two blocks, the last norm, the head.
    let multiplied = 2 * (2 * 32 + 4 * 32 * 32 + 3 * 32 * 64) + 32 + 300 * 32;
    let attention = 2 * 32 * 16;
    close(
        number("model_flops_per_token"),
        f64::from(6 * (multiplied + attention)),
    );
    close(number("parameters"), f64::from(multiplied + 300 * 32));
    close(
        number("model_flops_per_s"),
        number("model_flops_per_token") * number("tokens_per_s"),
    );
    close(number("mfu"), number("model_flops_per_s") / 0.5e12);
    assert!(number("peak_rss_mb") > 5.0, "{report}");
    // A uniform guess among 300 tokens.
    assert!(
        (number("first_loss") - 300_f64.ln()).abs() < 0.1,
        "{report}"
    );

    let parts = report["parts"].as_array().unwrap();
    let seconds: f64 = parts
        .iter()
        .map(|part| part["seconds"].as_f64().unwrap())
        .sum();
    assert!(seconds * 1e3 >= least && seconds * 1e3 <= most, "{parts:?}");
    for (name, pass) in [
        ("linear", "forward".into()),
        ("attention", "backward".into()),
        ("optimizer", Value::Null),
    ] {
        let of = |part: &&Value| part["name"] == name && part["pass"] == pass;
        let part = parts.iter().find(of).unwrap();
        assert!(part["seconds"].as_f64().unwrap() > 0.0, "{part}");
    }

    // Products are the model's FLOPs twice over 128 tokens, but for the head's and attention's, which
    // are parts of their own.
    let of = |name: &str, pass: Value, key: &str| {
        let mut of = parts
            .iter()
            .filter(|p| p["name"] == name && p["pass"] == pass);
        of.next().unwrap()[key].as_f64().unwrap()
    };
    let layers = f64::from(2 * (4 * 32 * 32 + 3 * 32 * 64));
    close(
        of("linear", "forward".into(), "flops"),
        2.0 * 128.0 * layers,
    );
    close(
        of("linear", "backward".into(), "flops"),
        4.0 * 128.0 * layers,
    );
    close(
        of("head", "backward".into(), "flops"),
        6.0 * 128.0 * 300.0 * 32.0,
    );
    // Each of 16 tokens sees itself and those before it; scores and values.
    let pairs = f64::from(8 * 16 * 17 / 2);
    let scores = 2.0 * pairs * 32.0 * 2.0;
    close(of("attention", "forward".into(), "flops"), 2.0 * scores);
    close(of("attention", "backward".into(), "flops"), 5.0 * scores);
    // Weights and moments read and written, gradients read, all f32 and aligned.
    let optimizer = of("optimizer", Value::Null, "bytes");
    let least = number("parameters") * 28.0;
    assert!((least..1.05 * least).contains(&optimizer), "{optimizer}");
    let floors = parts.iter().map(|part| part["floor_s"].as_f64().unwrap());
    close(floors.sum::<f64>() * 1e3, number("floor_ms"));
    close(of("optimizer", Value::Null, "floor_s"), optimizer / 20e9);
    close(
        of("head", "backward".into(), "floor_s"),
        of("head", "backward".into(), "flops") / 0.5e12,
    );
}

#[test]
fn products_are_measured_by_themselves() {
    let report = bench(&Fixture::new(), &["--products", "--kv-heads", "2"]);
    let products = report["products"].as_array().unwrap();
    let number = |product: &Value, key: &str| product[key].as_f64().unwrap();
    let flops = |product: &Value| {
        let sizes = product["sizes"].as_array().unwrap();
        sizes
            .iter()
            .map(|size| size.as_f64().unwrap())
            .product::<f64>()
            * 2.0
    };
    // All of a step, but for what attention multiplies.
    let all: f64 = products
        .iter()
        .map(|it| number(it, "calls") * flops(it))
        .sum();
    let attention = f64::from(6 * 2 * 32 * 16);
    let of_step = 8.0 * 16.0 * (number(&report, "model_flops_per_token") - attention);
    // Norms multiply nothing and are counted as if.
    let norms = 8.0 * 16.0 * f64::from(6 * 5 * 32);
    assert!(
        (all - (of_step - norms)).abs() <= 1e-9 * all,
        "{all} and {of_step}"
    );
    let seconds: f64 = products
        .iter()
        .map(|it| number(it, "calls") * number(it, "seconds"))
        .sum();
    assert!((seconds * 1e3 / number(&report, "products_ms") - 1.0).abs() < 1e-9);
    let as_one: Vec<_> = products.iter().filter(|it| it["calls"] == 0).collect();
    // Three results each of queries, keys and values and of gate and up.
    assert_eq!(as_one.len(), 6, "{as_one:?}");
    let fixture = Fixture::new();
    let page = fixture
        .run(&[&TINY[..], &["--products"]].concat())
        .expect(0)
        .stdout;
    assert!(
        page.contains("each by itself") && page.contains("not used"),
        "{page}"
    );
}

#[test]
fn workers_share_the_batch() {
    let fixture = Fixture::new();
    let alone = bench(&fixture, &["--tie"]);
    let shared = bench(
        &fixture,
        &["--tie", "--workers", "2", "--recompute", "full"],
    );
    assert_eq!(shared["workers"], 2);
    assert_eq!(
        (&shared["batch"], &shared["micro_batch"]),
        (&8.into(), &4.into())
    );
    assert_eq!(alone["parameters"], shared["parameters"]);
    let all = shared["peak_rss_mb_sum"].as_u64().unwrap();
    assert!(all > shared["peak_rss_mb"].as_u64().unwrap());
    assert!(alone["mfu"].is_null());
}

#[test]
fn a_config_can_be_measured() {
    let fixture = Fixture::new();
    let report = fixture.run(&["bench", "train", "--config", "tiny.toml", "--steps", "2"]);
    let report = report.expect(0).stdout;
    assert!(report.contains("8 sequences of 32, 2 workers"), "{report}");
    assert!(report.contains("tokens/s"), "{report}");
}

#[test]
fn a_batch_that_cannot_be_shared_out_is_refused() {
    Fixture::new()
        .run(&[&TINY, &["--workers", "3"][..]].concat())
        .expect(2)
        .says(&["--batch 8", "3 workers", "multiple of the workers"]);
}

/// The lines of `cordee bench comm` with these arguments.
fn bench_comm(more: &[&str]) -> Vec<Value> {
    let quick = ["bench", "comm", "--seconds", "0.001", "--json"];
    let finished = Fixture::new().run(&[&quick, more].concat()).expect(0);
    let lines = finished.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn collectives_are_measured_and_checked() {
    let lines = bench_comm(&["--workers", "3", "--sizes", "3KiB..16KiB"]);
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line["operation"].as_str().unwrap(), &line["bytes"]))
        .collect();
    let mut expected = Vec::new();
    let sizes: [Value; 3] = [4096.into(), 8192.into(), 16384.into()];
    for operation in ["all_reduce", "reduce_scatter", "all_gather", "broadcast"] {
        expected.extend(sizes.iter().map(|bytes| (operation, bytes)));
    }
    assert_eq!(told, expected);
    for line in &lines {
        assert_eq!((&line["world"], &line["wrong"]), (&3.into(), &0.into()));
        let number = |key: &str| line[key].as_f64().unwrap();
        let factor = match line["operation"].as_str().unwrap() {
            "all_reduce" => 4.0 / 3.0,
            "broadcast" => 1.0,
            _ => 2.0 / 3.0,
        };
        let algbw = number("bytes") / number("ms") / 1e6;
        for (found, expected) in [("algbw_gbs", algbw), ("busbw_gbs", algbw * factor)] {
            let (found, expected) = (number(found), expected);
            assert!((found / expected - 1.0).abs() < 1e-9, "{line}");
        }
    }
}

#[test]
fn collectives_and_sizes_can_be_chosen() {
    let lines = bench_comm(&[
        "--operations",
        "broadcast,all_gather",
        "--sizes",
        "1MiB,100",
        "--dtype",
        "bf16",
        "--private",
    ]);
    let told: Vec<_> = lines
        .iter()
        .map(|line| format!("{} {} {}", line["operation"], line["bytes"], line["world"]))
        .collect();
    assert_eq!(
        told,
        [
            "\"broadcast\" 1048576 2",
            "\"broadcast\" 100 2",
            "\"all_gather\" 1048576 2",
            "\"all_gather\" 100 2"
        ]
    );
    let fixture = Fixture::new();
    for (wrong, says) in [
        (["--sizes", "5KiB..7KiB"], "no power of two"),
        (["--sizes", "0"], "moves nothing"),
        (["--operations", "all_redcue"], "none of all_reduce"),
    ] {
        fixture
            .run(&[&["bench", "comm"], &wrong[..]].concat())
            .expect(2)
            .says(&[says]);
    }
}
