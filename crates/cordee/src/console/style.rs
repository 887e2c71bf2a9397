//! Colours, and the lines that need them. Every line is as clear without.
//!
//! Text is made with colours; the stream it goes to strips them where there is no terminal or
//! `NO_COLOR` is set.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

pub(super) const LABEL: Style = Style::new().bold();
pub(super) const SUCCESS: Style = AnsiColor::Green.on_default().bold();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();

/// What went wrong. Lines after the first are indented, and a hint stands apart from the rest.
pub(super) fn error(text: &str) -> String {
    severe("error", ERROR, text)
}

/// What the user should know and may do something about.
pub(super) fn warning(text: &str) -> String {
    severe("warning", WARNING, text)
}

/// Something said in passing.
pub(super) fn note(text: &str) -> String {
    severe("note", LABEL, text)
}

fn severe(word: &str, style: Style, text: &str) -> String {
    let mut lines = text.trim_end().lines();
    let first = lines.next().unwrap_or_default();
    let mut shown = format!("{style}{word}{style:#}: {first}");
    for line in lines {
        let _ = match line.strip_prefix("hint: ") {
            Some(hint) => write!(shown, "\n\n{HINT}hint{HINT:#}: {hint}"),
            None if line.starts_with(' ') => write!(shown, "\n{line}"),
            None => write!(shown, "\n  {line}"),
        };
    }
    shown
}

/// Text from a model or a file, without what could steer a terminal.
pub(crate) fn harmless(text: &str) -> String {
    let shown = text.chars().map(|character| match character {
        '\n' | '\t' => character,
        _ if character.is_control() => char::REPLACEMENT_CHARACTER,
        _ => character,
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;
    use insta::assert_snapshot;

    use super::{error, harmless, warning};

    #[test]
    fn an_error_has_its_cause_indented_and_its_hint_apart() {
        let text = "rank 5 was killed by SIGKILL\n  log: rank-005.log\nno room\nhint: try again";
        assert_snapshot!(strip_str(&error(text)), @"
        error: rank 5 was killed by SIGKILL
          log: rank-005.log
          no room

        hint: try again
        ");
        assert_eq!(
            warning("slow\n"),
            "\u{1b}[1m\u{1b}[33mwarning\u{1b}[0m: slow"
        );
    }

    #[test]
    fn generated_text_cannot_steer_the_terminal() {
        assert_eq!(
            harmless("a\n\tb\u{1b}[2J\u{9b}\rc"),
            "a\n\tb\u{fffd}[2J\u{fffd}\u{fffd}c"
        );
    }
}
