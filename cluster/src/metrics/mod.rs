//! GLUE's metrics as pure functions of predictions and gold labels, with the values that scikit-learn and SciPy give.

mod judge;

use std::collections::BTreeSet;

use crate::stage_record::TaskScores;
use crate::task::{Kind, Metric};
use judge::ratio;

pub use judge::Judge;

/// All `metrics` of one task. `predictions` and `labels` are \[N\] in the same order: class indices, or scores on the
/// task's own scale.
pub fn score(kind: &Kind, metrics: &[Metric], predictions: &[f32], labels: &[f32]) -> TaskScores {
    let distinct = || predictions.iter().map(|p| class(*p)).collect::<BTreeSet<_>>().len();
    TaskScores {
        metrics: metrics.iter().map(|m| (m.name().to_owned(), value(*m, predictions, labels))).collect(),
        examples: labels.len(),
        classes_predicted: kind.is_classification().then(distinct),
        spread: spread(kind, predictions, labels),
    }
}

/// What a score counts as wherever several are put together or compared. A correlation that is undefined, because
/// predictions (or labels) are all the same, counts as 0, which Matthews' gives in that case: such predictions tell
/// nothing. Any other metric that is undefined has no example to judge, and stays undefined.
pub fn counted(metric: Metric, score: Option<f64>) -> Option<f64> {
    score.or_else(|| matches!(metric, Metric::Pearson | Metric::Spearman).then_some(0.0))
}

/// One metric; arguments as for [`score`]. `None` where it is undefined.
pub fn value(metric: Metric, predictions: &[f32], labels: &[f32]) -> Option<f64> {
    Judge::new(metric, predictions, labels).value(&vec![1; labels.len()])
}

/// How far apart a regression's predictions are, measured by the labels; see [`TaskScores::spread`].
fn spread(kind: &Kind, predictions: &[f32], labels: &[f32]) -> Option<f64> {
    let Kind::Regression { min, max } = kind else { return None };
    let deviation = |values: &[f32]| {
        let values = wide(values)?;
        let mean = ratio(values.iter().sum(), values.len() as f64)?;
        ratio(values.iter().map(|v| (v - mean).powi(2)).sum(), values.len() as f64).map(f64::sqrt)
    };
    let (predicted, gold) = (deviation(predictions)?, deviation(labels)?);
    ratio(predicted, if gold > 0.0 { gold } else { max - min })
}

fn class(value: f32) -> i64 {
    value.round() as i64
}

fn wide(values: &[f32]) -> Option<Vec<f64>> {
    values.iter().map(|v| v.is_finite().then(|| f64::from(*v))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Metric; 5] = [Metric::Accuracy, Metric::F1, Metric::Matthews, Metric::Pearson, Metric::Spearman];

    fn accuracy(predictions: &[f32], labels: &[f32]) -> Option<f64> {
        value(Metric::Accuracy, predictions, labels)
    }

    fn f1(predictions: &[f32], labels: &[f32]) -> Option<f64> {
        value(Metric::F1, predictions, labels)
    }

    fn matthews(predictions: &[f32], labels: &[f32]) -> Option<f64> {
        value(Metric::Matthews, predictions, labels)
    }

    fn pearson(predictions: &[f32], labels: &[f32]) -> Option<f64> {
        value(Metric::Pearson, predictions, labels)
    }

    fn spearman(predictions: &[f32], labels: &[f32]) -> Option<f64> {
        value(Metric::Spearman, predictions, labels)
    }

    fn close(found: Option<f64>, expected: f64) {
        let found = found.expect("defined");
        assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
    }

    #[test]
    fn two_classes_as_scikit_learn_has_them() {
        let predictions = [0., 1., 1., 0., 1., 0., 0., 1., 1., 0.];
        let labels = [0., 1., 0., 0., 1., 1., 0., 1., 1., 1.];
        close(accuracy(&predictions, &labels), 0.7);
        close(f1(&predictions, &labels), 0.727_272_727_272_727_3);
        close(matthews(&predictions, &labels), 0.408_248_290_463_863);
    }

    #[test]
    fn three_classes_as_scikit_learn_has_them() {
        let predictions = [0., 1., 2., 2., 1., 0., 2., 1., 0., 0., 1., 2.];
        let labels = [0., 1., 2., 1., 1., 2., 2., 0., 0., 1., 1., 0.];
        close(accuracy(&predictions, &labels), 7.0 / 12.0);
        close(matthews(&predictions, &labels), 0.378_968_364_479_934_53);
    }

    #[test]
    fn one_class_only_gives_zero_as_in_scikit_learn() {
        close(f1(&[0., 0.], &[0., 0.]), 0.0);
        close(f1(&[1., 0.], &[0., 0.]), 0.0);
        close(matthews(&[1., 1.], &[0., 1.]), 0.0);
        close(matthews(&[1., 1.], &[1., 1.]), 0.0);
    }

    #[test]
    fn correlations_as_scipy_has_them() {
        let labels = [0., 1.5, 3., 3.2, 5., 2.5, 0.25, 4.25];
        let predictions = [0.5, 1.2, 3.3, 3.3, 4.9, 2., 0., 5.];
        close(pearson(&predictions, &labels), 0.975_028_774_349_764_8);
        close(spearman(&predictions, &labels), 0.946_124_746_911_474_5);
        let with_ties = [1., 1., 2., 2., 2., 3., 0., 1.];
        close(pearson(&with_ties, &labels), 0.526_719_038_064_772_9);
        close(spearman(&with_ties, &labels), 0.475_594_865_605_671_06);
    }

    #[test]
    fn what_is_undefined_is_none() {
        for metric in [pearson, spearman] {
            assert_eq!(metric(&[0.1, 0.1, 0.1], &[1., 2., 3.]), None);
            assert_eq!(metric(&[1., 2., 3.], &[0.7; 3]), None);
            assert_eq!(metric(&[1., f32::NAN, 3.], &[1., 2., 3.]), None);
            assert_eq!(metric(&[1.], &[1.]), None);
        }
        for metric in [accuracy, f1, matthews] {
            assert_eq!(metric(&[], &[]), None);
        }
    }

    #[test]
    fn a_task_gets_the_metrics_it_asks_for() {
        let kind = Kind::Classification { labels: vec!["0".into(), "1".into()], thresholds: vec![] };
        let scores = score(&kind, &[Metric::Accuracy, Metric::Matthews], &[1., 1., 1.], &[1., 0., 1.]);
        assert_eq!(scores.metrics.keys().collect::<Vec<_>>(), ["accuracy", "matthews"]);
        close(scores.metrics["accuracy"], 2.0 / 3.0);
        assert_eq!((scores.examples, scores.classes_predicted), (3, Some(1)));
        let scores = score(&Kind::Regression { min: 0., max: 5. }, &[Metric::Spearman], &[2., 2.], &[0., 1.]);
        assert_eq!(scores.metrics["spearman"], None);
        assert_eq!((scores.classes_predicted, scores.spread), (None, Some(0.0)));
    }

    #[test]
    fn a_model_that_answers_everything_alike_has_collapsed() {
        let classes = Kind::Classification { labels: vec!["0".into(), "1".into()], thresholds: vec![] };
        let collapse = |kind: &Kind, p: &[f32], l: &[f32]| score(kind, &[], p, l).collapse().unwrap_or_default();
        assert!(collapse(&classes, &[1., 1.], &[0., 1.]).contains("the same class"));
        assert_eq!(collapse(&classes, &[1., 0.], &[0., 1.]), "");
        assert_eq!(collapse(&classes, &[1.], &[1.]), "", "of one example nothing can be said");
        let small = Kind::Regression { min: 0., max: 0.001 };
        assert_eq!(collapse(&small, &[2e-4, 4e-4], &[1e-4, 5e-4]), "");
        for alike in [[3e-4, 3e-4], [3e-4, 3.001e-4]] {
            assert!(collapse(&small, &alike, &[1e-4, 5e-4]).contains("nearly the same value"));
        }
        // Labels that are all the same make a correlation undefined, but no model collapsed.
        assert_eq!(score(&small, &[Metric::Pearson], &[2e-4, 4e-4], &[1e-4, 1e-4]).collapse(), None);
        let older = TaskScores { spread: None, ..score(&small, &[Metric::Pearson], &[0., 0.], &[0., 1e-3]) };
        assert!(older.collapse().is_some());
    }

    #[test]
    fn an_undefined_correlation_counts_as_matthews_does() {
        let alike = |metric| counted(metric, value(metric, &[1., 1.], &[0., 1.]));
        assert_eq!([Metric::Matthews, Metric::Pearson, Metric::Spearman].map(alike), [Some(0.0); 3]);
        assert_eq!((counted(Metric::Accuracy, None), counted(Metric::Mse, None)), (None, None));
        assert_eq!(counted(Metric::Pearson, Some(-0.5)), Some(-0.5));
    }

    fn pairs(values: impl Strategy<Value = f32> + Clone) -> impl Strategy<Value = Vec<(f32, f32)>> {
        prop::collection::vec((values.clone(), values), 2..60)
    }

    fn small_integers(below: u8) -> impl Strategy<Value = f32> + Clone {
        (0..below).prop_map(f32::from)
    }

    proptest! {
        #[test]
        fn no_metric_depends_on_the_order_of_examples(
            (pairs, shuffled) in pairs(small_integers(4)).prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle())),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let (c, d): (Vec<f32>, Vec<f32>) = shuffled.into_iter().unzip();
            for metric in ALL {
                match (value(metric, &a, &b), value(metric, &c, &d)) {
                    (Some(x), Some(y)) => prop_assert!((x - y).abs() < 1e-12),
                    (x, y) => prop_assert_eq!(x, y),
                }
            }
        }

        #[test]
        fn correlations_are_symmetric_bounded_and_matthews_of_two_classes_is_pearson(
            pairs in pairs(small_integers(2)),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            for metric in [matthews, pearson, spearman] {
                let (there, back) = (metric(&a, &b), metric(&b, &a));
                prop_assert!((there.unwrap_or(0.0) - back.unwrap_or(0.0)).abs() < 1e-12);
                prop_assert!(there.is_none_or(|r| (-1.0..=1.0).contains(&r)));
            }
            prop_assert!((pearson(&a, &b).unwrap_or(0.0) - matthews(&a, &b).unwrap_or(0.0)).abs() < 1e-9);
        }

        #[test]
        fn the_right_answers_get_full_marks(values in prop::collection::vec(small_integers(3), 2..40)) {
            prop_assert_eq!(accuracy(&values, &values), Some(1.0));
            let varied = values.iter().any(|v| *v != values[0]);
            prop_assert_eq!(matthews(&values, &values), Some(if varied { 1.0 } else { 0.0 }));
            let expected = varied.then_some(1.0f64);
            for metric in [pearson, spearman] {
                let found = metric(&values, &values).map(|r| (r * 1e9).round() / 1e9);
                prop_assert_eq!(found, expected);
            }
        }

        #[test]
        fn names_of_classes_do_not_matter_to_matthews(pairs in pairs(small_integers(3))) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let renamed = |v: &[f32]| v.iter().map(|c| (c + 1.0) % 3.0).collect::<Vec<f32>>();
            let (x, y) = (matthews(&a, &b), matthews(&renamed(&a), &renamed(&b)));
            prop_assert!((x.unwrap_or(9.0) - y.unwrap_or(9.0)).abs() < 1e-12);
        }

        #[test]
        fn spearman_sees_order_only(pairs in pairs(small_integers(20))) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let stretched: Vec<f32> = a.iter().map(|v| v * v * v + 2.0 * v - 7.0).collect();
            prop_assert_eq!(spearman(&a, &b), spearman(&stretched, &b));
        }
    }
}
