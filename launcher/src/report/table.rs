//! The results table as a person reads it: percent with one decimal, a dash for what is not there.

use bam_cluster::config::Mode;

use super::layout::plain_table;
use super::results::{MetricResult, Results};

impl Results {
    /// The table, its average, further metrics, and what is suspicious about them.
    pub fn render(&self) -> String {
        let columns = Columns::of(self.mode);
        let mut rows: Vec<Vec<String>> = vec![];
        for task in &self.tasks {
            rows.extend(task.metrics.first().map(|m| columns.row(&task.task, m.metric, m.single, m.student)));
        }
        let (single, student) = self.averages();
        rows.push(columns.row("average", "", single, student));
        let further: Vec<Vec<String>> = self
            .tasks
            .iter()
            .flat_map(|t| {
                let row = |m: &MetricResult| columns.row(&t.task, m.metric, m.single, m.student);
                t.metrics.iter().skip(1).map(row).collect::<Vec<_>>()
            })
            .collect();
        let mut text =
            format!("\n{}: results on dev, in percent\n{}", self.name, plain_table(&columns.header(), 2, &rows));
        if !further.is_empty() {
            text += &format!("\nfurther metrics\n{}", plain_table(&columns.header(), 2, &further));
        }
        for (stage, task) in &self.collapsed {
            text += &format!("'{stage}' has collapsed on '{task}': it predicts the same class for every dev example\n");
        }
        text
    }
}

/// Which models a mode has.
struct Columns {
    single: bool,
    student: Option<&'static str>,
}

impl Columns {
    fn of(mode: Mode) -> Columns {
        match mode {
            Mode::Single => Columns { single: true, student: None },
            Mode::Multi => Columns { single: false, student: Some("Multi") },
            Mode::SingleToMulti => Columns { single: true, student: Some("Single→Multi") },
        }
    }

    fn header(&self) -> Vec<&'static str> {
        let single = self.single.then_some("Single");
        let difference = (self.single && self.student.is_some()).then_some("Difference");
        ["Task", "Metric"].into_iter().chain(single).chain(self.student).chain(difference).collect()
    }

    fn row(&self, task: &str, metric: &str, single: Option<f64>, student: Option<f64>) -> Vec<String> {
        let percent = |share: Option<f64>| share.map_or("–".to_owned(), |s| format!("{:.1}", 100.0 * s));
        let mut row = vec![task.to_owned(), metric.to_owned()];
        if self.single {
            row.push(percent(single));
        }
        if self.student.is_some() {
            row.push(percent(student));
        }
        if self.single && self.student.is_some() {
            let difference = single.zip(student).map(|(a, b)| 100.0 * (b - a));
            row.push(difference.map_or("–".to_owned(), |d| format!("{d:+.1}")));
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::TaskResult;
    use super::*;

    fn results(mode: Mode) -> Results {
        let metric = |metric, single, student| MetricResult { metric, single, student };
        let task = |task: &str, metrics| TaskResult { task: task.into(), metrics };
        Results {
            name: "demo".into(),
            mode,
            tasks: vec![
                task("mrpc", vec![metric("accuracy", Some(0.8), Some(0.85)), metric("f1", Some(0.9), None)]),
                task("rte", vec![metric("accuracy", Some(0.7), Some(0.664))]),
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
        let text = results(Mode::SingleToMulti).render();
        assert_eq!(line(&text, "Task"), ["Task", "Metric", "Single", "Single→Multi", "Difference"]);
        assert_eq!(line(&text, "mrpc"), ["mrpc", "accuracy", "80.0", "85.0", "+5.0"]);
        assert_eq!(line(&text, "rte"), ["rte", "accuracy", "70.0", "66.4", "-3.6"]);
        assert_eq!(line(&text, "average"), ["average", "75.0", "75.7", "+0.7"]);
        let further = text.split("further metrics").nth(1).unwrap();
        assert_eq!(line(further, "mrpc"), ["mrpc", "f1", "90.0", "–", "–"]);
        assert!(further.contains("'teacher-rte' has collapsed on 'rte'"));
    }

    #[test]
    fn other_modes_have_one_column() {
        assert_eq!(line(&results(Mode::Single).render(), "rte"), ["rte", "accuracy", "70.0"]);
        assert_eq!(line(&results(Mode::Multi).render(), "Task"), ["Task", "Metric", "Multi"]);
    }
}
