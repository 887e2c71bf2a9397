//! Where a value comes from: the texts a config is made of, and places in them.
//!
//! It must not know what the texts mean.

use std::{fmt, ops::Range, path::PathBuf, sync::Arc};

use crate::diagnostic::{Excerpt, Location};

/// A text that was read: a file, or one `--set` argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) kind: SourceKind,
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// A file, by the path it was asked for.
    File(PathBuf),
    /// What stood after `--set`.
    Set,
}

/// A range of bytes in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) source: Arc<Source>,
    pub(crate) span: Range<usize>,
}

/// What decided a value. Its `Display` is what `config show` writes behind the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was said, so the default holds.
    Default,
    /// Nothing was said, and the value follows from others or from the machine.
    Derived,
    /// A line of a file.
    File {
        /// The file's path, as it was asked for.
        path: PathBuf,
        /// The line of the key, counted from 1.
        line: usize,
    },
    /// A `--set` argument.
    Set {
        /// What stood after `--set`.
        argument: String,
    },
}

/// The longest `--set` argument that is worth repeating whole behind a value.
const LONGEST_ARGUMENT: usize = 48;

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Derived => f.write_str("derived"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Set { argument } => {
                let line = argument.lines().next().unwrap_or_default();
                let start: String = line.chars().take(LONGEST_ARGUMENT).collect();
                let rest = if start.len() < argument.len() {
                    "..."
                } else {
                    ""
                };
                write!(f, "--set {start}{rest}")
            }
        }
    }
}

impl Source {
    /// How the source is called in messages.
    pub(crate) fn name(&self) -> String {
        match &self.kind {
            SourceKind::File(path) => path.display().to_string(),
            SourceKind::Set => "command line".to_owned(),
        }
    }

    /// The whole source, for what is missing from it.
    pub(crate) fn whole(&self) -> Location {
        Location {
            source: self.name(),
            position: None,
            excerpt: None,
        }
    }
}

impl Place {
    /// Whether it is in a file.
    pub(crate) fn in_file(&self) -> bool {
        matches!(self.source.kind, SourceKind::File(_))
    }

    /// The place as an origin.
    pub(crate) fn origin(&self) -> Origin {
        match &self.source.kind {
            SourceKind::File(path) => Origin::File {
                path: path.clone(),
                line: self.line().0,
            },
            SourceKind::Set => Origin::Set {
                argument: self.source.text.clone(),
            },
        }
    }

    /// The place with the line it is in.
    pub(crate) fn location(&self) -> Location {
        let text = &self.source.text;
        let (line, start) = self.line();
        let end = text[start..]
            .find('\n')
            .map_or(text.len(), |length| start + length);
        let prefix = if self.in_file() { "" } else { "--set " };
        // A tab has no width of its own on a terminal, so the line is shown without any.
        let shown = |range: Range<usize>| text[range].trim_end_matches('\r').replace('\t', "    ");
        let from = text.floor_char_boundary(self.span.start.min(end));
        let to = text.floor_char_boundary(self.span.end.clamp(from, end));
        let excerpt = Excerpt {
            line: format!("{prefix}{}", shown(start..end)),
            indent: prefix.len() + shown(start..from).chars().count(),
            width: shown(from..to).chars().count().max(1),
        };
        let column = text[start..from].chars().count() + 1;
        Location {
            source: self.source.name(),
            position: self.in_file().then_some((line, column)),
            excerpt: Some(excerpt),
        }
    }

    /// The line's number, counted from 1, and where it starts.
    fn line(&self) -> (usize, usize) {
        let text = &self.source.text;
        let before = &text[..text.floor_char_boundary(self.span.start)];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, start)
    }
}
