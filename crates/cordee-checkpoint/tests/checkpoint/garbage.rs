//! Manifests that say anything at all: an error, never a panic, a large allocation or a load.

use std::path::Path;

use crate::fixture::Tensors;
use cordee_checkpoint::{Checkpoint, hash_memory, newest_valid};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Gives a changed manifest the checksum it needs to be looked at.
fn write_manifest(directory: &Path, manifest: &Value) {
    let mut fields = manifest.clone();
    fields.as_object_mut().unwrap().remove("checksum");
    let text = serde_json::to_string_pretty(&fields).unwrap();
    let body = text.strip_suffix("\n}").unwrap();
    let checksum = hash_memory(&[body.as_bytes()]);
    fs_err::write(
        directory.join("MANIFEST.json"),
        format!("{body},\n  \"checksum\": \"{checksum}\"\n}}\n"),
    )
    .unwrap();
}

fn read_manifest(directory: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(directory.join("MANIFEST.json")).unwrap()).unwrap()
}

fn open_error(directory: &Path) -> String {
    Checkpoint::open(directory).unwrap_err().to_string()
}

#[test]
fn a_sound_checksum_does_not_make_nonsense_true() {
    let directory = tempfile::tempdir().unwrap();
    let path = Tensors::small(1).save(directory.path(), 1, 2).unwrap().path;
    let sound = read_manifest(&path);
    write_manifest(&path, &sound);
    Checkpoint::open(&path).unwrap().verify().unwrap();

    let max = json!(u64::MAX);
    for (pointer, value, words) in [
        ("/format", json!(2), "its format is 2, this version reads 1"),
        ("/step", json!(9), "it is of step 9"),
        ("/writers/0/format", json!(0), "its format is 0"),
        ("/writers/0/writer", json!(1), "it is of writer 1"),
        (
            "/writers/0/file",
            json!("../../../../etc/passwd"),
            "shard is named",
        ),
        (
            "/writers/0/file",
            json!("rank-00001.safetensors"),
            "shard is named",
        ),
        ("/writers/0/length", max.clone(), "checksums for"),
        ("/writers/0/length", json!(0), "0 blocks"),
        ("/writers/0/block_size", json!(0), "blocks of 0 bytes"),
        (
            "/writers/0/block_size",
            max.clone(),
            "a checksum cannot cover",
        ),
        (
            "/writers/0/block_size",
            json!(1 << 30),
            "checksums for 1 blocks",
        ),
        ("/writers/0/checksums", json!([]), "0 checksums"),
        (
            "/writers/0/pieces/0/offset",
            max.clone(),
            "outside its shard",
        ),
        ("/writers/0/pieces/0/len", max.clone(), "outside its shard"),
        ("/writers/0/pieces/0/len", json!(1), "elements 1 to"),
        ("/writers/0/pieces/0/start", max.clone(), "does not follow"),
        (
            "/writers/0/pieces/0/tensor",
            json!("ghost"),
            "unknown tensor `ghost`",
        ),
        ("/writers/0/pieces", json!([]), "have no writer"),
        ("/writers", json!([]), "no writers"),
        ("/tensors/0/shape", json!([u64::MAX, u64::MAX]), "overflows"),
        ("/tensors/0/shape", json!([1, 0]), "does not follow"),
        ("/tensors/0/dtype", json!("F64"), "outside its shard"),
        ("/tensors/0/dtype", json!("F4"), "whole bytes"),
        ("/tensors/0/dtype", json!("F7"), "not a manifest"),
        ("/tensors/0/name", json!("count"), "unknown tensor `weight`"),
        ("/tensors", json!([]), "unknown tensor"),
    ] {
        let mut changed = sound.clone();
        *changed.pointer_mut(pointer).expect(pointer) = value;
        write_manifest(&path, &changed);
        let error = open_error(&path);
        assert!(error.contains(words), "{pointer}: {error}");
        assert!(error.contains("MANIFEST.json"), "{pointer}: {error}");
    }
}

#[test]
fn a_manifest_that_claims_terabytes_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = Tensors::small(1).save(directory.path(), 1, 1).unwrap().path;
    let manifest = fs_err::OpenOptions::new()
        .write(true)
        .open(path.join("MANIFEST.json"))
        .unwrap();
    manifest.set_len(1 << 40).unwrap();
    assert!(open_error(&path).contains("1099511627776 bytes"));
}

#[test]
fn things_that_are_not_what_their_name_says_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    Tensors::small(1).save(directory.path(), 1, 1).unwrap();
    fs_err::write(at("step-000000009"), "a file").unwrap();
    fs_err::create_dir_all(at("step-000000008/MANIFEST.json")).unwrap();
    fs_err::create_dir(at("step-000000007")).unwrap();
    fs_err::rename(at("step-000000001"), at("step-000000006")).unwrap();
    fs_err::create_dir(at("step-5")).unwrap();
    Tensors::small(1).save(directory.path(), 4, 1).unwrap();
    fs_err::write(at(".tmp-step-000000003"), "a file").unwrap();
    let found = newest_valid(directory.path()).unwrap();
    assert_eq!(found.checkpoint.unwrap().step(), 4);
    let rejected: Vec<_> = found
        .rejected
        .iter()
        .map(|rejected| rejected.path.clone())
        .collect();
    let expected = [
        "step-000000009",
        "step-000000008",
        "step-000000007",
        "step-000000006",
        ".tmp-step-000000003",
    ]
    .map(at);
    assert_eq!(rejected, expected);
    assert!(
        found.rejected[3].reason.contains("it is of step 1"),
        "{}",
        found.rejected[3].reason
    );
    assert_eq!(found.rejected[4].reason, "half-written: never committed");
}

/// Any JSON, with numbers at the edges.
fn any_json() -> impl Strategy<Value = Value> {
    let number = prop::sample::select(vec![
        0,
        1,
        63,
        4096,
        1 << 20,
        1 << 32,
        i64::MAX as u64,
        u64::MAX,
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        number.prop_map(Value::from),
        prop::sample::select(vec!["", "weight", "rank-00000.safetensors", "F32", "00"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(
                (
                    prop::sample::select(vec!["start", "len", "offset", "shape"]),
                    inner
                ),
                0..3
            )
            .prop_map(|fields| fields
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn random_bytes_are_no_manifest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    proptest!(config(200), |(bytes in prop::collection::vec(any::<u8>(), 0..2000))| {
        fs_err::write(path.join("MANIFEST.json"), bytes).unwrap();
        prop_assert!(open_error(path).contains("MANIFEST.json"));
    });
}

/// One value of a sound manifest replaced by anything: either it is refused, or what is read is what
/// was saved.
#[test]
fn a_changed_manifest_is_refused_or_reads_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::small(1);
    let path = tensors.save(directory.path(), 1, 2).unwrap().path;
    let sound = read_manifest(&path);
    let mut pointers = Vec::new();
    collect_pointers(&sound, String::new(), &mut pointers);
    proptest!(config(1000), |(pointer in prop::sample::select(pointers), value in any_json())| {
        let mut manifest = sound.clone();
        *manifest.pointer_mut(&pointer).unwrap() = value;
        write_manifest(&path, &manifest);
        let Ok(checkpoint) = Checkpoint::open(&path) else { return Ok(()) };
        // The full verification compares with the writers' own records, so it sees every change to
        // them; reads see what changes the bytes, unless a piece is moved within its shard.
        if pointer.starts_with("/writers") {
            prop_assert!(checkpoint.verify().is_err() || manifest == sound, "{pointer}");
        }
        for spec in checkpoint.tensors().iter().filter(|_| !pointer.ends_with("offset")) {
            let Some(expected) = tensors.bytes.get(&spec.name) else { continue };
            let mut read = vec![0; expected.len()];
            prop_assert!(checkpoint.read(&spec.name, &mut read).is_err() || read == *expected, "{pointer}");
        }
    });
}

fn collect_pointers(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                collect_pointers(value, format!("{pointer}/{key}"), pointers);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect_pointers(value, format!("{pointer}/{index}"), pointers);
            }
        }
        _ => {}
    }
    if !pointer.is_empty() {
        pointers.push(pointer);
    }
}
