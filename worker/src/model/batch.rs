//! Sequences laid out as rows of one token matrix: consecutive rectangles of sequences that are equally long, and no padding.

use tch::Tensor;

/// One sequence to put into a batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Token ids.
    pub tokens: &'a [i32],
    /// Segment of each token.
    pub types: &'a [u8],
}

/// `sequences` × `length` consecutive rows of the token matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rectangle {
    pub sequences: i64,
    pub length: i64,
}

/// Sequences as the model reads them.
pub struct Batch {
    /// Word, position and segment of each row.
    inputs: Vec<[usize; 3]>,
    lengths: Vec<usize>,
    first_rows: Tensor,
    rectangles: Vec<Rectangle>,
    order: Vec<usize>,
}

impl Batch {
    /// Lays out `sequences`. Outputs of the model come in the order of [`order`](Self::order).
    pub fn new(sequences: &[Sequence]) -> Batch {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&i| (sequences[i].tokens.len(), i));
        let lengths: Vec<usize> = order.iter().map(|&i| sequences[i].tokens.len()).collect();
        let rows = |sequence: &Sequence| {
            let tokens = sequence.tokens.iter().zip(sequence.types).enumerate();
            tokens.map(|(position, (&word, &segment))| [word as usize, position, usize::from(segment)]).collect()
        };
        let inputs: Vec<Vec<[usize; 3]>> = order.iter().map(|&i| rows(&sequences[i])).collect();
        let first_rows: Vec<i64> =
            lengths.iter().scan(0, |row, &length| Some(std::mem::replace(row, *row + length as i64))).collect();
        let rectangles = lengths.chunk_by(|a, b| a == b);
        Batch {
            inputs: inputs.concat(),
            first_rows: Tensor::from_slice(&first_rows),
            rectangles: rectangles
                .map(|same| Rectangle { sequences: same.len() as i64, length: same[0] as i64 })
                .collect(),
            lengths,
            order,
        }
    }

    /// The sequences' former positions, in the order of the outputs.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.inputs.len()
    }

    /// Rows of the token matrix.
    pub(super) fn rows(&self) -> i64 {
        self.inputs.len() as i64
    }

    /// Word, position and segment of each row.
    pub(super) fn inputs(&self) -> impl Iterator<Item = [usize; 3]> {
        self.inputs.iter().copied()
    }

    /// Tokens of each sequence, ascending.
    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.lengths.iter().copied()
    }

    /// Row of each sequence's first token, int64 [sequences].
    pub(super) fn first_rows(&self) -> &Tensor {
        &self.first_rows
    }

    /// Sequences that are equally long, in the order of the rows.
    pub(super) fn rectangles(&self) -> &[Rectangle] {
        &self.rectangles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_tokens_only_the_shortest_sequence_first() {
        let tokens: Vec<Vec<i32>> = [3, 2, 3].iter().enumerate().map(|(i, &n)| vec![i as i32; n]).collect();
        let types = [0u8, 1, 1];
        let sequences: Vec<Sequence> =
            tokens.iter().map(|t| Sequence { tokens: t, types: &types[..t.len()] }).collect();
        let b = Batch::new(&sequences);
        assert_eq!(b.order(), [1, 0, 2]);
        assert_eq!(b.rectangles, [Rectangle { sequences: 1, length: 2 }, Rectangle { sequences: 2, length: 3 }]);
        assert_eq!((b.rows(), b.tokens(), b.lengths().collect::<Vec<_>>()), (8, 8, vec![2, 3, 3]));
        assert_eq!(Vec::<i64>::try_from(&b.first_rows).unwrap(), [0, 2, 5]);
        let inputs: Vec<[usize; 3]> = b.inputs().take(5).collect();
        assert_eq!(inputs, [[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1], [0, 2, 1]]);
    }
}
