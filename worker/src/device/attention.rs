//! Multi-head self-attention on a device, forward and backward: with libtorch's kernel for sequences of any lengths where there
//! is one (GPUs, half precision: Dao et al. 2022), and else in rectangles of the longest sequence's length.

use tch::{Kind, Tensor};

use super::batch::{DeviceBatch, Rectangle};
use crate::shim::{Starts, TorchError, flash_attention};

/// What the backward pass needs.
pub(super) enum Attended {
    Flash { query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, state: Tensor, unused: Tensor },
    InRectangle(Box<InRectangle>),
}

/// [sequences, heads, length, d].
pub(super) struct InRectangle {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    /// softmax(QKᵀ/√d), and after dropout.
    weights: Tensor,
    dropped: Tensor,
    /// What was kept; none if nothing is dropped.
    mask: Option<Tensor>,
}

/// Attention over one batch.
pub(super) struct Attention<'a> {
    pub heads: i64,
    pub batch: &'a DeviceBatch,
    /// Of attention weights.
    pub dropout: f64,
}

impl Attention<'_> {
    /// dropout(softmax(QKᵀ/√d))·V for every sequence by itself. `query` is [rows, hidden], or [sequences, hidden] to attend
    /// from first tokens alone; `key_value` is [rows, 2·hidden]. Returns the shape of `query`.
    pub fn forward(&self, query: &Tensor, key_value: &Tensor) -> Result<(Tensor, Attended), TorchError> {
        let hidden = query.size()[1];
        let query = self.by_head(query);
        let [key, value] = [0, 1].map(|i| self.by_head(&key_value.narrow(1, i * hidden, hidden)));
        if let Some(rectangle) = &self.batch.rectangle {
            return Ok(self.forward_in_rectangle(rectangle, &query, &key, &value));
        }
        let [of_query, of_key] = self.starts(&query);
        let [out, sums, state, unused] = flash_attention([&query, &key, &value], of_query, of_key, self.dropout)?;
        let flat = out.reshape([-1, hidden]);
        Ok((flat, Attended::Flash { query, key, value, out, sums, state, unused }))
    }

    /// The gradients of `query` and `key_value` from that of the context.
    pub fn backward(&self, attended: Attended, context: &Tensor) -> (Tensor, Tensor) {
        let hidden = context.size()[1];
        let context = self.by_head(context);
        let (of_query, of_key, of_value) = match attended {
            Attended::InRectangle(attended) => self.backward_in_rectangle(*attended, &context),
            Attended::Flash { query, key, value, out, sums, state, unused } => {
                let [of_query, of_key] = self.starts(&query);
                Tensor::internal_flash_attention_backward(
                    &context,
                    &query,
                    &key,
                    &value,
                    &out,
                    &sums,
                    of_query.starts,
                    of_key.starts,
                    of_query.longest,
                    of_key.longest,
                    self.dropout,
                    false,
                    &state,
                    &unused,
                    None,
                    None,
                    None,
                )
            }
        };
        let flat = |t: Tensor| t.reshape([-1, hidden]);
        (flat(of_query), Tensor::cat(&[flat(of_key), flat(of_value)], 1))
    }

    /// [rows, hidden] as [rows, heads, d].
    fn by_head(&self, matrix: &Tensor) -> Tensor {
        let size = matrix.size();
        matrix.view([size[0], self.heads, size[1] / self.heads])
    }

    /// Where the sequences of queries begin, and those of keys.
    fn starts(&self, query: &Tensor) -> [Starts<'_>; 2] {
        let whole = Starts { starts: &self.batch.starts, longest: self.batch.longest };
        let from_first = query.size()[0] != self.batch.rows();
        [if from_first { Starts { starts: &self.batch.counts, longest: 1 } } else { whole }, whole]
    }

    /// [rows, heads, d] as [sequences, heads, longest, d]; first tokens alone as [sequences, heads, 1, d].
    fn spread(&self, rectangle: &Rectangle, rows: &Tensor) -> Tensor {
        let (size, b) = (rows.size(), self.batch);
        if size[0] != b.rows() {
            return rows.unsqueeze(2);
        }
        let spread = rows.index_select(0, &rectangle.rows);
        spread.view([b.sequences, b.longest, size[1], size[2]]).transpose(1, 2).contiguous()
    }

    /// The reverse: [rows, heads, d].
    fn gather(&self, rectangle: &Rectangle, spread: &Tensor) -> Tensor {
        let size = spread.size();
        if size[2] == 1 && self.batch.longest != 1 {
            return spread.squeeze_dim(2);
        }
        spread.transpose(1, 2).reshape([size[0] * size[2], size[1], size[3]]).index_select(0, &rectangle.places)
    }

    fn forward_in_rectangle(&self, r: &Rectangle, query: &Tensor, key: &Tensor, value: &Tensor) -> (Tensor, Attended) {
        let [query, key, value] = [query, key, value].map(|t| self.spread(r, t));
        let scores = query.matmul(&key.transpose(2, 3)) * scale(&query) + &r.mask;
        let kind = scores.kind();
        let weights = scores.softmax(-1, Kind::Float).to_kind(kind);
        let (dropped, mask) = drop(&weights, self.dropout);
        let out = self.gather(r, &dropped.matmul(&value));
        let flat = out.reshape([out.size()[0], -1]);
        (flat, Attended::InRectangle(Box::new(InRectangle { query, key, value, weights, dropped, mask })))
    }

    fn backward_in_rectangle(&self, attended: InRectangle, context: &Tensor) -> (Tensor, Tensor, Tensor) {
        let InRectangle { query, key, value, weights, dropped, mask } = attended;
        // Only rectangles have these.
        let Some(r) = &self.batch.rectangle else { unreachable!("attended in a rectangle that is not there") };
        // Places without a token get the gradient of their sequence's first here; it goes nowhere, since no weight lies on
        // them as keys, and as queries they must not count.
        let is_token = r.mask.exp().transpose(2, 3);
        let context = self.spread(r, context);
        let context = if context.size()[2] == 1 { context } else { context * is_token };
        let of_dropped = context.matmul(&value.transpose(2, 3));
        let of_value = dropped.transpose(2, 3).matmul(&context);
        let of_weights = undrop(of_dropped, mask.as_ref(), self.dropout);
        let of_scores = Tensor::internal_softmax_backward_data(
            &of_weights.to_kind(Kind::Float),
            &weights.to_kind(Kind::Float),
            -1,
            Kind::Float,
        );
        let of_scores = of_scores.to_kind(weights.kind()) * scale(&query);
        let of_query = of_scores.matmul(&key);
        let of_key = of_scores.transpose(2, 3).matmul(&query);
        (self.gather(r, &of_query), self.gather(r, &of_key), self.gather(r, &of_value))
    }
}

fn scale(query: &Tensor) -> f64 {
    1.0 / (query.size()[3] as f64).sqrt()
}

/// Values with some of them dropped, at random, and the others made larger; and which ones were kept.
pub(super) fn drop(values: &Tensor, rate: f64) -> (Tensor, Option<Tensor>) {
    if rate == 0.0 {
        return (values.shallow_clone(), None);
    }
    let (dropped, kept) = values.native_dropout(rate, true);
    (dropped, Some(kept))
}

/// The gradient of what was [dropped](drop).
pub(super) fn undrop(gradient: Tensor, kept: Option<&Tensor>, rate: f64) -> Tensor {
    match kept {
        Some(kept) => Tensor::native_dropout_backward(&gradient, kept, 1.0 / (1.0 - rate)),
        None => gradient,
    }
}
