//! Text that fits a terminal: wrapping, shortening, lists of ranks.

/// Columns of a line. A terminal of 100 has them, whatever a command puts before a line.
pub(crate) const WIDTH: usize = 98;
/// Parts of a list of ranks.
const LIST_LENGTH: usize = 6;

/// Breaks text at spaces. Its own line feeds stay; `first` stands before the first line and `rest`
/// before the others. Past `most` lines it is cut.
pub(crate) fn wrap(text: &str, first: &str, rest: &str, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for (index, paragraph) in text.trim_end().lines().enumerate() {
        if index > 0 {
            lines.push(std::mem::replace(&mut line, rest.to_owned()));
            is_empty = true;
        }
        for word in words(&clean(paragraph)) {
            let mut word = word.as_str();
            let length = |text: &str| text.chars().count();
            if !is_empty && length(&line) + 1 + length(word) > WIDTH {
                lines.push(std::mem::replace(&mut line, rest.to_owned()));
                is_empty = true;
            }
            // A word that no line holds: a path, or what a program prints without spaces.
            while is_empty && length(&line) + length(word) > WIDTH {
                let (end, _) = word
                    .char_indices()
                    .nth(WIDTH - length(&line))
                    .expect("the word is longer");
                line.push_str(&word[..end]);
                lines.push(std::mem::replace(&mut line, rest.to_owned()));
                word = &word[end..];
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
    }
    lines.push(line);
    if lines.len() > most {
        lines.truncate(most.max(1));
        let last = lines.len() - 1;
        lines[last] = shorten(&format!("{} ...", lines[last]), WIDTH);
    }
    lines
}

/// Words of a line. What stands between backticks is one, and so is `--set` with what it sets, since
/// people copy them.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for word in line.split_whitespace() {
        match words.last_mut() {
            Some(last) if is_open || last == "--set" => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
        is_open ^= word.matches('`').count() % 2 == 1;
    }
    // A backtick that is never closed would make one word of the rest.
    if is_open && let Some(rest) = words.pop() {
        words.extend(rest.split_whitespace().map(str::to_owned));
    }
    words
}

/// A line of at most so many characters.
pub(crate) fn shorten(line: &str, width: usize) -> String {
    let line = line.trim_end();
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let kept: String = line.chars().take(width.saturating_sub(4)).collect();
    format!("{} ...", kept.trim_end_matches(" ..."))
}

/// Rows that a line takes, where a terminal breaks it.
pub(crate) fn rows(line: &str) -> usize {
    line.chars().count().div_ceil(WIDTH).max(1)
}

/// A line as a terminal would show it in the end: of a progress bar that was drawn over and over the
/// last state, and no colours or other commands.
pub(crate) fn clean(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    let shown = line.rsplit('\r').next().unwrap_or_default();
    let mut text = String::with_capacity(shown.len());
    let mut letters = shown.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\t' => text.push_str("    "),
            '\u{1b}' if letters.next_if_eq(&'[').is_some() => {
                // Parameters, up to the letter that ends the command.
                for parameter in letters.by_ref() {
                    if ('@'..='~').contains(&parameter) {
                        break;
                    }
                }
            }
            _ if letter.is_control() => {}
            _ => text.push(letter),
        }
    }
    text
}

/// `1`, `1 and 2`, `0 to 6 and 8`. Of many parts the first, and how many ranks more.
pub(crate) fn list(ranks: &[usize]) -> String {
    let mut parts: Vec<(String, usize)> = Vec::new();
    for run in ranks.chunk_by(|one, next| one + 1 == *next) {
        match run {
            [first, _, .., last] => parts.push((format!("{first} to {last}"), run.len())),
            _ => parts.extend(run.iter().map(|rank| (rank.to_string(), 1))),
        }
    }
    let more: usize = parts.iter().skip(LIST_LENGTH).map(|(_, count)| count).sum();
    let mut words: Vec<_> = parts
        .into_iter()
        .take(LIST_LENGTH)
        .map(|(word, _)| word)
        .collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_breaks_at_spaces_and_where_it_says() {
        let text = format!("{} {}\nend", "a".repeat(60), "b".repeat(60));
        let expected = [
            format!("> {}", "a".repeat(60)),
            format!("  {}", "b".repeat(60)),
            "  end".to_owned(),
        ];
        assert_eq!(wrap(&text, "> ", "  ", 9), expected);
        assert_eq!(
            wrap(&text, "> ", "  ", 2)[1],
            format!("  {} ...", "b".repeat(60))
        );
    }

    #[test]
    fn a_command_stays_in_one_line() {
        let text = format!("{} or `cordee train --set a=b`, or", "a".repeat(70));
        let expected = [
            format!("{} or", "a".repeat(70)),
            "  `cordee train --set a=b`, or".to_owned(),
        ];
        assert_eq!(wrap(&text, "", "  ", 9), expected);
        assert_eq!(words("--set a=1, --set b=2"), ["--set a=1,", "--set b=2"]);
        assert_eq!(words("it`s a long way"), ["it`s", "a", "long", "way"]);
    }

    #[test]
    fn a_line_is_what_a_terminal_would_show() {
        assert_eq!(clean(" 10%|#\r 20%|##\r"), " 20%|##");
        assert_eq!(
            clean("\u{1b}[31;1mred\u{1b}[0m\tand\u{7} bell"),
            "red    and bell"
        );
    }

    #[test]
    fn many_ranks_take_little_room() {
        assert_eq!(list(&[4]), "4");
        assert_eq!(list(&[0, 2, 3]), "0, 2 and 3");
        assert_eq!(
            list(&(0..512).filter(|rank| *rank != 7).collect::<Vec<_>>()),
            "0 to 6 and 8 to 511"
        );
        let odd: Vec<_> = (0..512).step_by(2).collect();
        assert_eq!(list(&odd), "0, 2, 4, 6, 8, 10 and 250 more");
    }

    proptest! {
        #[test]
        fn no_line_is_too_long_and_no_word_is_lost(words in prop::collection::vec("\\PC{0,120}", 0..12)) {
            let text = words.join(" ");
            let lines = wrap(&text, "  cause: ", "    ", usize::MAX);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= WIDTH));
            let letters = |text: &str| text.split_whitespace().collect::<String>();
            prop_assert_eq!(letters(&lines.join(" ")), format!("cause:{}", letters(&clean(text.trim_end()))));
        }
    }
}
