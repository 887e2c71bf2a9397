//! What a parameter is called, its shape, and how it starts.

use cordee_memory::ViewMut;
use cordee_ops::{
    random::{self, Stream},
    transfer,
};

use crate::ModelError;

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normally distributed around 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// 1 everywhere, as gains of norms do.
    Ones,
    /// 0 everywhere, as biases do, and gains that are stored as their difference from 1.
    Zeros,
}

/// One trainable tensor of a model, by its name in Hugging Face's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Shape; a projection is `[out, in]`.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
    /// Whether Hugging Face's files hold the transpose, as they do for GPT-2's projections.
    pub transposed: bool,
}

impl Parameter {
    /// A parameter that files hold as it is.
    pub fn new(name: impl Into<String>, shape: &[usize], init: Init) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            init,
            transposed: false,
        }
    }

    /// Writes the initial values of the elements from `first` on to `part`, wherever that is. Each depends
    /// on the seed, the parameter's name and its own index alone.
    pub fn initialise(
        &self,
        part: &mut ViewMut<'_>,
        seed: u64,
        first: usize,
    ) -> Result<(), ModelError> {
        match self.init {
            Init::Normal { std } => {
                let stream = Stream::named(seed, &self.name);
                random::normal_fill(part, stream, first as u64, std)?;
            }
            Init::Ones => transfer::fill(part, 1.0)?,
            Init::Zeros => part.fill_zero()?,
        }
        Ok(())
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether weight decay applies: to matrices, not to gains and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// The parameters of a segment while it is put together. A layer that adds one remembers its index,
/// by which [`Weights`](crate::Weights) and [`Gradients`](crate::Gradients) find it.
pub(crate) struct ParameterList {
    prefix: String,
    parameters: Vec<Parameter>,
}

impl ParameterList {
    /// A list of parameters whose names begin with `prefix`.
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            parameters: Vec::new(),
        }
    }

    /// Adds a parameter; its index.
    pub(crate) fn add(&mut self, name: &str, shape: &[usize], init: Init) -> usize {
        let name = format!("{}{name}", self.prefix);
        self.parameters.push(Parameter::new(name, shape, init));
        self.parameters.len() - 1
    }

    /// Adds a matrix that files hold as its transpose; its index.
    pub(crate) fn add_transposed(&mut self, name: &str, shape: [usize; 2], init: Init) -> usize {
        let index = self.add(name, &shape, init);
        self.parameters[index].transposed = true;
        index
    }

    pub(crate) fn finish(self) -> Vec<Parameter> {
        self.parameters
    }
}
