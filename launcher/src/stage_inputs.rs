//! What each stage is made from, as sums of files and of earlier stages' products: a change anywhere is noticed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bam_cluster::config::Recipe;
use bam_cluster::digest;
use bam_cluster::encoder::{Encoder, EncoderError};
use bam_cluster::plan::{LogitsStage, Plan, PredictStage, Question, Stage, StageWork, TrainStage};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::Sums;
use bam_cluster::task::{Dev, Task};

use crate::project::Project;

/// Derives the inputs of one stage after another.
pub struct StageInputs<'a> {
    project: &'a Project,
    vocabulary: String,
    encoder: String,
    /// Weights of teachers that are not trained here, by directory.
    given: BTreeMap<PathBuf, String>,
    /// Outputs of the stages that are complete, by stage.
    made: BTreeMap<String, Sums>,
}

/// A stage is recorded as complete, but what it made is not all there.
#[derive(Debug, thiserror::Error)]
#[error("{what}, although stage '{stage}' is recorded as complete\n  remove {directory} to make the stage again")]
pub struct MissingProduct {
    what: String,
    stage: String,
    directory: PathBuf,
}

impl<'a> StageInputs<'a> {
    /// Before the first stage.
    ///
    /// # Errors
    /// The files of the encoder or of a given teacher cannot be read.
    pub fn new(project: &'a Project) -> Result<Self, EncoderError> {
        let mut given = BTreeMap::new();
        for teacher in project.recipe.distill.teachers.values().flat_map(|t| &t.0) {
            let sum = Encoder::inspect(&teacher.path, None, 1)?.weights_sha256()?;
            given.insert(teacher.path.clone(), sum);
        }
        Ok(StageInputs {
            project,
            given,
            vocabulary: project.encoder.vocabulary_sha256()?,
            encoder: project.encoder.weights_sha256()?,
            made: BTreeMap::new(),
        })
    }

    /// Notes what a complete stage made.
    pub fn add(&mut self, stage: &str, outputs: Sums) {
        self.made.insert(stage.to_owned(), outputs);
    }

    /// What a stage is made from. All stages before it must have been added.
    ///
    /// # Errors
    /// An earlier stage's record lacks a product.
    pub fn of(&self, run: &RunDir, stage: &Stage) -> Result<Sums, MissingProduct> {
        let mut inputs = Sums::from([("vocabulary".to_owned(), self.vocabulary.clone())]);
        match &stage.work {
            StageWork::Prepare => self.prepare(&mut inputs),
            StageWork::Train(train) => self.train(run, train, &mut inputs)?,
            StageWork::Choose(choose) => {
                for candidate in &choose.candidates {
                    self.copy(run, candidate, "model", format!("model {candidate}"), &mut inputs)?;
                }
            }
            StageWork::Logits(logits) => self.logits(run, logits, &mut inputs)?,
            StageWork::Predict(predict) => self.predict(run, predict, &mut inputs)?,
        }
        Ok(inputs)
    }

    fn prepare(&self, inputs: &mut Sums) {
        let recipe = &self.project.recipe;
        for (task, source) in self.project.tasks.iter().zip(&self.project.sources) {
            inputs.insert(format!("source {}", task.name), source.clone());
            inputs.insert(format!("task {}", task.name), declaration(task, recipe));
        }
        let cut = (recipe.model.max_length, recipe.model.truncation);
        inputs.insert("max_length".to_owned(), digest::of_json(&cut));
    }

    fn train(&self, run: &RunDir, train: &TrainStage, inputs: &mut Sums) -> Result<(), MissingProduct> {
        inputs.insert("stage".to_owned(), digest::of_json(&(train, &self.project.recipe.model)));
        match &train.start {
            None => drop(inputs.insert("encoder".to_owned(), self.encoder.clone())),
            Some(start) => self.copy(run, start, "model", format!("model {start}"), inputs)?,
        }
        for task in &train.tasks {
            for split in ["train", "dev"] {
                self.copy(run, "prepare", &format!("{task}-{split}"), format!("data {task}-{split}"), inputs)?;
            }
        }
        for teacher in &train.teachers {
            let made = teacher.logits_key();
            self.copy(run, &teacher.logits, &made, format!("logits {made}"), inputs)?;
        }
        Ok(())
    }

    fn logits(&self, run: &RunDir, logits: &LogitsStage, inputs: &mut Sums) -> Result<(), MissingProduct> {
        for teacher in &logits.teachers {
            match &teacher.given {
                None => self.copy(run, &teacher.name, "model", format!("model {}", teacher.name), inputs)?,
                Some(given) => drop(inputs.insert(given.input_name(), self.given[&given.path].clone())),
            }
            let data = format!("{}-train", teacher.task);
            self.copy(run, "prepare", &data, format!("data {data}"), inputs)?;
        }
        Ok(())
    }

    fn predict(&self, run: &RunDir, predict: &PredictStage, inputs: &mut Sums) -> Result<(), MissingProduct> {
        for question in &predict.questions {
            let Question { stage, task, split, .. } = question;
            self.copy(run, stage, "model", format!("model {stage}"), inputs)?;
            let own = || {
                let tasks = self.project.tasks.iter().zip(&self.project.sources);
                tasks.filter(|(t, _)| t.name == *task).map(|(_, sum)| sum).next()
            };
            let further = self.project.further.get(&(task.clone(), split.clone()));
            inputs.extend(further.or_else(own).map(|sum| (format!("source {task}-{split}"), sum.clone())));
        }
        Ok(())
    }

    /// Makes the output `name` of `stage` the input `as_input`.
    fn copy(
        &self,
        run: &RunDir,
        stage: &str,
        name: &str,
        as_input: String,
        inputs: &mut Sums,
    ) -> Result<(), MissingProduct> {
        let sum = self.made.get(stage).and_then(|outputs| outputs.get(name)).ok_or_else(|| MissingProduct {
            what: format!("the sum of '{name}' is missing in done.json"),
            stage: stage.to_owned(),
            directory: run.stage(stage),
        })?;
        inputs.insert(as_input, sum.clone());
        Ok(())
    }
}

/// Makes sure that what a complete stage made is still there.
///
/// # Errors
/// A file is gone.
pub fn check_products(run: &RunDir, plan: &Plan, stage: &Stage) -> Result<(), MissingProduct> {
    let products: Vec<PathBuf> = match &stage.work {
        StageWork::Prepare => {
            let splits = |task: &str| ["train", "dev"].map(|split| run.data(task, split));
            plan.tasks.iter().flat_map(|t| splits(&t.task)).collect()
        }
        StageWork::Train(_) | StageWork::Choose(_) => {
            vec![run.model(&stage.name).join("model.safetensors"), run.scores(&stage.name)]
        }
        StageWork::Logits(logits) => {
            logits.teachers.iter().map(|t| run.logits(&t.name, &t.task).join("manifest.json")).collect()
        }
        // Each answer is looked at by itself (`answers`).
        StageWork::Predict(_) => vec![],
    };
    match products.into_iter().find(|p| !p.exists()) {
        None => Ok(()),
        Some(gone) => Err(MissingProduct {
            what: format!("{} is missing", gone.display()),
            stage: stage.name.clone(),
            directory: run.stage(&stage.name),
        }),
    }
}

/// Hash of all that turns a task's files into examples. Where the files are is not part of it.
fn declaration(task: &Task, recipe: &Recipe) -> String {
    let mut task = task.clone();
    task.source.train = PathBuf::new();
    // Nothing is learnt from these.
    task.source.further.clear();
    if let Dev::File(path) = &mut task.source.dev {
        *path = PathBuf::new();
    }
    digest::of_json(&(task, recipe.seed, recipe.data.selection()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(data: &str) -> Recipe {
        serde_norway::from_str(&format!("name: x\nmodel: {{ path: m }}\ndata: {{ tasks: [cola], {data} }}\n")).unwrap()
    }

    #[test]
    fn a_task_is_the_same_wherever_its_files_are() {
        let sum = |data: &str| declaration(&recipe(data).tasks()[0], &recipe(data));
        assert_eq!(sum("glue: /a"), sum("glue: /b"));
        assert_ne!(sum("glue: /a"), sum("glue: /a, max_train_examples: 7"));
    }

    #[test]
    fn a_product_that_vanished_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (run, recipe) = (RunDir::new(dir.path()), recipe("glue: /a"));
        let size = bam_cluster::plan::TaskSize { task: "cola".into(), train: 9, dev: 9, further: BTreeMap::new() };
        let plan = Plan::derive(&recipe, &[size]);
        let prepare = plan.stage("prepare").unwrap();
        std::fs::create_dir_all(dir.path().join("data")).unwrap();
        std::fs::write(run.data("cola", "train"), "").unwrap();
        let message = check_products(&run, &plan, prepare).unwrap_err().to_string();
        assert!(message.contains("cola-dev.h5 is missing") && message.contains("stages/prepare"), "{message}");
        std::fs::write(run.data("cola", "dev"), "").unwrap();
        check_products(&run, &plan, prepare).unwrap();
    }
}
