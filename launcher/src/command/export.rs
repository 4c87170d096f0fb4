//! `bam export`: a model of several tasks as one directory per task, each with the encoder and that task's head, as
//! `AutoModelForSequenceClassification.from_pretrained` opens them, with a model card.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::Context;
use bam_cluster::config::nearest;
use bam_cluster::plan::{ModelStage, Plan};
use bam_cluster::published::{HEADS, PublishedHead, copy_tokenizer, describe_heads, describe_numbers, heads_of};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, StageRecord};
use bam_cluster::{config, digest, exit_code, files};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

use super::report::plan_of;
use crate::cli::ExportArguments;
use crate::model_card::ModelCard;

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const CARD: &str = "README.md";

/// A model that cannot be taken apart.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The run trains no such model.
    #[error("{run}: {problem}\n  its stages are: {stages}")]
    Stage {
        /// The run's directory.
        run: PathBuf,
        /// What is wrong with the stage asked for.
        problem: String,
        /// What there is.
        stages: String,
    },
    /// The stage is not complete, or its model is damaged.
    #[error("{path}: {problem}\n  run the recipe to its end first, or remove the stage's directory and run again")]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Where a model should go, there is something else.
    #[error("{path}: is in the way, and is no model that bam wrote\n  give another directory with --to")]
    InTheWay {
        /// The directory or file.
        path: PathBuf,
    },
}

/// Exports a model.
pub fn run(arguments: &ExportArguments) -> anyhow::Result<u8> {
    let run = RunDir::new(&arguments.run_dir);
    let plan = plan_of(&run)?;
    let stage = choose(&run, &plan, arguments.stage.as_deref())?;
    let model = run.model(&stage);
    let done = run.done(&stage);
    let record: Option<StageRecord> = files::read_json(&done).with_context(|| done.display().to_string())?;
    let Some(record) = record else {
        let problem = format!("stage '{stage}' is not complete");
        return Err(ExportError::Model { path: run.stage(&stage), problem }.into());
    };
    let damaged = |name: &str, problem: String| ExportError::Model { path: model.join(name), problem };
    let model_config = files::read_json(&model.join(CONFIG)).map_err(|e| damaged(CONFIG, e.to_string()))?;
    let model_config: Value = model_config.ok_or_else(|| damaged(CONFIG, "is missing".to_owned()))?;
    let heads = heads_of(&model_config).map_err(|problem| damaged(CONFIG, problem))?;
    let bytes = fs::read(model.join(WEIGHTS)).map_err(|e| damaged(WEIGHTS, e.to_string()))?;
    if record.outputs.get("model").is_some_and(|sum| *sum != digest::of_bytes(&bytes)) {
        return Err(damaged(WEIGHTS, "was changed after its training".to_owned()).into());
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(WEIGHTS, e.to_string()))?;
    let recipe = config::load_resolved(&run.recipe())?;
    let path = run.scores(&stage);
    let scores: Scores = files::read_json(&path).with_context(|| path.display().to_string())?.unwrap_or_default();
    let target = arguments.to.clone().unwrap_or_else(|| run.path().join("export"));
    let directory_of = |head: &PublishedHead| target.join(&head.task);
    // All, before any of them is written.
    if let Some(path) = heads.iter().map(directory_of).find(|directory| !may_be_replaced(directory)) {
        return Err(ExportError::InTheWay { path }.into());
    }
    for head in &heads {
        let directory = directory_of(head);
        let scores = scores.get(&head.task);
        let card = ModelCard { recipe: &recipe, plan: &plan, stage: &stage, head, scores }.render()?;
        write(&directory, &model, &model_config, &tensors, head, &card)
            .with_context(|| format!("cannot write {}", directory.display()))?;
        super::print(&format!("{}: {}\n", head.task, directory.display()))?;
    }
    Ok(exit_code::DONE)
}

/// The stage whose model is meant.
fn choose(run: &RunDir, plan: &Plan, asked: Option<&str>) -> Result<String, ExportError> {
    let trained: Vec<(&str, ModelStage)> =
        plan.stages.iter().filter_map(|stage| Some((stage.name.as_str(), stage.model()?))).collect();
    let (found, problem) = match asked {
        Some(name) => {
            let near = nearest(name, trained.iter().map(|(name, _)| *name));
            let hint = near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
            (trained.iter().find(|(n, _)| *n == name), format!("no stage '{name}' trains a model{hint}"))
        }
        None => {
            let problem =
                "no model of it has several tasks; those of one are in this form already (stages/STAGE/model)";
            (trained.iter().rfind(|(_, model)| model.tasks.len() > 1 && model.trial == 1), problem.to_owned())
        }
    };
    found.map(|(name, _)| (*name).to_owned()).ok_or_else(|| ExportError::Stage {
        run: run.path().to_owned(),
        problem,
        stages: trained.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })
}

/// Whether a directory is not there, or a model that bam wrote.
fn may_be_replaced(directory: &Path) -> bool {
    let config: Option<Value> = files::read_json(&directory.join(CONFIG)).unwrap_or_default();
    !directory.exists() || config.is_some_and(|config| heads_of(&config).is_ok())
}

/// Writes the model of one head aside and puts it in the place of what is there.
fn write(
    directory: &Path,
    model: &Path,
    config: &Value,
    tensors: &SafeTensors,
    head: &PublishedHead,
    card: &str,
) -> anyhow::Result<()> {
    let aside = directory.with_file_name(format!(".{}.draft-{}", head.task, process::id()));
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    // Hugging Face's readers refuse files without this note.
    let note = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(of_one_head(tensors, &head.task), Some(note), &aside.join(WEIGHTS))?;
    fs::File::open(aside.join(WEIGHTS))?.sync_all()?;
    let mut config = config.clone();
    describe_heads(&mut config, std::slice::from_ref(head));
    describe_numbers(&mut config);
    files::write_json(&aside.join(CONFIG), &config)?;
    files::write_atomically(&aside.join(CARD), card.as_bytes())?;
    copy_tokenizer(model, &aside)?;
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::rename(&aside, directory)?;
    Ok(())
}

/// The encoder's tensors and those of one head, named `classifier`.
fn of_one_head<'a>(tensors: &'a SafeTensors, task: &str) -> Vec<(String, TensorView<'a>)> {
    let own = format!("{HEADS}{task}.");
    let rename = |(name, tensor): (String, TensorView<'a>)| match name.strip_prefix(&own) {
        Some(part) => Some((format!("classifier.{part}"), tensor)),
        None => (!name.starts_with(HEADS)).then_some((name, tensor)),
    };
    tensors.tensors().into_iter().filter_map(rename).collect()
}
