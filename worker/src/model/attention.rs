//! Multi-head self-attention over sequences of any length, forward and backward. Everything outside this file works on
//! single tokens. Sequences that are equally long are computed together, so that nothing is padded.

use tch::{Kind, Tensor};

use super::batch::{Batch, Rectangle};
use super::dropout::{DropoutKey, Rate, Site, mask};
use crate::tensor_memory::floats_mut;

/// Attention of one layer.
pub(super) struct Attention<'a> {
    pub heads: i64,
    pub batch: &'a Batch,
    pub layer: usize,
    /// Of attention weights; no rate: nothing is dropped. One key a sequence.
    pub rate: Option<Rate>,
    pub keys: &'a [DropoutKey],
}

/// What the backward pass needs of one rectangle, by sequence and head: [sequences·heads, length, width of a head].
pub(super) struct Attended {
    /// Divided by √width.
    query: Tensor,
    key: Tensor,
    value: Tensor,
    /// softmax(QKᵀ/√d), [sequences·heads, queries, length].
    weights: Tensor,
}

impl Attention<'_> {
    /// dropout(softmax(QKᵀ/√d))·V for every sequence by itself. `query` is [rows, hidden], or [sequences, hidden] to
    /// attend from first tokens alone; `key_value` is [rows, 2·hidden]. Returns the shape of `query`.
    pub fn forward(&self, query: &Tensor, key_value: &Tensor) -> (Tensor, Vec<Attended>) {
        let hidden = query.size()[1];
        let context = query.empty_like();
        let (key, value) = halves(key_value, hidden);
        let one = |place: Place| {
            let scale = 1.0 / ((hidden / self.heads) as f64).sqrt();
            let query = self.by_head(query, &place.queries()) * scale;
            let (key, value) = (self.by_head(&key, &place.tokens()), self.by_head(&value, &place.tokens()));
            let weights = query.bmm(&key.transpose(1, 2)).softmax(-1, Kind::Float);
            let result = match self.mask(&place) {
                Some(mask) => (&weights * mask).bmm(&value),
                None => weights.bmm(&value),
            };
            self.put(&context, &place.queries(), &result);
            Attended { query, key, value, weights }
        };
        let attended = self.places(query).into_iter().map(one).collect();
        (context, attended)
    }

    /// The gradients of `query` and `key_value` from that of the context.
    pub fn backward(&self, attended: Vec<Attended>, context: &Tensor) -> (Tensor, Tensor) {
        let hidden = context.size()[1];
        let of_query = context.empty_like();
        let of_key_value = Tensor::empty([self.batch.rows(), 2 * hidden], (Kind::Float, context.device()));
        let (of_key, of_value) = halves(&of_key_value, hidden);
        for (place, Attended { query, key, value, weights }) in self.places(context).into_iter().zip(attended) {
            let context = self.by_head(context, &place.queries());
            let mut of_weights = context.bmm(&value.transpose(1, 2));
            let of_values = match self.mask(&place) {
                Some(mask) => {
                    of_weights *= &mask;
                    (&weights * mask).transpose(1, 2).bmm(&context)
                }
                None => weights.transpose(1, 2).bmm(&context),
            };
            let of_scores = Tensor::internal_softmax_backward_data(&of_weights, &weights, -1, Kind::Float);
            let scale = 1.0 / ((hidden / self.heads) as f64).sqrt();
            self.put(&of_query, &place.queries(), &(of_scores.bmm(&key) * scale));
            self.put(&of_key, &place.tokens(), &of_scores.transpose(1, 2).bmm(&query));
            self.put(&of_value, &place.tokens(), &of_values);
        }
        (of_query, of_key_value)
    }

    /// The rectangles with their places among rows and queries.
    fn places(&self, query: &Tensor) -> Vec<Place> {
        let from_first = query.size()[0] != self.batch.rows();
        let (mut row, mut sequence) = (0, 0);
        let place = |&Rectangle { sequences, length }: &Rectangle| {
            let place = Place { row, sequence, sequences, length, from_first };
            row += sequences * length;
            sequence += sequences;
            place
        };
        self.batch.rectangles().iter().map(place).collect()
    }

    /// Rows of [rows, hidden] as [sequences·heads, length, width of a head].
    fn by_head(&self, matrix: &Tensor, rows: &Rows) -> Tensor {
        let width = matrix.size()[1] / self.heads;
        let part = matrix.narrow(0, rows.first, rows.sequences * rows.length);
        let part = part.view([rows.sequences, rows.length, self.heads, width]).transpose(1, 2);
        part.contiguous().view([rows.sequences * self.heads, rows.length, width])
    }

    /// The reverse of [`by_head`](Self::by_head), into rows of `matrix`.
    fn put(&self, matrix: &Tensor, rows: &Rows, by_head: &Tensor) {
        let width = matrix.size()[1] / self.heads;
        let part = matrix.narrow(0, rows.first, rows.sequences * rows.length);
        let mut part = part.view([rows.sequences, rows.length, self.heads, width]).transpose(1, 2);
        part.copy_(&by_head.view([rows.sequences, self.heads, rows.length, width]));
    }

    /// The dropout mask of one rectangle's weights, if anything is dropped.
    fn mask(&self, place: &Place) -> Option<Tensor> {
        let rate = self.rate?;
        let (queries, length) = (place.queries().length, place.length);
        let mut all = Tensor::empty([place.sequences * self.heads, queries, length], (Kind::Float, tch::Device::Cpu));
        let matrices = floats_mut(&mut all).chunks_exact_mut((queries * length) as usize);
        let heads = self.heads as usize;
        for (i, matrix) in matrices.enumerate() {
            let key = self.keys[place.sequence as usize + i / heads];
            mask(key.row(Site::Attention(self.layer), i % heads), rate, matrix);
        }
        Some(all)
    }
}

fn halves(matrix: &Tensor, hidden: i64) -> (Tensor, Tensor) {
    (matrix.narrow(1, 0, hidden), matrix.narrow(1, hidden, hidden))
}

/// A rectangle, and where it is.
struct Place {
    /// Its first row.
    row: i64,
    /// Its first sequence.
    sequence: i64,
    sequences: i64,
    length: i64,
    /// Attention from first tokens alone.
    from_first: bool,
}

/// Consecutive rows of a matrix: `sequences` times `length`.
struct Rows {
    first: i64,
    sequences: i64,
    length: i64,
}

impl Place {
    fn tokens(&self) -> Rows {
        Rows { first: self.row, sequences: self.sequences, length: self.length }
    }

    fn queries(&self) -> Rows {
        match self.from_first {
            true => Rows { first: self.sequence, sequences: self.sequences, length: 1 },
            false => self.tokens(),
        }
    }
}
