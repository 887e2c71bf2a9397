use cordee_memory::{Buffer, DType};

use super::digest;
use crate::{Device, GpuOptions, testing::assert_thread_independent};

/// Lengths in elements of two bytes: of no word, of a part of one, around a pair of words, a block and
/// what all threads of a GPU read at a time.
const LENGTHS: [usize; 9] = [0, 1, 3, 4, 9, 4096, 262_145, 4_194_304, 4_194_311];

/// Of elements that all differ from their neighbours.
fn buffer(len: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(DType::Bf16, len).unwrap();
    let bytes = buffer.as_mut_bytes().unwrap();
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (index * 7 / 3) as u8;
    }
    buffer
}

#[test]
fn one_bit_or_two_places_make_another_number() {
    let mut buffer = buffer(5000);
    let whole = digest(&buffer).unwrap();
    assert_eq!(digest(&buffer).unwrap(), whole);
    for byte in [0, 1, 7, 8, 9_000, 9_999] {
        for bit in [1, 128] {
            buffer.as_mut_bytes().unwrap()[byte] ^= bit;
            assert_ne!(digest(&buffer).unwrap(), whole, "bit {bit} of byte {byte}");
            buffer.as_mut_bytes().unwrap()[byte] ^= bit;
        }
    }
    let bytes = buffer.as_mut_bytes().unwrap();
    let (first, second) = bytes.split_at_mut(800);
    first[..8].swap_with_slice(&mut second[..8]);
    assert_ne!(digest(&buffer).unwrap(), whole);
}

#[test]
fn zeros_count() {
    let of_zeros = |len| digest(&Buffer::zeroed(DType::F32, len).unwrap()).unwrap();
    assert_eq!(of_zeros(0), 0);
    assert_ne!(of_zeros(2), of_zeros(4));
}

#[test]
fn threads_do_not_matter() {
    assert_thread_independent(|| {
        let number = digest(&buffer(1_000_003)).unwrap();
        vec![("digest", vec![f64::from_bits(number)])]
    });
}

#[test]
fn a_gpu_agrees_with_the_host() {
    if Device::gpus() == 0 {
        return;
    }
    let gpu = Device::gpu(0, &GpuOptions::default()).unwrap();
    for len in LENGTHS {
        let on_host = buffer(len);
        let mut on_gpu = gpu.zeroed(DType::Bf16, len).unwrap();
        on_gpu.copy_from_host(&on_host).unwrap();
        let [found, expected] = [&on_gpu, &on_host].map(|buffer| digest(buffer).unwrap());
        assert_eq!(found, expected, "{len} elements");
    }
}
