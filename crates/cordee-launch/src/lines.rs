//! Cuts a stream of bytes into complete lines.

/// Holds back what is not yet a complete line.
#[derive(Debug)]
pub(crate) struct LineCutter {
    partial: Vec<u8>,
    /// A line that grows past this many bytes is cut, by a line feed of ours.
    limit: usize,
}

impl LineCutter {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            partial: Vec::new(),
            limit,
        }
    }

    /// Takes bytes in; gives back all lines complete by now, each with its line feed, or nothing.
    ///
    /// Two streams share a log file, so half a line must not get there: the other stream would go on
    /// in the middle of it.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') else {
            self.partial.extend_from_slice(bytes);
            return if self.partial.len() > self.limit {
                self.finish()
            } else {
                Vec::new()
            };
        };
        let (complete, rest) = bytes.split_at(end + 1);
        let mut lines = std::mem::take(&mut self.partial);
        lines.extend_from_slice(complete);
        self.partial.extend_from_slice(rest);
        lines
    }

    /// What is left when the stream ends, completed by a line feed.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut line = std::mem::take(&mut self.partial);
        if !line.is_empty() {
            line.push(b'\n');
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn short_lines_pass_unchanged_however_they_arrive(
            lines in prop::collection::vec("[a-z\u{e9}]{0,12}\n", 0..20),
            rest in "[a-z]{0,12}",
            step in 1_usize..9,
        ) {
            let text = lines.concat() + &rest;
            let mut cutter = LineCutter::new(1000);
            let mut out = Vec::new();
            for chunk in text.as_bytes().chunks(step) {
                let block = cutter.push(chunk);
                prop_assert!(block.is_empty() || block.ends_with(b"\n"));
                out.extend(block);
            }
            prop_assert_eq!(out.len(), lines.concat().len());
            out.extend(cutter.finish());
            let expected = if rest.is_empty() { text } else { text + "\n" };
            prop_assert_eq!(out, expected.into_bytes());
        }
    }

    #[test]
    fn a_long_line_is_cut_and_loses_nothing() {
        let mut cutter = LineCutter::new(10);
        let mut out = Vec::new();
        for _ in 0..9 {
            out.extend(cutter.push(b"abcd"));
        }
        out.extend(cutter.push(b"!\n"));
        assert!(
            out.split(|&byte| byte == b'\n')
                .all(|line| line.len() <= 14)
        );
        out.retain(|&byte| byte != b'\n');
        assert_eq!(
            out,
            "abcd"
                .repeat(9)
                .into_bytes()
                .into_iter()
                .chain(*b"!")
                .collect::<Vec<_>>()
        );
    }
}
