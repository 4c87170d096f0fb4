//! One model's answers to one task, ready to be judged again and again on examples that are drawn anew: each metric is
//! written for examples that count so many times each, of which once each is the usual case.

use std::collections::BTreeSet;

use crate::task::Metric;

/// Predictions beside gold labels.
#[derive(Debug, Clone)]
pub struct Judge {
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Classes(Classes, fn(&Confusion) -> Option<f64>),
    Scores(Scores, fn(&Scores, &[u32]) -> Option<f64>),
    /// A score that is no number leaves a metric of scores undefined.
    Undefined,
}

impl Judge {
    /// `predictions` and `labels` are \[N\] in the same order: class indices, or scores on the task's own scale.
    pub fn new(metric: Metric, predictions: &[f32], labels: &[f32]) -> Judge {
        let classes = |of| Form::Classes(Classes::new(predictions, labels), of);
        let scores = |of| Scores::new(predictions, labels).map_or(Form::Undefined, |scores| Form::Scores(scores, of));
        let form = match metric {
            Metric::Accuracy => classes(Confusion::accuracy),
            Metric::F1 => classes(Confusion::f1),
            Metric::Matthews => classes(Confusion::matthews),
            Metric::Pearson => scores(Scores::pearson),
            Metric::Spearman => scores(Scores::spearman),
            Metric::Mse => scores(Scores::mse),
        };
        Judge { form }
    }

    /// The metric if each example counts so many times (\[N\]). `None` where it is undefined.
    pub fn value(&self, times: &[u32]) -> Option<f64> {
        match &self.form {
            Form::Classes(classes, of) => of(&classes.count(times)),
            Form::Scores(scores, of) => of(scores, times),
            Form::Undefined => None,
        }
    }
}

/// Which pair of predicted and true class each example is.
#[derive(Debug, Clone)]
struct Classes {
    /// Every pair that occurs.
    pairs: Vec<(i64, i64)>,
    of_example: Vec<usize>,
}

impl Classes {
    fn new(predictions: &[f32], labels: &[f32]) -> Classes {
        let pair = |(p, l): (&f32, &f32)| (super::class(*p), super::class(*l));
        let all: Vec<(i64, i64)> = predictions.iter().zip(labels).map(pair).collect();
        let pairs: Vec<(i64, i64)> = all.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let of_example = all.iter().filter_map(|pair| pairs.binary_search(pair).ok()).collect();
        Classes { pairs, of_example }
    }

    fn count(&self, times: &[u32]) -> Confusion {
        let mut counts = vec![0; self.pairs.len()];
        for (&pair, &times) in self.of_example.iter().zip(times) {
            counts[pair] += u64::from(times);
        }
        let counted = self.pairs.iter().zip(counts).filter(|(_, count)| *count > 0);
        Confusion(counted.map(|(&(p, l), count)| (p, l, count as f64)).collect())
    }
}

/// How often each pair of predicted and true class occurs, of those that do.
struct Confusion(Vec<(i64, i64, f64)>);

impl Confusion {
    fn sum(&self, is_counted: impl Fn(i64, i64) -> bool) -> f64 {
        self.0.iter().filter(|(p, l, _)| is_counted(*p, *l)).map(|(_, _, count)| count).sum()
    }

    /// Share of right answers; `None` without examples.
    fn accuracy(&self) -> Option<f64> {
        ratio(self.sum(|p, l| p == l), self.sum(|_, _| true))
    }

    /// F1 of class 1; 0 if nobody predicts it and nothing has it. `None` without examples.
    fn f1(&self) -> Option<f64> {
        if self.0.is_empty() {
            return None;
        }
        let hits = 2.0 * self.sum(|p, l| p == 1 && l == 1);
        Some(ratio(hits, hits + self.sum(|p, l| (p == 1) != (l == 1))).unwrap_or(0.0))
    }

    /// Matthews correlation of any number of classes, −1 to 1; 0 where it is undefined (all predictions or all labels the
    /// same). `None` without examples.
    fn matthews(&self) -> Option<f64> {
        if self.0.is_empty() {
            return None;
        }
        let seen: BTreeSet<i64> = self.0.iter().flat_map(|&(p, l, _)| [p, l]).collect();
        let (n, right) = (self.sum(|_, _| true), self.sum(|p, l| p == l));
        let (mut both, mut of_predictions, mut of_labels) = (0.0, 0.0, 0.0);
        for class in seen {
            let (predicted, true_ones) = (self.sum(|p, _| p == class), self.sum(|_, l| l == class));
            both += predicted * true_ones;
            of_predictions += predicted * predicted;
            of_labels += true_ones * true_ones;
        }
        let denominator = ((n * n - of_predictions) * (n * n - of_labels)).sqrt();
        Some(ratio(right * n - both, denominator).unwrap_or(0.0))
    }
}

/// Predicted and true scores, all of them numbers.
#[derive(Debug, Clone)]
struct Scores {
    predictions: Ordered,
    labels: Ordered,
}

/// Values, and their places in ascending order, equal ones together.
#[derive(Debug, Clone)]
struct Ordered {
    values: Vec<f64>,
    ascending: Vec<Vec<usize>>,
}

impl Ordered {
    fn new(values: &[f32]) -> Option<Ordered> {
        let values = super::wide(values)?;
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let ascending = order.chunk_by(|&a, &b| values[a] == values[b]).map(<[usize]>::to_vec).collect();
        Some(Ordered { values, ascending })
    }

    /// Ranks from 1; equal values share the mean of theirs.
    fn ranks(&self, times: &[u32]) -> Vec<f64> {
        let mut ranks = vec![0.0; self.values.len()];
        let mut below = 0;
        for group in &self.ascending {
            let size: u64 = group.iter().map(|&i| u64::from(times[i])).sum();
            let mean = below as f64 + (size as f64 + 1.0) / 2.0;
            for &i in group {
                ranks[i] = mean;
            }
            below += size;
        }
        ranks
    }
}

impl Scores {
    fn new(predictions: &[f32], labels: &[f32]) -> Option<Scores> {
        let same = predictions.len() == labels.len();
        let (predictions, labels) = (Ordered::new(predictions)?, Ordered::new(labels)?);
        same.then_some(Scores { predictions, labels })
    }

    /// Pearson correlation, −1 to 1; `None` where it is undefined (fewer than two examples, constant or non-finite input).
    fn pearson(&self, times: &[u32]) -> Option<f64> {
        correlation(&self.predictions.values, &self.labels.values, times)
    }

    /// Spearman rank correlation, −1 to 1; equal values share the mean of their ranks. `None` where it is undefined, as
    /// Pearson's.
    fn spearman(&self, times: &[u32]) -> Option<f64> {
        correlation(&self.predictions.ranks(times), &self.labels.ranks(times), times)
    }

    /// Mean squared error; `None` without examples or with non-finite input.
    fn mse(&self, times: &[u32]) -> Option<f64> {
        let pairs = self.predictions.values.iter().zip(&self.labels.values);
        ratio(pairs.zip(times).map(|((x, y), t)| f64::from(*t) * (x - y).powi(2)).sum(), total(times))
    }
}

fn total(times: &[u32]) -> f64 {
    times.iter().map(|t| f64::from(*t)).sum()
}

fn correlation(x: &[f64], y: &[f64], times: &[u32]) -> Option<f64> {
    let varies = |values: &[f64]| {
        let mut counted = values.iter().zip(times).filter(|(_, times)| **times > 0).map(|(value, _)| value);
        counted.next().is_some_and(|first| counted.any(|value| value != first))
    };
    if !varies(x) || !varies(y) {
        return None;
    }
    let n = total(times);
    let centred = |values: &[f64]| {
        let mean = values.iter().zip(times).map(|(v, t)| f64::from(*t) * v).sum::<f64>() / n;
        values.iter().map(|v| v - mean).collect::<Vec<f64>>()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).zip(times).map(|((a, b), t)| f64::from(*t) * a * b).sum::<f64>();
    let (x, y) = (centred(x), centred(y));
    ratio(dot(&x, &y), dot(&x, &x).sqrt() * dot(&y, &y).sqrt()).map(|r| r.clamp(-1.0, 1.0))
}

pub(super) fn ratio(numerator: f64, denominator: f64) -> Option<f64> {
    (denominator != 0.0).then(|| numerator / denominator)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::value;
    use super::*;

    proptest! {
        #[test]
        fn to_count_an_example_twice_is_to_have_it_twice(
            examples in prop::collection::vec((0u8..5, 0u8..5, 0u32..4), 1..40),
        ) {
            let column = |of: fn(&(u8, u8, u32)) -> u8| examples.iter().map(|e| f32::from(of(e))).collect::<Vec<_>>();
            let (predictions, labels) = (column(|e| e.0), column(|e| e.1));
            let times: Vec<u32> = examples.iter().map(|e| e.2).collect();
            let repeated = |values: &[f32]| -> Vec<f32> {
                values.iter().zip(&times).flat_map(|(v, t)| std::iter::repeat_n(*v, *t as usize)).collect()
            };
            for metric in [
                Metric::Accuracy, Metric::F1, Metric::Matthews, Metric::Pearson, Metric::Spearman, Metric::Mse,
            ] {
                let counted = Judge::new(metric, &predictions, &labels).value(&times);
                match (counted, value(metric, &repeated(&predictions), &repeated(&labels))) {
                    (Some(a), Some(b)) => prop_assert!((a - b).abs() < 1e-12, "{:?}: {} instead of {}", metric, a, b),
                    (a, b) => prop_assert_eq!(a, b),
                }
            }
        }
    }
}
