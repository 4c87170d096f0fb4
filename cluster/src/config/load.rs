//! From a recipe file and overrides to a checked recipe with absolute paths.

use std::path::{Path, PathBuf};

use serde_norway::{Mapping, Value};

use super::error::{ConfigError, hint, nearest, plain};
use super::schema::Recipe;
use super::task_entry::TaskEntry;
use super::validate::validate;
use crate::hub_cache::{HubCache, is_model_name};

/// A change on the command line: `train.multi.batch_size=64`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    text: String,
    keys: Vec<String>,
    value: Value,
}

impl std::str::FromStr for Override {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = |problem: String| ConfigError::Override { text: text.to_owned(), problem, hint: None };
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("expected KEY=VALUE, for example train.multi.batch_size=64".to_owned()))?;
        let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
        if keys.iter().any(String::is_empty) {
            return Err(wrong(format!("'{path}' is not a key; write it like train.multi.batch_size")));
        }
        let value = serde_norway::from_str(value).map_err(|e| wrong(format!("the value is not YAML: {e}")))?;
        Ok(Override { text: text.to_owned(), keys, value })
    }
}

/// Reads a recipe, applies `overrides`, fills in defaults and checks it. Relative paths in the file are relative to
/// the file; those in overrides are relative to the current directory. A model that is named rather than located becomes its
/// directory in the cache of Hugging Face's hub.
///
/// # Errors
/// Everything that can be known to be wrong from the recipe alone.
pub fn load(path: &Path, overrides: &[Override]) -> Result<Recipe, ConfigError> {
    load_with_defaults(path, overrides, &[])
}

/// The same, with other defaults for some values: they hold where neither the file nor an override says anything.
///
/// # Errors
/// As [`load`].
pub fn load_with_defaults(path: &Path, overrides: &[Override], defaults: &[Override]) -> Result<Recipe, ConfigError> {
    let text = read(path)?;
    let malformed = |e: serde_norway::Error| {
        let message = e.to_string();
        ConfigError::Malformed { path: path.to_owned(), hint: hint(&message), message: plain(&message) }
    };
    let mut tree: Value = serde_norway::from_str(&text).map_err(malformed)?;
    for change in overrides {
        apply(&mut tree, change)?;
    }
    for default in defaults {
        if !is_said(&tree, &default.keys) {
            apply(&mut tree, default)?;
        }
    }
    let mut recipe: Recipe = match serde_path_to_error::deserialize(tree) {
        Ok(recipe) => recipe,
        // The text itself, read again, tells line and column, unless it is an override that is wrong.
        Err(in_tree) => {
            serde_norway::from_str::<Recipe>(&text).map_err(malformed)?;
            let message = in_tree.to_string();
            let (hint, plain) = (hint(&message), plain(&message));
            return Err(match guilty(&text, overrides) {
                Some(change) => ConfigError::Override { text: change.text.clone(), hint, problem: plain },
                None => ConfigError::Malformed { path: path.to_owned(), hint, message: plain },
            });
        }
    };
    make_paths_absolute(&mut recipe, path.parent().unwrap_or(Path::new("")));
    validate(&recipe)?;
    Ok(recipe)
}

/// Reads a recipe that [`load`] has completed and that was written down in a run directory.
///
/// # Errors
/// The file is missing, or was changed by hand into something that is no recipe.
pub fn load_resolved(path: &Path) -> Result<Recipe, ConfigError> {
    load(path, &[])
}

/// The first change that makes no recipe of a text that is one.
fn guilty<'a>(text: &str, overrides: &'a [Override]) -> Option<&'a Override> {
    let mut tree: Value = serde_norway::from_str(text).ok()?;
    overrides
        .iter()
        .find(|change| apply(&mut tree, change).is_err() || serde_norway::from_value::<Recipe>(tree.clone()).is_err())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| {
        let remedy = instead(path);
        ConfigError::Unreadable { path: path.to_owned(), source, remedy }
    })
}

/// What to give instead of a path that is no recipe.
fn instead(path: &Path) -> String {
    if path.join("plan.json").exists() {
        return "this is the directory of a run: give the recipe that it was begun with, or look at it with bam status"
            .to_owned();
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let there = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let recipes: Vec<String> = there.filter(|name| name.ends_with(".yaml") || name.ends_with(".yml")).collect();
    // Endings, which all have alike, make no two names alike.
    let stem = |name: &str| Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let stems: Vec<String> = recipes.iter().map(|name| stem(name)).collect();
    let near = nearest(&stem(&path.to_string_lossy()), stems.iter().map(String::as_str));
    match recipes.iter().find(|name| near.as_ref().is_some_and(|near| stem(name) == *near)) {
        Some(near) => format!("did you mean {}?", path.with_file_name(near).display()),
        None => "give the path of a recipe, for example configs/demo.yaml".to_owned(),
    }
}

/// Whether the tree has a value there.
fn is_said(tree: &Value, keys: &[String]) -> bool {
    keys.iter().try_fold(tree, |node, key| node.get(key)).is_some_and(|value| !value.is_null())
}

/// Sets one value in the tree, making the mappings on the way where they are missing.
fn apply(tree: &mut Value, change: &Override) -> Result<(), ConfigError> {
    let wrong = |problem: String| ConfigError::Override { text: change.text.clone(), problem, hint: None };
    let mut node = tree;
    for key in &change.keys {
        if node.is_null() {
            *node = Value::Mapping(Mapping::new());
        }
        node = match node {
            Value::Mapping(map) => map.entry(Value::String(key.clone())).or_insert(Value::Null),
            Value::Sequence(list) => {
                let length = list.len();
                let entry = key.parse::<usize>().ok().and_then(|i| list.get_mut(i));
                entry.ok_or_else(|| wrong(format!("'{key}' is not an entry of a list of {length} (the first is 0)")))?
            }
            _ => return Err(wrong(format!("there is nothing below '{key}': the value above it is not a section"))),
        };
    }
    *node = match &change.value {
        Value::String(text) if change.keys == ["model", "path"] => {
            Value::String(locate_model(Path::new(text), Path::new("")).to_string_lossy().into_owned())
        }
        Value::String(text) if is_path(&change.keys) => {
            Value::String(absolute(Path::new(text), Path::new("")).to_string_lossy().into_owned())
        }
        value => value.clone(),
    };
    Ok(())
}

/// Whether a key holds a path.
fn is_path(keys: &[String]) -> bool {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    matches!(keys[..], ["data", "glue"] | ["data", "tasks", _, "train" | "dev" | "test"] | ["distill", "teachers", _])
}

fn make_paths_absolute(recipe: &mut Recipe, base: &Path) {
    recipe.model.path = locate_model(&recipe.model.path, base);
    recipe.data.glue = recipe.data.glue.take().map(|p| absolute(&p, base));
    for entry in &mut recipe.data.tasks {
        if let TaskEntry::Own(own) = entry {
            own.train = absolute(&own.train, base);
            own.dev = own.dev.take().map(|p| absolute(&p, base));
            own.test = own.test.take().map(|p| absolute(&p, base));
        }
    }
    for teacher in recipe.distill.teachers.values_mut().flat_map(|given| &mut given.0) {
        teacher.path = absolute(&teacher.path, base);
    }
}

/// The directory of a model: the one of that name below `base`, or else the one that was fetched from Hugging Face's hub; the
/// former, too, if there is neither.
fn locate_model(path: &Path, base: &Path) -> PathBuf {
    let directory = absolute(path, base);
    let name = path.to_str().filter(|name| is_model_name(name) && !directory.exists());
    name.and_then(|name| HubCache::of_this_user()?.find(name)).unwrap_or(directory)
}

/// `path` below `base`, below the current directory, without `.` and `..` where that needs no look at the disk.
fn absolute(path: &Path, base: &Path) -> PathBuf {
    let joined = std::path::absolute(base.join(path)).unwrap_or_else(|_| base.join(path));
    let mut clean = PathBuf::new();
    for part in joined.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    const SMALL: &str = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [cola, rte] }\n";

    fn load_text(text: &str, overrides: &[&str]) -> Result<Recipe, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.yaml");
        std::fs::write(&path, text).unwrap();
        let overrides: Result<Vec<Override>, _> = overrides.iter().map(|o| o.parse()).collect();
        load(&path, &overrides?)
    }

    #[test]
    fn defaults_are_those_of_the_method() {
        let recipe = load_text(SMALL, &[]).unwrap();
        assert_eq!(recipe.mode, Mode::SingleToMulti);
        let (t, s) = (&recipe.train.single, &recipe.train.multi);
        assert_eq!((t.epochs, t.batch_size, t.learning_rate), (3, 32, 5e-5));
        assert_eq!((s.epochs, s.batch_size, s.learning_rate), (6, 128, 1e-4));
        assert_eq!(recipe.sampling.exponent, 0.75);
        assert!(recipe.model.path.is_absolute());
        assert_eq!(recipe.train.fine_tune, None);
        let tuned = load_text(SMALL, &["train.fine_tune={}"]).unwrap().train.fine_tune.unwrap();
        assert_eq!((tuned.epochs, tuned.batch_size, tuned.learning_rate), (3, 32, 1e-5));
        let m = load_text(SMALL, &["train.fine_tune={}", "mode=single"]).unwrap_err().to_string();
        assert!(m.contains("train.fine_tune: goes on from a model of all tasks"), "{m}");
    }

    #[test]
    fn overrides_reach_into_sections_and_lists() {
        let recipe = load_text(SMALL, &["train.multi.epochs=2", "data.tasks.1=mrpc", "seed=7"]).unwrap();
        assert_eq!((recipe.train.multi.epochs, recipe.seed), (2, 7));
        assert_eq!(recipe.data.tasks[1].name(), "mrpc");
        assert_eq!(recipe.train.multi.batch_size, 128);
    }

    #[test]
    fn a_path_in_an_override_is_relative_to_the_current_directory() {
        let recipe = load_text(SMALL, &["data.glue=elsewhere"]).unwrap();
        assert_eq!(recipe.data.glue, Some(std::env::current_dir().unwrap().join("elsewhere")));
    }

    #[test]
    fn a_resolved_recipe_reads_back_as_itself() {
        let text = "name: x\nmodel: { path: m }\ntrain: { single: { layerwise_decay: { own: 1.0, default: 0.9 } } }\n\
                    data: { tasks: [ { name: own, train: f, dev_fraction: 0.2, text: 0, label: y, type: regression, range: [0, 1] } ] }\n";
        let recipe = load_text(text, &[]).unwrap();
        let again = load_text(&serde_norway::to_string(&recipe).unwrap(), &[]).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(again.identity(), recipe.identity());
    }

    #[test]
    fn identity_ignores_where_a_run_happens() {
        let recipe = load_text(SMALL, &[]).unwrap();
        let spread = Recipe {
            cluster: super::super::ClusterSection { processes: 9, ..recipe.cluster.clone() },
            slurm: super::super::SlurmSection { nodes: 9, ..recipe.slurm.clone() },
            trials: 5,
            ..recipe.clone()
        };
        assert_eq!(spread.identity(), recipe.identity());
        assert_ne!(Recipe { seed: 2, ..recipe.clone() }.identity(), recipe.identity());
        let same_bits = load_text(SMALL, &["reproducible=world-size"]).unwrap();
        assert_ne!(same_bits.identity(), recipe.identity());
        assert_ne!(Recipe { virtual_shards: 4, ..same_bits.clone() }.identity(), same_bits.identity());
    }

    #[test]
    fn other_defaults_hold_where_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.yaml");
        let processes = |text: &str, overrides: &[Override]| {
            std::fs::write(&path, text).unwrap();
            let default = "cluster.processes=6".parse().unwrap();
            load_with_defaults(&path, overrides, &[default]).unwrap().cluster.processes
        };
        assert_eq!(processes(SMALL, &[]), 6);
        assert_eq!(processes(&format!("{SMALL}cluster: {{ deadline: 9 }}\n"), &[]), 6);
        assert_eq!(processes(&format!("{SMALL}cluster: {{ processes: 1 }}\n"), &[]), 1);
        assert_eq!(processes(SMALL, &["cluster.processes=3".parse().unwrap()]), 3);
    }

    fn message(text: &str, overrides: &[&str]) -> String {
        load_text(text, overrides).unwrap_err().to_string()
    }

    #[test]
    fn an_exponent_is_any_number_unless_examples_are_repeated() {
        for good in ["1.5", "-1", "-1.0e300", "0"] {
            load_text(SMALL, &[&format!("sampling.exponent={good}")]).unwrap();
        }
        assert!(message(SMALL, &["sampling.exponent=.nan"]).contains("sampling.exponent: must be a number"));
        for wrong in ["-1", "1.5"] {
            let m = message(SMALL, &["sampling.method=multiples", &format!("sampling.exponent={wrong}")]);
            assert!(m.contains("sampling.exponent: must lie between 0 and 1 with 'method: multiples'"), "{m}");
        }
    }

    #[test]
    fn losses_weigh_something_and_are_of_tasks_that_are_there() {
        let with = |text: &str| load_text(SMALL, &[&format!("sampling.loss_weights={text}")]);
        let recipe = with("{ rte: 10 }").unwrap();
        assert_eq!(recipe.sampling.loss_weights["rte"], 10.0);
        for (text, expected) in [
            ("{ rte: 0 }", "sampling.loss_weights.rte: must be above 0"),
            ("{ rte: .inf }", "sampling.loss_weights.rte: must be above 0"),
            ("{ rtee: 2 }", "sampling.loss_weights.rtee: is no task of this recipe (cola, rte); did you mean 'rte'?"),
        ] {
            let m = with(text).unwrap_err().to_string();
            assert!(m.contains(expected), "{m}");
        }
    }

    #[test]
    fn switches_can_be_off() {
        let off = load_text(SMALL, &["train.multi.clip_norm=null", "distill.annealing=none"]).unwrap();
        assert_eq!((off.train.multi.clip_norm, off.train.single.clip_norm), (None, Some(1.0)));
        let m = message(SMALL, &["train.multi.clip_norm=0"]);
        assert!(m.contains("train.multi.clip_norm: must be above 0, or null for none"), "{m}");
        let m = message(SMALL, &["distill.annealing=none", "distill.lambda=0.5"]);
        assert!(m.contains("distill.lambda: goes with 'annealing: constant'"), "{m}");
    }

    #[test]
    fn a_search_names_the_value_that_is_wrong() {
        for (value, problem) in [
            ("{ learning_rate: [1.0e-5, 0.0] }", "train.single.search.learning_rate: 0: must be above 0"),
            (
                "{ layerwise_decay: [1.0, 1.5] }",
                "train.single.search.layerwise_decay: 1.5: must be above 0 and at most 1",
            ),
            ("{ layerwise_decay: [1, 0.9, 1.0] }", "train.single.search.layerwise_decay: 1 is there twice"),
            ("{ learning_rate: [5.0e-5, 0.00005] }", "train.single.search.learning_rate: 0.00005 is there twice"),
        ] {
            let m = message(SMALL, &[&format!("train.single.search={value}")]);
            assert!(m.contains(problem), "{m}");
        }
    }

    #[test]
    fn what_is_no_task_of_glue_is_answered_with_those_that_are() {
        let m = message(SMALL, &["data.tasks=[ax]"]);
        assert!(m.contains("no GLUE task 'ax' to train on; mnli's model answers AX with 'predict: [test]'"), "{m}");
        let m = message(SMALL, &["data.tasks=[zzz]"]);
        assert!(m.contains("there is no GLUE task 'zzz'. Known: cola, "), "{m}");
    }

    #[test]
    fn columns_of_a_test_file_go_with_a_test_file() {
        let own = |more: &str| {
            let task =
                format!("{{ name: a, train: t, dev: d, text: 0, label: 1, type: regression, range: [0, 1], {more} }}");
            load_text("name: x\nmodel: { path: m }\ndata: { tasks: [] }\n", &[&format!("data.tasks=[{task}]")])
        };
        own("test: e, test_text: 1").unwrap();
        own("text_b: 2, test: e, test_text: 1, test_text_b: 0").unwrap();
        for (more, problem) in [
            ("test_text: 1", "data.tasks[0].test_text: is a column of the test file; there is no test"),
            ("test: e, test_text: 1, test_text_b: 2", "test_text_b: is for pairs"),
            ("text_b: 2, test: e, test_text: 1", "test_text_b: goes with test_text"),
        ] {
            let m = own(more).unwrap_err().to_string();
            assert!(m.contains(problem), "{m}");
        }
    }

    #[test]
    fn a_path_that_is_no_recipe_is_answered_with_the_nearest_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("demo.yaml"), SMALL).unwrap();
        let message = |name: &str| load(&dir.path().join(name), &[]).unwrap_err().to_string();
        assert!(message("demo.yml").ends_with("demo.yaml?"), "{}", message("demo.yml"));
        assert!(message("nothing").contains("give the path of a recipe"), "{}", message("nothing"));
        std::fs::create_dir(dir.path().join("run")).unwrap();
        std::fs::write(dir.path().join("run/plan.json"), "{}").unwrap();
        assert!(message("run").contains("the recipe that it was begun with"), "{}", message("run"));
    }

    #[test]
    fn a_misspelt_key_is_refused_with_line_column_and_nearest_name() {
        let m = message("name: x\nmodel: { path: m }\ndata: { tasks: [cola] }\ntrain:\n  multi:\n    epoch: 3\n", &[]);
        for part in ["unknown field `epoch`", "line 6 column 5", "did you mean 'epochs'?"] {
            assert!(m.contains(part), "{m}");
        }
        let own = "name: x\nmodel: { path: m }\ndata:\n  tasks:\n    - name: a\n      lable: 1\n";
        let m = message(own, &[]);
        assert!(m.contains("line 6") && m.contains("did you mean 'label'?"), "{m}");
    }

    #[test]
    fn overrides_are_checked_as_strictly() {
        assert!(message(SMALL, &["train.multi.epoch=3"]).contains("did you mean 'epochs'?"));
        assert!(message(SMALL, &["train.multi.epochs=many"]).contains("train.multi.epochs"));
        let m = message(SMALL, &["seed=2", "train.multi.epoch=3", "trials=2"]);
        assert!(m.starts_with("-o train.multi.epoch=3: ") && m.contains("unknown field `epoch`"), "{m}");
        assert!(message(SMALL, &["epochs"]).contains("expected KEY=VALUE"));
        let m = message(SMALL, &["cluster.launcher=srun", "cluster.hosts=[n1]"]);
        assert!(m.contains("cluster.hosts") && m.contains("on the nodes of its job"), "{m}");
        assert!(message(SMALL, &["cluster.launcher=ssh"]).contains("cluster.launcher"));
        assert!(message(SMALL, &["data.tasks.7=rte"]).contains("not an entry of a list of 2"));
    }
}
