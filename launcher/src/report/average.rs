//! Averages over tasks, as the paper forms them and as GLUE does. The scores are those of one model, or medians over models.

use bam_cluster::task::Metric;

/// Mean of the tasks' main metrics, as the paper has it; none if one is not there, or is no share. `tasks`: each with its
/// metrics, the main one first.
pub fn of_paper(tasks: &[(String, Vec<Metric>)], score: impl Fn(&str, Metric) -> Option<f64>) -> Option<f64> {
    mean_over(tasks, |task, metrics| score(task, *metrics.first()?).map(|s| vec![s]))
}

/// Mean over tasks of the mean of all their metrics, as GLUE has it; MNLI's are matched and mismatched accuracy, if the
/// latter is known. None if a score is not there, or is no share.
pub fn of_glue(
    tasks: &[(String, Vec<Metric>)],
    score: impl Fn(&str, Metric) -> Option<f64>,
    mismatched: impl Fn(&str, Metric) -> Option<f64>,
) -> Option<f64> {
    mean_over(tasks, |task, metrics| {
        let mut scores: Vec<f64> = metrics.iter().map(|m| score(task, *m)).collect::<Option<_>>()?;
        scores.extend(metrics.iter().filter_map(|m| mismatched(task, *m)));
        Some(scores)
    })
}

/// Mean over tasks of the mean of those scores; none if one is missing, or is no share.
fn mean_over(tasks: &[(String, Vec<Metric>)], scores: impl Fn(&str, &[Metric]) -> Option<Vec<f64>>) -> Option<f64> {
    let mean = |scores: &[f64]| (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64);
    let of_task = |(task, metrics): &(String, Vec<Metric>)| {
        let shares = metrics.iter().all(|m| m.is_share());
        scores(task, metrics).filter(|_| shares).and_then(|s| mean(&s))
    };
    tasks.iter().map(of_task).collect::<Option<Vec<f64>>>().and_then(|s| mean(&s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glues_average_takes_mnlis_mismatched_split_in() {
        let of = |metrics: &[Metric]| {
            let tasks = [("mnli".to_owned(), metrics.to_vec())];
            (of_paper(&tasks, |_, _| Some(0.75)), of_glue(&tasks, |_, _| Some(0.75), |_, _| Some(0.25)))
        };
        assert_eq!(of(&[Metric::Accuracy]), (Some(0.75), Some(0.5)));
        // An error is no share, and has no place in an average.
        assert_eq!(of(&[Metric::Mse]), (None, None));
    }

    #[test]
    fn an_average_is_of_all_tasks_or_there_is_none() {
        let tasks = ["cola", "mrpc"].map(|t| (t.to_owned(), vec![Metric::Accuracy, Metric::F1]));
        let score = |task: &str, metric| match (task, metric) {
            ("cola", Metric::Accuracy) => Some(0.5),
            ("mrpc", Metric::Accuracy) => Some(1.0),
            ("mrpc", _) => Some(0.0),
            _ => None,
        };
        assert_eq!((of_paper(&tasks, score), of_glue(&tasks, score, |_, _| None)), (Some(0.75), None));
        assert_eq!(of_glue(&tasks[1..], score, |_, _| None), Some(0.5));
        assert_eq!(of_paper(&[], score), None);
    }
}
