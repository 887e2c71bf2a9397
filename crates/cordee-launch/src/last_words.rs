//! What the last lines of a log say of the end: a panic, a traceback, a complaint.

/// How many lines from the end a complaint is looked for.
const COMPLAINT_LINES: usize = 10;

/// The first panic in the lines, with its place: later ones mostly come of it.
pub(crate) fn panic_message(lines: &[String]) -> Option<String> {
    let at = lines.iter().position(|line| is_panic(line))?;
    let place = lines[at].split_once("panicked at ")?.1;
    // Before Rust 1.73 the message came first, in quotes, and in the same line.
    if let Some(rest) = place.strip_prefix('\'') {
        let (message, place) = rest.rsplit_once("', ")?;
        return Some(format!("it panicked at {place}: {message}"));
    }
    let place = place.trim_end_matches(':');
    let message = lines[at + 1..]
        .iter()
        .take_while(|line| {
            !line.starts_with("note: ") && !line.starts_with("stack backtrace:") && !is_panic(line)
        })
        .take(3)
        .map(|line| line.trim())
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    Some(if message.is_empty() {
        format!("it panicked at {place}")
    } else {
        format!("it panicked at {place}: {message}")
    })
}

fn is_panic(line: &str) -> bool {
    line.starts_with("thread '") && line.contains(" panicked at ")
}

/// Whether a line belongs to the frames that Rust lists after a panic.
pub(crate) fn is_backtrace(line: &str) -> bool {
    let inner = line.trim_start();
    let depth = line.len() - inner.len();
    let numbered = || {
        let number = inner
            .split_once(": ")
            .map(|(number, _)| number.parse::<u32>());
        matches!(number, Some(Ok(_)))
    };
    line == "stack backtrace:"
        || line.starts_with("note: Some details are omitted")
        || (depth >= 12 && inner.starts_with("at "))
        || ((1..=4).contains(&depth) && numbered())
}

/// The exception at the end of the last traceback of Python, with its message.
pub(crate) fn traceback_end(lines: &[String]) -> Option<&str> {
    let frame = lines
        .iter()
        .rposition(|line| line.starts_with("  File \"") && line.contains(", line "))?;
    let end = lines[frame + 1..]
        .iter()
        .find(|line| !line.starts_with(' ') && !line.trim().is_empty())?;
    // `torch.OutOfMemoryError: ...`, or a name alone.
    let name = end.split_once(':').map_or(end.as_str(), |(name, _)| name);
    let is_name = |name: &str| {
        name.chars()
            .all(|letter| letter.is_alphanumeric() || matches!(letter, '.' | '_'))
    };
    is_name(name.trim()).then_some(end.trim())
}

/// The last line near the end that reads like a reason.
pub(crate) fn complaint(lines: &[String]) -> Option<&str> {
    const WORDS: [&str; 12] = [
        "error",
        "fatal",
        "failed",
        "cannot",
        "can't",
        "could not",
        "unable to",
        "exception",
        "assertion",
        "not found",
        "no such file",
        "denied",
    ];
    let near = lines.len().saturating_sub(COMPLAINT_LINES);
    let complains = |line: &&String| {
        let line = line.to_lowercase();
        WORDS.iter().any(|word| line.contains(word))
            // A metric is no complaint.
            && !line.contains("error=0")
            && !line.contains("0 errors")
    };
    lines[near..]
        .iter()
        .rev()
        .find(complains)
        .map(|line| line.trim())
}

/// Whether a complaint is put as programs put their last one.
pub(crate) fn is_reason(line: &str) -> bool {
    let line = line.to_lowercase();
    let starts = [
        "error",
        "fatal",
        "cannot",
        "could not",
        "unable to",
        "failed to",
    ];
    starts.iter().any(|word| line.starts_with(word))
        || ["error: ", "exception: ", "fatal: "]
            .iter()
            .any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_first_panic_is_quoted_with_its_place() {
        let log = "step 3\nthread 'loader' (77) panicked at src/data.rs:10:5:\nshard 4 is\n  empty\nnote: run with \
            `RUST_BACKTRACE=1`\nthread 'main' panicked at src/main.rs:2:1:\ncalled `Result::unwrap()`";
        assert_eq!(
            panic_message(&lines(log)).unwrap(),
            "it panicked at src/data.rs:10:5: shard 4 is empty"
        );
        let old = "thread 'main' panicked at 'it's late', src/main.rs:2:1";
        assert_eq!(
            panic_message(&lines(old)).unwrap(),
            "it panicked at src/main.rs:2:1: it's late"
        );
        let bare = "thread 'main' panicked at src/main.rs:2:1:\nstack backtrace:\n  0: x";
        assert_eq!(
            panic_message(&lines(bare)).unwrap(),
            "it panicked at src/main.rs:2:1"
        );
        assert_eq!(panic_message(&lines("nobody panicked at all")), None);
    }

    #[test]
    fn frames_are_told_from_words() {
        for frame in [
            "stack backtrace:",
            "   0: __rustc::rust_begin_unwind",
            "  17: main",
            "             at /rustc/5980/library/std/src/panicking.rs:689:5",
        ] {
            assert!(is_backtrace(frame), "{frame}");
        }
        for words in [
            "17: main",
            "  rank 3: gone",
            "    at least",
            "",
            "note: see above",
        ] {
            assert!(!is_backtrace(words), "{words}");
        }
    }

    #[test]
    fn the_last_traceback_tells_the_exception() {
        let log = "Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\nKeyError: 'x'\n\n\
            During handling of the above exception, another exception occurred:\n\n\
            Traceback (most recent call last):\n  File \"a.py\", line 3, in f\n    g()\n    ^^^\n\
            torch.OutOfMemoryError: CUDA out of memory. Tried\n[rank0]: bye";
        assert_eq!(
            traceback_end(&lines(log)),
            Some("torch.OutOfMemoryError: CUDA out of memory. Tried")
        );
        assert_eq!(
            traceback_end(&lines("  File \"a.py\", line 3, in f\n    g()")),
            None
        );
        assert_eq!(traceback_end(&lines("KeyError: 'x'")), None);
    }

    #[test]
    fn a_complaint_near_the_end_is_found() {
        assert_eq!(
            complaint(&lines("start\n  Error: no room\nbye")),
            Some("Error: no room")
        );
        assert_eq!(complaint(&lines("start\nstep 4, loss 2.5")), None);
        let far = format!("error: old\n{}", "step\n".repeat(COMPLAINT_LINES));
        assert_eq!(complaint(&lines(&far)), None);
    }
}
