//! Which examples share a row.
//!
//! Examples stay whole and a row takes as many as fit. Best fit in order of decreasing length needs
//! at most 11/9 of the fewest rows possible (Johnson, "Near-optimal bin packing algorithms", 1973),
//! and with examples much shorter than rows hardly more than that fewest.

use std::collections::BTreeSet;

/// The rows of length `room` that hold examples of these `lengths`, each by the indices of its
/// examples. The longest come first; equal lengths keep their order. No length may exceed `room`.
pub(crate) fn best_fit(lengths: &[usize], room: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&example| std::cmp::Reverse(lengths[example]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Room left and row, so that the tightest fit is the first that is large enough.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for example in order {
        let length = lengths[example];
        let tightest = open.range((length, 0)..).next().copied();
        let (left, row) = tightest.unwrap_or((room, rows.len()));
        if row == rows.len() {
            rows.push(Vec::new());
        }
        open.remove(&(left, row));
        rows[row].push(example);
        open.insert((left - length, row));
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_tightest_row_is_taken() {
        assert_eq!(
            best_fit(&[2, 7, 5, 3, 5], 10),
            [vec![1, 3], vec![2, 4], vec![0]]
        );
        assert!(best_fit(&[], 10).is_empty());
    }

    proptest! {
        #[test]
        fn each_example_is_in_one_row_and_rows_hold_what_fits(
            lengths in prop::collection::vec(1usize..=20, 0..200),
            more in 0usize..20,
        ) {
            let room = 20 + more;
            let rows = best_fit(&lengths, room);
            let filled = |row: &[usize]| row.iter().map(|&example| lengths[example]).sum::<usize>();
            for row in &rows {
                prop_assert!(!row.is_empty() && filled(row) <= room);
            }
            let mut examples: Vec<usize> = rows.concat();
            examples.sort_unstable();
            prop_assert_eq!(examples, (0..lengths.len()).collect::<Vec<_>>());
            // No two rows could be one: best fit would have filled the first before opening the other.
            let mut lowest: Vec<usize> = rows.iter().map(|row| filled(row)).collect();
            lowest.sort_unstable();
            prop_assert!(lowest.len() < 2 || lowest[0] + lowest[1] > room);
        }
    }
}
