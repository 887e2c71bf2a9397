//! A model on disk, ready to compute: from a checkpoint of a run, or from a Hugging Face directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use cordee::{Failure, RunDir, TOKENIZER_FILE, valid_checkpoint};
use cordee_config::{Machine, ModelConfig, hugging_face};
use cordee_data::Tokenizer;
use cordee_memory::{Buffer, DType, Layout, View};
use cordee_model::{Model, weights};
use cordee_ops::Device;
use cordee_protocol::ExitCode;

/// A model with its weights and its tokenizer.
pub(crate) struct Opened {
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) model: Model,
    layout: Layout,
    parameters: Buffer,
}

impl Opened {
    /// A run, a checkpoint in one, or a Hugging Face directory.
    pub(crate) fn at(path: &Path) -> Result<Self, Failure> {
        let config = path.join(hugging_face::CONFIG_FILE);
        if config.is_file() && path.join(TOKENIZER_FILE).is_file() {
            return Self::hugging_face(path, &config);
        }
        let (run, named) = RunDir::containing(path)?;
        Self::run(&run, named)
    }

    /// The named checkpoint of a run, or its newest valid one.
    pub(crate) fn run(run: &RunDir, named: Option<PathBuf>) -> Result<Self, Failure> {
        let loaded = cordee_config::load(&run.config(), &[]).map_err(Failure::usage)?;
        let config = loaded.plan(Machine::cpu(1)).map_err(Failure::usage)?.config;
        let tokenizer = Tokenizer::open(&run.tokenizer()).map_err(failed)?;
        let seq_len = config.data.seq_len;
        let model = Model::new(&config.model, tokenizer.vocab_size(), seq_len).map_err(failed)?;
        let layout = model.layout(DType::F32).map_err(failed)?;
        let checkpoint = valid_checkpoint(run, named)?;
        let parameters = cordee_train::load_parameters(&checkpoint, &layout).map_err(failed)?;
        Ok(Self {
            config: config.model,
            tokenizer,
            model,
            layout,
            parameters,
        })
    }

    fn hugging_face(directory: &Path, config: &Path) -> Result<Self, Failure> {
        let text = fs_err::read_to_string(config).map_err(Failure::usage)?;
        let config = hugging_face::from_json(&text).map_err(|error| {
            let hint = error.hint();
            let failure = Failure::usage(anyhow!("{}: {error}", config.display()));
            match hint {
                Some(hint) => failure.with_hint(hint),
                None => failure,
            }
        })?;
        let tokenizer = Tokenizer::open(&directory.join(TOKENIZER_FILE)).map_err(failed)?;
        let positions = config
            .max_positions
            .context("a config.json gives its positions")
            .map_err(failed)?;
        let model = Model::new(&config, tokenizer.vocab_size(), positions).map_err(failed)?;
        let layout = model.layout(DType::F32).map_err(failed)?;
        let mut parameters = Buffer::zeroed(DType::F32, layout.len()).map_err(failed)?;
        weights::load(directory, &model, &layout, &mut parameters).map_err(Failure::usage)?;
        Ok(Self {
            config,
            tokenizer,
            model,
            layout,
            parameters,
        })
    }

    /// Puts the weights where they are to be computed with.
    pub(crate) fn move_to(&mut self, device: &Device) -> anyhow::Result<()> {
        if device.facts().is_some() {
            let mut moved = device.zeroed(DType::F32, self.layout.len())?;
            moved.copy_from_host(&self.parameters)?;
            self.parameters = moved;
        }
        Ok(())
    }

    /// The weights, in the order of the model's parameters.
    pub(crate) fn parameters(&self) -> Result<Vec<View<'_>>, Failure> {
        let slots = self.layout.slots().iter();
        slots
            .map(|slot| self.parameters.slot_view(slot))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }
}

fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(ExitCode::Failed, error)
}
