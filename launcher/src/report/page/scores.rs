//! Results on dev: tables, every model's score as a dot, and whether differences are more than chance.

use bam_cluster::task::Metric;
use maud::{Markup, html};

use super::super::changes;
use super::super::comparison::{ABOUT_CHANGES, ABOUT_PUBLISHED, Comparison};
use super::super::plot::{self, Dots};
use super::super::significance::{self, NO_TESTS};
use super::super::table::ABOUT_AVERAGES;
use super::{Content, element};

/// The section, for all runs together.
pub fn section(content: &Content) -> anyhow::Result<Markup> {
    let comparison = content.comparison;
    let several = content.runs.len() > 1;
    Ok(html! {
        section {
            h2 { "Results on dev" }
            @if let [only] = content.runs {
                @for (i, (header, rows)) in only.results.tables().iter().enumerate() {
                    @if i > 0 { h3 { "Further metrics" } }
                    (element::table(header, 2, rows))
                }
            }
            @if several || content.with_published {
                @let (header, rows) = comparison.rows(content.with_published);
                h3 { "Kinds of models" }
                (element::table(&header, 1, &rows))
            }
            p.hint {
                "In percent; of several models with different seeds the median and [lowest–highest]; " (ABOUT_AVERAGES) "."
            }
            @if content.with_published { p.hint { (ABOUT_PUBLISHED) } }
            @if content.runs.iter().any(|run| !run.results.collapsed.is_empty()) {
                p.note {
                    @for run in content.runs {
                        @for collapse in &run.results.collapsed {
                            @if several { (run.results.name) ": " } (collapse.to_string()) br;
                        }
                    }
                }
            }
            @if several && !comparison.cautions.is_empty() {
                p.note { @for caution in &comparison.cautions { (caution) br; } }
            }
            @if several || content.with_published { (changed(content)) }
            div.pair {
                (every_model(comparison)?)
                (tests(content))
            }
        }
    })
}

/// What has changed from one kind of models to another.
fn changed(content: &Content) -> Markup {
    let (header, rows) = changes::rows(content.comparison, content.with_published);
    html! {
        @if !rows.is_empty() {
            h3 { "Changes" }
            (element::table(&header, 1, &rows))
            p.hint { (ABOUT_CHANGES) }
        }
    }
}

/// Scores of all models, by task.
fn every_model(comparison: &Comparison) -> anyhow::Result<Markup> {
    let tasks: Vec<&(String, Metric)> = comparison.tasks.iter().filter(|(_, metric)| metric.is_share()).collect();
    let rows: Vec<String> = tasks.iter().map(|(task, _)| task.clone()).chain(["average".to_owned()]).collect();
    let whole = comparison.main_metrics();
    let dots = |(i, line): (usize, &super::super::comparison::Line)| {
        let of_task = |(row, (task, metric)): (usize, &&(String, Metric))| {
            line.column
                .scores(task, *metric)
                .each
                .into_iter()
                .map(move |score| (row, 100.0 * score))
                .collect::<Vec<_>>()
        };
        let averages = line.column.average(&whole).each.into_iter().map(|score| (tasks.len(), 100.0 * score));
        Dots { colour: i, values: tasks.iter().enumerate().flat_map(of_task).chain(averages).collect() }
    };
    let series: Vec<Dots> = comparison.lines.iter().enumerate().map(dots).collect();
    if series.iter().all(|one| one.values.is_empty()) {
        return Ok(html! { div { p { "No model has been judged yet." } } });
    }
    let legend: Vec<(usize, &str)> = comparison.lines.iter().enumerate().map(|(i, l)| (i, l.label.as_str())).collect();
    let svg = plot::dots(&rows, &series)?;
    Ok(html! { div { (element::figure("Every model's main score on dev", "%", &legend, &svg)) } })
}

fn tests(content: &Content) -> Markup {
    html! { div {
        h3 { "More than chance?" }
        @match &content.tests {
            Err(why) => p.note { "No tests: " (why) },
            Ok(tests) if tests.is_empty() => p { (NO_TESTS) },
            Ok(tests) => {
                @let (header, rows) = significance::rows(tests, content.comparison);
                div.scroll {
                    table {
                        thead { tr { @for (i, name) in header.iter().enumerate() { th.n[(1..4).contains(&i)] { (name) } } } }
                        tbody {
                            @for (test, row) in tests.iter().zip(&rows) {
                                tr.sure[test.is_significant()] {
                                    @for (i, cell) in row.iter().enumerate() {
                                        @if (1..4).contains(&i) { td.n { (element::minus(cell)) } } @else { td { (cell) } }
                                    }
                                }
                            }
                        }
                    }
                }
                p.hint { "How: " (significance::how(tests, content.comparison)) }
            }
        }
    } }
}
