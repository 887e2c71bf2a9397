//! Models of every family as transformers saved them: loaded, run, saved and loaded again.

#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use cordee_config::{ModelConfig, hugging_face};
use cordee_memory::{Buffer, DType, Layout, View};
use cordee_model::{
    Model, last_logits,
    weights::{self, FileType},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tempfile::TempDir;

const FAMILIES: [&str; 8] = [
    "llama", "llama31", "smollm", "qwen2", "qwen3", "mistral", "gemma3", "gpt2",
];

/// Traces of training, which begin with the weights and logits that are read here.
fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../cordee-train/tests/golden")
        .join(family)
}

struct Loaded {
    config: ModelConfig,
    model: Model,
    layout: Layout,
    buffer: Buffer,
}

impl Loaded {
    fn from(directory: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(directory.join("config.json")).unwrap();
        let config = hugging_face::from_json(&text).unwrap();
        let model = Model::new(&config, 0, 64).unwrap();
        let layout = model.layout(DType::F32).unwrap();
        let mut buffer = Buffer::zeroed(DType::F32, layout.len()).unwrap();
        weights::load(directory, &model, &layout, &mut buffer)
            .map_err(|error| error.to_string())?;
        Ok(Self {
            config,
            model,
            layout,
            buffer,
        })
    }

    fn views(&self) -> Vec<View<'_>> {
        let slots = self.layout.slots().iter();
        slots
            .map(|slot| self.buffer.slot_view(slot).unwrap())
            .collect()
    }

    fn save(&self, directory: &Path, file_type: FileType) {
        let views = self.views();
        weights::save(
            directory,
            &self.config,
            &self.model,
            &views,
            file_type,
            Some(2),
        )
        .unwrap();
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for family in FAMILIES {
        let directory = golden(family);
        let loaded = Loaded::from(&directory).unwrap();
        let batches = fs::read(directory.join("batches.safetensors")).unwrap();
        let batches = SafeTensors::deserialize(&batches).unwrap();
        let tokens = batches.tensor("tokens").unwrap();
        let [_, _, rows, len] = tokens.shape().try_into().unwrap();
        let tokens: Vec<u32> = tokens
            .data()
            .as_chunks()
            .0
            .iter()
            .take(rows * len)
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect();
        let logits = fs::read(directory.join("logits.safetensors")).unwrap();
        let logits = SafeTensors::deserialize(&logits).unwrap();
        let expected: Vec<f32> = logits
            .tensor("initial_last_logits")
            .unwrap()
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let vocab_size = loaded.config.vocab_size.unwrap();
        for (row, expected) in tokens.chunks(len).zip(expected.chunks(vocab_size)) {
            let found = last_logits(&loaded.model, &loaded.views(), row).unwrap();
            assert_eq!(found.len(), expected.len());
            let difference = |(a, b): (&f32, &f32)| (a - b).abs();
            let worst = found
                .iter()
                .zip(expected)
                .map(difference)
                .fold(0.0, f32::max);
            assert!(worst < 2e-5, "{family}: a logit differs by {worst:e}");
        }
    }
}

#[test]
fn what_is_saved_loads_with_the_same_bits() {
    for family in FAMILIES {
        let loaded = Loaded::from(&golden(family)).unwrap();
        let directory = TempDir::new().unwrap();
        loaded.save(directory.path(), FileType::F32);
        let again = Loaded::from(directory.path()).unwrap();
        assert_eq!(again.config, loaded.config, "{family}");
        assert!(
            again.buffer.as_bytes().unwrap() == loaded.buffer.as_bytes().unwrap(),
            "{family}"
        );

        loaded.save(directory.path(), FileType::Bf16);
        let rounded = Loaded::from(directory.path()).unwrap();
        let values = |loaded: &Loaded| loaded.buffer.as_slice::<f32>().unwrap().to_vec();
        for (rounded, exact) in values(&rounded).into_iter().zip(values(&loaded)) {
            assert!((rounded - exact).abs() <= exact.abs() / 256.0, "{family}");
        }
    }
}

/// The golden model of `family` with changed tensors.
fn changed(
    family: &str,
    change: impl FnOnce(&mut HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>),
) -> TempDir {
    let bytes = fs::read(golden(family).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = tensors
        .iter()
        .map(|(name, view)| {
            let parts = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name.to_owned(), parts)
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name, view)
    });
    let directory = TempDir::new().unwrap();
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
    let config = golden(family).join("config.json");
    fs::copy(config, directory.path().join("config.json")).unwrap();
    directory
}

fn refusal(directory: &Path) -> String {
    Loaded::from(directory).map(drop).unwrap_err()
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let key = "model.layers.1.self_attn.k_proj.weight";
    let missing = changed("llama", |tensors| drop(tensors.remove(key)));
    assert!(refusal(missing.path()).contains(&format!("`{key}` is missing")));

    let misshapen = changed("llama", |tensors| tensors.get_mut(key).unwrap().1.reverse());
    let error = refusal(misshapen.path());
    assert!(
        error.contains("has the shape [64, 32], and the model has [32, 64]"),
        "{error}"
    );

    let extra = changed("llama", |tensors| {
        let bias = (Dtype::F32, vec![1], vec![0; 4]);
        tensors.insert("model.layers.0.mlp.up_proj.bias".to_owned(), bias);
    });
    let error = refusal(extra.path());
    assert!(
        error.contains("`model.layers.0.mlp.up_proj.bias` is not part"),
        "{error}"
    );

    let integers = changed("llama", |tensors| {
        tensors.get_mut(key).unwrap().0 = Dtype::I32;
    });
    assert!(refusal(integers.path()).contains("is of type I32"));

    let many = changed("llama", HashMap::clear);
    assert!(refusal(many.path()).contains("and 22 more"));
}

#[test]
fn what_is_no_parameter_is_passed_over() {
    let plain = Loaded::from(&golden("gpt2")).unwrap();
    // As the first GPT-2 was published: no name of the part, and buffers of masks.
    let old = changed("gpt2", |tensors| {
        *tensors = tensors
            .drain()
            .map(|(name, tensor)| (name.replace("transformer.", ""), tensor))
            .collect();
        let mask = (Dtype::F32, vec![1], vec![0; 4]);
        tensors.insert("h.0.attn.bias".to_owned(), mask.clone());
        tensors.insert("h.0.attn.masked_bias".to_owned(), mask);
    });
    let old = Loaded::from(old.path()).unwrap();
    assert!(old.buffer.as_bytes().unwrap() == plain.buffer.as_bytes().unwrap());
}

#[test]
fn a_tied_head_may_be_there_if_it_is_the_embedding() {
    let copy = |tensors: &mut HashMap<_, (Dtype, Vec<usize>, Vec<u8>)>| {
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), table);
    };
    Loaded::from(changed("smollm", copy).path()).unwrap();
    let other = changed("smollm", |tensors| {
        copy(tensors);
        tensors.get_mut("lm_head.weight").unwrap().2[7] ^= 1;
    });
    assert!(refusal(other.path()).contains("`lm_head.weight` differs from the embedding"));
}

#[test]
fn files_that_are_none_are_refused() {
    let directory = TempDir::new().unwrap();
    let config = golden("llama").join("config.json");
    fs::copy(config, directory.path().join("config.json")).unwrap();
    assert!(refusal(directory.path()).contains("holds neither"));
    let file = directory.path().join("model.safetensors");
    fs::write(&file, b"short").unwrap();
    assert!(refusal(directory.path()).contains("it has 5 bytes"));
    let whole = fs::read(golden("llama").join("model.safetensors")).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(refusal(directory.path()).contains("its header describes"));
    fs::write(&file, vec![255; 64]).unwrap();
    assert!(refusal(directory.path()).contains("no safetensors file"));
    let index = directory.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "../secret"}}"#).unwrap();
    assert!(refusal(directory.path()).contains("`../secret` is no name of a file"));
}
