//! Multi-head self-attention over rectangles of sequences. Everything outside this file works on single tokens.

use tch::{Kind, Tensor};

use super::batch::Rectangle;

/// Attention weights and dropout of one layer.
pub(super) struct Attention<'a> {
    pub heads: i64,
    pub dropout: f64,
    pub train: bool,
    pub rectangles: &'a [Rectangle],
    pub mask: Option<&'a Tensor>,
}

impl Attention<'_> {
    /// softmax(QKᵀ/√d)·V for every sequence by itself. `k` and `v` are [rows, hidden]; `q` is [rows, hidden], or
    /// [sequences, hidden] to attend from the first tokens alone. Returns the shape of `q`.
    pub fn apply(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let sequences: i64 = self.rectangles.iter().map(|r| r.sequences).sum();
        let first_only = q.size()[0] == sequences && k.size()[0] != sequences;
        let rows: Vec<i64> = self.rectangles.iter().map(|r| r.sequences * r.length).collect();
        let query_rows = if first_only { self.rectangles.iter().map(|r| r.sequences).collect() } else { rows.clone() };
        let (q, k, v) =
            (q.split_with_sizes(&query_rows, 0), k.split_with_sizes(&rows, 0), v.split_with_sizes(&rows, 0));
        let parts = self.rectangles.iter().zip(q.iter().zip(k.iter().zip(&v)));
        let contexts: Vec<Tensor> = parts.map(|(r, (q, (k, v)))| self.rectangle(r, q, k, v)).collect();
        Tensor::cat(&contexts, 0)
    }

    fn rectangle(&self, rectangle: &Rectangle, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let hidden = q.size()[1];
        // [rows, hidden] → [sequences, heads, length, width of a head]
        let by_head = |x: &Tensor| x.view([rectangle.sequences, -1, self.heads, hidden / self.heads]).transpose(1, 2);
        let scale = 1.0 / ((hidden / self.heads) as f64).sqrt();
        let mut scores = (by_head(q) * scale).matmul(&by_head(k).transpose(2, 3));
        if let Some(mask) = self.mask {
            scores += mask;
        }
        let weights = scores.softmax(-1, Kind::Float).dropout(self.dropout, self.train);
        weights.matmul(&by_head(v)).transpose(1, 2).reshape([-1, hidden])
    }
}
