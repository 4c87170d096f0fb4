//! How models learnt: curves over optimizer steps, and what was drawn from which task.

use maud::{Markup, html};

use super::super::curves::Point;
use super::super::judged_run::JudgedRun;
use super::super::plot::{self, Series};
use super::super::story::{StageStory, Story, Training};
use super::element;

/// Points of curves of what changes by itself, and of speeds, in which a step alone says little.
const FINE: usize = usize::MAX;
const COARSE: usize = 40;

/// Stages whose curves stand in the same plots: a model of several tasks by itself, all models of one task together.
struct Group<'a> {
    title: String,
    stages: Vec<(&'a str, &'a Training)>,
}

impl Group<'_> {
    /// The names of its models; none where the title says which model it is.
    fn legend<'a>(&self, series: &'a [Series]) -> Vec<(usize, &'a str)> {
        let is_broad = self.stages.iter().all(|(_, training)| training.plan.tasks.len() > 1);
        if is_broad { vec![] } else { legend(series) }
    }
}

/// The section of one run.
pub fn section(run: &JudgedRun, story: &Story) -> anyhow::Result<Markup> {
    let groups = groups(run, story);
    Ok(html! {
        section {
            h2 { "Training" }
            @if groups.is_empty() { p { "No step has been done yet." } }
            @for (i, group) in groups.iter().enumerate() {
                details open[i == 0] {
                    summary { (group.title) }
                    div.grid { (figures(run, group)?) }
                    @for (_, training) in group.stages.iter().filter(|(_, t)| t.plan.tasks.len() > 1) {
                        (drawn(training))
                    }
                }
            }
        }
    })
}

/// Models of several tasks first: they are what the run is for.
fn groups<'a>(run: &JudgedRun, story: &'a Story) -> Vec<Group<'a>> {
    let trials = run.recipe.trials > 1;
    let mut groups: Vec<(bool, Group)> = vec![];
    for StageStory { name, training, .. } in &story.stages {
        let Some(training) = training.as_ref().filter(|t| t.steps() > 0) else { continue };
        let is_broad = training.plan.tasks.len() > 1;
        let of_trial = if trials { format!(", trial {}", training.plan.trial) } else { String::new() };
        let what = match (is_broad, training.plan.start.is_some(), training.plan.teachers.is_empty()) {
            // A trial's number is in the stage's name, too.
            (true, ..) => name.split('@').next().unwrap_or_default(),
            (false, true, _) => "Fine-tuned models of one task",
            (false, false, true) => "Models of one task",
            (false, false, false) => "Students of one task",
        };
        let title = format!("{what}{of_trial}");
        match groups.iter_mut().find(|(_, group)| !is_broad && group.title == title) {
            Some((_, group)) => group.stages.push((name, training)),
            None => groups.push((is_broad, Group { title, stages: vec![(name, training)] })),
        }
    }
    groups.sort_by_key(|(is_broad, _)| !is_broad);
    groups.into_iter().map(|(_, group)| group).collect()
}

fn figures(run: &JudgedRun, group: &Group) -> anyhow::Result<Markup> {
    let distilled = group.stages.iter().any(|(_, training)| !training.plan.teachers.is_empty());
    let mut figures = vec![loss(group)?];
    if let [(_, only)] = &group.stages[..]
        && only.plan.tasks.len() > 1
    {
        figures.extend(losses_by_task(run, only)?);
    }
    let mut add = |title, unit, most: usize, of: &dyn Fn(&Point) -> f64| {
        let curve =
            |(i, (name, training)): (usize, &(&str, &Training))| curve(i, name, &training.curves.coarse(most), of);
        let series: Vec<Series> = group.stages.iter().enumerate().map(curve).collect();
        plot::lines(&series, true).map(|svg| figures.push(element::figure(title, unit, &group.legend(&series), &svg)))
    };
    if distilled {
        add("λ", "weight of the gold labels", FINE, &Point::lambda)?;
    }
    add("Learning rate", "before layer-wise factors", FINE, &Point::learning_rate)?;
    add("Gradient norm", "before clipping", FINE, &Point::gradient_norm)?;
    add("Throughput", "samples/s", COARSE, &Point::samples_per_second)?;
    if let [_] = &group.stages[..] {
        add("Throughput", "tokens/s, without padding", COARSE, &Point::tokens_per_second)?;
        add("Model FLOPs utilisation", "%", COARSE, &|p| 100.0 * p.utilisation())?;
    }
    Ok(html! { @for figure in &figures { (figure) } })
}

fn curve(colour: usize, label: &str, points: &[Point], of: &dyn Fn(&Point) -> f64) -> Series {
    let points = points.iter().map(|p| (middle(p), of(p))).collect();
    Series { label: label.to_owned(), colour, points, band: vec![] }
}

/// Where a point stands: in the middle of its steps.
fn middle(point: &Point) -> f64 {
    point.first_step as f64 + (point.steps as f64 - 1.0) / 2.0
}

fn legend(series: &[Series]) -> Vec<(usize, &str)> {
    series.iter().map(|s| (s.colour, s.label.as_str())).collect()
}

fn loss(group: &Group) -> anyhow::Result<Markup> {
    let mut series: Vec<Series> =
        group.stages.iter().enumerate().map(|(i, (name, t))| curve(i, name, &t.curves.points, &Point::loss)).collect();
    let steps = group.stages.iter().flat_map(|(_, t)| t.curves.points.iter().map(|p| p.steps)).max().unwrap_or(1);
    if let ([only], [(_, training)]) = (&mut series[..], &group.stages[..]) {
        let range = |p: &Point| (middle(p), p.loss_range.0, p.loss_range.1);
        only.band = training.curves.points.iter().filter(|_| steps > 1).map(range).collect();
    }
    let unit = match (steps, series.len()) {
        (1, _) => "of each batch".to_owned(),
        (n, 1) => format!("mean of {n} steps; band: lowest to highest"),
        (n, _) => format!("mean of {n} steps"),
    };
    Ok(element::figure("Loss", &unit, &group.legend(&series), &plot::lines(&series, true)?))
}

/// Loss by task: classification and regression apart, for theirs are not of one size.
fn losses_by_task(run: &JudgedRun, training: &Training) -> anyhow::Result<Vec<Markup>> {
    let is_of_classes = |task: &str| run.kind_of(task).is_none_or(|kind| kind.is_classification());
    let of_task = |(colour, task): (usize, &String)| {
        let point = |p: &Point| Some((middle(p), p.task_loss(task)?));
        let points = training.curves.points.iter().filter_map(point).collect();
        Series { label: task.clone(), colour, points, band: vec![] }
    };
    let tasks = training.plan.tasks.iter().enumerate();
    let (classes, scores): (Vec<_>, Vec<_>) = tasks.partition(|(_, task)| is_of_classes(task));
    let figure = |(tasks, unit): (Vec<(usize, &String)>, &str)| {
        let series: Vec<Series> = tasks.into_iter().map(of_task).collect();
        Ok(element::figure("Loss by task", unit, &legend(&series), &plot::lines(&series, true)?))
    };
    let units = [(classes, "cross-entropy, nats"), (scores, "squared error on a 0–1 scale")];
    units.into_iter().filter(|(tasks, _)| !tasks.is_empty()).map(figure).collect()
}

/// What was drawn from which task.
fn drawn(training: &Training) -> Markup {
    let all: u64 = training.draws.iter().map(|d| d.drawn).sum();
    let share = |drawn: u64| 100.0 * drawn as f64 / all.max(1) as f64;
    html! {
        h3 { "Examples drawn in " (element::grouped(training.steps())) " steps" }
        div.scroll {
            table {
                thead { tr {
                    th { "Task" } th.n { "Examples" } th.n { "Drawn" } th.n { "Passes" } th.n { "Share, planned" }
                    th.n { "Share" } th {}
                } }
                tbody {
                    @for (i, one) in training.draws.iter().enumerate() {
                        tr {
                            td { (one.task) }
                            td.n { (element::grouped(one.size as u64)) }
                            td.n { (element::grouped(one.drawn)) }
                            td.n { (format!("{:.2}", one.drawn as f64 / one.size.max(1) as f64)) }
                            td.n { (format!("{:.1} %", 100.0 * one.share)) }
                            td.n { (format!("{:.1} %", share(one.drawn))) }
                            td.wide { div.bar {
                                i class=(format!("c{}", plot::colour_of(i)))
                                    style=(format!("width:{:.1}%", share(one.drawn))) {}
                            } }
                        }
                    }
                }
            }
        }
    }
}
