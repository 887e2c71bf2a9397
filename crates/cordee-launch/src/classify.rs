//! What kind of failure it was: for deciding what is done about it, and for the record.

use crate::{Ending, FailureReport};

impl FailureReport {
    /// What kind of failure: `hang`, `signal 9`, `out of memory`, `exit 1`.
    pub fn class(&self) -> String {
        if self.hang.is_some() {
            return "hang".to_owned();
        }
        if self.lost.is_some() {
            return "node lost".to_owned();
        }
        match self.ending {
            Ending::Killed { signal: 9, .. } if self.out_of_memory_kills > 0 => {
                "out of memory".to_owned()
            }
            Ending::Killed { signal, .. } => format!("signal {signal}"),
            Ending::Exited(code) => format!("exit {code}"),
            Ending::Unknown => "unknown".to_owned(),
        }
    }

    /// Where it happened, without what differs from rank to rank and from time to time: what the rank
    /// said of it, with every number taken out.
    pub fn place(&self) -> String {
        if let Some(hang) = &self.hang {
            return hang.place();
        }
        if let Some(lost) = &self.lost {
            return format!("node {}", lost.node);
        }
        let said = self
            .failure
            .as_ref()
            .map(|failure| failure.message.as_str());
        let said = said.or_else(|| self.last_lines.last().map(String::as_str));
        let line = said
            .and_then(|text| text.lines().next())
            .unwrap_or_default();
        let mut place = String::new();
        for character in line.chars() {
            match character {
                '0'..='9' if place.ends_with('#') => {}
                '0'..='9' => place.push('#'),
                other => place.push(other),
            }
        }
        place
    }

    /// Whether somebody or something outside of the run did it: a signal that processes do not send
    /// themselves.
    pub fn is_from_outside(&self) -> bool {
        if let Some(hang) = &self.hang {
            return hang.is_from_outside();
        }
        if self.lost.is_some() {
            return true;
        }
        let signals = [1, 2, 9, 10, 12, 15];
        self.failure.is_none()
            && self.out_of_memory_kills == 0
            && signals
                .into_iter()
                .any(|signal| self.ending.is_signal(signal))
    }

    /// The rank that is to blame, if it is one alone.
    pub fn guilty(&self) -> Option<usize> {
        if self.lost.is_some() {
            return None;
        }
        match (&self.hang, &self.silent) {
            (Some(hang), _) => match hang.guilty[..] {
                [rank] => Some(rank),
                _ => None,
            },
            (None, Some(silent)) => Some(silent.rank),
            (None, None) => Some(self.rank),
        }
    }
}
