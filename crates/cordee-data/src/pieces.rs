//! Long text in pieces that can be tokenised apart, so that one giant document keeps every core
//! busy.
//!
//! The tokens of a document must not depend on this. A cut goes before a single space between two
//! letters, where the pre-tokenisers of byte-level vocabularies always begin a new word, and the
//! tokenizer itself is asked about each cut.

/// Bytes of text around a cut that the tokenizer is asked about.
const PROBE: usize = 64;

/// Cuts the tokenizer may refuse in a row before the rest of the document is left whole.
const REFUSALS: usize = 8;

/// `text` in order, in pieces of at least `size` bytes (but for the last).
///
/// `is_exact(left, right)` says whether tokenising the two apart gives what they give together.
pub(crate) fn pieces<E>(
    text: &str,
    size: usize,
    mut is_exact: impl FnMut(&str, &str) -> Result<bool, E>,
) -> Result<Vec<&str>, E> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut from = size;
    let mut refused = 0;
    while refused < REFUSALS
        && let Some(cut) = word_boundary(rest, from)
    {
        let left = &rest[rest.ceil_char_boundary(cut.saturating_sub(PROBE))..cut];
        let right = &rest[cut..rest.floor_char_boundary(cut + PROBE)];
        if is_exact(left, right)? {
            pieces.push(&rest[..cut]);
            rest = &rest[cut..];
            from = size;
            refused = 0;
        } else {
            from = cut + 1;
            refused += 1;
        }
    }
    pieces.push(rest);
    Ok(pieces)
}

/// The first space at byte `from` or later that stands alone between two letters.
fn word_boundary(text: &str, from: usize) -> Option<usize> {
    let start = text.ceil_char_boundary(from);
    text[start..]
        .match_indices(' ')
        .map(|(at, _)| start + at)
        .find(|&at| {
            let letter = |next: Option<char>| next.is_some_and(char::is_alphabetic);
            letter(text[..at].chars().next_back()) && letter(text[at + 1..].chars().next())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Never = std::convert::Infallible;

    #[test]
    fn pieces_are_the_text() {
        let text = "Ab cd. Ef  gh \u{e9}t\u{e9} 12 ij\nkl mn".repeat(20);
        for size in [1, 2, 7, 50, 10_000] {
            let pieces = pieces(&text, size, |_, _| Ok::<_, Never>(true)).unwrap();
            assert_eq!(pieces.concat(), text);
            assert!(pieces[1..].iter().all(|piece| piece.starts_with(' ')));
            assert!(
                pieces[..pieces.len() - 1]
                    .iter()
                    .all(|piece| piece.len() >= size)
            );
        }
        assert_eq!(
            pieces("a b c", 1, |_, _| Ok::<_, Never>(true)),
            Ok(vec!["a", " b", " c"])
        );
        assert_eq!(pieces("", 1, |_, _| Ok::<_, Never>(true)), Ok(vec![""]));
    }

    #[test]
    fn a_tokenizer_can_refuse() {
        let text = "a b c d ".repeat(1000);
        let mut asked = 0;
        let whole = pieces(&text, 1, |_, _| {
            asked += 1;
            Ok::<_, Never>(false)
        });
        assert_eq!(whole, Ok(vec![text.as_str()]));
        assert_eq!(asked, REFUSALS);
    }
}
