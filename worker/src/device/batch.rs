//! Sequences on a device: all their tokens one behind the other, where each begins, and, for attention that needs it, where
//! each would be among rows of equal length. All numbers go there in one copy.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::model::Sequence;

/// Sequences as the model on a device reads them.
pub(super) struct DeviceBatch {
    /// Words, positions and segments: int32 [rows] each.
    pub inputs: [Tensor; 3],
    /// Where sequences begin, and where the last one ends: int32 [sequences + 1].
    pub starts: Tensor,
    /// 0, 1, … sequences: where each one's first token is among first tokens. int32 [sequences + 1].
    pub counts: Tensor,
    /// Row of each sequence's first token: int32 [sequences].
    pub first_rows: Tensor,
    /// For attention in rectangles; none where it reads `starts`.
    pub rectangle: Option<Rectangle>,
    /// Tokens of the longest sequence.
    pub longest: i64,
    /// Number of sequences.
    pub sequences: i64,
}

/// All sequences as if they were as long as the longest.
pub(super) struct Rectangle {
    /// For each of [sequences · longest] places the row that is there, or any row: int32.
    pub rows: Tensor,
    /// The places of all rows, in their order: int32 [rows].
    pub places: Tensor,
    /// 0 where there is a token, −∞ where there is none: [sequences, 1, 1, longest] of the model's kind.
    pub mask: Tensor,
}

impl DeviceBatch {
    /// Lays out `sequences` in their order and sends them to `device`. `kind`: of the mask of a rectangle, if one is needed.
    pub fn new(sequences: &[Sequence], device: Device, rectangle: Option<Kind>) -> DeviceBatch {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut numbers = Numbers(vec![]);
        let words = numbers.add(sequences.iter().flat_map(|s| s.tokens.iter().copied()));
        let positions = numbers.add(lengths.iter().flat_map(|&n| 0..n as i32));
        let segments = numbers.add(sequences.iter().flat_map(|s| s.types.iter().map(|t| i32::from(*t))));
        let starts: Vec<i32> = ends(&lengths);
        let first_rows = numbers.add(starts[..lengths.len()].iter().copied());
        let counts = numbers.add(0..=lengths.len() as i32);
        let starts_at = numbers.add(starts.iter().copied());
        let padded = rectangle.map(|kind| {
            let place = |(i, &n): (usize, &usize)| (i * longest..i * longest + n).map(|p| p as i32);
            let rows = lengths.iter().zip(&starts).flat_map(|(&n, &start)| {
                // Places without a token repeat the sequence's first: a real row, and so finite.
                (0..longest).map(move |t| if t < n { start + t as i32 } else { start })
            });
            let masks = lengths.iter().flat_map(|&n| (0..longest).map(move |t| i32::from(t >= n)));
            (numbers.add(rows), numbers.add(lengths.iter().enumerate().flat_map(place)), numbers.add(masks), kind)
        });
        let all = upload(&Tensor::from_slice(&numbers.0), device);
        let part = |range: Range<usize>| all.narrow(0, range.start as i64, range.len() as i64);
        DeviceBatch {
            inputs: [words, positions, segments].map(part),
            starts: part(starts_at),
            counts: part(counts),
            first_rows: part(first_rows),
            rectangle: padded.map(|(rows, places, masks, kind)| {
                let shape = [lengths.len() as i64, 1, 1, longest as i64];
                let masks = part(masks).view(shape).to_kind(Kind::Bool);
                let mask = Tensor::zeros(shape, (kind, device)).masked_fill(&masks, f64::NEG_INFINITY);
                Rectangle { rows: part(rows), places: part(places), mask }
            }),
            longest: longest as i64,
            sequences: lengths.len() as i64,
        }
    }

    /// Number of tokens.
    pub fn rows(&self) -> i64 {
        self.inputs[0].size()[0]
    }
}

/// Copies a tensor to a device; to a GPU while the host goes on.
pub(crate) fn upload(tensor: &Tensor, device: Device) -> Tensor {
    match device {
        Device::Cuda(_) => tensor.pin_memory(device).to_device_(device, tensor.kind(), true, false),
        _ => tensor.to_device(device),
    }
}

/// Many lists of numbers, one behind the other.
struct Numbers(Vec<i32>);

impl Numbers {
    /// Where the list is.
    fn add(&mut self, list: impl IntoIterator<Item = i32>) -> Range<usize> {
        let start = self.0.len();
        self.0.extend(list);
        start..self.0.len()
    }
}

/// 0, and the sum of the first one, two, … of `lengths`.
fn ends(lengths: &[usize]) -> Vec<i32> {
    let sums = lengths.iter().scan(0, |end, n| {
        *end += *n as i32;
        Some(*end)
    });
    std::iter::once(0).chain(sums).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_one_behind_the_other_and_rectangles_know_their_places() {
        let tokens: [&[i32]; 2] = [&[5, 6, 7], &[8]];
        let sequences = tokens.map(|tokens| Sequence { tokens, types: &[0, 1, 1][..tokens.len()] });
        let b = DeviceBatch::new(&sequences, Device::Cpu, Some(Kind::Float));
        let list = |t: &Tensor| Vec::<i32>::try_from(t.flatten(0, -1)).unwrap();
        assert_eq!(b.inputs.each_ref().map(list), [vec![5, 6, 7, 8], vec![0, 1, 2, 0], vec![0, 1, 1, 0]]);
        assert_eq!((list(&b.starts), list(&b.counts), list(&b.first_rows)), (vec![0, 3, 4], vec![0, 1, 2], vec![0, 3]));
        assert_eq!((b.longest, b.sequences, b.rows()), (3, 2, 4));
        let r = b.rectangle.unwrap();
        assert_eq!((list(&r.rows), list(&r.places)), (vec![0, 1, 2, 3, 3, 3], vec![0, 1, 2, 3]));
        let mask = Vec::<f32>::try_from(r.mask.flatten(0, -1)).unwrap();
        assert_eq!(mask, [0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    }
}
