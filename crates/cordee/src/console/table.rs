//! Columns that line up.

/// On which side the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows beneath their heads, two blanks between columns and none at the end of a line. Columns of the
/// heads in `without` are left out.
pub(crate) fn table<const N: usize>(
    heads: [(&str, Side); N],
    rows: &[[String; N]],
    without: &[&str],
) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        let head = heads[column].0.chars().count();
        cells.chain([head]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(heads)
            .zip(widths)
            .filter(|((_, (head, _)), _)| !without.contains(head))
            .map(|((cell, (_, side)), width)| match side {
                Side::Left => format!("{cell:width$}"),
                Side::Right => format!("{cell:>width$}"),
            })
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let head = line(heads.map(|(name, _)| name));
    let rows = rows
        .iter()
        .map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right() {
        let row = |name: &str, count: &str, last: &str| [name, count, last].map(str::to_owned);
        let rows = [row("quickstart", "7", ""), row("é", "12345", "lost")];
        let heads = [
            ("name", Side::Left),
            ("steps", Side::Right),
            ("state", Side::Left),
        ];
        assert_snapshot!(table(heads, &rows, &[]), @"
        name        steps  state
        quickstart      7
        é           12345  lost
        ");
        assert_snapshot!(table(heads, &[], &["steps"]), @"name  state");
    }
}
