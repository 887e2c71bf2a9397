//! The bytes of an event file: protobuf messages in `TFRecord` frames.
//!
//! Frame: length (u64, little endian), masked CRC-32C of those 8 bytes, data, masked CRC-32C of the
//! data (`tensorflow/core/lib/io/record_writer.h`). Messages: `Event`, `Summary` and `SessionLog` of
//! `tensorboard/compat/proto`; their field numbers stand beside the code.

/// A message under construction.
struct Message(Vec<u8>);

impl Message {
    /// An `Event` with its `wall_time` (1, double) and `step` (2, int64).
    fn event(time: f64, step: u64) -> Self {
        Self(vec![])
            .fixed(1, 1, &time.to_le_bytes())
            .integer(2, step)
    }

    /// A field of fixed width: wire type 1 has 8 bytes, wire type 5 has 4.
    fn fixed(mut self, field: u8, wire_type: u8, bytes: &[u8]) -> Self {
        self.0.push(field << 3 | wire_type);
        self.0.extend_from_slice(bytes);
        self
    }

    /// An integer: wire type 0.
    fn integer(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.varint(value);
        self
    }

    /// A string or a message: wire type 2.
    fn bytes(mut self, field: u8, bytes: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// Seven bits a byte, lowest first; the high bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The event that says what the file is: `Event.file_version` (3).
pub(super) fn file_version(time: f64) -> Vec<u8> {
    Message::event(time, 0).bytes(3, b"brain.Event:2").0
}

/// The event that voids points of `step` and later: `Event.session_log` (7) with
/// `SessionLog.status` (1) `START` (1).
pub(super) fn session_start(time: f64, step: u64) -> Vec<u8> {
    let log = Message(vec![]).integer(1, 1);
    Message::event(time, step).bytes(7, &log.0).0
}

/// An event with numbers: `Event.summary` (5) with a `Summary.value` (1) each, which has `tag` (1)
/// and `simple_value` (2, float).
pub(super) fn scalars(time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let summary = values
        .iter()
        .fold(Message(vec![]), |summary, (tag, number)| {
            let value = Message(vec![]).bytes(1, tag.as_bytes());
            summary.bytes(1, &value.fixed(2, 5, &(*number as f32).to_le_bytes()).0)
        });
    Message::event(time, step).bytes(5, &summary.0).0
}

/// A message in its frame.
pub(super) fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let checks = [masked_crc(&length), masked_crc(message)].map(u32::to_le_bytes);
    [&length[..], &checks[0], message, &checks[1]].concat()
}

/// A CRC of data that holds CRCs is weak, so stored ones are rotated and shifted
/// (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}
