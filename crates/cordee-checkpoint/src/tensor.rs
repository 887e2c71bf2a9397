//! What is stored: a tensor as name, element type and shape, and where its bytes come from.

use serde::{Deserialize, Serialize};

use crate::{CheckpointError, Dtype, Result};

/// A tensor, by what it is called and how large it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Unique in the checkpoint.
    pub name: String,
    /// Type of the elements, in safetensors' words (`F32`, `BF16`, ...).
    pub dtype: Dtype,
    /// Extents, the slowest first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of elements. A plan holds only tensors whose size does not overflow.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&extent| extent as u64).product()
    }

    /// Size in bytes. A plan holds only tensors whose size does not overflow.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.element_size()
    }

    /// Bytes of one element.
    pub(crate) fn element_size(&self) -> u64 {
        (self.dtype.bitsize() / 8) as u64
    }

    /// Whether the tensor can be stored: whole bytes per element, a size that fits into 63 bits,
    /// and a name that is free for it.
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |reason: &str| {
            Err(CheckpointError::InvalidTensor {
                name: self.name.clone(),
                reason: reason.to_owned(),
            })
        };
        if self.name.is_empty() {
            return invalid("it has no name");
        }
        if self.name == "__metadata__" {
            return invalid("safetensors keeps this name for itself");
        }
        // `weight@128` is how a shard calls the piece of `weight` that begins at element 128.
        if self.name.contains('@') {
            return invalid("`@` separates a tensor's name from the start of a piece");
        }
        if !self.dtype.bitsize().is_multiple_of(8) {
            return invalid("its elements are not whole bytes");
        }
        let bytes = self
            .shape
            .iter()
            .try_fold(self.element_size(), |size, &extent| {
                size.checked_mul(extent as u64)
            });
        match bytes {
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(()),
            _ => invalid("its size overflows"),
        }
    }
}

/// Gives the bytes of tensors to whoever writes them.
///
/// A closure from a name in the plan to the bytes of the whole tensor will do where they lie in memory; implement
/// the trait to give only the ranges that this writer holds, or to copy them from a device.
pub trait TensorSource {
    /// Copies the bytes of `tensor` that begin at byte `offset` into `out`, all of it.
    ///
    /// An error is the reason why there are none, in words.
    fn copy_bytes(&self, tensor: &str, offset: u64, out: &mut [u8]) -> Result<(), String>;
}

impl<'a, F: Fn(&str) -> &'a [u8]> TensorSource for F {
    fn copy_bytes(&self, tensor: &str, offset: u64, out: &mut [u8]) -> Result<(), String> {
        let bytes = self(tensor);
        let range = usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(out.len())?;
            bytes.get(start..end)
        });
        out.copy_from_slice(range.ok_or_else(|| format!("it has only {} bytes", bytes.len()))?);
        Ok(())
    }
}
