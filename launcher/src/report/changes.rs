//! Tables 3 and 4 of the paper, formed from runs: what fine-tuning on each task adds to a model's average, and what leaving
//! a part of the method out does to it.

use std::path::PathBuf;
use std::ptr;

use bam_cluster::config::{
    Annealing, ClusterSection, DataSection, Distill, Mode, ModelSection, Recipe, Reproducible, Sampling,
    SamplingMethod, TrainSection, TrainSettings,
};
use bam_cluster::task::Metric;
use serde_json::{Map, Value, json};

use super::comparison::{Comparison, Line};
use super::layout::scale;
use super::models::{FINE_TUNED, ModelKind, Summary};
use super::published::{self, PublishedChange};
use super::table::DASH;

/// What is done to models, or left out of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alteration {
    /// The model of all tasks is trained on, on each task by itself.
    FineTuning,
    /// All layers have the same learning rate.
    NoLayerwiseRates,
    /// Tasks are drawn in proportion to their size, or all alike.
    NoTaskSampling,
    /// λ is 0 throughout.
    TeachersAlone,
    /// λ is 0.5 throughout.
    NoAnnealing,
}

impl Alteration {
    /// For people, after the name of the models.
    pub fn title(self) -> &'static str {
        match self {
            Alteration::FineTuning => "then fine-tuned",
            Alteration::NoLayerwiseRates => "without layer-wise learning rates",
            Alteration::NoTaskSampling => "without task sampling",
            Alteration::TeachersAlone => "λ = 0 (teachers alone)",
            Alteration::NoAnnealing => "λ = 0.5 (no annealing)",
        }
    }

    /// For programs.
    pub fn key(self) -> &'static str {
        match self {
            Alteration::FineTuning => "fine-tuning",
            Alteration::NoLayerwiseRates => "no-layerwise-rates",
            Alteration::NoTaskSampling => "no-task-sampling",
            Alteration::TeachersAlone => "lambda-0",
            Alteration::NoAnnealing => "lambda-0.5",
        }
    }

    /// What `altered` leaves out of `whole`, if it is one of the paper's ablations and all else that is learnt is the same.
    fn between(whole: &Recipe, altered: &Recipe) -> Option<Alteration> {
        let mut restored = altered.clone();
        let is_annealed = whole.mode.teachers().is_some() && whole.distill.annealing == Annealing::Linear;
        let found = if let (true, Some(found)) = (is_annealed, constant_lambda(altered)) {
            restored.distill.annealing = Annealing::Linear;
            restored.distill.constant = None;
            found
        } else if !lacks_sampling(whole) && lacks_sampling(altered) {
            let loss_weights = altered.sampling.loss_weights.clone();
            restored.sampling = Sampling { loss_weights, ..whole.sampling.clone() };
            Alteration::NoTaskSampling
        } else if !is_flat(&whole.train.multi, whole) && is_flat(&altered.train.multi, altered) {
            restored.train.multi.layerwise_decay = whole.train.multi.layerwise_decay.clone();
            if is_flat(&altered.train.single, altered) {
                restored.train.single.layerwise_decay = whole.train.single.layerwise_decay.clone();
            }
            Alteration::NoLayerwiseRates
        } else {
            return None;
        };
        (decisive(&restored) == decisive(whole)).then_some(found)
    }
}

fn constant_lambda(recipe: &Recipe) -> Option<Alteration> {
    match (recipe.distill.annealing, recipe.distill.constant) {
        (Annealing::Constant, Some(0.0)) => Some(Alteration::TeachersAlone),
        (Annealing::Constant, Some(0.5)) => Some(Alteration::NoAnnealing),
        _ => None,
    }
}

/// Whether nothing is left out of the method that the paper's ablations leave out, and no task weighs more than in it.
fn is_whole(recipe: &Recipe) -> bool {
    let is_annealed = recipe.mode.teachers().is_none() || recipe.distill.annealing == Annealing::Linear;
    is_annealed
        && recipe.sampling.loss_weights.is_empty()
        && !lacks_sampling(recipe)
        && !is_flat(&recipe.train.multi, recipe)
}

fn lacks_sampling(recipe: &Recipe) -> bool {
    let Sampling { method, exponent, .. } = recipe.sampling;
    method == SamplingMethod::Uniform || method == SamplingMethod::Proportional && (exponent == 0.0 || exponent == 1.0)
}

/// Whether all layers of these models have the same rate, whatever the task.
fn is_flat(settings: &TrainSettings, recipe: &Recipe) -> bool {
    let tasks: Vec<String> = recipe.tasks().into_iter().map(|task| task.name).collect();
    let factor = |tasks: &[String]| settings.factor(tasks);
    factor(&tasks) == 1.0 && tasks.iter().all(|task| factor(std::slice::from_ref(task)) == 1.0)
}

/// The part of a recipe that has to be the same for one run to be an ablation of another. Seeds may differ, and places: a
/// run may have been given the other's teachers, or another copy of the data.
fn decisive(recipe: &Recipe) -> Recipe {
    let whole_share = |settings: &TrainSettings| TrainSettings { micro_batch_size: None, ..settings.clone() };
    Recipe {
        name: String::new(),
        seed: 1,
        reproducible: Reproducible::default(),
        virtual_shards: 1,
        model: ModelSection {
            path: recipe.model.path.file_name().map(PathBuf::from).unwrap_or_default(),
            ..recipe.model.clone()
        },
        data: DataSection { glue: None, ..recipe.data.clone() },
        train: TrainSection {
            single: whole_share(&recipe.train.single),
            multi: whole_share(&recipe.train.multi),
            fine_tune: None,
        },
        distill: Distill { teachers: Default::default(), share_teachers: false, ..recipe.distill.clone() },
        cluster: ClusterSection::default(),
        ..recipe.identifying()
    }
}

/// Models that are altered, beside those that are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What is done.
    pub what: Alteration,
    /// The line without it.
    pub from: usize,
    /// The line with it.
    pub to: usize,
}

/// Every change that these lines show.
pub fn find(lines: &[Line]) -> Vec<Change> {
    let pairs = (0..lines.len()).flat_map(|to| (0..lines.len()).map(move |from| (from, to)));
    pairs.filter_map(|(from, to)| Some(Change { what: alteration(&lines[from], &lines[to])?, from, to })).collect()
}

fn alteration(whole: &Line, altered: &Line) -> Option<Alteration> {
    let mode = |line: &Line| line.of.results.mode;
    // The last models of all tasks, not their teachers.
    let is_last = |line: &Line| line.column.kind == ModelKind::of_mode(mode(line));
    if altered.column.kind == FINE_TUNED {
        return (is_last(whole) && ptr::eq(whole.of, altered.of)).then_some(Alteration::FineTuning);
    }
    let same_kind = is_last(whole) && is_last(altered) && mode(whole) == mode(altered);
    let found = same_kind.then(|| Alteration::between(&whole.of.recipe, &altered.of.recipe)).flatten();
    found.filter(|_| whole.of.judged_otherwise(altered.of).is_empty())
}

impl Change {
    fn difference(&self, comparison: &Comparison, of: impl Fn(&Line) -> Summary) -> Option<f64> {
        let middle = |line: usize| of(&comparison.lines[line]).middle;
        Some(middle(self.to)? - middle(self.from)?)
    }

    /// By how much the average grows, as a share.
    pub fn of_average(&self, comparison: &Comparison) -> Option<f64> {
        let tasks = comparison.main_metrics();
        self.difference(comparison, |line| line.column.average(&tasks))
    }

    /// By how much a task's median grows; a share, but for errors.
    pub fn of_task(&self, comparison: &Comparison, task: &str, metric: Metric) -> Option<f64> {
        self.difference(comparison, |line| line.column.scores(task, metric))
    }

    /// What is changed, and how; where there are several to compare with, also with which.
    pub fn label(&self, comparison: &Comparison) -> String {
        let Change { what, from, to } = *self;
        let label = |line: usize| comparison.lines[line].label.as_str();
        let named = if what == Alteration::FineTuning { from } else { to };
        let alike = comparison.changes.iter().filter(|c| (c.what, c.to) == (what, to)).count();
        let against = if alike > 1 { format!(", against {}", label(from)) } else { String::new() };
        format!("{}, {}{against}", label(named), what.title())
    }

    /// What the paper says of it, in points; nothing where it has not been done to the whole method.
    pub fn published(&self, comparison: &Comparison) -> Option<f64> {
        let mode = self.mode(comparison);
        if !is_whole(&comparison.lines[self.from].of.recipe) {
            return None;
        }
        published::CHANGES.iter().find(|c| (c.mode, c.what) == (mode, self.what)).map(|c| c.points)
    }

    fn mode(&self, comparison: &Comparison) -> Mode {
        comparison.lines[self.from].of.results.mode
    }

    /// For programs; `published` if it is asked for.
    pub fn to_json(self, comparison: &Comparison, with_published: bool) -> Value {
        let tasks = comparison.tasks.iter().map(|(t, m)| (t.clone(), json!(self.of_task(comparison, t, *m))));
        let mut value = json!({
            "what": self.what.key(),
            "altered": comparison.lines[self.to].to_json(),
            "against": comparison.lines[self.from].to_json(),
            "average": self.of_average(comparison),
            "tasks": tasks.collect::<Map<_, _>>(),
        });
        if with_published {
            value["published"] = json!(self.published(comparison).map(|points| points / 100.0));
        }
        value
    }
}

/// What the paper published and none of the runs shows.
pub fn published_alone(comparison: &Comparison) -> impl Iterator<Item = &'static PublishedChange> {
    let shown: Vec<(Mode, Alteration)> = comparison.changes.iter().map(|c| (c.mode(comparison), c.what)).collect();
    published::CHANGES.iter().filter(move |c| !shown.contains(&(c.mode, c.what)))
}

/// A header and a row for each change, in points: of the average, as published if that is asked for, and of each task.
/// Published changes that no run shows come last.
pub fn rows(comparison: &Comparison, with_published: bool) -> (Vec<String>, Vec<Vec<String>>) {
    let of_paper = |points: Option<f64>| {
        let shown = points.map_or(DASH.to_owned(), |points| format!("{points:+.1}"));
        with_published.then_some(shown)
    };
    let row = |change: &Change| {
        let on = |(task, metric): &(String, Metric)| signed(change.of_task(comparison, task, *metric), scale(*metric));
        let average = signed(change.of_average(comparison), (100.0, 1));
        let head = [change.label(comparison), average].into_iter().chain(of_paper(change.published(comparison)));
        head.chain(comparison.tasks.iter().map(on)).collect::<Vec<String>>()
    };
    let mut rows: Vec<Vec<String>> = comparison.changes.iter().map(row).collect();
    for change in published_alone(comparison).filter(|_| with_published) {
        let head = [change.label(), DASH.to_owned()].into_iter().chain(of_paper(Some(change.points)));
        rows.push(head.chain(comparison.tasks.iter().map(|_| DASH.to_owned())).collect());
    }
    let published = with_published.then_some("Published");
    let header = ["Change", "Average"].into_iter().chain(published);
    (header.chain(comparison.tasks.iter().map(|(t, _)| t.as_str())).map(str::to_owned).collect(), rows)
}

/// A difference with its sign; `factor` and decimals as of [`scale`].
fn signed(difference: Option<f64>, (factor, digits): (f64, usize)) -> String {
    difference.map_or(DASH.to_owned(), |d| format!("{:+.digits$}", factor * d))
}

#[cfg(test)]
mod tests {
    use super::super::fabricated::{self, everywhere};
    use super::super::judged_run::JudgedRun;
    use super::super::{latex, scores_csv};
    use super::*;

    const WHOLE: &str = "name: whole\nmodel: { path: /a/bert }\ndata: { glue: /g, tasks: [cola, rte] }\n";

    fn recipe(more: &str) -> Recipe {
        serde_norway::from_str(&format!("{WHOLE}{more}")).unwrap()
    }

    fn found(more: &str) -> Option<Alteration> {
        Alteration::between(&recipe(""), &recipe(more))
    }

    #[test]
    fn ablations_are_known_by_what_their_recipes_leave_out() {
        for (more, expected) in [
            ("train: { multi: { layerwise_decay: 1.0 } }", Alteration::NoLayerwiseRates),
            (
                "train: { single: { layerwise_decay: 1.0 }, multi: { layerwise_decay: 1.0 } }",
                Alteration::NoLayerwiseRates,
            ),
            ("sampling: { exponent: 1 }", Alteration::NoTaskSampling),
            ("sampling: { method: uniform }", Alteration::NoTaskSampling),
            ("distill: { annealing: constant, lambda: 0 }", Alteration::TeachersAlone),
            ("distill: { annealing: constant, lambda: 0.5 }", Alteration::NoAnnealing),
            // Trained elsewhere, with another seed, from teachers that were there.
            (
                "seed: 7\ntrials: 3\ncluster: { processes: 64 }\nsampling: { exponent: 1 }\n\
                 distill: { teachers: { cola: /runs/whole/cola } }\ntrain: { multi: { micro_batch_size: 4 } }",
                Alteration::NoTaskSampling,
            ),
        ] {
            assert_eq!(found(more), Some(expected), "{more}");
        }
    }

    #[test]
    fn what_differs_in_more_than_one_thing_is_no_ablation() {
        for more in [
            "",
            "train: { multi: { layerwise_decay: 0.8 } }",
            "train: { single: { layerwise_decay: 1.0 } }",
            "train: { single: { layerwise_decay: 0.8 }, multi: { layerwise_decay: 1.0 } }",
            "train: { multi: { layerwise_decay: 1.0, epochs: 3 } }",
            "sampling: { exponent: 0.5 }",
            "distill: { annealing: constant, lambda: 0.3 }",
            "distill: { annealing: constant, lambda: 0 }\nsampling: { exponent: 1 }",
            "distill: { annealing: constant, lambda: 0, temperature: 2 }",
            "sampling: { exponent: 1, loss_weights: { rte: 2 } }",
        ] {
            assert_eq!(found(more), None, "{more}");
        }
        // From an ablation nothing else is left out, and the whole is no ablation of it.
        let ablated = recipe("distill: { annealing: constant, lambda: 0.5 }");
        assert_eq!(Alteration::between(&ablated, &recipe("")), None);
        let other = recipe("distill: { annealing: constant, lambda: 0 }");
        assert_eq!(Alteration::between(&ablated, &other), None);
    }

    #[test]
    fn the_recipes_of_the_papers_tables_are_recognised() {
        let read = |name: &str| -> Recipe {
            let path = format!("{}/../configs/glue/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            serde_norway::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
        };
        let whole = read("bert-large-single-to-multi");
        let of = |name: &str| Alteration::between(&whole, &read(name));
        assert_eq!(of("ablation-no-layerwise-rates"), Some(Alteration::NoLayerwiseRates));
        assert_eq!(of("ablation-no-task-sampling"), Some(Alteration::NoTaskSampling));
        assert_eq!(of("ablation-lambda-0"), Some(Alteration::TeachersAlone));
        assert_eq!(of("ablation-lambda-half"), Some(Alteration::NoAnnealing));
        assert_eq!((of("bert-base-single-to-multi"), of("reference-multiples")), (None, None));
        // With fine-tuning after it, the model of all tasks is still the same.
        let tuned = read("fine-tuned-single-to-multi");
        assert_eq!(Alteration::between(&tuned, &read("ablation-lambda-0")), of("ablation-lambda-0"));
    }

    /// Single→Multi with fine-tuning after it, and without task sampling. Of the first, stages 1 and 2 are teachers, 4 is the
    /// student, 5 and 6 are fine-tuned.
    fn runs(at: &std::path::Path) -> [JudgedRun; 2] {
        let recipe = |name: &str, more: &str| format!("{}{more}", WHOLE.replace("whole", name));
        let tuned = recipe("tuned", "train: { fine_tune: {} }\n");
        let score = |share| Some(everywhere(Some(share)));
        [
            fabricated::run(&at.join("tuned"), &tuned, |i, task| match (i, task) {
                (1 | 2, _) => score(0.5),
                (4, "cola") => score(0.6),
                (4, _) => score(0.8),
                (_, "cola") => score(0.61),
                _ => score(0.802),
            }),
            fabricated::run(&at.join("plain"), &recipe("plain", "sampling: { exponent: 1 }\n"), |_, task| {
                score(if task == "cola" { 0.57 } else { 0.824 })
            }),
        ]
    }

    #[test]
    fn tables_3_and_4_are_formed_from_runs_beside_what_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let runs = runs(dir.path());
        let comparison = Comparison::of(&runs);
        let text = comparison.render(true);
        let row = |start: &str| -> Vec<&str> {
            let line = text.lines().find_map(|l| l.trim_start().strip_prefix(start));
            line.unwrap_or_else(|| panic!("no '{start}' in {text}")).split_whitespace().collect()
        };
        // Average, published, CoLA, RTE: the fine-tuned models less the student, not less the teachers.
        assert_eq!(row("Single→Multi (tuned), then fine-tuned"), ["+0.6", "+0.1", "+1.0", "+0.2"]);
        assert_eq!(row("Single→Multi (plain), without task sampling"), ["-0.3", "-0.4", "-3.0", "+2.4"]);
        assert_eq!(row("Multi, then fine-tuned"), ["–", "+0.3", "–", "–"]);
        assert_eq!(row("Single→Multi, λ = 0 (teachers alone)"), ["–", "-0.5", "–", "–"]);
        assert_eq!(rows(&comparison, true).1.len(), 6);
        let (header, rows) = rows(&comparison, false);
        assert_eq!((header.join(" "), rows.len()), ("Change Average cola rte".to_owned(), 2));

        let latex = latex(&comparison, &[], true);
        for line in [
            "Single$\\to$Multi (plain), without task sampling & $-0.3$ & $-3.0$ & $+2.4$ \\\\",
            "Single$\\to$Multi (plain), without task sampling (published) & $-0.4$ & -- & -- \\\\",
            "Multi, then fine-tuned (published) & $+0.3$ & -- & -- \\\\",
            "Single$\\to$Multi, $\\lambda$ = 0.5 (no annealing) (published) & $-0.3$ & -- & -- \\\\",
        ] {
            assert!(latex.lines().any(|l| l == line), "no '{line}' in {latex}");
        }
        let csv = scores_csv::render(&runs, true).unwrap();
        for (start, score) in [
            ("plain,single-to-multi,,,,,dev,change of the average: no-task-sampling,", -0.003),
            ("tuned,single-to-multi,,,,,dev,change of the average: fine-tuning,", 0.006),
            ("\"published (BERT-Large, medians)\",multi,,,,,dev,change of the average: fine-tuning,", 0.003),
            ("\"published (BERT-Large, medians)\",single-to-multi,,,,,dev,average,", 0.86),
        ] {
            let rest =
                csv.lines().find_map(|l| l.strip_prefix(start)).unwrap_or_else(|| panic!("no '{start}' in {csv}"));
            assert!((rest.trim_end_matches(',').parse::<f64>().unwrap() - score).abs() < 1e-9, "{rest}");
        }
        let json = comparison.changes.iter().map(|c| c.to_json(&comparison, true)).collect::<Vec<_>>();
        let ablated = json.iter().find(|c| c["what"] == "no-task-sampling").unwrap();
        assert_eq!((&ablated["altered"]["run"], &ablated["against"]["run"]), (&json!("plain"), &json!("tuned")));
        assert_eq!(ablated["published"], json!(-0.4 / 100.0));
        assert!(super::super::page(&runs, true).unwrap().contains("without task sampling"));
    }

    #[test]
    fn where_there_are_two_to_compare_with_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let whole = |name: &str| fabricated::run(&at(name), &WHOLE.replace("whole", name), |_, _| None);
        let ablated = format!("{WHOLE}distill: {{ annealing: constant, lambda: 0 }}\n");
        let runs = [whole("a"), whole("b"), fabricated::run(&at("c"), &ablated, |_, _| None)];
        let comparison = Comparison::of(&runs);
        let labels: Vec<String> = comparison.changes.iter().map(|c| c.label(&comparison)).collect();
        let label = |run: &str| format!("Single→Multi (whole), λ = 0 (teachers alone), against Single→Multi ({run})");
        assert_eq!(labels, ["a", "b"].map(label));
    }
}
