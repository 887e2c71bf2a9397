//! The verdicts as people and programs read them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::verdict::{Judged, Verdict};

/// How many there are of each verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) ok: usize,
    pub(super) unknown: usize,
    pub(super) bad: usize,
}

impl Counts {
    pub(super) fn of(judged: &[Judged]) -> Self {
        let count = |verdict| judged.iter().filter(|it| it.verdict == verdict).count();
        Self {
            ok: count(Verdict::Ok),
            unknown: count(Verdict::Unknown),
            bad: count(Verdict::Bad),
        }
    }

    pub(super) fn passed(self, strict: bool) -> bool {
        self.bad == 0 && !(strict && self.unknown > 0)
    }
}

/// For people: a line for each check, then the sum of it.
pub(super) fn table(judged: &[Judged], strict: bool) -> String {
    let width = |column: &dyn Fn(&Judged) -> usize, least| {
        let widths = judged.iter().map(column);
        widths.chain([least]).max().unwrap_or(least)
    };
    let characters = |text: &Option<String>| text.as_ref().map_or(0, |it| it.chars().count());
    let check = width(&|it| it.check.name().len(), 5);
    let of = width(&|it| characters(&it.of), 2);
    let measured = width(&|it| characters(&it.measured), 8).min(64);
    let threshold = width(&|it| characters(&it.threshold), 9);
    let mut page = String::new();
    let mut stage = None;
    for it in judged {
        if stage != Some(it.stage) {
            let gap = if stage.is_some() { "\n" } else { "" };
            let _ = writeln!(page, "{gap}{}", it.stage.name());
            stage = Some(it.stage);
        }
        let verdict = match (it.verdict, &it.threshold) {
            (Verdict::Ok, Some(_)) => "ok",
            (Verdict::Ok, None) => "ok (no threshold)",
            (Verdict::Unknown, _) => "UNKNOWN",
            (Verdict::Bad, _) => "BAD",
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let line = format!(
            "  {:check$}  {:of$}  {:measured$}  {:threshold$}  {verdict}",
            it.check,
            text(&it.of),
            text(&it.measured),
            text(&it.threshold),
        );
        let _ = writeln!(page, "{}", line.trim_end());
        if let Some(why) = &it.why {
            let _ = writeln!(page, "      {}", one_line(why));
        }
        if let Some(fix) = it.fix {
            let _ = writeln!(page, "      fix: {fix}");
        }
    }
    page.push('\n');
    page + &summary(judged, strict)
}

/// What is unknown, and the last line.
fn summary(judged: &[Judged], strict: bool) -> String {
    let of = |verdict| -> Vec<String> {
        let those = judged.iter().filter(|it| it.verdict == verdict);
        those
            .map(|it| {
                let why = one_line(it.why.as_deref().unwrap_or_default());
                format!("{}: {why}", it.name())
            })
            .collect()
    };
    let counts = Counts::of(judged);
    let mut text = String::new();
    if counts.unknown > 0 {
        let consequence = if strict {
            "by --strict that is a failure"
        } else {
            "nobody knows whether they are good; --strict makes that a failure"
        };
        let those = of(Verdict::Unknown).join("; ");
        let _ = writeln!(text, "unknown, {consequence}: {those}");
    }
    let Counts { ok, unknown, bad } = counts;
    let _ = match bad {
        0 => writeln!(text, "{ok} ok, {unknown} unknown, 0 bad"),
        _ => writeln!(
            text,
            "{ok} ok, {unknown} unknown, {bad} BAD: {}",
            of(Verdict::Bad).join("; ")
        ),
    };
    text
}

/// The first line of a text that may have several.
fn one_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// For programs.
pub(super) fn as_json(judged: &[Judged], strict: bool) -> Value {
    let counts = Counts::of(judged);
    json!({
        "passed": counts.passed(strict),
        "strict": strict,
        "ok": counts.ok,
        "unknown": counts.unknown,
        "bad": counts.bad,
        "checks": judged,
    })
}

/// For continuous integration: the XML of `JUnit`, a suite for each stage. What is unknown is skipped,
/// or by `strict` an error.
pub(super) fn junit(judged: &[Judged], strict: bool) -> String {
    let counts = Counts::of(judged);
    let of_unknown = |count: usize| if strict { (count, 0) } else { (0, count) };
    let (errors, skipped) = of_unknown(counts.unknown);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites name=\"cordee smoke\" tests=\"{}\" failures=\"{}\" errors=\"{errors}\" skipped=\"{skipped}\">\n",
        judged.len(),
        counts.bad,
    );
    for suite in judged.chunk_by(|a, b| a.stage == b.stage) {
        let counts = Counts::of(suite);
        let (errors, skipped) = of_unknown(counts.unknown);
        let stage = suite[0].stage.name();
        let _ = writeln!(
            text,
            "  <testsuite name=\"{stage}\" tests=\"{}\" failures=\"{}\" errors=\"{errors}\" skipped=\"{skipped}\">",
            suite.len(),
            counts.bad,
        );
        for it in suite {
            let _ = write!(
                text,
                "    <testcase classname=\"cordee.smoke.{stage}\" name=\"{}\"",
                escaped(&it.name())
            );
            let why = escaped(it.why.as_deref().unwrap_or_default());
            let body = match it.verdict {
                Verdict::Ok => format!(
                    "<system-out>{}</system-out>",
                    escaped(it.measured.as_deref().unwrap_or_default())
                ),
                Verdict::Unknown if strict => format!("<error message=\"{why}\"/>"),
                Verdict::Unknown => format!("<skipped message=\"{why}\"/>"),
                Verdict::Bad => format!(
                    "<failure message=\"{why}\">{}</failure>",
                    escaped(it.fix.unwrap_or_default())
                ),
            };
            let _ = writeln!(text, ">{body}</testcase>");
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' | '\t' => safe.push(' '),
            // What XML has no way to say.
            _ if character.is_control() => safe.push(char::REPLACEMENT_CHARACTER),
            _ => safe.push(character),
        }
    }
    safe
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
