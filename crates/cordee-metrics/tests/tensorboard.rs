//! Event files, read by a reader that shares no code with their writer.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

mod records;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cordee_metrics::{Event, EventKind, Recorder, SourceEvaluation, TENSORBOARD_FOLDER};
use records::step;

/// CRC-32C, bit by bit (RFC 3720, reflected polynomial 0x82f63b78).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(count);
    *bytes = tail;
    head
}

fn take_u32(bytes: &mut &[u8]) -> u32 {
    u32::from_le_bytes(take(bytes, 4).try_into().unwrap())
}

/// The messages of a file, every length and checksum verified.
fn messages(mut file: &[u8]) -> Vec<&[u8]> {
    let mut messages = vec![];
    while !file.is_empty() {
        let length = take(&mut file, 8);
        assert_eq!(take_u32(&mut file), masked(crc32c(length)));
        let message = take(
            &mut file,
            u64::from_le_bytes(length.try_into().unwrap()) as usize,
        );
        assert_eq!(take_u32(&mut file), masked(crc32c(message)));
        messages.push(message);
    }
    messages
}

#[derive(Debug, PartialEq)]
enum Value<'a> {
    Integer(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes");
}

/// The fields of a protobuf message, by their numbers.
fn fields(mut message: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut fields = vec![];
    while !message.is_empty() {
        let tag = varint(&mut message);
        let value = match tag & 7 {
            0 => Value::Integer(varint(&mut message)),
            1 => Value::Double(f64::from_le_bytes(
                take(&mut message, 8).try_into().unwrap(),
            )),
            2 => {
                let length = varint(&mut message) as usize;
                Value::Bytes(take(&mut message, length))
            }
            5 => Value::Float(f32::from_le_bytes(
                take(&mut message, 4).try_into().unwrap(),
            )),
            other => panic!("wire type {other}"),
        };
        fields.push((tag >> 3, value));
    }
    fields
}

/// Curves by tag, as `TensorBoard` shows them: files in the order of their names, and a session
/// start of step n voids what was seen of step n and later.
fn curves(folder: &Path) -> BTreeMap<String, Vec<(u64, f32)>> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let mut curves = BTreeMap::<_, Vec<_>>::new();
    for path in paths {
        assert!(
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .contains("tfevents")
        );
        let file = fs::read(path).unwrap();
        for (index, message) in messages(&file).into_iter().enumerate() {
            let fields = fields(message);
            assert!(matches!(fields[0], (1, Value::Double(time)) if time > 1e9));
            let (2, Value::Integer(step)) = fields[1] else {
                panic!("{fields:?}")
            };
            match (index, &fields[2]) {
                (0, field) => assert_eq!(*field, (3, Value::Bytes(b"brain.Event:2"))),
                (1, field) => {
                    assert_eq!(*field, (7, Value::Bytes(&[1 << 3, 1])));
                    for curve in curves.values_mut() {
                        curve.retain(|&(seen, _)| seen < step);
                    }
                }
                (_, (5, Value::Bytes(summary))) => points(summary, step, &mut curves),
                (_, other) => panic!("{other:?}"),
            }
        }
    }
    curves
}

fn points(summary: &[u8], step: u64, curves: &mut BTreeMap<String, Vec<(u64, f32)>>) {
    for (number, value) in fields(summary) {
        let (1, Value::Bytes(value)) = (number, value) else {
            panic!("field {number}")
        };
        match fields(value)[..] {
            [(1, Value::Bytes(tag)), (2, Value::Float(scalar))] => {
                let tag = String::from_utf8(tag.to_vec()).unwrap();
                curves.entry(tag).or_default().push((step, scalar));
            }
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_checksum_of_this_reader_is_the_published_one() {
    // RFC 3720, B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn curves_go_on_after_a_resume_without_the_steps_that_were_done_again() {
    let folder = tempfile::tempdir().unwrap();
    for (resume_at, last) in [(None, 300), (Some(200), 250), (Some(240), 260)] {
        let recorder = Recorder::open(folder.path(), resume_at, true).unwrap();
        for index in resume_at.unwrap_or(0) + 1..=last {
            recorder.step(step(index));
        }
        let source = SourceEvaluation {
            name: "old texts".to_owned(),
            loss: 2.5,
            bits_per_byte: Some(1.25),
            unigram_bits_per_byte: Some(5.0),
        };
        let evaluation = EventKind::Evaluation {
            loss: f64::NAN,
            seconds: 0.5,
            sources: vec![source],
        };
        recorder.event(Event::now(last, evaluation));
        recorder.event(Event::now(
            last,
            EventKind::Warning {
                rank: 0,
                text: "no point".to_owned(),
            },
        ));
        assert_eq!(recorder.finish().unwrap(), 0);
    }

    let curves = curves(&folder.path().join(TENSORBOARD_FOLDER));
    let tags: Vec<_> = curves.keys().map(String::as_str).collect();
    let expected = [
        "eval/loss",
        "eval/old texts/bits_per_byte",
        "eval/old texts/loss",
        "grad_norm",
        "loss",
        "lr",
        "tokens_per_s",
    ];
    assert_eq!(tags, expected);
    let losses: Vec<_> = (1..=260)
        .map(|index| (index, step(index).loss as f32))
        .collect();
    assert_eq!(curves["loss"], losses);
    // Evaluations at 300 and 250 were past the checkpoints 200 and 240.
    assert_eq!(curves["eval/old texts/bits_per_byte"], [(260, 1.25)]);
    assert!(matches!(curves["eval/loss"][..], [(260, loss)] if loss.is_nan()));
}
