//! A file of tensors, opened: what it holds, and the elements of one tensor.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use fs_err::{File, os::unix::fs::FileExt};
use half::{bf16, f16};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use crate::ModelError;

/// Elements that are read at once.
const PIECE: usize = 1 << 20;
/// Longest header that is read; real ones have up to a few MiB.
const LONGEST_HEADER: u64 = 100 << 20;

/// An open `.safetensors` file.
pub(super) struct TensorFile {
    file: File,
    /// First byte behind the header.
    data: u64,
    pub(super) tensors: HashMap<String, TensorInfo>,
}

impl TensorFile {
    /// Reads the header, and checks it against the length of the file.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let wrong = |reason: String| ModelError::File {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut size = [0; 8];
        if length < 8 {
            return Err(wrong(format!(
                "it has {length} bytes, fewer than the header of a safetensors file"
            )));
        }
        file.read_exact_at(&mut size, 0)?;
        let size = u64::from_le_bytes(size);
        if size > LONGEST_HEADER || size > length - 8 {
            return Err(wrong(format!(
                "it is no safetensors file: its header would have {size} bytes"
            )));
        }
        let mut header = vec![0; size as usize];
        file.read_exact_at(&mut header, 8)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| wrong(format!("it is no safetensors file: {error}")))?;
        let expected = 8 + size + metadata.data_len() as u64;
        if length != expected {
            return Err(wrong(format!(
                "it has {length} bytes, and its header describes {expected}"
            )));
        }
        let tensors = metadata.tensors();
        Ok(Self {
            file,
            data: 8 + size,
            tensors: tensors
                .into_iter()
                .map(|(name, info)| (name, info.clone()))
                .collect(),
        })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }

    /// Gives all elements of a tensor to `take`, a piece at a time, with the index of the first.
    pub(super) fn read(
        &self,
        info: &TensorInfo,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        let width = info.dtype.bitsize() / 8;
        let elements: usize = info.shape.iter().product();
        let mut bytes = vec![0; PIECE.min(elements) * width];
        let mut values = Vec::with_capacity(PIECE.min(elements));
        for start in (0..elements).step_by(PIECE) {
            let bytes = &mut bytes[..PIECE.min(elements - start) * width];
            let offset = info.data_offsets.0 + start * width;
            self.file.read_exact_at(bytes, self.data + offset as u64)?;
            values.clear();
            match info.dtype {
                Dtype::F32 => extend(&mut values, bytes, f32::from_le_bytes),
                Dtype::BF16 => extend(&mut values, bytes, |two| bf16::from_le_bytes(two).to_f32()),
                Dtype::F16 => extend(&mut values, bytes, |two| f16::from_le_bytes(two).to_f32()),
                other => {
                    return Err(ModelError::File {
                        path: self.path(),
                        reason: format!("tensors of type {other} cannot be read"),
                    });
                }
            }
            take(start, &values);
        }
        Ok(())
    }
}

/// Types of elements that can be read.
pub(super) fn is_readable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
}

fn extend<const N: usize>(values: &mut Vec<f32>, bytes: &[u8], read: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    values.extend(elements.iter().map(|element| read(*element)));
}
