//! From a path and `--set` arguments to a config whose every value knows its origin.

use std::{path::Path, sync::Arc};

use serde::Deserialize;

use crate::{
    check::check,
    diagnostic::{ConfigError, Diagnostic},
    files,
    init_from::add_architecture,
    overrides::parse_set,
    plan::{Machine, Plan},
    render::render,
    schema::{Config, DeviceChoice},
    source::{Origin, Place, Source, SourceKind},
    tree::{Table, find, merge},
    validate::{Problem, validate, validate_plan},
};

/// Reads the config file at `path`, what it extends, and the `--set` arguments on top; checks it.
///
/// Later arguments win over earlier ones, and any argument over the files. Paths in a file are
/// relative to that file, and are joined with its directory here; paths in an argument stay as they
/// are, relative to the current directory. Where `model.init_from` names a directory, its
/// `config.json` lies below everything that is written in `[model]`.
pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, ConfigError> {
    let (tree, main) = files::read(path)?;
    resolve(tree, main, sets)
}

/// A config that no file holds: the `--set` arguments alone.
pub fn from_sets(sets: &[String]) -> Result<Loaded, ConfigError> {
    let nothing = Source {
        kind: SourceKind::Set,
        text: String::new(),
    };
    resolve(Table::default(), Arc::new(nothing), sets)
}

/// Puts the arguments on top of `tree`, which comes from `main`, and checks the whole.
fn resolve(mut tree: Table, main: Arc<Source>, sets: &[String]) -> Result<Loaded, ConfigError> {
    for argument in sets {
        merge(&mut tree, parse_set(argument)?);
    }
    add_architecture(&mut tree)?;
    let values = check(&tree, &main).map_err(ConfigError::Invalid)?;
    let config = Config::deserialize(toml::Value::Table(values)).map_err(|error| {
        ConfigError::Invalid(vec![Diagnostic {
            message: error.message().to_owned(),
            location: Some(main.whole()),
            hint: None,
        }])
    })?;
    let loaded = Loaded {
        config,
        tree,
        main,
        sets: sets.to_vec(),
    };
    loaded.reject(validate(&loaded.config))?;
    Ok(loaded)
}

/// A config that was read and checked.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values; what nobody gave has its default.
    pub config: Config,
    tree: Table,
    main: Arc<Source>,
    sets: Vec<String>,
}

impl Loaded {
    /// The text of the file that was asked for, without what it extends.
    pub fn source_text(&self) -> &str {
        &self.main.text
    }

    /// The `--set` arguments, in order.
    pub fn sets(&self) -> &[String] {
        &self.sets
    }

    /// The file's name without directory and extension, to name a run after.
    pub fn name(&self) -> &str {
        match &self.main.kind {
            SourceKind::File(path) => path.file_stem().and_then(|stem| stem.to_str()),
            SourceKind::Set => None,
        }
        .unwrap_or("run")
    }

    /// What decided the value of `key`, such as `optimizer.lr` or `data.sources.0.path`.
    pub fn origin(&self, key: &str) -> Origin {
        find(&self.tree, key).map_or(Origin::Default, |(place, _)| place.origin())
    }

    /// The config as `plan` resolves it, as TOML, every key with its origin in a comment. Read as a
    /// file in the current directory it gives the same plan.
    pub fn show(&self, plan: &Plan) -> String {
        let (model, parallel) = (&self.config.model, &self.config.parallel);
        let is_derived = |key: &str| match key {
            "model.kv_heads" => model.kv_heads.is_none(),
            "model.head_dim" => model.head_dim.is_none(),
            "model.max_positions" => model.max_positions.is_none(),
            "parallel.device" => parallel.device == DeviceChoice::Auto,
            "parallel.workers" => parallel.workers.is_none(),
            _ => false,
        };
        let origin = |key: &str| {
            if is_derived(key) {
                Origin::Derived
            } else {
                self.origin(key)
            }
        };
        render(&plan.config, Some(&origin))
    }

    /// What the run will do on a machine that settles what the config leaves open.
    pub fn plan(&self, machine: Machine) -> Result<Plan, ConfigError> {
        // Once more, because `config` can have been changed since it was loaded.
        self.reject(validate(&self.config))?;
        let parallel = &self.config.parallel;
        let machine = Machine {
            device: parallel.device.or(machine.device),
            workers: parallel.workers.unwrap_or(machine.workers),
        };
        self.reject(validate_plan(&self.config, machine))?;
        Ok(Plan::new(&self.config, machine))
    }

    /// Turns problems into an error, each at the first of its keys that someone wrote.
    fn reject(&self, problems: Vec<Problem>) -> Result<(), ConfigError> {
        if problems.is_empty() {
            return Ok(());
        }
        let diagnostic = |problem: Problem| Diagnostic {
            location: problem
                .keys
                .iter()
                .find_map(|key| self.place(key))
                .map(Place::location),
            message: problem.message,
            hint: problem.hint,
        };
        Err(ConfigError::Invalid(
            problems.into_iter().map(diagnostic).collect(),
        ))
    }

    /// Where the value of `key` stands.
    fn place(&self, key: &str) -> Option<&Place> {
        find(&self.tree, key).map(|(_, node)| &node.place)
    }
}

impl Config {
    /// The config as TOML, every key with its value; it reads back as the same config.
    ///
    /// Relative paths stay relative to the current directory: call
    /// [`make_paths_absolute`](Self::make_paths_absolute) first when the text goes to another place.
    ///
    /// # Panics
    /// If the config was not loaded but made by hand, and holds a path that is not UTF-8 or a number
    /// above `i64::MAX`, which TOML cannot express.
    pub fn to_toml(&self) -> String {
        render(self, None)
    }

    /// Joins every relative path with `directory`, which is where relative paths start now.
    pub fn make_paths_absolute(&mut self, directory: &Path) {
        let data = &mut self.data;
        let sources = data.sources.iter_mut().map(|source| &mut source.path);
        for path in sources
            .chain(&mut data.tokenizer)
            .chain(&mut data.cache_dir)
            .chain(&mut self.model.init_from)
        {
            *path = directory.join(&*path);
        }
    }
}
