//! Hashes: xxh3, which is as fast as memory. They find damage and disagreement, not malice.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Hash of what a rank holds in memory: xxh3-128 of the parts one after the other, as 32 hex digits.
///
/// How the bytes are cut into parts makes no difference.
pub fn hash_memory(parts: &[&[u8]]) -> String {
    let mut hasher = Xxh3::new();
    for part in parts {
        hasher.update(part);
    }
    hex_128(&hasher)
}

/// What was fed to `hasher`, as 32 hex digits.
pub(crate) fn hex_128(hasher: &Xxh3) -> String {
    format!("{:032x}", hasher.digest128())
}

/// Checksum of a block: xxh3-64, as 16 hex digits.
pub(crate) fn checksum(block: &[u8]) -> String {
    format!("{:016x}", xxh3_64(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_memory_ignores_where_it_is_cut() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let whole = hash_memory(&[&bytes]);
        assert_eq!(whole.len(), 32);
        assert_eq!(
            whole,
            hash_memory(&[&bytes[..1], &bytes[1..3000], &[], &bytes[3000..]])
        );
        assert_ne!(whole, hash_memory(&[&bytes[1..]]));
        // Reference value of XXH3_128bits for the empty input, from the xxHash sources.
        assert_eq!(hash_memory(&[]), "99aa06d3014798d86001c324468d497f");
    }
}
