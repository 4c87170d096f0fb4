//! One page on one run or several, complete in itself: no script, and nothing from elsewhere. Light or dark as the reader's
//! system is.

mod element;
mod happened;
mod provenance;
mod scores;
mod speed;
mod training;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::comparison::Comparison;
use super::judged_run::JudgedRun;
use super::plot;
use super::significance::{self, Test};
use super::story::Story;
use crate::failure;

const STYLE: &str = include_str!("style.css");

/// What a page shows.
pub struct Content<'a> {
    /// The runs.
    pub runs: &'a [JudgedRun],
    /// How each of them went.
    pub stories: &'a [Story],
    /// Their kinds of models, side by side.
    pub comparison: &'a Comparison<'a>,
    /// Whether these differ by more than chance; or why that cannot be said.
    pub tests: Result<Vec<Test>, String>,
    /// Whether the paper's numbers are shown.
    pub with_published: bool,
}

/// The page on these runs, from what is in their directories.
///
/// # Errors
/// Something is there and cannot be read.
pub fn of(runs: &[JudgedRun], with_published: bool) -> anyhow::Result<String> {
    let read = |run: &JudgedRun| Story::read(&run.run, &run.plan, runs.len());
    let stories: Vec<Story> = runs.iter().map(read).collect::<Result<_, _>>()?;
    let comparison = Comparison::of(runs);
    // That predictions are gone is no reason to show nothing.
    let tests = significance::tests(&comparison).map_err(|e| failure::text(&e));
    render(&Content { runs, stories: &stories, comparison: &comparison, tests, with_published })
}

/// The text of a page.
///
/// # Errors
/// A plot cannot be drawn.
pub fn render(content: &Content) -> anyhow::Result<String> {
    let names: Vec<&str> = content.runs.iter().map(|run| run.results.name.as_str()).collect();
    let several = content.runs.len() > 1;
    let mut parts = vec![scores::section(content)?];
    for (run, story) in content.runs.iter().zip(content.stories) {
        let sections = html! {
            (training::section(run, story)?)
            (speed::section(story))
            (happened::section(story))
            (provenance::section(story))
        };
        parts.push(if several {
            html! { article { h2.run { (run.results.name) } (sections) } }
        } else {
            sections
        });
    }
    let title = format!("{} · bam", names.join(", "));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(colour_rules())) }
            }
            body {
                header {
                    @for (run, story) in content.runs.iter().zip(content.stories) { (head(run, story)) }
                }
                main { @for part in &parts { (part) } }
                footer { "Written by bam " (env!("CARGO_PKG_VERSION")) " from the run's directory alone." }
            }
        }
    };
    Ok(page.into_string())
}

/// What a run is, in three lines.
fn head(run: &JudgedRun, story: &Story) -> Markup {
    let (results, recipe) = (&run.results, &run.recipe);
    let done = story.stages.iter().filter(|stage| stage.record.is_some()).count();
    let seconds: f64 = results.seconds.values().sum();
    let steps: u64 = story.stages.iter().filter_map(|s| s.training.as_ref()).map(|t| t.steps()).sum();
    let of = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    html! {
        div.head {
            h1 { (results.name) }
            p.what {
                (results.mode.title()) " · " (of(results.tasks.len() as u64, "task")) " · " (of(recipe.trials, "trial"))
                " · encoder " (recipe.model.path.file_name().unwrap_or_default().to_string_lossy())
            }
            dl.facts {
                (element::fact("Stages", &format!("{done} of {}", story.stages.len())))
                (element::fact("Optimizer steps", &element::grouped(steps)))
                (element::fact("Time of all stages", &crate::numbers::brief(seconds)))
                (element::fact("Processes", &recipe.cluster.processes.to_string()))
            }
            @if !results.missing.is_empty() {
                p.note { "Not complete: " (results.missing.join(", ")) }
            }
        }
    }
}

/// Gives what is drawn in a colour of [`plot::COLOURS`] the one that the reader's light or dark asks for.
fn colour_rules() -> String {
    let rule = |(i, c): (usize, &plotters::style::RGBColor)| {
        let hex = format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2);
        format!(
            "svg [stroke=\"{hex}\"]{{stroke:var(--c{i})}}svg [fill=\"{hex}\"]{{fill:var(--c{i})}}.c{i}{{background:var(--c{i})}}\n"
        )
    };
    plot::COLOURS.iter().enumerate().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use bam_cluster::config::Recipe;
    use bam_cluster::plan::{Plan, StageWork, TaskSize, TrainStage};
    use bam_cluster::protocol::StepReport;
    use bam_cluster::run_dir::RunDir;

    use super::super::curves::Curves;
    use super::super::draws::Draws;
    use super::super::story::{StageStory, Training, points_of_a_curve};
    use super::*;

    const GLUE: [(&str, usize); 8] = [
        ("cola", 8_551),
        ("sst2", 67_349),
        ("mrpc", 3_668),
        ("stsb", 5_749),
        ("qqp", 363_846),
        ("mnli", 392_702),
        ("qnli", 104_743),
        ("rte", 2_490),
    ];

    fn trained(plan: &TrainStage, most: u64) -> Training {
        let report = |step: u64| StepReport {
            step,
            loss: 1.0 + (step as f64).sin() / (1.0 + step as f64 / 1e4),
            task_losses: plan.tasks.iter().map(|task| (task.clone(), 0.5 + (step as f64).cos() / 3.0)).collect(),
            lambda: plan.schedule.lambda(step),
            learning_rate: plan.schedule.learning_rate(step),
            gradient_norm: 1.0 + (step % 97) as f64,
            examples: plan.settings.batch_size,
            tokens: 4000 + step % 1000,
            seconds: 0.1 + (step % 7) as f64 / 100.0,
            phases: Default::default(),
            bytes_reduced: 1 << 28,
            utilisation: 0.5,
            device_memory: None,
        };
        let total = plan.schedule.total_steps;
        let draws =
            plan.tasks.iter().map(|task| Draws { task: task.clone(), size: 9, share: 0.1, drawn: 99 }).collect();
        Training { plan: plan.clone(), curves: Curves::of((0..total).map(report), total, most), draws }
    }

    /// All of GLUE, five times: 46,000 steps a student.
    #[test]
    fn a_page_on_many_steps_and_trials_is_small() {
        let names = GLUE.map(|(task, _)| task).join(", ");
        let text = format!("name: big\ntrials: 5\nmodel: {{ path: /m }}\ndata: {{ glue: /g, tasks: [{names}] }}\n");
        let recipe: Recipe = serde_norway::from_str(&text).unwrap();
        let size =
            |(task, train): (&str, usize)| TaskSize { task: task.into(), train, dev: 9, further: Default::default() };
        let plan = Plan::derive(&recipe, &GLUE.map(size));
        let most = points_of_a_curve(&plan, 1);
        let stage = |stage: &bam_cluster::plan::Stage| StageStory {
            name: stage.name.clone(),
            is_begun: true,
            record: None,
            inputs: Default::default(),
            starts: vec![],
            training: match &stage.work {
                StageWork::Train(train) => Some(trained(train, most)),
                _ => None,
            },
        };
        let story = Story {
            stages: plan.stages.iter().map(stage).collect(),
            jobs: vec![],
            commands: vec![],
            recipe: text,
            plan_hash: plan.hash(),
        };
        let student = story.stages.iter().find(|s| s.name == "student").and_then(|s| s.training.as_ref()).unwrap();
        assert!(student.steps() > 40_000 && student.curves.points.len() > 150);
        let dir = tempfile::tempdir().unwrap();
        let run = JudgedRun::collect(RunDir::new(dir.path()), recipe, plan).unwrap();
        let runs = [run];
        let comparison = Comparison::of(&runs);
        let tests = Err("there are no predictions".to_owned());
        let content = Content { runs: &runs, stories: &[story], comparison: &comparison, tests, with_published: true };
        let page = render(&content).unwrap();
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
        assert!(page.contains("No tests: there are no predictions") && page.contains("Single→Multi, published"));
    }
}
