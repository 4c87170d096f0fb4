//! Whether a difference is more than chance: medians, bootstrap, Mann–Whitney's U and Holm's correction, as pure
//! functions.

use std::num::NonZero;
use std::{panic, thread};

use bam_cluster::metrics::{self, Judge};
use bam_cluster::plan::Stream;
use bam_cluster::task::Metric;

/// How often dev examples are drawn anew at least.
const FEWEST_RESAMPLES: usize = 2000;
/// How many draws, one after the other, follow from one seed.
const DRAWS_AT_ONCE: usize = 500;
/// Draws that are as far off as the observed difference differ from it by rounding.
const ROUNDING: f64 = 1e-12;
/// Up to so many values altogether, Mann–Whitney's p is counted out; beyond, or with ties, it is approximated.
const COUNTED_OUT: usize = 40;

/// The median; the mean of the middle two of an even number. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Mean over several models, as scores count.
fn mean<M>(models: &[M], metric: Metric, score: impl Fn(&M) -> Option<f64>) -> f64 {
    let counted = models.iter().map(|model| metrics::counted(metric, score(model)).unwrap_or_default());
    counted.sum::<f64>() / models.len().max(1) as f64
}

/// How often dev examples are drawn anew for each of so many tests, which are corrected together: so often that a p can be
/// below 0.01 even when it has been multiplied by their number.
pub fn resamples(tests: usize) -> usize {
    FEWEST_RESAMPLES.max(100 * tests)
}

/// Answers of two kinds of models to the same dev examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Paired {
    /// By which the answers are judged.
    pub metric: Metric,
    /// Answers of the models of one kind, of several trials, each \[N\].
    pub a: Vec<Vec<f32>>,
    /// Those of the other kind.
    pub b: Vec<Vec<f32>>,
    /// What would have been right, \[N\].
    pub labels: Vec<f32>,
}

impl Paired {
    /// Mean metric of the models of the second kind less that of the first, as scores count.
    pub fn difference(&self) -> f64 {
        let score = |predictions: &Vec<f32>| metrics::value(self.metric, predictions, &self.labels);
        mean(&self.b, self.metric, score) - mean(&self.a, self.metric, score)
    }

    /// Two-sided p of "on examples like these, both kinds are equally good" by the paired bootstrap (Efron & Tibshirani
    /// 1993, chapter 16): dev examples are drawn anew, with replacement, the same ones for all models, and p is the share of
    /// draws whose difference of means over models is as far from the observed one as that is from 0.
    pub fn bootstrap(&self, seed: u64, resamples: usize) -> f64 {
        let judges = |models: &[Vec<f32>]| -> Vec<Judge> {
            models.iter().map(|predictions| Judge::new(self.metric, predictions, &self.labels)).collect()
        };
        let (a, b, examples) = (judges(&self.a), judges(&self.b), self.labels.len());
        let drawn = |times: &[u32]| {
            let score = |judge: &Judge| judge.value(times);
            mean(&b, self.metric, score) - mean(&a, self.metric, score)
        };
        let observed = self.difference();
        let as_far_of = |chunk: usize| {
            let mut random = Stream::named(&["bootstrap", &seed.to_string(), &chunk.to_string()]);
            let draws = DRAWS_AT_ONCE.min(resamples - chunk * DRAWS_AT_ONCE);
            let mut is_as_far = || {
                let mut times = vec![0; examples];
                for _ in 0..examples {
                    times[random.below(examples as u64) as usize] += 1;
                }
                (drawn(&times) - observed).abs() >= observed.abs() - ROUNDING
            };
            (0..draws).filter(|_| is_as_far()).count()
        };
        let chunks = resamples.div_ceil(DRAWS_AT_ONCE);
        let helpers = thread::available_parallelism().map_or(1, NonZero::get).min(chunks);
        let of_helper = |first: usize| (first..chunks).step_by(helpers).map(as_far_of).sum::<usize>();
        let as_far: usize = thread::scope(|scope| {
            let of_helper = &of_helper;
            let all: Vec<_> = (0..helpers).map(|first| scope.spawn(move || of_helper(first))).collect();
            all.into_iter().map(|helper| helper.join().unwrap_or_else(|e| panic::resume_unwind(e))).sum()
        });
        (as_far + 1) as f64 / (resamples + 1) as f64
    }
}

/// Two-sided p of "`a` and `b` come from the same distribution" by Mann & Whitney's (1947) U: counted out for few values
/// without ties, else by the normal approximation with corrections for ties and continuity. `None` if one is empty.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<f64> {
    let (n, m) = (a.len(), b.len());
    if n == 0 || m == 0 {
        return None;
    }
    let mut all: Vec<(f64, bool)> = a.iter().map(|&v| (v, true)).chain(b.iter().map(|&v| (v, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0);
    for same in all.chunk_by(|x, y| x.0 == y.0) {
        let size = same.len() as f64;
        let rank = before as f64 + (size + 1.0) / 2.0;
        rank_sum += rank * same.iter().filter(|(_, of_a)| *of_a).count() as f64;
        ties += size.powi(3) - size;
        before += same.len();
    }
    let u = rank_sum - (n * (n + 1)) as f64 / 2.0;
    let u = u.max((n * m) as f64 - u);
    if ties == 0.0 && n + m <= COUNTED_OUT {
        return Some((2.0 * share_at_least(n, m, u.round() as usize)).min(1.0));
    }
    let (n, m) = (n as f64, m as f64);
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance == 0.0 {
        return Some(1.0);
    }
    let z = (u - n * m / 2.0 - 0.5) / variance.sqrt();
    Some((2.0 * normal_tail(z)).min(1.0))
}

/// Share of all orders of n and m distinct values whose U is at least `u`.
fn share_at_least(n: usize, m: usize, u: usize) -> f64 {
    // ways[i][s]: how many ways i of the values seen so far can be `a`'s with U = s.
    let mut ways = vec![vec![0.0; n * m + 1]; n + 1];
    ways[0][0] = 1.0;
    for seen in 0..n + m {
        for i in (0..n.min(seen + 1)).rev() {
            // The next value is a's: it is above the seen − i of b's.
            let below = seen - i;
            if below > m {
                continue;
            }
            for s in (0..=n * m - below).rev() {
                let more = ways[i][s];
                ways[i + 1][s + below] += more;
            }
        }
    }
    let all: f64 = ways[n].iter().sum();
    ways[n][u..].iter().sum::<f64>() / all
}

/// P(Z ≥ z) of the standard normal distribution.
fn normal_tail(z: f64) -> f64 {
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}

/// Holm's (1979) correction: each p, in the order given, such that rejecting those below α keeps the chance of any false
/// rejection below α.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest = 0.0f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p.len() - rank) as f64 * p[i]).min(1.0);
        adjusted[i] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])), (Some(2.0), Some(2.5), None));
    }

    /// Expected values: scipy.stats.mannwhitneyu, method 'exact' and 'asymptotic'.
    #[test]
    fn mann_whitney_as_scipy_has_it() {
        close(mann_whitney(&[1., 2., 3.], &[4., 5., 6.]).unwrap(), 0.1);
        close(mann_whitney(&[1., 4., 6., 9.], &[2., 3., 5., 7., 8.]).unwrap(), 1.0);
        close(
            mann_whitney(&[84.1, 84.3, 83.9, 84.0, 84.4], &[85.9, 86.1, 86.0, 85.8, 84.2]).unwrap(),
            0.031_746_031_746_031_744,
        );
        close(mann_whitney(&[1., 2., 2., 3.], &[2., 3., 4., 5.]).unwrap(), 0.136_658_247_738_147_5);
        close(mann_whitney(&[1., 1.], &[1., 1.]).unwrap(), 1.0);
        assert_eq!(mann_whitney(&[], &[1.0]), None);
    }

    #[test]
    fn holm_steps_down() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            close(*found, expected);
        }
    }

    #[test]
    fn the_bootstrap_tells_a_clear_difference_from_none() {
        let labels: Vec<f32> = (0..200).map(|i| (i % 2) as f32).collect();
        let wrong_at =
            |every: usize| (0..200).map(|i| if i % every == 0 { 1.0 - labels[i] } else { labels[i] }).collect();
        let (poor, good): (Vec<f32>, Vec<f32>) = (wrong_at(3), wrong_at(20));
        let p = |a: &Vec<f32>, b: &Vec<f32>| {
            let (a, b, labels) = (vec![a.clone()], vec![b.clone()], labels.clone());
            Paired { metric: Metric::Accuracy, a, b, labels }.bootstrap(1, 2000)
        };
        assert!(p(&poor, &good) < 0.001);
        close(p(&good, &good), 1.0);
        // One example more right of 200 is nothing.
        let mut better = good.clone();
        better[0] = labels[0];
        assert!(p(&good, &better) > 0.3);
        assert_eq!(p(&poor, &good), p(&poor, &good));
    }
    /// Of two examples one model has the first right, the other none: a draw has the first example twice, once or not at all
    /// (1 : 2 : 1), and its difference is 1, 0.5 or 0, of which the observed 0.5 is as far from 1 and from 0 as from nothing.
    #[test]
    fn draws_as_far_off_as_the_observed_difference_count() {
        let (labels, a, b) = (vec![1.0, 1.0], vec![vec![0.0, 0.0]], vec![vec![1.0, 0.0]]);
        let p = Paired { metric: Metric::Accuracy, a, b, labels }.bootstrap(1, 20_000);
        assert!((p - 0.5).abs() < 0.02, "{p}");
        // Thirds, whose differences are rounded.
        let (labels, a, b) = (vec![1.0; 3], vec![vec![0.0; 3]], vec![vec![1.0, 0.0, 0.0]]);
        let p = Paired { metric: Metric::Accuracy, a, b, labels }.bootstrap(1, 20_000);
        // The first example is drawn 0, 1, 2, 3 times with 8 : 12 : 6 : 1 of 27.
        assert!((p - 15.0 / 27.0).abs() < 0.02, "{p}");
    }

    #[test]
    fn a_large_family_can_still_find_a_difference() {
        let labels = vec![1.0; 50];
        let all = Paired { metric: Metric::Accuracy, a: vec![vec![0.0; 50]], b: vec![labels.clone()], labels };
        for family in [1, 20, 189] {
            let p = all.bootstrap(1, resamples(family));
            assert!(holm(&vec![p; family])[0] < 0.01 + 1e-9, "{family}: {p}");
        }
    }
}
