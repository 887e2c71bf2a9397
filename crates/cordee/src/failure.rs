//! An error on its way out of the program: what happened, what to try, and the exit code.

use std::fmt;

use cordee_protocol::ExitCode;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// What the parent process sees.
    pub code: u8,
    error: anyhow::Error,
    hint: Option<String>,
}

impl Failure {
    /// An error and the code that goes with it.
    pub fn new(code: ExitCode, error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: code.code(),
            error: error.into(),
            hint: None,
        }
    }

    /// An error with the code that a launch ended with, which may be a signal's.
    pub fn with_code(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self {
            code,
            error: error.into(),
            hint: None,
        }
    }

    /// Wrong usage or config: a retry cannot help.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::new(ExitCode::Usage, error)
    }

    /// The same, with the next thing to try.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(ExitCode::Failed, error)
    }
}
