//! Errors, and how they look.
//!
//! A diagnostic is kept in pieces, so that a binary can colour it; `Display` is the plain rendering,
//! without the `error: ` that belongs to whoever prints it. It must not know how errors are found.

use std::{fmt, io, path::PathBuf, slice};

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{diagnostic}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
        /// The rendering, which points at the `extends` that asked for the file, if one did.
        diagnostic: Box<Diagnostic>,
    },
    /// Files extend each other in a circle.
    #[error("{diagnostic}")]
    Cycle {
        /// The files, from the first to the one that closes the circle.
        chain: Vec<PathBuf>,
        /// The rendering, which points at the `extends` that closes the circle.
        diagnostic: Box<Diagnostic>,
    },
    /// A file or a `--set` argument is not TOML.
    #[error("{0}")]
    Syntax(Box<Diagnostic>),
    /// Keys or values are wrong: all that could be found at once, never none.
    #[error("{}", render(.0))]
    Invalid(Vec<Diagnostic>),
}

impl ConfigError {
    /// What there is to print, in order.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Unreadable { diagnostic, .. }
            | Self::Cycle { diagnostic, .. }
            | Self::Syntax(diagnostic) => slice::from_ref(diagnostic),
            Self::Invalid(diagnostics) => diagnostics,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, in one line.
    pub message: String,
    /// Where, unless nothing anyone wrote is to blame.
    pub location: Option<Location>,
    /// What to try next.
    pub hint: Option<String>,
}

/// A place in a file or on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// A path as it was asked for, or `command line`.
    pub source: String,
    /// Line and column, counted from 1 and in characters; absent on the command line, and when the
    /// whole file is meant.
    pub position: Option<(usize, usize)>,
    /// The line; absent when the whole file is meant.
    pub excerpt: Option<Excerpt>,
}

/// A line with a part of it marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The line, without tabs and without its end.
    pub line: String,
    /// Characters before the marked part.
    pub indent: usize,
    /// Characters of the marked part, at least one.
    pub width: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(location) = &self.location {
            write!(f, "\n{location}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self
            .position
            .map_or(String::new(), |(line, _)| line.to_string());
        let gutter = number.len().max(1) + 1;
        write!(f, "{:gutter$}--> {}", "", self.source)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(Excerpt {
            line,
            indent,
            width,
        }) = &self.excerpt
        {
            write!(f, "\n{:gutter$} |", "")?;
            write!(f, "\n{number:>gutter$} | {line}")?;
            write!(f, "\n{:gutter$} | {:indent$}{:^<width$}", "", "", "")?;
        }
        Ok(())
    }
}

fn render(diagnostics: &[Diagnostic]) -> String {
    let all: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
    all.join("\n\nerror: ")
}
