//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3" (2011).

const ROUNDS: usize = 10;

/// The two multipliers of a round.
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];

/// What the key grows by from round to round: the golden ratio and the root of 3, less 1.
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// The four numbers at a 128-bit counter, low half first, under a 64-bit key.
pub(super) fn block(key: u64, counter: [u64; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = [
        low(counter[0]),
        high(counter[0]),
        low(counter[1]),
        high(counter[1]),
    ];
    let mut key = [low(key), high(key)];
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(a);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(c);
        [a, b, c, d] = [
            high(second) ^ b ^ key[0],
            low(second),
            high(first) ^ d ^ key[1],
            low(first),
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    [a, b, c, d]
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
