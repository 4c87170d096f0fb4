//! Sequences laid out as rows of one token matrix: consecutive rectangles of sequences that are equally long, or one
//! rectangle with padding. The model reads both alike.

use bam_cluster::config::Layout;
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
    /// Token ids, int64 [rows].
    pub(super) ids: Tensor,
    /// Segments, int64 [rows].
    pub(super) types: Tensor,
    /// Positions, int64 [rows].
    pub(super) positions: Tensor,
    /// Row of each sequence's first token, int64 [sequences].
    pub(super) first_rows: Tensor,
    pub(super) rectangles: Vec<Rectangle>,
    /// With padding: 0 for tokens and −∞ for padding, float32 [sequences, 1, 1, length].
    pub(super) mask: Option<Tensor>,
    order: Vec<usize>,
    tokens: usize,
}

impl Batch {
    /// Lays out `sequences`. Outputs of the model come in the order of [`order`](Self::order).
    pub fn new(sequences: &[Sequence], layout: Layout) -> Batch {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&i| (sequences[i].tokens.len(), i));
        let lengths: Vec<usize> = order.iter().map(|&i| sequences[i].tokens.len()).collect();
        let rectangles = rectangles(&lengths, layout);
        let widths: Vec<usize> =
            rectangles.iter().flat_map(|r| vec![r.length as usize; r.sequences as usize]).collect();
        let mut rows = Rows::default();
        for (&i, &width) in order.iter().zip(&widths) {
            rows.add(sequences[i], width);
        }
        let tokens: usize = lengths.iter().sum();
        let padded = tokens < rows.ids.len();
        Batch {
            mask: padded.then(|| mask(&lengths, widths[0])),
            ids: Tensor::from_slice(&rows.ids),
            types: Tensor::from_slice(&rows.types),
            positions: Tensor::from_slice(&rows.positions),
            first_rows: Tensor::from_slice(&rows.first),
            rectangles,
            order,
            tokens,
        }
    }

    /// The sequences' former positions, in the order of the outputs.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Tokens, padding not counted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

fn rectangles(ascending_lengths: &[usize], layout: Layout) -> Vec<Rectangle> {
    match layout {
        Layout::Ragged => ascending_lengths
            .chunk_by(|a, b| a == b)
            .map(|same| Rectangle { sequences: same.len() as i64, length: same[0] as i64 })
            .collect(),
        Layout::Padded => {
            let longest = ascending_lengths.last().copied().unwrap_or(0);
            vec![Rectangle { sequences: ascending_lengths.len() as i64, length: longest as i64 }]
        }
    }
}

fn mask(lengths: &[usize], width: usize) -> Tensor {
    let value = |inside: bool| if inside { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = lengths.iter().flat_map(|&n| (0..width).map(move |i| value(i < n))).collect();
    Tensor::from_slice(&values).view([lengths.len() as i64, 1, 1, width as i64])
}

#[derive(Default)]
struct Rows {
    ids: Vec<i64>,
    types: Vec<i64>,
    positions: Vec<i64>,
    first: Vec<i64>,
}

impl Rows {
    /// Adds a sequence, padded with token 0 to `width`.
    fn add(&mut self, sequence: Sequence, width: usize) {
        let end = self.ids.len() + width;
        self.first.push(self.ids.len() as i64);
        self.ids.extend(sequence.tokens.iter().map(|&t| i64::from(t)));
        self.types.extend(sequence.types.iter().map(|&t| i64::from(t)));
        self.ids.resize(end, 0);
        self.types.resize(end, 0);
        self.positions.extend(0..width as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[usize], layout: Layout) -> Batch {
        let tokens: Vec<Vec<i32>> = lengths.iter().map(|&n| vec![n as i32; n]).collect();
        let types: Vec<Vec<u8>> = lengths.iter().map(|&n| vec![0; n]).collect();
        let sequences: Vec<Sequence> =
            tokens.iter().zip(&types).map(|(t, y)| Sequence { tokens: t, types: y }).collect();
        Batch::new(&sequences, layout)
    }

    #[test]
    fn ragged_batches_hold_tokens_only() {
        let b = batch(&[3, 2, 3], Layout::Ragged);
        assert_eq!(b.order(), [1, 0, 2]);
        assert_eq!(b.rectangles, [Rectangle { sequences: 1, length: 2 }, Rectangle { sequences: 2, length: 3 }]);
        assert_eq!((b.ids.size()[0], b.tokens(), b.mask.is_none()), (8, 8, true));
        assert_eq!(Vec::<i64>::try_from(&b.first_rows).unwrap(), [0, 2, 5]);
    }

    #[test]
    fn padded_batches_are_one_rectangle_with_a_mask() {
        let b = batch(&[3, 1], Layout::Padded);
        assert_eq!(b.rectangles, [Rectangle { sequences: 2, length: 3 }]);
        assert_eq!((b.ids.size()[0], b.tokens()), (6, 4));
        let mask: Vec<f32> = Vec::try_from(b.mask.unwrap().flatten(0, -1)).unwrap();
        assert_eq!(mask, [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, 0.0, 0.0]);
    }
}
