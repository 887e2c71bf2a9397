//! A directory's weights into a flat buffer.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use cordee_memory::{Buffer, Layout, ViewMut};
use cordee_ops::gradient_norm;
use rayon::prelude::*;
use safetensors::tensor::TensorInfo;
use serde_json::Value;

use super::{
    INDEX_FILE, SINGLE_FILE,
    stored::{TensorFile, is_readable},
};
use crate::{Model, ModelError, Parameter, head::OUTPUT_NAME};

/// Most tensors that an error names.
const NAMED: usize = 8;

/// Reads weights of `model` from a Hugging Face directory into `buffer`, which has `layout`, that of all
/// parameters or of some, and holds f32; what the files hold in bf16 or f16 is widened.
///
/// Every parameter of the model must be there in its shape, and nothing else, apart from buffers that are no
/// parameters and from the output matrix of a tied model, which must equal the embedding's table.
pub fn load(
    directory: &Path,
    model: &Model,
    layout: &Layout,
    buffer: &mut Buffer,
) -> Result<(), ModelError> {
    let files = files(directory)?
        .iter()
        .map(|path| TensorFile::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    let (found, twice) = by_parameter(&files, model);
    let mismatch = |problems: Vec<String>| ModelError::Weights {
        directory: directory.to_owned(),
        problems,
    };
    let problems = if twice.is_empty() {
        problems(&found, model)
    } else {
        twice
    };
    if !problems.is_empty() {
        return Err(mismatch(problems));
    }
    let wanted = |parameter: &&Parameter| layout.find(&parameter.name).is_some();
    let jobs: Vec<(&Parameter, ViewMut<'_>)> = model
        .parameters()
        .iter()
        .filter(wanted)
        .zip(buffer.views_mut(layout.slots())?)
        .collect();
    jobs.into_par_iter().try_for_each(|(parameter, mut view)| {
        let (file, info) = found[parameter.name.as_str()];
        let into = view.as_mut_slice::<f32>()?;
        if !parameter.transposed {
            return file.read(info, |start, values| {
                into[start..start + values.len()].copy_from_slice(values);
            });
        }
        let [rows, columns] = [parameter.shape[0], parameter.shape[1]];
        file.read(info, |start, values| {
            for (index, value) in (start..).zip(values) {
                into[index % rows * columns + index / rows] = *value;
            }
        })
    })?;
    let broken = not_finite(buffer, layout)?;
    if !broken.is_empty() {
        return Err(mismatch(broken));
    }
    let tied = found.get(OUTPUT_NAME).filter(|_| model.head.tied());
    let table = layout.find(&model.parameters()[0].name);
    if let (Some((file, info)), Some(table)) = (tied, table) {
        let table = buffer.slot_view(layout.slot(table))?;
        let table = table.as_slice::<f32>()?;
        let mut equal = true;
        file.read(info, |start, values| {
            let same = table[start..start + values.len()]
                .iter()
                .zip(values)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            equal &= same;
        })?;
        if !equal {
            let problem = format!(
                "`{OUTPUT_NAME}` differs from the embedding, and the model ties the two \
                 (`tie_word_embeddings`)"
            );
            return Err(mismatch(vec![problem]));
        }
    }
    Ok(())
}

/// A sentence for each tensor with an element that is infinite or no number.
fn not_finite(buffer: &Buffer, layout: &Layout) -> Result<Vec<String>, ModelError> {
    let mut problems = Vec::new();
    for slot in layout.slots() {
        if let Some(element) = gradient_norm::first_non_finite(buffer.slot_view(slot)?)? {
            let name = slot.name();
            problems.push(format!(
                "element {element} of `{name}` is not a finite number"
            ));
        }
    }
    problems.truncate(NAMED);
    Ok(problems)
}

/// The directory's files of tensors.
fn files(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = directory.join(INDEX_FILE);
    let single = directory.join(SINGLE_FILE);
    if !index.exists() {
        if single.exists() {
            return Ok(vec![single]);
        }
        return Err(ModelError::File {
            path: directory.to_owned(),
            reason: format!("it holds neither {SINGLE_FILE} nor {INDEX_FILE}"),
        });
    }
    let wrong = |reason: String| ModelError::File {
        path: index.clone(),
        reason,
    };
    let json: Value = serde_json::from_slice(&fs_err::read(&index)?)
        .map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    let names: Option<BTreeSet<&str>> = json["weight_map"]
        .as_object()
        .and_then(|map| map.values().map(Value::as_str).collect());
    let names = names
        .filter(|names| !names.is_empty())
        .ok_or_else(|| wrong("it has no `weight_map` from tensors to files".to_owned()))?;
    let path = |name: &str| {
        // A name that leads out of the directory was not written by a model's author.
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return Err(wrong(format!("`{name}` is no name of a file beside it")));
        }
        Ok(directory.join(name))
    };
    names.into_iter().map(path).collect()
}

type Found<'f> = HashMap<String, (&'f TensorFile, &'f TensorInfo)>;

/// The tensors of all files by the names of parameters: some files leave out the name of the part
/// that all parameters but the output matrix belong to.
fn by_parameter<'f>(files: &'f [TensorFile], model: &Model) -> (Found<'f>, Vec<String>) {
    let names: BTreeSet<&str> = model
        .parameters()
        .iter()
        .map(|parameter| parameter.name.as_str())
        .collect();
    let first = &model.parameters()[0].name;
    let part = first.split_once('.').map_or("", |(part, _)| part);
    let (mut found, mut twice) = (Found::new(), Vec::new());
    for file in files {
        for (name, info) in &file.tensors {
            let whole = format!("{part}.{name}");
            let known = names.contains(whole.as_str());
            let name = if known { whole } else { name.clone() };
            if found.insert(name.clone(), (file, info)).is_some() {
                twice.push(format!("`{name}` is there twice"));
            }
        }
    }
    (found, twice)
}

/// What is missing, what has another shape, and what is there and should not be.
fn problems(found: &Found<'_>, model: &Model) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for parameter in model.parameters() {
        let name = parameter.name.as_str();
        known.insert(name);
        let mut shape = parameter.shape.clone();
        if parameter.transposed {
            shape.reverse();
        }
        match found.get(name) {
            None => problems.push(format!("`{name}` is missing")),
            Some((_, info)) if info.shape != shape => problems.push(format!(
                "`{name}` has the shape {:?}, and the model has {shape:?}",
                info.shape
            )),
            Some((_, info)) if !is_readable(info.dtype) => problems.push(format!(
                "`{name}` is of type {}, and F32, BF16 and F16 can be read",
                info.dtype
            )),
            Some(_) => {}
        }
    }
    let table = &model.parameters()[0];
    let extra: BTreeSet<&str> = found
        .iter()
        .filter(|(name, (_, info))| {
            let tied_output = model.head.tied()
                && *name == OUTPUT_NAME
                && info.shape == table.shape
                && is_readable(info.dtype);
            !known.contains(name.as_str()) && !is_no_parameter(name) && !tied_output
        })
        .map(|(name, _)| name.as_str())
        .collect();
    problems.extend(
        extra
            .into_iter()
            .map(|name| format!("`{name}` is not part of the model")),
    );
    if problems.len() > NAMED {
        let more = problems.len() - NAMED;
        problems.truncate(NAMED);
        problems.push(format!("and {more} more"));
    }
    problems
}

/// Buffers that old versions of transformers wrote beside the parameters: causal masks and rotary
/// frequencies.
fn is_no_parameter(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"]
        .iter()
        .any(|buffer| name.ends_with(buffer))
}
