//! The table as the paper has it, in LaTeX with booktabs: one line for each kind of models, its average first.

use bam_cluster::task::Metric;

use super::changes;
use super::comparison::{ABOUT_CHANGES, ABOUT_PUBLISHED, Comparison, Line};
use super::layout::scale;
use super::models::Summary;
use super::published;
use super::significance::Test;
use super::table::ABOUT_AVERAGES;

/// The table. `tests` marks what differs from Single and Multi by more than chance.
pub fn render(comparison: &Comparison, tests: &[Test], with_published: bool) -> String {
    let columns = "r".repeat(comparison.tasks.len() + 1);
    let titles: String = comparison.tasks.iter().map(|(task, _)| format!(" & {}", title(task))).collect();
    let metric = |(_, metric): &(String, Metric)| format!(" & {{\\footnotesize {}}}", metric.name());
    let metrics: String = comparison.tasks.iter().map(metric).collect();
    let mut text = format!("\\begin{{tabular}}{{@{{}}l{columns}@{{}}}}\n\\toprule\n");
    text += &format!("Model & Avg.{titles} \\\\\n &{metrics} \\\\\n\\midrule\n");
    for (i, line) in comparison.lines.iter().enumerate() {
        text += &row(comparison, tests, i, line);
    }
    if with_published {
        text += "\\midrule\n";
        for (model, average, scores) in published::TABLE_1 {
            let score = |(task, _): &(String, Metric)| {
                let place = published::TASKS.iter().position(|t| t == task);
                place.map_or(" & --".to_owned(), |i| format!(" & {:.1}", scores[i]))
            };
            let scores: String = comparison.tasks.iter().map(score).collect();
            text += &format!("{} (published) & {average:.1}{scores} \\\\\n", escape(model));
        }
    }
    comments(comparison, tests, with_published)
        + &text
        + &changed(comparison, with_published)
        + "\\bottomrule\n\\end{tabular}\n"
}

/// What has to be known of the table, as comments.
fn comments(comparison: &Comparison, tests: &[Test], with_published: bool) -> String {
    let mut said = vec![
        "Needs \\usepackage{booktabs}. Dev sets, in percent; of several models the median and [lowest--highest]."
            .to_owned(),
        format!("{ABOUT_AVERAGES}."),
    ];
    if !tests.is_empty() {
        let marks = "$^{s}$, $^{m}$: differs from Single, Multi (of several, from one at least) by more than chance (p < 0.05, \
                     corrected after Holm).";
        said.push(marks.to_owned());
    }
    let seeds = comparison.lines.iter().map(|line| format!("{} {}", line.label, line.column.seeds()));
    said.push(format!("Seeds: {}.", seeds.collect::<Vec<_>>().join(", ")));
    if with_published {
        said.push(format!("{ABOUT_PUBLISHED}."));
    }
    if !comparison.changes.is_empty() || with_published {
        said.push(format!("{ABOUT_CHANGES}."));
    }
    said.extend(comparison.notes.iter().chain(&comparison.cautions).cloned());
    said.into_iter().map(|line| format!("% {}\n", line.replace('\n', " "))).collect()
}

/// Changes from one line to another, in points, each above what is published of it.
fn changed(comparison: &Comparison, with_published: bool) -> String {
    let signed = |difference: Option<f64>, (factor, digits): (f64, usize)| {
        difference.map_or("--".to_owned(), |d| format!("${:+.digits$}$", factor * d))
    };
    let published = |label: &str, points: f64| {
        let dashes = " & --".repeat(comparison.tasks.len());
        format!("{} (published) & {}{dashes} \\\\\n", escape(label), signed(Some(points), (1.0, 1)))
    };
    let mut rows = vec![];
    for change in &comparison.changes {
        let on = |(task, metric): &(String, Metric)| {
            format!(" & {}", signed(change.of_task(comparison, task, *metric), scale(*metric)))
        };
        let (label, average) = (change.label(comparison), signed(change.of_average(comparison), (100.0, 1)));
        let scores: String = comparison.tasks.iter().map(on).collect();
        rows.push(format!("{} & {average}{scores} \\\\\n", escape(&label)));
        rows.extend(change.published(comparison).filter(|_| with_published).map(|points| published(&label, points)));
    }
    let alone = changes::published_alone(comparison).filter(|_| with_published);
    rows.extend(alone.map(|change| published(&change.label(), change.points)));
    if rows.is_empty() { String::new() } else { format!("\\midrule\n{}", rows.concat()) }
}

fn row(comparison: &Comparison, tests: &[Test], number: usize, line: &Line) -> String {
    let mark = |task: Option<&str>| {
        let of_this = tests.iter().filter(|t| t.line == number && t.task.as_deref() == task && t.is_significant());
        let letter = |test: &Test| comparison.lines[test.baseline].column.kind.key.chars().next();
        let mut letters: Vec<char> = of_this.filter_map(letter).collect();
        // Single's first.
        letters.sort_unstable_by(|a, b| b.cmp(a));
        letters.dedup();
        let letters = letters.into_iter().map(String::from).collect::<Vec<_>>().join(",");
        if letters.is_empty() { letters } else { format!("$^{{{letters}}}$") }
    };
    let average = cell(&line.column.average(&comparison.main_metrics()), 100.0, 1, &mark(None));
    let score = |(task, metric): &(String, Metric)| {
        let (factor, digits) = scale(*metric);
        format!(" & {}", cell(&line.column.scores(task, *metric), factor, digits, &mark(Some(task))))
    };
    let scores: String = comparison.tasks.iter().map(score).collect();
    format!("{} & {average}{scores} \\\\\n", escape(&line.label))
}

/// The figure for all models, mark and spread.
fn cell(summary: &Summary, factor: f64, digits: usize, mark: &str) -> String {
    let Some(middle) = summary.middle else { return "--".to_owned() };
    // A minus is no hyphen.
    let show = |score: f64| format!("{:.digits$}", factor * score).replace('-', "$-$");
    let spread = summary.range().map(|(low, high)| format!(" {{\\scriptsize[{}--{}]}}", show(low), show(high)));
    format!("{}{mark}{}", show(middle), spread.unwrap_or_default())
}

/// A task's name as papers write it, if it is one of GLUE's.
fn title(task: &str) -> String {
    let place = published::TASKS.iter().position(|t| *t == task);
    place.map_or_else(|| escape(task), |i| published::TITLES[i].to_owned())
}

/// Text in which nothing is a command.
fn escape(text: &str) -> String {
    let escaped = |character: char| match character {
        '\\' => "\\textbackslash{}".to_owned(),
        '~' => "\\textasciitilde{}".to_owned(),
        '^' => "\\textasciicircum{}".to_owned(),
        '→' => "$\\to$".to_owned(),
        'λ' => "$\\lambda$".to_owned(),
        '&' | '%' | '$' | '#' | '_' | '{' | '}' => format!("\\{character}"),
        other => other.to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_whatever_is_in_them() {
        assert_eq!(escape("a_b & 50 % {x}^2\\y"), "a\\_b \\& 50 \\% \\{x\\}\\textasciicircum{}2\\textbackslash{}y");
        assert_eq!((escape("Single→Multi").as_str(), title("sst2").as_str()), ("Single$\\to$Multi", "SST-2"));
        assert_eq!(title("my_task"), "my\\_task");
    }

    #[test]
    fn cells_have_a_median_its_mark_and_a_spread() {
        let cell = |middle, each: &[f64], mark| cell(&Summary { middle, each: each.to_vec() }, 100.0, 1, mark);
        assert_eq!(cell(Some(0.61), &[0.5, 0.7, 0.61], "$^{s}$"), "61.0$^{s}$ {\\scriptsize[50.0--70.0]}");
        assert_eq!((cell(Some(-0.1), &[-0.1], "").as_str(), cell(None, &[], "").as_str()), ("$-$10.0", "--"));
    }
}
