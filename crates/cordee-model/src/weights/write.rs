//! A model as a directory that transformers and others can load.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufWriter, Write},
    path::Path,
};

use cordee_config::{
    ModelConfig,
    hugging_face::{CONFIG_FILE, Facts, to_json},
};
use cordee_memory::View;
use fs_err as fs;
use half::bf16;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde_json::json;

use super::{INDEX_FILE, SINGLE_FILE};
use crate::{Model, ModelError, Parameter};

/// Most bytes of tensors in one file, as transformers cuts them; a larger tensor has a file alone.
const LARGEST_FILE: u64 = 5_000_000_000;

/// Type of the elements in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// As they are in memory.
    F32,
    /// Rounded to the nearest, half the size.
    Bf16,
}

impl FileType {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Bytes of an element.
    fn width(self) -> usize {
        self.dtype().bitsize() / 8
    }

    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// Writes `config.json` and the weights, which hold f32, into a directory that is made if it is not
/// there. `eos_token_id` is the token that ends a text.
///
/// The configuration comes last: a directory without one is an export that did not end.
pub fn save(
    directory: &Path,
    config: &ModelConfig,
    model: &Model,
    parameters: &[View<'_>],
    file_type: FileType,
    eos_token_id: Option<u32>,
) -> Result<(), ModelError> {
    fs::create_dir_all(directory)?;
    let tensors: Vec<_> = model.parameters().iter().zip(parameters).collect();
    write_files(directory, &tensors, file_type, LARGEST_FILE)?;
    let facts = Facts {
        vocab_size: model.parameters()[0].shape[0],
        max_positions: model.max_seq_len(),
        torch_dtype: file_type.torch_name(),
        eos_token_id,
    };
    write_new(&directory.join(CONFIG_FILE), |file| {
        file.write_all(to_json(config, &facts).as_bytes())?;
        Ok(())
    })
}

type Tensors<'a> = [(&'a Parameter, &'a View<'a>)];

/// One file, or several and an index of them.
fn write_files(
    directory: &Path,
    tensors: &Tensors<'_>,
    file_type: FileType,
    largest: u64,
) -> Result<(), ModelError> {
    let bytes = |parameter: &Parameter| (parameter.elements() * file_type.width()) as u64;
    let mut files: Vec<Vec<(&Parameter, &View<'_>)>> = Vec::new();
    let mut room = 0;
    for &(parameter, view) in tensors {
        let needed = bytes(parameter);
        match files.last_mut() {
            Some(file) if needed <= room => {
                file.push((parameter, view));
                room -= needed;
            }
            _ => {
                files.push(vec![(parameter, view)]);
                room = largest.saturating_sub(needed);
            }
        }
    }
    if let [only] = files.as_slice() {
        return write_file(&directory.join(SINGLE_FILE), only, file_type);
    }
    let mut weight_map = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, files.len());
        write_file(&directory.join(&name), file, file_type)?;
        weight_map.extend(
            file.iter()
                .map(|(parameter, _)| (parameter.name.clone(), name.clone())),
        );
    }
    let total: u64 = tensors.iter().map(|(parameter, _)| bytes(parameter)).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_new(&directory.join(INDEX_FILE), |file| {
        file.write_all(format!("{index:#}\n").as_bytes())?;
        Ok(())
    })
}

fn write_file(path: &Path, tensors: &Tensors<'_>, file_type: FileType) -> Result<(), ModelError> {
    let dtype = file_type.dtype();
    let mut end = 0;
    let infos = tensors
        .iter()
        .map(|(parameter, _)| {
            let mut shape = parameter.shape.clone();
            if parameter.transposed {
                shape.reverse();
            }
            let start = end;
            end += parameter.elements() * file_type.width();
            let info = TensorInfo {
                dtype,
                shape,
                data_offsets: (start, end),
            };
            (parameter.name.clone(), info)
        })
        .collect();
    // Older versions of transformers refuse a file that does not name its framework.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let wrong = |reason: String| ModelError::File {
        path: path.to_owned(),
        reason,
    };
    let metadata = Metadata::new(Some(format), infos).map_err(|error| wrong(error.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| wrong(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_new(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (parameter, view) in tensors {
            write_tensor(file, parameter, view, file_type)?;
        }
        Ok(())
    })
}

fn write_tensor(
    file: &mut dyn Write,
    parameter: &Parameter,
    view: &View<'_>,
    file_type: FileType,
) -> Result<(), ModelError> {
    let values = view.as_slice::<f32>()?;
    let mut put = |value: f32| match file_type {
        FileType::F32 => file.write_all(&value.to_le_bytes()),
        FileType::Bf16 => file.write_all(&bf16::from_f32(value).to_le_bytes()),
    };
    if !parameter.transposed {
        values.iter().try_for_each(|value| put(*value))?;
        return Ok(());
    }
    let columns = parameter.shape[1];
    for column in 0..columns {
        let of_column = values.iter().skip(column).step_by(columns);
        of_column.copied().try_for_each(&mut put)?;
    }
    Ok(())
}

/// Writes a file so that it is there whole or not at all.
fn write_new(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let temporary = path.with_extension("new");
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(&temporary)?);
    fill(&mut file)?;
    let file = file
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use cordee_memory::{Buffer, DType};

    use super::*;
    use crate::weights::load;

    #[test]
    fn a_model_in_several_files_comes_back() {
        let config = ModelConfig {
            tie_embeddings: true,
            ..ModelConfig::llama(8, 2, 2, 12)
        };
        let model = Model::new(&config, 10, 4).unwrap();
        let layout = model.layout(DType::F32).unwrap();
        let mut written = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        model.initialise(&layout, &mut written, 3).unwrap();
        let views: Vec<_> = layout
            .slots()
            .iter()
            .map(|slot| written.slot_view(slot).unwrap())
            .collect();
        let tensors: Vec<_> = model.parameters().iter().zip(&views).collect();

        let directory = tempfile::tempdir().unwrap();
        write_files(directory.path(), &tensors, FileType::F32, 1000).unwrap();
        let files = fs::read_dir(directory.path()).unwrap().count();
        assert!(files > 3, "{files} files");
        assert!(!directory.path().join(SINGLE_FILE).exists());
        let mut read = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        load(directory.path(), &model, &layout, &mut read).unwrap();
        assert!(read.as_bytes().unwrap() == written.as_bytes().unwrap());
    }
}
