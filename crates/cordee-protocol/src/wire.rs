//! How processes of a job talk over a network: who connects proves that it knows the job's secret, and
//! every frame after that is numbered and carries a code that only the two ends can make.
//!
//! ```text
//! who dials                          who answers
//! magic, nonce            ->
//!                         <-         magic, nonce, code over both nonces
//! code over both nonces   ->
//! length, payload, code   <->        length, payload, code
//! ```
//!
//! The nonces make the keys of a connection, one for each direction: what was recorded on another
//! connection, earlier on this one, or in the other direction is refused. Nothing is encrypted: what
//! goes over these connections is for whoever sees the network to read, and for nobody to change.
//!
//! Bytes in, bytes out: sockets are the callers'.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

/// Bytes of what who dials says first.
pub const HELLO_BYTES: usize = MAGIC.len() + 32;
/// Bytes of what who answers says.
pub const WELCOME_BYTES: usize = MAGIC.len() + 64;
/// Bytes of what who dials says to end the greeting.
pub const PROOF_BYTES: usize = 32;
/// Bytes before a frame's payload: its length, little-endian.
pub const LENGTH_BYTES: usize = 4;
/// Bytes after it.
pub const CODE_BYTES: usize = 16;

/// The last byte is the version of everything in this module.
const MAGIC: [u8; 8] = *b"cordee\0\x01";

/// What the processes of a job know and nobody else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 32]);

impl Secret {
    /// One that nobody can guess.
    pub fn random() -> io::Result<Self> {
        random().map(Self)
    }

    /// The secret that a text stands for, the same wherever the text is. It is as hard to guess as the
    /// text.
    pub fn of_text(text: &str) -> Self {
        Self(blake3::derive_key(
            "cordee: secret of a job, from text",
            text.as_bytes(),
        ))
    }

    /// Another secret, for one purpose: who has it knows nothing of this one.
    #[must_use]
    pub fn for_purpose(&self, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cordee: secret for a purpose");
        hasher.update(&self.0);
        hasher.update(purpose.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    fn code(&self, what: &[u8], nonces: &Nonces) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(what);
        hasher.update(&nonces.dialing);
        hasher.update(&nonces.answering);
        *hasher.finalize().as_bytes()
    }
}

/// Kept out of logs.
impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

/// What came over a connection is not what a process of this job sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Something else than cordee, or another version.
    #[error(
        "the other end is no cordee, or one of another version: start all nodes from the same build"
    )]
    Foreign,
    /// The other end has another secret.
    #[error("the other end does not know this job's secret")]
    Stranger,
    /// A frame is announced that is longer than any is.
    #[error("a frame of {len} bytes is announced, and at most {most} are allowed")]
    TooLong {
        /// The bytes announced.
        len: usize,
        /// The bytes allowed.
        most: usize,
    },
    /// A frame was changed, repeated, left out or made up on the way.
    #[error("frame {sequence} is not what was sent: it was changed, repeated or lost on the way")]
    Damaged {
        /// The number of the frame, from 0.
        sequence: u64,
    },
}

#[derive(Clone, Copy)]
struct Nonces {
    dialing: [u8; 32],
    answering: [u8; 32],
}

/// Who dials, before the answer.
pub struct Dialing {
    secret: Secret,
    nonce: [u8; 32],
}

impl Dialing {
    /// Begins a connection.
    pub fn new(secret: &Secret) -> io::Result<Self> {
        Ok(Self {
            secret: secret.clone(),
            nonce: random()?,
        })
    }

    /// What is sent first.
    pub fn hello(&self) -> [u8; HELLO_BYTES] {
        joined(&[&MAGIC, &self.nonce])
    }

    /// Takes the answer. What is to be sent back, and the connection that stands once it is.
    pub fn finish(
        self,
        welcome: &[u8; WELCOME_BYTES],
    ) -> Result<([u8; PROOF_BYTES], Sealer, Opener), WireError> {
        let (magic, rest) = welcome.split_at(MAGIC.len());
        let (nonce, code) = rest.split_at(32);
        if magic != MAGIC {
            return Err(WireError::Foreign);
        }
        let nonces = Nonces {
            dialing: self.nonce,
            answering: exact(nonce),
        };
        if !equal(&self.secret.code(ANSWERING, &nonces), code) {
            return Err(WireError::Stranger);
        }
        let (sealer, opener) = keys(&self.secret, &nonces, [TO_ANSWERING, TO_DIALING]);
        Ok((self.secret.code(DIALING, &nonces), sealer, opener))
    }
}

/// Who answers, before the proof.
pub struct Answering {
    secret: Secret,
    nonces: Nonces,
}

impl Answering {
    /// Takes what who dials says first.
    pub fn new(secret: &Secret, hello: &[u8; HELLO_BYTES]) -> io::Result<Result<Self, WireError>> {
        let (magic, nonce) = hello.split_at(MAGIC.len());
        if magic != MAGIC {
            return Ok(Err(WireError::Foreign));
        }
        let nonces = Nonces {
            dialing: exact(nonce),
            answering: random()?,
        };
        Ok(Ok(Self {
            secret: secret.clone(),
            nonces,
        }))
    }

    /// What is sent back.
    pub fn welcome(&self) -> [u8; WELCOME_BYTES] {
        let code = self.secret.code(ANSWERING, &self.nonces);
        joined(&[&MAGIC, &self.nonces.answering, &code])
    }

    /// Takes the proof, after which the connection stands.
    pub fn finish(self, proof: &[u8; PROOF_BYTES]) -> Result<(Sealer, Opener), WireError> {
        if !equal(&self.secret.code(DIALING, &self.nonces), proof) {
            return Err(WireError::Stranger);
        }
        Ok(keys(&self.secret, &self.nonces, [TO_DIALING, TO_ANSWERING]))
    }
}

const DIALING: &[u8] = b"who dials";
const ANSWERING: &[u8] = b"who answers";
const TO_DIALING: &[u8] = b"frames to who dials";
const TO_ANSWERING: &[u8] = b"frames to who answers";

fn keys(secret: &Secret, nonces: &Nonces, [out, into]: [&[u8]; 2]) -> (Sealer, Opener) {
    let end = |what| Direction {
        key: secret.code(what, nonces),
        sequence: 0,
    };
    (Sealer(end(out)), Opener(end(into)))
}

/// One direction of a connection.
struct Direction {
    key: [u8; 32],
    /// The number of the coming frame.
    sequence: u64,
}

impl Direction {
    fn code(&mut self, length: [u8; LENGTH_BYTES], payload: &[&[u8]]) -> [u8; CODE_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.sequence.to_le_bytes());
        hasher.update(&length);
        for part in payload {
            hasher.update(part);
        }
        self.sequence += 1;
        exact(&hasher.finalize().as_bytes()[..CODE_BYTES])
    }
}

/// The sending end of a connection.
pub struct Sealer(Direction);

impl Sealer {
    /// What goes before and after a payload, which is made of these parts in a row. Frames are sent in
    /// the order in which they were sealed.
    ///
    /// # Panics
    ///
    /// When the payload has 4 GiB or more.
    pub fn seal(&mut self, payload: &[&[u8]]) -> ([u8; LENGTH_BYTES], [u8; CODE_BYTES]) {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let length = u32::try_from(len).expect("a frame is short").to_le_bytes();
        (length, self.0.code(length, payload))
    }

    /// A whole frame.
    pub fn frame(&mut self, payload: &[u8]) -> Vec<u8> {
        let (length, code) = self.seal(&[payload]);
        [&length[..], payload, &code[..]].concat()
    }
}

/// The receiving end of a connection.
pub struct Opener(Direction);

impl Opener {
    /// How many bytes of payload follow, `most` at most.
    pub fn length(&self, length: [u8; LENGTH_BYTES], most: usize) -> Result<usize, WireError> {
        let len = u32::from_le_bytes(length) as usize;
        if len > most {
            return Err(WireError::TooLong { len, most });
        }
        Ok(len)
    }

    /// That the payload is what was sent as the coming frame.
    pub fn check(&mut self, payload: &[u8], code: &[u8; CODE_BYTES]) -> Result<(), WireError> {
        let sequence = self.0.sequence;
        let length = u32::try_from(payload.len()).map_err(|_| WireError::Damaged { sequence })?;
        if equal(&self.0.code(length.to_le_bytes(), &[payload]), code) {
            Ok(())
        } else {
            Err(WireError::Damaged { sequence })
        }
    }
}

/// Puts frames together from bytes as they come.
pub struct Inbox {
    opener: Opener,
    most: usize,
    bytes: Vec<u8>,
}

impl Inbox {
    /// Of a connection whose frames have payloads of `most` bytes at most.
    pub fn new(opener: Opener, most: usize) -> Self {
        Self {
            opener,
            most,
            bytes: Vec::new(),
        }
    }

    /// Takes bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame's payload, if all of it is there. After an error the connection is of no use.
    pub fn take(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let Some((length, rest)) = self.bytes.split_first_chunk() else {
            return Ok(None);
        };
        let len = self.opener.length(*length, self.most)?;
        let Some(code) = rest.get(len..len + CODE_BYTES) else {
            return Ok(None);
        };
        let payload = rest[..len].to_vec();
        self.opener.check(&payload, &exact(code))?;
        self.bytes.drain(..LENGTH_BYTES + len + CODE_BYTES);
        Ok(Some(payload))
    }
}

fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    exact(&parts.concat())
}

fn exact<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the parts have fixed lengths")
}

/// Takes as long wherever they differ.
fn equal(ours: &[u8], theirs: &[u8]) -> bool {
    ours.len() == theirs.len()
        && ours
            .iter()
            .zip(theirs)
            .fold(0, |differ, (a, b)| differ | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The ends of a connection: what each sends with and receives with.
    fn connect(dialing: &Secret, answering: &Secret) -> Result<[(Sealer, Opener); 2], WireError> {
        let dial = Dialing::new(dialing).unwrap();
        let answer = Answering::new(answering, &dial.hello()).unwrap()?;
        let (proof, sealer, opener) = dial.finish(&answer.welcome())?;
        Ok([(sealer, opener), answer.finish(&proof)?])
    }

    fn connected() -> [(Sealer, Opener); 2] {
        let secret = Secret::of_text("job 1");
        connect(&secret, &secret).ok().unwrap()
    }

    fn received(inbox: &mut Inbox, bytes: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
        inbox.push(bytes);
        inbox.take()
    }

    #[test]
    fn frames_arrive_in_both_directions() {
        let [(mut from_a, to_a), (mut from_b, to_b)] = connected();
        let (mut at_a, mut at_b) = (Inbox::new(to_a, 100), Inbox::new(to_b, 100));
        for text in ["one", "", "three"] {
            let frame = from_a.frame(text.as_bytes());
            assert_eq!(
                received(&mut at_b, &frame).unwrap().unwrap(),
                text.as_bytes()
            );
            let frame = from_b.frame(text.as_bytes());
            assert_eq!(
                received(&mut at_a, &frame).unwrap().unwrap(),
                text.as_bytes()
            );
        }
    }

    #[test]
    fn strangers_are_refused_by_either_end() {
        let (ours, theirs) = (Secret::of_text("job 1"), Secret::random().unwrap());
        assert_eq!(connect(&ours, &theirs).err(), Some(WireError::Stranger));
        let other = ours.for_purpose("generation 2");
        assert_ne!(other, ours.for_purpose("generation 3"));
        assert_eq!(connect(&ours, &other).err(), Some(WireError::Stranger));
        // Who answers finds out by the proof.
        let dial = Dialing::new(&ours).unwrap();
        let answer = Answering::new(&ours, &dial.hello()).unwrap().ok().unwrap();
        assert_eq!(answer.finish(&[7; 32]).err(), Some(WireError::Stranger));
        let http = exact(&b"GET / HTTP/1.1\r\nHost: node-a\r\nAccept: */*\r\n\r\n"[..HELLO_BYTES]);
        let answer = Answering::new(&ours, &http).unwrap();
        assert_eq!(answer.err(), Some(WireError::Foreign));
        assert_eq!(format!("{ours:?}"), "Secret");
    }

    #[test]
    fn a_recorded_greeting_opens_nothing() {
        let secret = Secret::of_text("job 1");
        let dial = Dialing::new(&secret).unwrap();
        let hello = dial.hello();
        let answer = Answering::new(&secret, &hello).unwrap().ok().unwrap();
        let (proof, ..) = dial.finish(&answer.welcome()).ok().unwrap();
        assert!(answer.finish(&proof).is_ok());
        let again = Answering::new(&secret, &hello).unwrap().ok().unwrap();
        assert_eq!(again.finish(&proof).err(), Some(WireError::Stranger));
    }

    #[test]
    fn frames_that_are_repeated_swapped_or_turned_round_are_refused() {
        let damaged = |sequence| Err(WireError::Damaged { sequence });
        let [(mut from_a, to_a), (_, to_b)] = connected();
        let (first, second) = (from_a.frame(b"first"), from_a.frame(b"second"));
        let mut at_b = Inbox::new(to_b, 100);
        assert!(received(&mut at_b, &first).unwrap().is_some());
        assert_eq!(received(&mut at_b, &first), damaged(1));
        let [(_, _), (_, to_b)] = connected();
        assert_eq!(received(&mut Inbox::new(to_b, 100), &second), damaged(0));
        assert_eq!(received(&mut Inbox::new(to_a, 100), &first), damaged(0));
    }

    #[test]
    fn absurd_lengths_are_refused_before_anything_is_kept_for_them() {
        let [(_, to_a), _] = connected();
        let mut inbox = Inbox::new(to_a, 1000);
        let error = received(&mut inbox, &[0xff; 4]).unwrap_err();
        assert_eq!(
            error,
            WireError::TooLong {
                len: 0xffff_ffff,
                most: 1000
            }
        );
        assert!(inbox.bytes.capacity() < 100);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6), cut in 1_usize..50) {
            let [(mut sealer, _), (_, opener)] = connected();
            let mut inbox = Inbox::new(opener, 200);
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| sealer.frame(payload)).collect();
            let mut found = Vec::new();
            for piece in bytes.chunks(cut) {
                inbox.push(piece);
                while let Some(payload) = inbox.take().unwrap() {
                    found.push(payload);
                }
            }
            prop_assert_eq!(found, payloads);
        }

        #[test]
        fn a_changed_byte_is_found_out(payload in prop::collection::vec(any::<u8>(), 0..200), place in any::<prop::sample::Index>(), change in 1_u8..) {
            let [(mut sealer, _), (_, opener)] = connected();
            let mut frame = sealer.frame(&payload);
            *place.get_mut(&mut frame) ^= change;
            let mut inbox = Inbox::new(opener, 200);
            // A length that grew waits for more, and then is found out too.
            frame.extend([0; 512]);
            prop_assert!(received(&mut inbox, &frame).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), LENGTH_BYTES + CODE_BYTES..2000)) {
            let [(_, opener), _] = connected();
            let mut inbox = Inbox::new(opener, 1 << 10);
            let refused = received(&mut inbox, &bytes);
            // Or it waits for the rest of a frame, of which it keeps no more than has come.
            prop_assert!(matches!(refused, Err(_) | Ok(None)), "{:?}", refused);
        }
    }
}
