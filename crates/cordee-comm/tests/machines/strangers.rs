//! Who may not take part, and what is not taken for what it says it is: the group goes on regardless.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use cordee_comm::{CommError, ProcessGroup};
use cordee_memory::DType;
use cordee_protocol::{Dialing, Secret, WELCOME_BYTES};

use crate::job::{PATIENCE, Seat, ranks, seats};

/// Joins two machines, while strangers are at the door of the first.
fn with_strangers(strangers: impl Fn(SocketAddr) + Sync) {
    let mut job = seats(&[1, 1]);
    let door = job[1].neighbours.below[0];
    // The second machine comes when the strangers have been there.
    let late = job.pop().unwrap();
    let arrived = AtomicUsize::new(0);
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let mut group = job.pop().unwrap().join(PATIENCE).unwrap();
            group.gather_bytes(b"first").unwrap()
        });
        strangers(door);
        arrived.fetch_add(1, Ordering::SeqCst);
        let mut group = late.join(PATIENCE).unwrap();
        let told = group.gather_bytes(b"second").unwrap();
        assert_eq!(told, [b"first".to_vec(), b"second".to_vec()]);
        assert_eq!(first.join().unwrap(), told);
    });
}

/// Says something, and hears what is answered until the connection ends.
fn say(door: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(door).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn garbage_is_sent_away() {
    with_strangers(|door| {
        assert!(
            say(
                door,
                b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: somebody\r\n\r\n"
            )
            .is_empty()
        );
        assert!(say(door, b"").is_empty());
        let mut noise = blake(7);
        for round in 0..30 {
            noise = blake(noise[round % 32]);
            let bytes: Vec<u8> = noise.iter().cycle().take(round * 37).copied().collect();
            say(door, &bytes);
        }
    });
}

/// Some bytes like any others.
fn blake(seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        // Knuth's MMIX constants.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..32).map(|_| next()).collect()
}

#[test]
fn whoever_does_not_know_the_secret_is_sent_away() {
    with_strangers(|door| {
        let dialing = Dialing::new(&Secret::of_text("another job")).unwrap();
        let answer = say(door, &[&dialing.hello()[..], &[0; 32]].concat());
        // The answer proves that the other end knows its own secret, and says no more.
        assert_eq!(answer.len(), WELCOME_BYTES);
    });
}

#[test]
fn many_who_say_nothing_hold_nobody_up() {
    let silent = std::sync::Mutex::new(Vec::new());
    with_strangers(|door| {
        let connect = || TcpStream::connect(door).unwrap();
        silent.lock().unwrap().extend((0..20).map(|_| connect()));
    });
}

#[test]
fn a_recorded_connection_is_of_no_use() {
    let mut job = seats(&[1, 1]);
    let door = job[1].neighbours.below[0];
    // A man in the middle who writes down what goes up.
    let middle = TcpListener::bind("127.0.0.1:0").unwrap();
    job[1].neighbours.below = vec![middle.local_addr().unwrap()];
    let recorded = thread::scope(|scope| {
        let recorder = scope.spawn(move || {
            let (upper, _) = middle.accept().unwrap();
            let lower = TcpStream::connect(door).unwrap();
            let back = (lower.try_clone().unwrap(), upper.try_clone().unwrap());
            let passing = thread::spawn(move || pass_on(back.0, back.1, |_| ()));
            let mut recorded = Vec::new();
            pass_on(upper, lower, |bytes| recorded.extend_from_slice(bytes));
            passing.join().unwrap();
            recorded
        });
        scope.spawn(|| {
            ranks(job, |_, seat| {
                let mut group = seat.join(PATIENCE).unwrap();
                group.barrier().unwrap();
            });
        });
        recorder.join().unwrap()
    });
    assert!(recorded.len() > 200, "{}", recorded.len());
    with_strangers(|door| {
        say(door, &recorded);
    });
}

/// Passes on what comes until the end, and shows it to `see` first.
fn pass_on(mut from: TcpStream, mut to: TcpStream, mut see: impl FnMut(&mut [u8])) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        see(&mut bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Joins two machines by way of somebody who changes one byte of what goes up, after so many.
fn with_a_changed_byte(after: usize) -> Vec<Result<u32, CommError>> {
    let mut job = seats(&[1, 1]);
    let door = job[1].neighbours.below[0];
    let middle = TcpListener::bind("127.0.0.1:0").unwrap();
    job[1].neighbours.below = vec![middle.local_addr().unwrap()];
    thread::spawn(move || {
        while let Ok((upper, _)) = middle.accept() {
            let lower = TcpStream::connect(door).unwrap();
            let back = (lower.try_clone().unwrap(), upper.try_clone().unwrap());
            thread::spawn(move || pass_on(back.0, back.1, |_| ()));
            let mut seen = 0;
            pass_on(upper, lower, |bytes| {
                if let Some(byte) = after
                    .checked_sub(seen)
                    .and_then(|place| bytes.get_mut(place))
                {
                    *byte ^= 1;
                }
                seen += bytes.len();
            });
        }
    });
    let timeout = Duration::from_secs(2);
    ranks(job, |_, seat: Seat| {
        let mut group = seat.join(timeout)?;
        let mut buffer = group.allocate(DType::F32, 500_000)?;
        buffer.as_mut_slice::<f32>().unwrap().fill(1.0);
        group.all_reduce(&mut buffer, 0..500_000)?;
        group.barrier()?;
        Ok(buffer.as_slice::<f32>().unwrap()[499_999].to_bits())
    })
}

#[test]
fn what_was_changed_on_the_way_is_never_taken_for_data() {
    // In the frames of the sum itself, well behind the greeting.
    for after in [400_000, 1_000_001] {
        let results = with_a_changed_byte(after);
        let error = results[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("is not what was sent"), "{error}");
        assert!(results[1].is_err(), "{results:?}");
    }
    // Behind everything that is sent: nobody is disturbed.
    let results = with_a_changed_byte(1 << 30);
    assert!(
        results
            .iter()
            .all(|sum| *sum.as_ref().unwrap() == 2f32.to_bits())
    );
}
