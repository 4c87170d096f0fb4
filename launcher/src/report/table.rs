//! The results table as a person reads it: percent with one decimal, a dash for what is not there.

use bam_cluster::task::Metric;

use super::layout::{plain_table, scale};
use super::models::{Column, Summary};
use super::results::Results;

/// What an average is.
pub const ABOUT_AVERAGES: &str =
    "the average is the mean of the tasks' medians; its [lowest–highest] are averages of one seed's models";

/// What stands where there is no figure.
pub const DASH: &str = "–";

impl Results {
    /// The table, its average, further metrics, and what is suspicious about them.
    pub fn render(&self) -> String {
        let titles = [format!("{}: results on dev, in percent", self.name), "further metrics".to_owned()];
        let shown = |(title, (header, rows)): (&String, &(Vec<&str>, Vec<Vec<String>>))| {
            format!("\n{title}\n{}", plain_table(header, 2, rows))
        };
        let mut text: String = titles.iter().zip(&self.tables()).map(shown).collect();
        if self.columns.iter().any(|c| c.samples.len() > 1) {
            text += &format!("medians and [lowest–highest] over models with different seeds: {}\n", self.seeds());
            text += &format!("{ABOUT_AVERAGES}\n");
        }
        text + &self.notes().into_iter().map(|note| note + "\n").collect::<String>()
    }

    /// How many models of each kind there are; of how many, where some are not there yet.
    fn seeds(&self) -> String {
        self.columns.iter().map(|c| format!("{} {}", c.kind.title, c.seeds())).collect::<Vec<_>>().join(", ")
    }

    /// Header and rows of the main metrics, with their average, and of further metrics if there are any.
    pub fn tables(&self) -> Vec<(Vec<&'static str>, Vec<Vec<String>>)> {
        let (mut main, mut further) = (vec![], vec![]);
        for (task, metrics) in &self.tasks {
            for (i, &metric) in metrics.iter().enumerate() {
                let rows = if i == 0 { &mut main } else { &mut further };
                rows.push(self.row(task, Some(metric), |column| column.scores(task, metric)));
                if self.columns.iter().any(|column| column.mismatched(task, metric).middle.is_some()) {
                    let name = format!("{task}, mismatched");
                    further.push(self.row(&name, Some(metric), |column| column.mismatched(task, metric)));
                }
            }
        }
        main.push(self.row("average", None, |column| column.average(&self.tasks)));
        if !further.is_empty() {
            further.push(self.row("average as GLUE's", None, |column| column.glue_average(&self.tasks)));
        }
        [main, further].into_iter().filter(|rows| !rows.is_empty()).map(|rows| (self.header(), rows)).collect()
    }

    fn header(&self) -> Vec<&'static str> {
        let difference = (self.columns.len() > 1).then_some("Difference");
        ["Task", "Metric"].into_iter().chain(self.columns.iter().map(|c| c.kind.title)).chain(difference).collect()
    }

    /// One line: the scores of each kind of models, and by how much the last kind's figure is above that of the kind before
    /// it: the student's above its teachers', a fine-tuned model's above the one that it goes on from.
    fn row(&self, task: &str, metric: Option<Metric>, scores: impl Fn(&Column) -> Summary) -> Vec<String> {
        let scores: Vec<Summary> = self.columns.iter().map(scores).collect();
        let mut row = vec![task.to_owned(), metric.map_or(String::new(), |m| m.name().to_owned())];
        let (factor, digits) = metric.map_or((100.0, 1), scale);
        row.extend(scores.iter().map(|s| cell(s, factor, digits)));
        if let [.., before, last] = &scores[..] {
            let difference = before.middle.zip(last.middle).map(|(before, last)| factor * (last - before));
            row.push(difference.map_or(DASH.to_owned(), |d| format!("{d:+.digits$}")));
        }
        row
    }
}

/// The figure for all models, with the lowest and the highest of several.
pub fn cell(summary: &Summary, factor: f64, digits: usize) -> String {
    let Some(middle) = summary.middle else { return DASH.to_owned() };
    let show = |score: f64| format!("{:.digits$}", factor * score);
    match summary.range() {
        Some((low, high)) => format!("{} [{}–{}]", show(middle), show(low), show(high)),
        None => show(middle),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bam_cluster::stage_record::TaskScores;

    use super::super::models::{ModelKind, Sample};
    use super::super::results::Collapse;
    use super::*;

    /// Results of models of these kinds, as many of each score as there are kinds.
    fn results(titles: &[&'static str]) -> Results {
        let scores = |metrics: &[(&str, Option<f64>)]| TaskScores {
            metrics: metrics.iter().map(|(m, s)| ((*m).to_owned(), *s)).collect(),
            examples: 9,
            classes_predicted: None,
            spread: None,
        };
        let sample = |mrpc: f64, f1: Option<f64>, rte: f64| Sample {
            scores: BTreeMap::from([
                ("mrpc".to_owned(), scores(&[("accuracy", Some(mrpc)), ("f1", f1)])),
                ("rte".to_owned(), scores(&[("accuracy", Some(rte))])),
            ]),
            ..Sample::default()
        };
        let samples = [sample(0.8, Some(0.9), 0.7), sample(0.85, None, 0.664), sample(0.9, None, 0.764)];
        let column = |(title, sample): (&&'static str, Sample)| Column {
            kind: ModelKind { title, key: "" },
            samples: vec![sample],
        };
        Results {
            name: "demo".into(),
            tasks: vec![("mrpc".into(), vec![Metric::Accuracy, Metric::F1]), ("rte".into(), vec![Metric::Accuracy])],
            columns: titles.iter().zip(samples).map(column).collect(),
            collapsed: vec![Collapse { stage: "teacher-rte".into(), task: "rte".into(), what: "says yes" }],
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
        assert!(further.contains("'teacher-rte' has collapsed on 'rte': it says yes\n"));
    }

    #[test]
    fn a_fine_tuned_model_stands_against_the_one_it_goes_on_from() {
        let text = results(&["Single", "Single→Multi", "Fine-tuned"]).render();
        assert_eq!(line(&text, "mrpc"), ["mrpc", "accuracy", "80.0", "85.0", "90.0", "+5.0"]);
        assert_eq!(line(&text, "average").last(), Some(&"+7.5"));
    }

    #[test]
    fn several_models_of_a_kind_are_a_median_with_its_spread() {
        let cell =
            |middle, each: &[f64], factor, digits| cell(&Summary { middle, each: each.to_vec() }, factor, digits);
        assert_eq!(cell(Some(0.61), &[0.5, 0.7, 0.61], 100.0, 1), "61.0 [50.0–70.0]");
        assert_eq!(
            (cell(None, &[], 100.0, 1).as_str(), cell(Some(0.1234), &[0.1234], 1.0, 3).as_str()),
            ("–", "0.123")
        );
        // Each task was learnt by another seed's model: there is an average, but of no seed alone.
        assert_eq!(cell(Some(0.5), &[], 100.0, 1), "50.0");
        let mut results = results(&["Single", "Single→Multi"]);
        let more = results.columns.remove(1).samples;
        results.columns[0].samples.extend(more);
        results.columns[0].samples.push(Sample::default());
        let text = results.render();
        assert_eq!(line(&text, "rte"), ["rte", "accuracy", "68.2", "[66.4–70.0]"]);
        assert!(text.contains("over models with different seeds: Single 2 of 3\nthe average is the mean"), "{text}");
    }

    #[test]
    fn one_kind_of_models_is_compared_with_nothing() {
        assert_eq!(line(&results(&["Single"]).render(), "rte"), ["rte", "accuracy", "70.0"]);
        assert_eq!(line(&results(&["Multi"]).render(), "Task"), ["Task", "Metric", "Multi"]);
    }
}
