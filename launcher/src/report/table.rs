//! The results table as a person reads it: percent with one decimal, a dash for what is not there.

use super::layout::plain_table;
use super::results::Results;

impl Results {
    /// The table, its average, further metrics, and what is suspicious about them.
    pub fn render(&self) -> String {
        let (mut main, mut further) = (vec![], vec![]);
        for task in &self.tasks {
            for (i, m) in task.metrics.iter().enumerate() {
                let rows = if i == 0 { &mut main } else { &mut further };
                rows.push(row(&task.task, m.metric, &m.scores));
            }
        }
        main.push(row("average", "", &self.averages()));
        let header = self.header();
        let mut text = format!("\n{}: results on dev, in percent\n{}", self.name, plain_table(&header, 2, &main));
        if !further.is_empty() {
            text += &format!("\nfurther metrics\n{}", plain_table(&header, 2, &further));
        }
        for (stage, task) in &self.collapsed {
            text += &format!("'{stage}' has collapsed on '{task}': it predicts the same class for every dev example\n");
        }
        text
    }

    fn header(&self) -> Vec<&'static str> {
        let difference = (self.kinds.len() > 1).then_some("Difference");
        ["Task", "Metric"].into_iter().chain(self.kinds.iter().map(|k| k.title)).chain(difference).collect()
    }
}

/// One line: the scores of each kind of models, and by how much the last one is better than the first.
fn row(task: &str, metric: &str, scores: &[Option<f64>]) -> Vec<String> {
    let dash = || "–".to_owned();
    let mut row = vec![task.to_owned(), metric.to_owned()];
    row.extend(scores.iter().map(|score| score.map_or_else(dash, |s| format!("{:.1}", 100.0 * s))));
    if let [first, .., last] = scores {
        let difference = first.zip(*last).map(|(first, last)| 100.0 * (last - first));
        row.push(difference.map_or_else(dash, |d| format!("{d:+.1}")));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::super::results::{MetricResult, ModelKind, TaskResult};
    use super::*;

    /// Results of models of these kinds, as many of each score as there are kinds.
    fn results(titles: &[&'static str]) -> Results {
        let metric =
            |metric, scores: [Option<f64>; 2]| MetricResult { metric, scores: scores[..titles.len()].to_vec() };
        let task = |task: &str, metrics| TaskResult { task: task.into(), metrics };
        Results {
            name: "demo".into(),
            kinds: titles.iter().map(|title| ModelKind { title, key: "" }).collect(),
            tasks: vec![
                task("mrpc", vec![metric("accuracy", [Some(0.8), Some(0.85)]), metric("f1", [Some(0.9), None])]),
                task("rte", vec![metric("accuracy", [Some(0.7), Some(0.664)])]),
            ],
            collapsed: vec![("teacher-rte".into(), "rte".into())],
            ..Results::default()
        }
    }

    /// The words of the line that starts with `start`.
    fn line<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
        text.lines().find(|l| l.trim_start().starts_with(start)).unwrap_or_default().split_whitespace().collect()
    }

    #[test]
    fn single_stands_against_student_with_difference_and_average() {
        let text = results(&["Single", "Single→Multi"]).render();
        assert_eq!(line(&text, "Task"), ["Task", "Metric", "Single", "Single→Multi", "Difference"]);
        assert_eq!(line(&text, "mrpc"), ["mrpc", "accuracy", "80.0", "85.0", "+5.0"]);
        assert_eq!(line(&text, "rte"), ["rte", "accuracy", "70.0", "66.4", "-3.6"]);
        assert_eq!(line(&text, "average"), ["average", "75.0", "75.7", "+0.7"]);
        let further = text.split("further metrics").nth(1).unwrap();
        assert_eq!(line(further, "mrpc"), ["mrpc", "f1", "90.0", "–", "–"]);
        assert!(further.contains("'teacher-rte' has collapsed on 'rte'"));
    }

    #[test]
    fn one_kind_of_models_is_compared_with_nothing() {
        assert_eq!(line(&results(&["Single"]).render(), "rte"), ["rte", "accuracy", "70.0"]);
        assert_eq!(line(&results(&["Multi"]).render(), "Task"), ["Task", "Metric", "Multi"]);
    }
}
