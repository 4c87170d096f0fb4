//! Values that are of the right type and make no sense, refused before anything starts.

use std::collections::HashSet;

use super::error::{ConfigError, nearest};
use super::per_task::PerTask;
use super::schema::{Annealing, Breadth, DeviceKind, Launcher, Precision, Recipe, Reproducible, SamplingMethod};
use super::slurm;
use super::task_entry::{OwnTask, TaskEntry, TaskType};
use super::train::TrainSettings;
use crate::task::GLUE_NAMES;

type Checked = Result<(), ConfigError>;

/// Trainings of one task in a run.
const MOST_TRAININGS: u64 = 10_000;
/// Epochs of one training.
const MOST_EPOCHS: u64 = 1_000_000;
/// Examples in a batch.
const LARGEST_BATCH: usize = 1 << 24;
/// Ranks of a stage.
const MOST_PROCESSES: usize = 1 << 16;

/// Refuses what cannot work.
pub(super) fn validate(recipe: &Recipe) -> Checked {
    check_name("name", &recipe.name)?;
    require(recipe.model.max_length >= 8, "model.max_length", "must be at least 8 tokens")?;
    require(recipe.model.layers != Some(0), "model.layers", "must be at least 1")?;
    if let Some(p) = recipe.model.dropout {
        require((0.0..1.0).contains(&p), "model.dropout", "must be at least 0 and below 1")?;
    }
    check_tasks(recipe)?;
    check_virtual_shards(recipe)?;
    check_proportions(recipe)?;
    for (breadth, key) in [(Breadth::Single, "train.single"), (Breadth::Multi, "train.multi")] {
        if recipe.mode.trains(breadth) {
            check_training(recipe, key, recipe.train.of(breadth))?;
            check_search(key, recipe.train.of(breadth))?;
        }
    }
    for (settings, key) in
        [(Some(&recipe.train.multi), "train.multi"), (recipe.train.fine_tune.as_ref(), "train.fine_tune")]
    {
        let searches = settings.is_some_and(|s| s.search.is_some());
        require(!searches, &format!("{key}.search"), "is for models of one task: train.single.search")?;
    }
    if let Some(settings) = &recipe.train.fine_tune {
        let has_multi = recipe.mode.students() == Breadth::Multi;
        require(has_multi, "train.fine_tune", "goes on from a model of all tasks; this mode ends with none")?;
        check_training(recipe, "train.fine_tune", settings)?;
    }
    check_distill(recipe)?;
    check_sampling(recipe)?;
    require(recipe.checkpoint.every_steps > 0, "checkpoint.every_steps", "must be at least 1")?;
    require(recipe.checkpoint.keep > 0, "checkpoint.keep", "must be at least 1")?;
    let processes = recipe.cluster.processes;
    require((1..=MOST_PROCESSES).contains(&processes), "cluster.processes", "must be at least 1 and at most 65536")?;
    if let Some(said) = &recipe.cluster.single_processes {
        let fits = |ranks| (1..=processes).contains(&ranks);
        let problem = "must be at least 1 and at most cluster.processes";
        check_per_task(recipe, "cluster.single_processes", said, fits, problem)?;
    }
    check_hosts(&recipe.cluster.hosts)?;
    let names_hosts = recipe.cluster.launcher == Launcher::Srun && !recipe.cluster.hosts.is_empty();
    let problem = "is for mpirun; srun (cluster.launcher) starts ranks on the nodes of its job";
    require(!names_hosts, "cluster.hosts", problem)?;
    let rounds_on_cpu = recipe.cluster.device == DeviceKind::Cpu && recipe.cluster.precision == Precision::Tf32;
    require(!rounds_on_cpu, "cluster.precision", "tf32 is for GPUs; on CPUs there are fp32 and bf16")?;
    slurm::check(&recipe.slurm)?;
    require(recipe.cluster.threads > 0, "cluster.threads", "must be at least 1")?;
    require(recipe.cluster.deadline > 0, "cluster.deadline", "must be at least 1 second")
}

fn invalid(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.into(), problem: problem.into() }
}

fn require(condition: bool, key: &str, problem: &str) -> Checked {
    if condition { Ok(()) } else { Err(invalid(key, problem)) }
}

/// They become one argument of `mpirun`.
fn check_hosts(hosts: &[String]) -> Checked {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    for (i, entry) in hosts.iter().enumerate() {
        let (host, ranks) = entry.split_once(':').map_or((entry.as_str(), None), |(host, ranks)| (host, Some(ranks)));
        let counts = ranks.is_none_or(|n| n.parse::<u16>().is_ok_and(|n| n > 0));
        let good = counts && !host.starts_with('-') && !host.is_empty() && host.chars().all(allowed);
        require(
            good,
            &format!("cluster.hosts[{i}]"),
            &format!("'{entry}' is no host; write n1, or n1:4 for four ranks"),
        )?;
    }
    Ok(())
}

/// Names become names of files and tensors.
fn check_name(key: &str, name: &str) -> Checked {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let good = !name.is_empty() && name.chars().all(allowed);
    require(good, key, &format!("'{name}' must consist of letters, digits, '-' and '_'"))
}

fn check_virtual_shards(recipe: &Recipe) -> Checked {
    let (shards, processes) = (recipe.virtual_shards, recipe.cluster.processes);
    require(shards > 0, "virtual_shards", "must be at least 1")?;
    if recipe.reproducible == Reproducible::WorldSize && processes > shards {
        let problem = format!(
            "{shards} virtual shards cannot be shared by {processes} processes; use fewer processes (-n) or, in a run of \
             its own, more virtual_shards"
        );
        return Err(invalid("cluster.processes", problem));
    }
    Ok(())
}

fn check_tasks(recipe: &Recipe) -> Checked {
    require(!recipe.data.tasks.is_empty(), "data.tasks", "name at least one task")?;
    for (key, limit) in [
        ("data.max_train_examples", recipe.data.max_train_examples),
        ("data.max_dev_examples", recipe.data.max_dev_examples),
    ] {
        require(limit != Some(0), key, "must be at least 1, or left out")?;
    }
    let mut seen = HashSet::new();
    for (i, entry) in recipe.data.tasks.iter().enumerate() {
        let key = format!("data.tasks[{i}]");
        let name = entry.name();
        check_name(&key, name)?;
        if !seen.insert(name) {
            return Err(invalid(key, format!("two tasks are named '{name}'; give one of them another name")));
        }
        match entry {
            TaskEntry::Glue(name) => check_glue(recipe, &key, name)?,
            TaskEntry::Own(own) => check_own(&key, own)?,
        }
    }
    Ok(())
}

fn check_glue(recipe: &Recipe, key: &str, name: &str) -> Checked {
    if !GLUE_NAMES.contains(&name) {
        let hint = match nearest(name, GLUE_NAMES) {
            _ if name.eq_ignore_ascii_case("ax") => {
                " to train on; mnli's model answers AX with 'predict: [test]', if its file is there.".to_owned()
            }
            Some(near) => format!("; did you mean '{near}'?"),
            None => ".".to_owned(),
        };
        let known = GLUE_NAMES.join(", ");
        return Err(invalid(
            key,
            format!(
                "there is no GLUE task '{name}'{hint} Known: {known}. A task of your own is a mapping with name, train, text, label, type"
            ),
        ));
    }
    let given = recipe.data.glue.is_some();
    require(given, "data.glue", &format!("is missing: task '{name}' needs GLUE's directory (with CoLA/, SST-2/, …)"))
}

fn check_own(key: &str, own: &OwnTask) -> Checked {
    let problem =
        |field: &str, problem: &str| Err(invalid(format!("{key}.{field}"), format!("task '{}': {problem}", own.name)));
    match (&own.dev, own.dev_fraction) {
        (Some(_), Some(_)) => return problem("dev_fraction", "give dev or dev_fraction, not both"),
        (None, None) => {
            return problem("dev", "give a dev file, or dev_fraction to set rows of the training file aside");
        }
        (None, Some(f)) if !(f > 0.0 && f < 1.0) => return problem("dev_fraction", "must lie between 0 and 1"),
        _ => {}
    }
    if own.unordered && own.text_b.is_none() {
        return problem("unordered", "is for pairs; there is no text_b");
    }
    if own.label == own.text || own.text_b.as_ref() == Some(&own.label) {
        return problem("label", "this is a column of texts, too; give the one of the gold labels");
    }
    if own.text_b.as_ref() == Some(&own.text) {
        return problem("text_b", "this is the column of text, too; give the one of the second text");
    }
    check_test_columns(key, own)?;
    match own.kind {
        TaskType::Classification => {
            if own.range.is_some() {
                return problem("range", "is for regression");
            }
            if own.labels.len() < 2 {
                return problem("labels", "classification needs at least two label names");
            }
            if own.labels.iter().collect::<HashSet<_>>().len() != own.labels.len() {
                return problem("labels", "a label is named twice");
            }
            let cuts = &own.thresholds;
            if !cuts.is_empty()
                && (cuts.len() + 1 != own.labels.len()
                    || !cuts.is_sorted_by(|a, b| a < b)
                    || !cuts.iter().all(|c| c.is_finite()))
            {
                return problem("thresholds", "must be finite, ascend and be one fewer than the labels");
            }
        }
        TaskType::Regression => {
            if !own.labels.is_empty() || !own.thresholds.is_empty() {
                return problem("labels", "labels and thresholds are for classification");
            }
            if !own.range.is_some_and(|[min, max]| min < max && (max - min).is_finite()) {
                return problem("range", "regression needs the smallest and the largest score: range: [0, 5]");
            }
        }
    }
    if own.metric().is_for_classes() != (own.kind == TaskType::Classification) {
        return problem("metric", &format!("'{}' does not fit the type of the task", own.metric().name()));
    }
    Ok(())
}

/// Columns of the test file alone.
fn check_test_columns(key: &str, own: &OwnTask) -> Checked {
    let at = |field: &str| format!("{key}.{field}");
    let has_test = own.test.is_some() || own.test_text.is_none();
    require(has_test, &at("test_text"), "is a column of the test file; there is no test")?;
    let is_pair = own.text_b.is_some() || own.test_text_b.is_none();
    require(is_pair, &at("test_text_b"), "is for pairs; there is no text_b")?;
    let both = (own.test_text.is_some() && own.text_b.is_some()) == own.test_text_b.is_some();
    require(both, &at("test_text_b"), "goes with test_text: name the columns of both texts of a pair, or none")?;
    let are_two = own.test_text.is_none() || own.test_text != own.test_text_b;
    require(are_two, &at("test_text_b"), "is the column of test_text, too; give the one of the second text")
}

fn check_training(recipe: &Recipe, key: &str, settings: &TrainSettings) -> Checked {
    let at = |field: &str| format!("{key}.{field}");
    require((1..=MOST_EPOCHS).contains(&settings.epochs), &at("epochs"), "must be at least 1 and at most a million")?;
    let batches = 1..=LARGEST_BATCH;
    require(batches.contains(&settings.batch_size), &at("batch_size"), "must be at least 1 and at most 16777216")?;
    require(settings.micro_batch_size != Some(0), &at("micro_batch_size"), "must be at least 1, or left out")?;
    let (n, parts, way_out) = match recipe.reproducible {
        Reproducible::Processes if key == "train.multi" => {
            (recipe.cluster.processes, "processes", "fewer processes (-n)")
        }
        Reproducible::Processes => {
            let ranks = |entry: &TaskEntry| recipe.cluster.single_ranks(entry.name(), settings.batch_size);
            let most = recipe.data.tasks.iter().map(ranks).max().unwrap_or(1);
            (most, "processes", "fewer of them (cluster.single_processes)")
        }
        Reproducible::WorldSize => (recipe.virtual_shards, "virtual shards", "fewer virtual_shards"),
    };
    if settings.batch_size < n {
        let problem = format!(
            "a batch of {} examples cannot be shared by {n} {parts}; use {way_out} or a larger batch",
            settings.batch_size
        );
        return Err(invalid(at("batch_size"), problem));
    }
    let positive = |v: f64| v > 0.0 && v.is_finite();
    require(positive(settings.learning_rate), &at("learning_rate"), "must be above 0")?;
    require(settings.rate_batch_size > 0, &at("rate_batch_size"), "must be at least 1")?;
    let scaled = "must not vanish or become infinite with rate_scaling";
    require(positive(settings.peak_rate()), &at("learning_rate"), scaled)?;
    let clips = settings.clip_norm.is_none_or(positive);
    require(clips, &at("clip_norm"), "must be above 0, or null for none")?;
    require((0.0..1.0).contains(&settings.warmup), &at("warmup"), "is a share of the steps: at least 0 and below 1")?;
    require((0.0..1.0).contains(&settings.weight_decay), &at("weight_decay"), "must be at least 0 and below 1")?;
    let (factors, problem) = (&settings.layerwise_decay, "must be above 0 and at most 1");
    check_per_task(recipe, &at("layerwise_decay"), factors, factor_is_sound, problem)
}

/// One value, or one for each of some tasks, which the recipe has to have.
fn check_per_task<T: Copy>(
    recipe: &Recipe,
    key: &str,
    values: &PerTask<T>,
    is_sound: impl Fn(T) -> bool,
    problem: &str,
) -> Checked {
    let known: Vec<&str> = recipe.data.tasks.iter().map(TaskEntry::name).chain(["default"]).collect();
    for (task, value) in values.said() {
        let key = task.map_or_else(|| key.to_owned(), |task| format!("{key}.{task}"));
        task.map_or(Ok(()), |task| check_known(task, &key, &known))?;
        require(is_sound(value), &key, problem)?;
    }
    Ok(())
}

fn factor_is_sound(factor: f64) -> bool {
    factor > 0.0 && factor <= 1.0
}

/// The values of a search.
fn check_search(key: &str, settings: &TrainSettings) -> Checked {
    let Some(search) = &settings.search else { return Ok(()) };
    let is_sound = |rate: f64| {
        let peak = TrainSettings { learning_rate: rate, ..settings.clone() }.peak_rate();
        rate > 0.0 && peak > 0.0 && peak.is_finite()
    };
    check_values(&format!("{key}.search.learning_rate"), &search.learning_rate, is_sound, "must be above 0")?;
    let (factors, problem) = (&search.layerwise_decay, "must be above 0 and at most 1");
    check_values(&format!("{key}.search.layerwise_decay"), factors, factor_is_sound, problem)
}

/// Values to try, each of which is a training of its own.
fn check_values(key: &str, values: &[f64], is_sound: impl Fn(f64) -> bool, problem: &str) -> Checked {
    for (i, value) in values.iter().enumerate() {
        require(is_sound(*value), key, &format!("{value}: {problem}"))?;
        let twice = format!("{value} is there twice, which would be the same training twice");
        require(!values[..i].contains(value), key, &twice)?;
    }
    Ok(())
}

/// A task that a setting is for has to be one of the recipe's.
fn check_known(task: &str, key: &str, known: &[&str]) -> Checked {
    let hint = nearest(task, known.iter().copied()).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
    require(known.contains(&task), key, &format!("is no task of this recipe ({}){hint}", known.join(", ")))
}

/// Refuses what would fill the memory before the first stage starts; most likely a slip of the finger.
fn check_proportions(recipe: &Recipe) -> Checked {
    require(recipe.trials > 0, "trials", "must be at least 1")?;
    require(recipe.distill.ensemble > 0, "distill.ensemble", "must be at least 1")?;
    let combinations = recipe.train.single.combinations();
    let trainings = recipe.trials.saturating_mul(recipe.distill.ensemble as u64).saturating_mul(combinations);
    let problem = format!(
        "with distill.ensemble and train.single.search this is {trainings} trainings of one task; at most \
         {MOST_TRAININGS} can be planned"
    );
    require(trainings <= MOST_TRAININGS, "trials", &problem)
}

fn check_sampling(recipe: &Recipe) -> Checked {
    let sampling = &recipe.sampling;
    let known: Vec<&str> = recipe.data.tasks.iter().map(TaskEntry::name).collect();
    for (task, &weight) in &sampling.loss_weights {
        let key = format!("sampling.loss_weights.{task}");
        check_known(task, &key, &known)?;
        require(weight > 0.0 && weight.is_finite(), &key, "must be above 0")?;
    }
    let (key, exponent) = ("sampling.exponent", sampling.exponent);
    require(exponent.is_finite(), key, "must be a number")?;
    let is_bounded = sampling.method != SamplingMethod::Multiples || (0.0..=1.0).contains(&exponent);
    require(
        is_bounded,
        key,
        "must lie between 0 and 1 with 'method: multiples', which repeats a task's examples to bring its size next to \
         the largest one's; 'method: proportional' takes any",
    )
}

fn check_distill(recipe: &Recipe) -> Checked {
    let temperature = recipe.distill.temperature;
    require(temperature > 0.0 && temperature.is_finite(), "distill.temperature", "must be above 0")?;
    let known: Vec<&str> = recipe.data.tasks.iter().map(TaskEntry::name).collect();
    for (task, given) in &recipe.distill.teachers {
        let key = format!("distill.teachers.{task}");
        check_known(task, &key, &known)?;
        require(!given.0.is_empty(), &key, "name at least one directory, or leave the task out")?;
        require(recipe.mode.teachers().is_some(), &key, "mode 'single' and 'multi' have no teachers")?;
    }
    match (recipe.distill.annealing, recipe.distill.constant) {
        (Annealing::Linear | Annealing::None, None) => Ok(()),
        (Annealing::None, Some(_)) => {
            Err(invalid("distill.lambda", "goes with 'annealing: constant'; with 'annealing: none' λ is 1"))
        }
        (Annealing::Linear, Some(_)) => {
            Err(invalid("distill.lambda", "goes with 'annealing: constant'; with linear annealing λ rises from 0 to 1"))
        }
        (Annealing::Constant, Some(l)) if (0.0..=1.0).contains(&l) => Ok(()),
        (Annealing::Constant, _) => {
            Err(invalid("distill.lambda", "'annealing: constant' needs a lambda between 0 and 1"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_column_cannot_be_two_things() {
        let check = |columns: &str| {
            let own =
                format!("{{ name: mine, train: a, dev: b, test: c, type: regression, range: [0, 1], {columns} }}");
            check_own("t", &serde_norway::from_str(&own).unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(check("text: 0, text_b: b, label: 1"), Ok(()));
        assert_eq!(check("text: 0, text_b: 1, label: 2, test_text: 1, test_text_b: 2"), Ok(()));
        for (columns, key) in [
            ("text: 1, label: 1", "t.label"),
            ("text: a, label: a", "t.label"),
            ("text: 0, text_b: -1, label: -1", "t.label"),
            ("text: 0, text_b: 0, label: 1", "t.text_b"),
            ("text: 0, text_b: 1, label: 2, test_text: 1, test_text_b: 1", "t.test_text_b"),
        ] {
            let message = check(columns).unwrap_err();
            assert!(message.contains(key) && message.contains(", too; give the one of"), "{columns}: {message}");
        }
    }
}
