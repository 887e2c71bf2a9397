//! The two text formats that Prometheus reads, and which of them a client asks for.
//!
//! They are Prometheus's own,
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>, and `OpenMetrics`,
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>. They differ in the names of families, in
//! what is escaped, and in a last line.

use std::fmt::Write as _;

use super::Sample;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Version 0.0.4, which everything reads.
    Prometheus,
    /// Version 1.0.0.
    OpenMetrics,
}

/// What a metric counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// May go up and down.
    Gauge,
    /// Only goes up, until it begins anew. Its name ends with `_total`.
    Counter,
    /// Always 1; its labels are what it says. Its name ends with `_info`.
    Info,
}

/// A metric, without its values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

impl Exposition {
    /// The format that a client prefers, by the `Accept` of its request. Prometheus's own wherever it
    /// leaves the choice.
    pub fn for_accept(accept: &str) -> Self {
        let (mut open, mut own) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut version, mut weight) = (None, 1.0);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "version" => version = Some(value.trim().trim_matches('"')),
                    "q" => weight = value.trim().parse().unwrap_or(0.0),
                    _ => {}
                }
            }
            match media.as_str() {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0")) => {
                    open = f64::max(open, weight);
                }
                "text/plain" if matches!(version, None | Some("0.0.4")) => {
                    own = f64::max(own, weight);
                }
                _ => {}
            }
        }
        if open > own {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// What HTTP calls it.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Appends a metric with its values; nothing where it has none.
    pub(super) fn push(self, text: &mut String, family: &Family, samples: &[Sample]) {
        if samples.is_empty() {
            return;
        }
        let (name, kind) = self.name_and_type(family);
        let _ = writeln!(text, "# HELP {name} {}", self.help(family.help));
        let _ = writeln!(text, "# TYPE {name} {kind}");
        for (values, value) in samples {
            debug_assert_eq!(values.len(), family.labels.len(), "{name}");
            text.push_str(family.name);
            for (index, (label, value)) in family.labels.iter().zip(values).enumerate() {
                let before = if index == 0 { '{' } else { ',' };
                let _ = write!(text, "{before}{label}=\"{}\"", escaped(value));
            }
            if !family.labels.is_empty() {
                text.push('}');
            }
            let _ = writeln!(text, " {}", number(*value));
        }
    }

    /// Appends what stands at the end.
    pub(super) fn end(self, text: &mut String) {
        if self == Self::OpenMetrics {
            text.push_str("# EOF\n");
        }
    }

    fn name_and_type(self, family: &Family) -> (&'static str, &'static str) {
        let name = family.name;
        let without = |end| name.strip_suffix(end).unwrap_or(name);
        match (self, family.kind) {
            (_, Kind::Gauge) | (Self::Prometheus, Kind::Info) => (name, "gauge"),
            (Self::Prometheus, Kind::Counter) => (name, "counter"),
            (Self::OpenMetrics, Kind::Counter) => (without("_total"), "counter"),
            (Self::OpenMetrics, Kind::Info) => (without("_info"), "info"),
        }
    }

    fn help(self, text: &str) -> String {
        match self {
            // Here quotes stand for themselves.
            Self::Prometheus => text.replace('\\', r"\\").replace('\n', r"\n"),
            Self::OpenMetrics => escaped(text),
        }
    }
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('\n', r"\n")
        .replace('"', "\\\"")
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAMILY: Family = Family {
        name: "cordee_x_total",
        kind: Kind::Counter,
        labels: &["a", "b"],
        help: "A \"quoted\" \\ text\nof two lines.",
    };

    /// Takes a line of values apart by the grammar of the format, not by the code above.
    fn read(line: &str) -> (String, Vec<(String, String)>, f64) {
        let (name, mut rest) = line.split_once('{').unwrap();
        let mut labels = Vec::new();
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            let (mut value, mut characters) = (String::new(), after.char_indices());
            let end = loop {
                match characters.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match characters.next().unwrap().1 {
                        'n' => '\n',
                        it @ ('"' | '\\') => it,
                        it => panic!("no escape: {it}"),
                    }),
                    (_, it) => value.push(it),
                }
            };
            labels.push((label.to_owned(), value));
            let after = &after[end + 1..];
            let Some(more) = after.strip_prefix(',') else {
                let number = after.strip_prefix("} ").unwrap();
                return (name.to_owned(), labels, number.parse().unwrap());
            };
            rest = more;
        }
    }

    proptest! {
        #[test]
        fn whatever_a_label_says_reads_back(a in any::<String>(), b in "[\"\\\\n\n{},= ]*", value in any::<f64>()) {
            for format in [Exposition::Prometheus, Exposition::OpenMetrics] {
                let mut text = String::new();
                format.push(&mut text, &FAMILY, &[(vec![a.clone(), b.clone()], value)]);
                let lines: Vec<_> = text.split('\n').collect();
                prop_assert_eq!(lines.len(), 4, "{}", text);
                prop_assert_eq!(lines[3], "");
                let (name, labels, number) = read(lines[2]);
                prop_assert_eq!(name, "cordee_x_total");
                prop_assert_eq!(labels, [("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())]);
                prop_assert!(number.to_bits() == value.to_bits() || number.is_nan() && value.is_nan());
            }
        }
    }

    #[test]
    fn the_formats_differ_where_their_specifications_do() {
        let heads = |format: Exposition| {
            let mut text = String::new();
            format.push(
                &mut text,
                &FAMILY,
                &[(vec![String::new(); 2], f64::INFINITY)],
            );
            format.end(&mut text);
            text
        };
        assert_eq!(
            heads(Exposition::Prometheus),
            "# HELP cordee_x_total A \"quoted\" \\\\ text\\nof two lines.\n# TYPE cordee_x_total counter\n\
             cordee_x_total{a=\"\",b=\"\"} +Inf\n"
        );
        assert_eq!(
            heads(Exposition::OpenMetrics),
            "# HELP cordee_x A \\\"quoted\\\" \\\\ text\\nof two lines.\n# TYPE cordee_x counter\n\
             cordee_x_total{a=\"\",b=\"\"} +Inf\n# EOF\n"
        );
    }

    #[test]
    fn a_client_gets_the_format_that_it_prefers() {
        let cases = [
            // Prometheus 2 and 3, curl, a browser, and who says nothing.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
              text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Exposition::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
              text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Exposition::OpenMetrics,
            ),
            ("*/*", Exposition::Prometheus),
            (
                "text/html,application/xhtml+xml,*/*;q=0.8",
                Exposition::Prometheus,
            ),
            ("", Exposition::Prometheus),
            (
                "text/plain, application/openmetrics-text; q=0.5",
                Exposition::Prometheus,
            ),
            (
                "application/openmetrics-text; version=2.0.0",
                Exposition::Prometheus,
            ),
            (
                "APPLICATION/OpenMetrics-Text; Version=\"1.0.0\"",
                Exposition::OpenMetrics,
            ),
            ("application/openmetrics-text;q=0", Exposition::Prometheus),
            (";;,=;q=x,\u{1f9ff}", Exposition::Prometheus),
        ];
        for (accept, expected) in cases {
            assert_eq!(Exposition::for_accept(accept), expected, "{accept}");
        }
    }
}
