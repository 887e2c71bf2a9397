//! A config file with the files it extends, as one tree.
//!
//! It must not know the schema, apart from `extends`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::Value;

use crate::{
    diagnostic::{ConfigError, Diagnostic},
    source::{Place, Source, SourceKind},
    tree::{Content, Entry, Table, merge, parse},
};

/// The key with which a file names the file it starts from.
const EXTENDS: &str = "extends";

/// Reads the file at `path` on top of what it extends. Also returns the file itself.
pub(crate) fn read(path: &Path) -> Result<(Table, Arc<Source>), ConfigError> {
    read_on_top(path, None, &mut Vec::new())
}

/// A file that is being read, by the path it was asked for and by what it really is.
struct Link {
    asked: PathBuf,
    canonical: PathBuf,
}

fn read_on_top(
    path: &Path,
    asked_by: Option<&Place>,
    chain: &mut Vec<Link>,
) -> Result<(Table, Arc<Source>), ConfigError> {
    let unreadable = |error| unreadable(path, asked_by, error);
    if path.to_str().is_none() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
        return Err(unreadable(error));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let canonical = fs::canonicalize(path).map_err(unreadable)?;
    let closes = chain.iter().position(|link| link.canonical == canonical);
    chain.push(Link {
        asked: path.to_owned(),
        canonical,
    });
    if let Some(first) = closes {
        return Err(cycle(&chain[first..], asked_by));
    }
    let source = Arc::new(Source {
        kind: SourceKind::File(path.to_owned()),
        text,
    });
    let mut table = parse(&source)?;
    let Some(Entry { node, .. }) = table.remove(EXTENDS) else {
        return Ok((table, source));
    };
    let Content::Scalar(Value::String(base)) = &node.content else {
        return Err(ConfigError::Invalid(vec![Diagnostic {
            message: "`extends` must be a path, which is a string".to_owned(),
            location: Some(node.place.location()),
            hint: None,
        }]));
    };
    let base = path.parent().unwrap_or(Path::new("")).join(base);
    let (mut tree, _) = read_on_top(&base, Some(&node.place), chain)?;
    merge(&mut tree, table);
    Ok((tree, source))
}

fn unreadable(path: &Path, asked_by: Option<&Place>, error: io::Error) -> ConfigError {
    let why = match error.kind() {
        io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    };
    let diagnostic = Diagnostic {
        message: format!("cannot read `{}`: {why}", path.display()),
        location: asked_by.map(Place::location),
        hint: asked_by.map(|_| "`extends` is relative to the file it stands in".to_owned()),
    };
    ConfigError::Unreadable {
        path: path.to_owned(),
        source: error,
        diagnostic: Box::new(diagnostic),
    }
}

fn cycle(links: &[Link], asked_by: Option<&Place>) -> ConfigError {
    let chain: Vec<_> = links.iter().map(|link| link.asked.clone()).collect();
    let names: Vec<_> = chain
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let diagnostic = Diagnostic {
        message: format!("`extends` goes in a circle: {}", names.join(" -> ")),
        location: asked_by.map(Place::location),
        hint: None,
    };
    ConfigError::Cycle {
        chain,
        diagnostic: Box::new(diagnostic),
    }
}
