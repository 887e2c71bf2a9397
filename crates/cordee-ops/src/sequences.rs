//! How the tokens of a micro-batch divide into sequences.

use std::ops::Range;

use crate::{
    error::{OpError, Result},
    operand::Operator,
};

/// How the tokens of a micro-batch divide into sequences that do not see each other. Sequences
/// follow one another without gaps; positions in each are counted from 0.
#[derive(Clone, Copy, Debug)]
pub enum Sequences<'a> {
    /// All of this many tokens.
    Rows(usize),
    /// Cumulative: begins with 0, rises strictly, and ends with the number of tokens.
    Documents(&'a [u32]),
}

impl Sequences<'_> {
    /// Checks that the sequences are whole and together have `tokens` tokens.
    pub fn validate(self, tokens: usize) -> Result<()> {
        self.expect(Operator("sequences"), tokens)
    }

    /// [`Self::validate`] on behalf of an operator.
    pub(crate) fn expect(self, op: Operator, tokens: usize) -> Result<()> {
        let bounds = match self {
            Self::Rows(len) if len > 0 && tokens.is_multiple_of(len) => return Ok(()),
            Self::Rows(len) => {
                let expected = format!("whole sequences of {len} tokens");
                return Err(op.shape_error("tokens", &[tokens], expected));
            }
            Self::Documents(bounds) => bounds,
        };
        let refuse = |index: usize, expected: String| {
            let found = bounds[index];
            Err(OpError::Bound {
                op: op.0,
                index,
                found,
                expected,
            })
        };
        let Some(last) = bounds.len().checked_sub(1) else {
            return Err(op.shape_error("document bounds", &[0], "at least a 0"));
        };
        if bounds[0] != 0 {
            return refuse(0, "0".to_owned());
        }
        if let Some(fall) = bounds.windows(2).position(|pair| pair[0] >= pair[1]) {
            let before = bounds[fall];
            return refuse(fall + 1, format!("more than {before}, the one before it"));
        }
        if bounds[last] as usize != tokens {
            return refuse(last, format!("the number of tokens, {tokens}"));
        }
        Ok(())
    }

    /// Number of sequences that `tokens` tokens make.
    pub fn count(self, tokens: usize) -> usize {
        match self {
            Self::Rows(len) => tokens / len,
            Self::Documents(bounds) => bounds.len() - 1,
        }
    }

    /// Tokens of the sequence of this index.
    pub fn range(self, index: usize) -> Range<usize> {
        match self {
            Self::Rows(len) => index * len..(index + 1) * len,
            Self::Documents(bounds) => bounds[index] as usize..bounds[index + 1] as usize,
        }
    }

    /// Index of the sequence that has this token.
    pub fn index_of(self, token: usize) -> usize {
        match self {
            Self::Rows(len) => token / len,
            Self::Documents(bounds) => bounds.partition_point(|&bound| bound as usize <= token) - 1,
        }
    }

    /// Positions of some of the tokens, each in its own sequence.
    pub fn positions(self, tokens: Range<usize>) -> impl Iterator<Item = usize> {
        let mut sequence = 0..0;
        tokens.map(move |token| {
            if !sequence.contains(&token) {
                sequence = self.range(self.index_of(token));
            }
            token - sequence.start
        })
    }

    /// Tokens of the longest of the sequences that `tokens` tokens make.
    pub fn longest(self, tokens: usize) -> usize {
        (0..self.count(tokens))
            .map(|index| self.range(index).len())
            .max()
            .unwrap_or(0)
    }

    /// Divides what holds `width` elements for each token into what belongs to each sequence.
    pub(crate) fn split<T>(
        self,
        mut data: &mut [T],
        width: usize,
    ) -> impl Iterator<Item = &mut [T]> {
        let count = self.count(data.len() / width);
        (0..count).map(move |index| {
            let (sequence, rest) =
                std::mem::take(&mut data).split_at_mut(self.range(index).len() * width);
            data = rest;
            sequence
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Sequences;

    #[test]
    fn rows_are_documents_of_one_length() {
        let rows = Sequences::Rows(3);
        let documents = Sequences::Documents(&[0, 3, 6]);
        for sequences in [rows, documents] {
            sequences.validate(6).unwrap();
            assert_eq!((sequences.count(6), sequences.longest(6)), (2, 3));
            assert_eq!((sequences.range(1), sequences.index_of(3)), (3..6, 1));
            let positions: Vec<_> = sequences.positions(1..5).collect();
            assert_eq!(positions, [1, 2, 0, 1]);
            let lengths: Vec<_> = sequences.split(&mut [0; 12], 2).map(|s| s.len()).collect();
            assert_eq!(lengths, [6, 6]);
        }
    }

    #[test]
    fn documents_have_lengths_of_their_own() {
        let documents = Sequences::Documents(&[0, 1, 2, 7]);
        documents.validate(7).unwrap();
        assert_eq!((documents.count(7), documents.longest(7)), (3, 5));
        let positions: Vec<_> = documents.positions(0..7).collect();
        assert_eq!(positions, [0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(documents.positions(7..7).count(), 0);
    }

    #[test]
    fn no_tokens_are_no_sequences() {
        for none in [Sequences::Rows(4), Sequences::Documents(&[0])] {
            none.validate(0).unwrap();
            assert_eq!((none.count(0), none.longest(0)), (0, 0));
            assert_eq!(none.split(&mut [0; 0], 3).count(), 0);
        }
    }

    #[test]
    fn what_is_not_whole_is_named() {
        let message = |sequences: Sequences<'_>| sequences.validate(6).unwrap_err().to_string();
        assert_eq!(
            message(Sequences::Rows(4)),
            "sequences: `tokens` has shape [6], expected whole sequences of 4 tokens"
        );
        assert_eq!(
            message(Sequences::Rows(0)),
            "sequences: `tokens` has shape [6], expected whole sequences of 0 tokens"
        );
        assert_eq!(
            message(Sequences::Documents(&[])),
            "sequences: `document bounds` has shape [0], expected at least a 0"
        );
        assert_eq!(
            message(Sequences::Documents(&[1, 6])),
            "sequences: document bound 0 is 1, expected 0"
        );
        assert_eq!(
            message(Sequences::Documents(&[0, 4, 4, 6])),
            "sequences: document bound 2 is 4, expected more than 4, the one before it"
        );
        assert_eq!(
            message(Sequences::Documents(&[0, 4, 5])),
            "sequences: document bound 2 is 5, expected the number of tokens, 6"
        );
    }
}
