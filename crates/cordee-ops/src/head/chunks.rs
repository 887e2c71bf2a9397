//! How many tokens' logits there are at a time. A function of sizes alone, so that losses do not depend on
//! what memory is free.

use cordee_memory::DType;

/// Most tokens of a chunk on the host: as many as a product sums in one block, so that the weight's
/// gradient is read and written once for each chunk.
const HOST_TOKENS: usize = 512;

/// Most logits of a chunk on the host, 128 MiB in f32, as long as it has [`FEWEST_TOKENS`].
const HOST_LOGITS: usize = 32 << 20;

/// With fewer tokens, reading and writing the weight's gradient would cost more than the products.
const FEWEST_TOKENS: usize = 128;

/// Most bytes of a chunk's logits on a GPU, as long as it has [`TILE_TOKENS`]. Each chunk after the
/// first reads and writes the weight's gradient in f32 once more, and its products have fewer tiles.
const GPU_BYTES: usize = 1 << 30;

/// Chunks on a GPU are a multiple of this many tokens: what its products compute at once.
const TILE_TOKENS: usize = 128;

/// Elements that rows of logits on a GPU are padded to a multiple of: all begin where vectors do.
const STRIDE: usize = 64;

/// Tokens of the longest chunk of `tokens` on the host.
pub(super) fn host_tokens(tokens: usize, vocab: usize) -> usize {
    let most = (HOST_LOGITS / vocab).clamp(FEWEST_TOKENS, HOST_TOKENS);
    even(tokens, most)
}

/// Tokens of the longest chunk of `tokens` on a GPU, with logits of `dtype`.
pub(super) fn gpu_tokens(tokens: usize, vocab: usize, dtype: DType) -> usize {
    let row = gpu_stride(vocab) * dtype.size_in_bytes();
    let most = (GPU_BYTES / row / TILE_TOKENS).max(1) * TILE_TOKENS;
    even(tokens, most)
        .next_multiple_of(TILE_TOKENS)
        .min(tokens.max(1))
}

/// Elements from one row of logits on a GPU to the next.
pub(super) fn gpu_stride(vocab: usize) -> usize {
    vocab.next_multiple_of(STRIDE)
}

/// Chunks of one size, at most `most`, rather than full ones and a rest.
fn even(tokens: usize, most: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(most).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_on_a_gpu_are_whole_tiles_and_fit() {
        for (vocab, dtype) in [
            (13, DType::F32),
            (32_000, DType::Bf16),
            (50_257, DType::Bf16),
            (128_256, DType::Bf16),
            (262_144, DType::F32),
        ] {
            for tokens in [1, 127, 128, 1000, 8192, 1 << 20] {
                let chunk = gpu_tokens(tokens, vocab, dtype);
                assert!(chunk == tokens || chunk.is_multiple_of(TILE_TOKENS));
                let bytes = chunk * gpu_stride(vocab) * dtype.size_in_bytes();
                assert!(
                    bytes <= GPU_BYTES,
                    "{tokens} tokens of {vocab}: {bytes} bytes"
                );
            }
        }
        assert_eq!(gpu_tokens(0, 100, DType::F32), 1);
    }
}
