//! Several kinds of models, of one run or more, side by side: one line each, one column for each task, as in the paper's
//! tables; and what has changed from one line to another.

use bam_cluster::task::Metric;
use serde_json::{Value, json};

use super::cautions;
use super::changes::{self, Change};
use super::judged_run::JudgedRun;
use super::layout::{plain_table, scale};
use super::models::Column;
use super::published;
use super::table::{ABOUT_AVERAGES, DASH, cell};

/// What is compared.
pub struct Comparison<'a> {
    /// Kinds of models, of the first run first.
    pub lines: Vec<Line<'a>>,
    /// Every task of the runs with its main metric, in the order in which they first occur.
    pub tasks: Vec<(String, Metric)>,
    /// Lines that differ from another one by what the paper's tables 3 and 4 are about.
    pub changes: Vec<Change>,
    /// What has to be said: models that have collapsed, stages that are not complete; of which run, if there are several.
    pub notes: Vec<String>,
    /// What keeps lines from being compared.
    pub cautions: Vec<String>,
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

    /// Which line it is, for programs.
    pub fn to_json(&self) -> Value {
        json!({ "run": self.of.results.name, "models": self.column.kind.key })
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
        let lines: Vec<Line> = columns().map(line).collect();
        let changes = changes::find(&lines);
        let cautions = cautions::of(runs, &tasks);
        Comparison { lines, tasks, changes, notes: notes(runs), cautions }
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
            let head = [line.label.clone(), line.column.seeds()];
            let average = cell(&line.column.average(&whole), 100.0, 1);
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

    /// The tables as a terminal shows them.
    pub fn render(&self, with_published: bool) -> String {
        let table = |(header, rows): (Vec<String>, Vec<Vec<String>>)| {
            plain_table(&header.iter().map(String::as_str).collect::<Vec<_>>(), 1, &rows)
        };
        let mut text = format!(
            "\nresults on dev, in percent: medians over models with different seeds\n{}",
            table(self.rows(with_published))
        );
        if self.lines.iter().any(|line| line.column.samples.len() > 1) {
            text += &format!("{ABOUT_AVERAGES}\n");
        }
        if with_published {
            text += &format!("{ABOUT_PUBLISHED}\n");
        }
        text += &self.notes.iter().chain(&self.cautions).map(|note| format!("{note}\n")).collect::<String>();
        let (header, rows) = changes::rows(self, with_published);
        if !rows.is_empty() {
            text += &format!("\n{ABOUT_CHANGES}\n{}", table((header, rows)));
        }
        text
    }
}

fn notes(runs: &[JudgedRun]) -> Vec<String> {
    let of_run = |run: &JudgedRun| {
        let name = if runs.len() > 1 { format!("{}: ", run.results.name) } else { String::new() };
        run.results.notes().into_iter().map(move |note| format!("{name}{note}")).collect::<Vec<_>>()
    };
    runs.iter().flat_map(of_run).collect()
}

/// What has to be said of published scores.
pub const ABOUT_PUBLISHED: &str = "published: BERT-Large; the average is that of all eight tasks (BAM, table 1)";

/// What the table of changes shows.
pub const ABOUT_CHANGES: &str = "changes, in points (BAM, tables 3 and 4): fine-tuned models less those that they go on from, ablations less the whole method";

#[cfg(test)]
mod tests {
    use super::super::fabricated::{self, everywhere};
    use super::super::{latex, scores_csv};
    use super::*;

    /// Two runs: of one, 3 of 20 trials are there, and STS-B has collapsed in the second; the other is complete.
    fn runs(at: &std::path::Path) -> [JudgedRun; 2] {
        let recipe = |name: &str, rest: &str| {
            format!(
                "name: {name}\nmode: multi\nmodel: {{ path: /m }}\ndata: {{ glue: /g, tasks: [mrpc, stsb] }}\n{rest}\n"
            )
        };
        let half = fabricated::run(&at.join("half"), &recipe("half", "trials: 20"), |i, task| match (i, task) {
            (2, "stsb") => Some(everywhere(None)),
            (1, "mrpc") => Some(everywhere(Some(0.7))),
            (1..=3, _) => Some(everywhere(Some(0.9))),
            _ => None,
        });
        let whole = fabricated::run(&at.join("whole"), &recipe("whole", ""), |_, _| Some(everywhere(Some(0.8))));
        [half, whole]
    }

    #[test]
    fn every_form_says_how_many_models_there_are_and_what_is_wrong_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let runs = runs(dir.path());
        let comparison = Comparison::of(&runs);
        let text = comparison.render(false);
        let words: Vec<&str> = text.lines().find(|l| l.contains("Multi (half)")).unwrap().split_whitespace().collect();
        // The mean of the medians 0.9 and 0.9, and the lowest and highest of 0.8, 0.45 and 0.9.
        let expected =
            ["Multi", "(half)", "3", "of", "20", "90.0", "[45.0–90.0]", "90.0", "[70.0–90.0]", "90.0", "[0.0–90.0]"];
        assert_eq!(words, expected);
        let collapsed =
            "half: 'multi@2' has collapsed on 'stsb': it predicts nearly the same value for every dev example\n";
        let latex = latex(&comparison, &[], false);
        for (form, before) in [(&text, "\n"), (&latex, "\n% ")] {
            assert!(form.contains(&format!("{before}{collapsed}")), "{form}");
            assert!(form.contains(&format!("{before}half: not complete: prepare, multi@4, multi@5")), "{form}");
        }
        assert!(latex.contains("% Seeds: Multi (half) 3 of 20, Multi (whole) 1.\n"), "{latex}");
        assert!(latex.contains("\nMulti (half) & 90.0 {\\scriptsize[45.0--90.0]} & "), "{latex}");

        let csv = scores_csv::render(&runs, false).unwrap();
        for line in [
            "half,multi,2,1,multi@2,stsb,dev,spearman,0.0,9,true",
            "half,multi,1,1,multi,stsb,dev,pearson,0.9,9,false",
            "half,multi,4,1,multi@4,mrpc,dev,f1,,,",
            "half,multi,,,,,dev,average,0.9,,",
            "half,multi,,,,,dev,glue_average,0.9,,",
        ] {
            assert!(csv.lines().any(|l| l == line), "no '{line}' in {csv}");
        }

        let page = super::super::page(&runs, false).unwrap();
        assert!(page.contains("3 of 20") && page.contains("half: 'multi@2' has collapsed"), "{page}");
        // Alone, a run needs no name.
        let text = Comparison::of(&runs[..1]).render(true);
        assert!(
            text.contains("\n'multi@2' has collapsed on 'stsb'") && text.contains("\nnot complete: prepare"),
            "{text}"
        );
    }
}
