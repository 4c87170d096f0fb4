//! Several kinds of models, of one run or more, side by side: one line each, one column for each task, as in the paper's
//! tables.

use bam_cluster::task::Metric;

use super::judged_run::JudgedRun;
use super::layout::plain_table;
use super::published;
use super::results::Column;
use super::table::{DASH, cell};

/// What is compared.
pub struct Comparison<'a> {
    /// Kinds of models, of the first run first.
    pub lines: Vec<Line<'a>>,
    /// Every task of the runs with its main metric, in the order in which they first occur.
    pub tasks: Vec<(String, Metric)>,
}

/// One line: a kind of models of one run.
pub struct Line<'a> {
    /// The run.
    pub of: &'a JudgedRun,
    /// The models.
    pub column: &'a Column,
    /// What the models are called, with the run's name where several have such models.
    pub label: String,
}

impl Line<'_> {
    /// Whether others are tested against it.
    pub fn is_baseline(&self) -> bool {
        ["single", "multi"].contains(&self.column.kind.key)
    }
}

impl<'a> Comparison<'a> {
    /// All kinds of models of these runs.
    pub fn of(runs: &'a [JudgedRun]) -> Comparison<'a> {
        let columns = || runs.iter().flat_map(|of| of.results.columns.iter().map(move |column| (of, column)));
        let line = |(of, column): (&'a JudgedRun, &'a Column)| {
            let alike = columns().filter(|(_, other)| other.kind == column.kind).count();
            let title = column.kind.title;
            let label = if alike > 1 { format!("{title} ({})", of.results.name) } else { title.to_owned() };
            Line { of, column, label }
        };
        let mut tasks: Vec<(String, Metric)> = vec![];
        for (task, metrics) in runs.iter().flat_map(|run| &run.results.tasks) {
            if let (Some(metric), false) = (metrics.first(), tasks.iter().any(|(known, _)| known == task)) {
                tasks.push((task.clone(), *metric));
            }
        }
        Comparison { lines: columns().map(line).collect(), tasks }
    }

    /// Each task with its main metric alone, as averages are made of them.
    pub fn main_metrics(&self) -> Vec<(String, Vec<Metric>)> {
        self.tasks.iter().map(|(task, metric)| (task.clone(), vec![*metric])).collect()
    }

    /// A header and a row for each line: models, how many seeds, their average and their main scores, in percent.
    pub fn rows(&self, with_published: bool) -> (Vec<String>, Vec<Vec<String>>) {
        let whole = self.main_metrics();
        let row = |line: &Line| {
            let scores = |(task, metric): &(String, Metric)| {
                let (factor, digits) = scale(*metric);
                cell(&line.column.scores(task, *metric), factor, digits)
            };
            let head = [line.label.clone(), line.column.samples.len().to_string()];
            let average = cell(&line.column.averages(&whole), 100.0, 1);
            head.into_iter().chain([average]).chain(self.tasks.iter().map(scores)).collect()
        };
        let mut rows: Vec<Vec<String>> = self.lines.iter().map(row).collect();
        for (model, average, scores) in published::TABLE_1.iter().filter(|_| with_published) {
            let of_task = |(task, _): &(String, Metric)| {
                let column = published::TASKS.iter().position(|t| t == task);
                column.map_or(DASH.to_owned(), |i| format!("{:.1}", scores[i]))
            };
            let head = [format!("{model}, published"), "≥ 20".to_owned(), format!("{average:.1}")];
            rows.push(head.into_iter().chain(self.tasks.iter().map(of_task)).collect());
        }
        let header = ["Models", "Seeds", "Average"].into_iter().chain(self.tasks.iter().map(|(t, _)| t.as_str()));
        (header.map(str::to_owned).collect(), rows)
    }

    /// The table as a terminal shows it.
    pub fn render(&self, with_published: bool) -> String {
        let (header, rows) = self.rows(with_published);
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let mut text = format!(
            "\nresults on dev, in percent: medians over models with different seeds\n{}",
            plain_table(&header, 1, &rows)
        );
        if with_published {
            text += &published_notes().into_iter().map(|note| note + "\n").collect::<String>();
        }
        text
    }
}

/// What a score of this metric is multiplied by to be shown, and how many decimals it has.
pub fn scale(metric: Metric) -> (f64, usize) {
    if metric.is_share() { (100.0, 1) } else { (1.0, 3) }
}

/// What has to be said of published numbers, and those that have no line of their own.
pub fn published_notes() -> Vec<String> {
    let changes = |(what, table): (&str, &[(&str, f64)])| {
        let figures = table.iter().map(|(name, change)| format!("{name} {change:+.1}"));
        format!("published changes of the average (BAM, {what}): {}", figures.collect::<Vec<_>>().join("; "))
    };
    let first = "published: BERT-Large; the average is that of all eight tasks (BAM, table 1)".to_owned();
    let tables = [("table 3", &published::TABLE_3[..]), ("table 4", &published::TABLE_4[..])];
    [first].into_iter().chain(tables.into_iter().map(changes)).collect()
}
