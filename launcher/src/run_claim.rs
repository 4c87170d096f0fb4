//! A run directory belongs to one recipe: what it says is compared with what is asked for before anything is written.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bam_cluster::config::{self, Recipe};
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;
use serde_json::Value;

/// The run directory holds the run of another recipe.
#[derive(Debug, thiserror::Error)]
#[error(
    "{directory} holds the run of another recipe:\n{differences}\n  choose another name (-o name=…), another directory \
     (--run-dir), or remove {directory}"
)]
pub struct OtherRecipe {
    directory: PathBuf,
    differences: String,
}

/// Makes sure that the directory is not another recipe's.
///
/// # Errors
/// It is, or what it says cannot be read.
pub fn check(run: &RunDir, recipe: &Recipe) -> anyhow::Result<()> {
    if !run.recipe().exists() {
        return Ok(());
    }
    let directory = run.path().to_owned();
    let there = config::load_resolved(&run.recipe()).with_context(|| {
        format!(
            "the recipe in the run directory cannot be read; if it is of no more use, remove {}",
            directory.display()
        )
    })?;
    let (there, here) = comparable(there, recipe.clone());
    if there.identity() == here.identity() {
        return Ok(());
    }
    Err(OtherRecipe { directory, differences: differences(&there, &here)? }.into())
}

/// The recipes without what the one asks for on top of the other: models of all tasks are the same whether they are fine-tuned
/// afterwards or not.
fn comparable(mut there: Recipe, mut here: Recipe) -> (Recipe, Recipe) {
    if there.train.fine_tune.is_none() || here.train.fine_tune.is_none() {
        (there.train.fine_tune, here.train.fine_tune) = (None, None);
    }
    (there, here)
}

/// Writes recipe and plan into the directory. Only for the lock's holder.
///
/// # Errors
/// It cannot be written.
pub fn claim(run: &RunDir, recipe: &Recipe, plan: &Plan) -> anyhow::Result<()> {
    let yaml = serde_norway::to_string(recipe).context("cannot write the recipe as YAML")?;
    let text = format!("# The recipe of this run with all defaults and overrides, written by bam.\n{yaml}");
    write(&run.recipe(), text.as_bytes())?;
    let plan_json = serde_json::to_vec_pretty(plan).context("cannot write the plan as JSON")?;
    write(&run.plan(), &plan_json)
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    files::write_atomically(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// One line for each value that differs and is part of the recipe's identity.
fn differences(there: &Recipe, here: &Recipe) -> Result<String, serde_json::Error> {
    let mut lines = vec![];
    let identifying = |recipe: &Recipe| serde_json::to_value(recipe.identifying());
    compare("", &identifying(there)?, &identifying(here)?, &mut lines);
    Ok(lines.join("\n"))
}

fn compare(key: &str, there: &Value, here: &Value, lines: &mut Vec<String>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match (there, here) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                compare(&below(name), a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), lines);
            }
        }
        (a, b) if a == b => {}
        (a, b) => lines.push(format!("  {key}: {} there, {} here", show(a), show(b))),
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(more: &str) -> Recipe {
        let text = format!("name: x\nmodel: {{ path: /m }}\ndata: {{ glue: /g, tasks: [cola, rte] }}\n{more}");
        serde_norway::from_str(&text).unwrap()
    }

    fn claimed_by(recipe: &Recipe) -> (tempfile::TempDir, RunDir) {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        check(&run, recipe).unwrap();
        claim(&run, recipe, &Plan::derive(recipe, &[])).unwrap();
        (dir, run)
    }

    #[test]
    fn differing_keys_are_named() {
        let (_dir, run) = claimed_by(&recipe("train: { multi: { epochs: 3 } }"));
        let message = check(&run, &recipe("seed: 2")).unwrap_err().to_string();
        assert!(message.contains("\n  seed: 1 there, 2 here\n"), "{message}");
        assert!(message.contains("  train.multi.epochs: 3 there, 6 here"), "{message}");
        assert!(!message.contains("sampling") && !message.contains("cluster"), "{message}");
        let message =
            check(&run, &recipe("train: { multi: { epochs: 3 } }\ncluster: { precision: bf16 }")).unwrap_err();
        assert!(message.to_string().contains("\n  cluster.precision: auto there, bf16 here\n"), "{message}");
    }

    #[test]
    fn the_same_recipe_on_more_processes_may_go_on() {
        let (_dir, run) = claimed_by(&recipe(""));
        let more = recipe("cluster: { processes: 4 }");
        check(&run, &more).unwrap();
        claim(&run, &more, &Plan::derive(&more, &[])).unwrap();
        let written = std::fs::read_to_string(run.recipe()).unwrap();
        assert!(written.starts_with("# ") && written.contains("processes: 4"), "{written}");
    }

    #[test]
    fn fine_tuning_may_be_added_and_left_out_but_not_changed() {
        let (_dir, run) = claimed_by(&recipe(""));
        let tuned = recipe("train: { fine_tune: { epochs: 3 } }");
        check(&run, &tuned).unwrap();
        claim(&run, &tuned, &Plan::derive(&tuned, &[])).unwrap();
        let message = check(&run, &recipe("train: { fine_tune: { epochs: 4 } }")).unwrap_err().to_string();
        assert!(message.contains("\n  train.fine_tune.epochs: 3 there, 4 here\n"), "{message}");
        check(&run, &recipe("")).unwrap();
    }

    #[test]
    fn a_recipe_that_was_damaged_is_named() {
        let (_dir, run) = claimed_by(&recipe(""));
        std::fs::write(run.recipe(), "name: [").unwrap();
        let error = check(&run, &recipe("")).unwrap_err();
        assert!(error.to_string().contains("remove"), "{error:#}");
    }
}
