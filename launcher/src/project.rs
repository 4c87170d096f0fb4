//! A recipe with everything that follows from looking at its files: encoder, tasks, sizes, plan. Nothing is written.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bam_cluster::config::{self, ConfigError, Override, PredictedSplit, Recipe};
use bam_cluster::encoder::{Encoder, EncoderError};
use bam_cluster::hub_cache::{HubCache, is_model_name};
use bam_cluster::plan::{Plan, TaskSize};
use bam_cluster::task::{self, Count, DataError, Selection, Sizes, SubmissionFile, Task};
use bam_cluster::teacher::TaskModel;

use crate::cli::RecipeArguments;
use crate::forecast::Lengths;
use crate::numbers::thousands;
use crate::shell::quoted;
use crate::slurm::Allocation;

/// A recipe that is known to be sound, and what was learnt from its files.
#[derive(Debug)]
pub struct Project {
    /// Completed with defaults and overrides.
    pub recipe: Recipe,
    /// The encoder that training starts from.
    pub encoder: Encoder,
    /// The tasks, in the recipe's order.
    pub tasks: Vec<Task>,
    /// About how long each task's examples are.
    pub lengths: Vec<Lengths>,
    /// SHA-256 of each task's files.
    pub sources: Vec<String>,
    /// SHA-256 of the file of each further split that is to be predicted, by task and split.
    pub further: BTreeMap<(String, String), String>,
    /// What will run.
    pub plan: Plan,
    /// What a person should know before it starts.
    pub warnings: Vec<String>,
}

impl Project {
    /// Reads a recipe and all files that it names.
    ///
    /// # Errors
    /// Everything that is wrong with the recipe, the encoder's directory or the tasks' files.
    pub fn load(arguments: &RecipeArguments) -> anyhow::Result<Project> {
        // In a batch job, there are to be as many ranks as it has tasks, unless somebody says otherwise.
        Project::load_for(arguments, Allocation::of_this_process().and_then(|job| job.tasks))
    }

    /// The same, for so many processes where neither the recipe nor the command line says how many.
    ///
    /// # Errors
    /// As [`Project::load`].
    pub fn load_for(arguments: &RecipeArguments, processes: Option<usize>) -> anyhow::Result<Project> {
        let recipe = Project::recipe(arguments, processes)?;
        let encoder = Encoder::inspect(&recipe.model.path, recipe.model.layers, recipe.model.max_length)
            .map_err(|error| with_advice(error, &recipe.model.path, &arguments.config))?;
        encoder.check_weights()?;
        let tasks = recipe.tasks();
        let (mut sizes, mut lengths, mut sources, mut warnings) = (vec![], vec![], vec![], recipe.without_effect());
        let mut further = BTreeMap::new();
        for (task, examples) in tasks.iter().zip(count_all(&tasks, &recipe.data.selection())) {
            let examples = examples?;
            let splits = further_splits(&recipe, task, &mut warnings)?;
            lengths.push(Lengths::of(task, &examples, recipe.model.max_length));
            sizes.push(TaskSize {
                task: task.name.clone(),
                train: examples.train,
                dev: examples.dev,
                further: splits.iter().map(|(split, count)| (split.clone(), count.examples)).collect(),
            });
            further.extend(splits.into_iter().map(|(split, count)| ((task.name.clone(), split), count.sha256)));
            sources.push(examples.source_sha256);
            warnings.extend(skipped_rows(&task.name, examples.skipped, examples.rows));
        }
        for (name, given) in &recipe.distill.teachers {
            for (task, teacher) in
                tasks.iter().filter(|t| t.name == *name).flat_map(|t| given.0.iter().map(move |g| (t, g)))
            {
                TaskModel::inspect(teacher, task, &encoder, recipe.model.max_length)?.check_weights(task)?;
            }
        }
        let plan = Plan::derive(&recipe, &sizes);
        Ok(Project { recipe, encoder, tasks, lengths, sources, further, plan, warnings })
    }

    /// The recipe alone.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn recipe(arguments: &RecipeArguments, processes: Option<usize>) -> Result<Recipe, ConfigError> {
        let overrides = arguments.changes().iter().map(|o| o.parse()).collect::<Result<Vec<Override>, _>>()?;
        let default = processes.map(|n| format!("cluster.processes={n}").parse()).transpose()?;
        let defaults: Vec<Override> = default.into_iter().collect();
        config::load_with_defaults(&arguments.config, &overrides, &defaults)
    }
}

/// Where there is no such directory, what the recipe says may be a model's name: then the error says how to fetch it.
fn with_advice(error: EncoderError, path: &Path, recipe: &Path) -> EncoderError {
    if path.exists() {
        return error;
    }
    // As it was written, if that was a name; else the directory may be meant to hold the model that it is called after.
    let beside = std::path::absolute(recipe).ok().and_then(|file| Some(file.parent()?.to_owned()));
    let bases = [beside, env::current_dir().ok()];
    let written =
        bases.into_iter().flatten().find_map(|base| path.strip_prefix(base).ok()?.to_str().map(str::to_owned));
    let advice = match (written.filter(|name| is_model_name(name)), path.file_name()) {
        (Some(name), _) => {
            let cache =
                HubCache::of_this_user().map(|cache| format!(" ({})", cache.path().display())).unwrap_or_default();
            format!("or a model's name, and no '{name}' is in Hugging Face's cache{cache}: bam fetch model {name}")
        }
        (None, Some(name)) => {
            let (name, path) = (name.to_string_lossy(), quoted(&path.display().to_string()));
            format!("or a model's name; to have one there: bam fetch model {} --to {path}", quoted(&name))
        }
        (None, None) => return error,
    };
    EncoderError { problem: format!("{}, {advice}", error.problem), ..error }
}

/// Reads and checks the files of all tasks, on all cores: the largest take longest and come first.
fn count_all(tasks: &[Task], selection: &Selection) -> Vec<Result<Sizes, DataError>> {
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by_key(|&i| Reverse(fs::metadata(&tasks[i].source.train).map_or(0, |m| m.len())));
    let (next, counted) = (AtomicUsize::new(0), tasks.iter().map(|_| OnceLock::new()).collect::<Vec<_>>());
    let count = || {
        while let Some(&i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Each task is one thread's.
            let _ = counted[i].set(task::count_examples(&tasks[i], selection));
        }
    };
    thread::scope(|scope| {
        let helpers = thread::available_parallelism().map_or(1, NonZero::get).min(tasks.len());
        (1..helpers).for_each(|_| drop(scope.spawn(count)));
        count();
    });
    counted
        .into_iter()
        .zip(tasks)
        .map(|(done, task)| done.into_inner().unwrap_or_else(|| task::count_examples(task, selection)))
        .collect()
}

/// The further splits of a task that the recipe asks for and whose files are there.
fn further_splits(recipe: &Recipe, task: &Task, warnings: &mut Vec<String>) -> Result<Vec<(String, Count)>, DataError> {
    let mut found = vec![];
    for split in &task.source.further {
        if !recipe.predict.iter().any(|asked| split.belongs_to(asked.name())) {
            continue;
        }
        match split.file() {
            Some(file) => {
                let count = task::count_split(task, split, file)?;
                warnings.extend(other_rows(recipe, task, &split.name, count.examples));
                found.push((split.name.clone(), count));
            }
            None => warnings.push(format!(
                "task '{}': {} is not predicted, there is no {}",
                task.name,
                split.name,
                split.files[0].display()
            )),
        }
    }
    let has_test = task.source.further.iter().any(|split| split.belongs_to("test"));
    if recipe.predict.contains(&PredictedSplit::Test) && !has_test {
        warnings.push(format!("task '{}': test is not predicted, the task declares no test file", task.name));
    }
    if recipe.predict.contains(&PredictedSplit::Test) && has_test && recipe.is_namesake(&task.name) {
        let name = &task.name;
        warnings.push(format!("task '{name}' is the recipe's own, not GLUE's: bam submission leaves its answers out"));
    }
    Ok(found)
}

/// What is to be said of a test set that is not as long as GLUE's.
fn other_rows(recipe: &Recipe, task: &Task, split: &str, rows: usize) -> Option<String> {
    let official = SubmissionFile::of(&task.name, split).filter(|_| recipe.is_glue(&task.name))?.rows;
    (rows != official).then(|| {
        format!(
            "task '{}': {split} has {} rows, and GLUE's has {}; its server takes no answers to these",
            task.name,
            thousands(rows),
            thousands(official)
        )
    })
}

fn skipped_rows(task: &str, [train, dev]: [u64; 2], of: [u64; 2]) -> Option<String> {
    (train + dev > 0).then(|| {
        let [of_train, of_dev] = of.map(|rows| thousands(rows as usize));
        format!(
            "task '{task}': left out {train} of {of_train} rows of the training file and {dev} of {of_dev} of the dev file, \
             which lack a column"
        )
    })
}
