//! The global norm of a gradient and what clipping makes of it.

use std::ops::Range;

use multiversion::multiversion;

use super::rows::TouchedRows;

/// Euclidean norm. Summed in blocks of float32 lanes that are added up in float64: accurate, vectorised, and the same
/// bits whenever the input is.
pub fn global_norm(gradients: &[f32]) -> f64 {
    squares(gradients).sqrt()
}

/// The sum of squares of each row in a part of gradients that begin with those of word embeddings, most of which are zero and
/// are not looked at. All else is cut into rows of the same width. So sums are the same bits wherever parts begin and end,
/// if only at a row's end.
pub fn squares_of_rows(gradients: &[f32], words: &TouchedRows, part: &Range<usize>) -> Vec<f64> {
    let of_words = words.ranges_within(part).into_iter().flat_map(|range| gradients[range].chunks(words.width()));
    let rest = &gradients[words.end().clamp(part.start, part.end)..part.end];
    of_words.chain(rest.chunks(words.width())).map(squares_of_block).collect()
}

fn squares(values: &[f32]) -> f64 {
    values.chunks(BLOCK).map(squares_of_block).sum()
}

const LANES: usize = 16;
const BLOCK: usize = 4096;

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn squares_of_block(block: &[f32]) -> f64 {
    let (chunks, rest) = block.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().copied().chain(rest.iter().map(|x| x * x)).map(f64::from).sum()
}

/// The factor that brings a gradient of this norm down to `limit`; 1 if it is within.
pub fn clip_scale(norm: f64, limit: f64) -> f64 {
    if norm > limit { limit / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_any_length_is_right() {
        for n in [0usize, 1, 15, 16, 17, 4096, 10_001] {
            let x: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let expected = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            assert!((global_norm(&x) - expected).abs() <= 1e-6 * expected, "{n}");
        }
    }

    #[test]
    fn words_that_do_not_occur_are_not_looked_at() {
        let mut words = TouchedRows::none(3, 2);
        words.extend([1]);
        let gradients = [f32::NAN, f32::NAN, 1.0, 2.0, f32::NAN, f32::NAN, 2.0, 4.0];
        assert_eq!(squares_of_rows(&gradients, &words, &(0..8)), [5.0, 20.0]);
        assert_eq!(squares_of_rows(&gradients, &words, &(0..4)), [5.0]);
        assert_eq!(squares_of_rows(&gradients, &words, &(4..7)), [4.0]);
    }

    #[test]
    fn clipping_only_shortens() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(4.0, 1.0), 0.25);
    }
}
