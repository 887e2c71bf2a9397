//! Which part of a source is held out for validation: its tail, in whole documents where that comes
//! near the share asked for.

/// Where held-out text begins, counting the documents of a source over all its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// First document of which anything is held out.
    pub(crate) document: usize,
    /// Its bytes before this are trained on.
    pub(crate) byte: usize,
}

/// Where a share of a source can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Between documents: this one and those after it.
    Documents(usize),
    /// Only inside this document, so that about `held_out` of its bytes (with all later documents)
    /// are held out.
    Inside { document: usize, held_out: u64 },
}

/// The tail nearest to `fraction` of the bytes of documents with these `lengths`.
///
/// Whole documents are taken if they come to between half and twice the share, with something left
/// to train on; otherwise the document on the boundary has to be cut, as when a source is one
/// document.
pub(crate) fn tail(lengths: &[u64], fraction: f64) -> Tail {
    let total: u64 = lengths.iter().sum();
    let share = (total as f64 * fraction) as u64;
    if share == 0 {
        return Tail::Documents(lengths.len());
    }
    let mut document = lengths.len();
    let mut held_out = 0;
    while held_out < share {
        document -= 1;
        held_out += lengths[document];
    }
    // `document` lies on the boundary: compare the tails with and without it.
    let without = held_out - lengths[document];
    let near = |bytes: u64| bytes >= share.div_ceil(2) && bytes <= share * 2 && bytes < total;
    let candidates = [(document, held_out), (document + 1, without)];
    let nearest = candidates
        .into_iter()
        .filter(|&(_, bytes)| near(bytes))
        .min_by_key(|&(_, bytes)| bytes.abs_diff(share));
    match nearest {
        Some((document, _)) => Tail::Documents(document),
        None => Tail::Inside {
            document,
            held_out: share - without,
        },
    }
}

/// Where to cut `text` so that about `held_out` bytes come after: after a line break if there is
/// one within half of that distance, else between characters. Never at the very beginning or end
/// unless the text is a single character.
pub(crate) fn byte_to_cut(text: &str, held_out: u64) -> usize {
    let held_out = held_out as usize;
    let target = match text.floor_char_boundary(text.len().saturating_sub(held_out)) {
        0 => text.ceil_char_boundary(1),
        inside => inside,
    };
    let from = text.floor_char_boundary(target.saturating_sub(held_out / 2));
    let to = text.ceil_char_boundary((target + held_out / 2).min(text.len()));
    let after_break = text[from..to]
        .match_indices('\n')
        .map(|(at, _)| from + at + 1)
        .filter(|&at| at < text.len())
        .min_by_key(|&at| at.abs_diff(target));
    after_break.unwrap_or(target)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_documents_where_they_fit() {
        assert_eq!(tail(&[100; 20], 0.05), Tail::Documents(19));
        assert_eq!(tail(&[100; 20], 0.12), Tail::Documents(18));
        assert_eq!(tail(&[100; 20], 0.0), Tail::Documents(20));
    }

    #[test]
    fn a_giant_last_document_is_cut() {
        assert_eq!(
            tail(&[1000], 0.1),
            Tail::Inside {
                document: 0,
                held_out: 100
            }
        );
        assert_eq!(
            tail(&[10, 990], 0.1),
            Tail::Inside {
                document: 1,
                held_out: 100
            }
        );
        assert_eq!(
            tail(&[990, 10], 0.1),
            Tail::Inside {
                document: 0,
                held_out: 90
            }
        );
    }

    #[test]
    fn cuts_prefer_line_breaks_and_keep_characters_whole() {
        let lines = "0123456789\n".repeat(10);
        assert_eq!(byte_to_cut(&lines, 30), 77);
        assert_eq!(byte_to_cut(&"x".repeat(100), 30), 70);
        let accents = "\u{e9}".repeat(50);
        assert_eq!(byte_to_cut(&accents, 31), 68);
    }

    proptest! {
        #[test]
        fn something_is_left_on_both_sides(
            lengths in prop::collection::vec(1u64..5000, 1..40),
            fraction in 0.01f64..0.6,
        ) {
            let total: u64 = lengths.iter().sum();
            let share = (total as f64 * fraction) as u64;
            let held_out = match tail(&lengths, fraction) {
                Tail::Documents(first) => lengths[first..].iter().sum::<u64>(),
                Tail::Inside { document, held_out } => {
                    prop_assert!(held_out <= lengths[document]);
                    held_out + lengths[document + 1..].iter().sum::<u64>()
                }
            };
            prop_assert!(held_out >= share / 2 && held_out <= share * 2);
            prop_assert!(held_out < total);
        }

        #[test]
        fn cuts_are_inside_the_text(text in "[a\n\u{e9}\u{1F600}]{1,80}", held_out in 1u64..100) {
            let at = byte_to_cut(&text, held_out);
            prop_assert!(text.is_char_boundary(at));
            prop_assert!(at > 0);
            prop_assert!(at < text.len() || text.chars().count() == 1);
        }
    }
}
