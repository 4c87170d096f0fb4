//! Asks trained models about whole splits: every rank answers its share of the rows, rank 0 writes them down in order.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bam_cluster::config::GivenTeacher;
use bam_cluster::plan::{PredictStage, Question};
use bam_cluster::protocol::{FromRank, Outcome};
use bam_cluster::stage_record::{Scores, Sums};
use bam_cluster::task::{Example, Task, read_examples, read_split};
use bam_cluster::teacher::TaskModel;
use bam_cluster::{digest, files, metrics};

use super::publish::{check_model, load};
use super::train::table;
use crate::data::{TokenSet, Tokenizer, tokenize};
use crate::eval::predict;
use crate::session::Session;

pub(super) fn run(session: &Session, stage: &PredictStage) -> Result<Outcome> {
    session.activity.phase("predictions");
    let tokenizer = Tokenizer::open(&session.encoder, session.recipe.model.truncation)?;
    let total = stage.questions.iter().map(|q| q.examples as u64).sum();
    let (mut done, mut outputs) = (0, Sums::new());
    for question in &stage.questions {
        outputs.insert(question.key(), answer(session, &tokenizer, question)?);
        done += question.examples as u64;
        session.tell(&FromRank::Progress { done, total })?;
        // All ranks stop at the same question, or none does.
        let wish = session.world.broadcast("stop", 0, vec![u8::from(session.control.stop_requested())])?;
        if wish == [1] && outputs.len() < stage.questions.len() {
            return Ok(Outcome::Stopped { step: 0 });
        }
    }
    Ok(Outcome::Finished { outputs })
}

/// Writes the answers to one question; returns their file's SHA-256.
fn answer(session: &Session, tokenizer: &Tokenizer, question: &Question) -> Result<String> {
    let Question { stage, task, split, examples } = question;
    let task = session.task(task)?;
    let rows = rows(session, task, split)?;
    ensure!(
        rows.len() == *examples,
        "{split} of task '{}' has {} rows, the plan says {examples}",
        task.name,
        rows.len()
    );
    let vocabulary = session.encoder.vocabulary_sha256()?;
    let set = tokenize(task, split, &rows, tokenizer, session.recipe.model.max_length, &vocabulary)?;
    let predictions = ask(session, stage, task, &set)?;
    let path = session.run.predictions(stage, &task.name, split);
    let text = table(&task.kind, &set.example_ids, &predictions, &set.labels);
    if session.is_first() {
        files::write_atomically(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
        if set.labels.iter().all(|l| l.is_finite()) {
            let path = session.run.further_scores(stage);
            let at = || path.display().to_string();
            let mut all: Scores = files::read_json(&path).with_context(at)?.unwrap_or_default();
            let score = metrics::score(&task.kind, &task.metrics, &predictions, &set.labels);
            all.insert(format!("{}-{split}", task.name), score);
            files::write_json(&path, &all).with_context(at)?;
        }
    }
    Ok(digest::of_bytes(text))
}

/// The examples of a split, proved to be those that the launcher has seen.
fn rows(session: &Session, task: &Task, split: &str) -> Result<Vec<Example>> {
    let (rows, sum) = match task.source.further.iter().find(|f| f.name == split) {
        Some(further) => {
            let path =
                further.file().with_context(|| format!("the file of {split} of task '{}' is gone", task.name))?;
            let table = read_split(task, further, path)?;
            (table.examples, table.sha256)
        }
        None => {
            let all = read_examples(task, session.recipe.seed, &session.recipe.data.selection())?;
            (if split == "train" { all.train } else { all.dev }, all.source_sha256)
        }
    };
    ensure!(
        sum == session.input(&format!("source {}-{split}", task.name))?,
        "the file of {split} of task '{}' changed while the run was starting; run again",
        task.name
    );
    Ok(rows)
}

/// What the model of a stage says, on every rank.
fn ask(session: &Session, stage: &str, task: &Task, set: &TokenSet) -> Result<Vec<f32>> {
    check_model(session, stage)?;
    let directory: &Path = &session.run.model(stage);
    let whole = GivenTeacher { path: directory.to_owned(), labels: None };
    let found = TaskModel::inspect(&whole, task, &session.encoder, session.recipe.model.max_length)?;
    let model = load(session, &found, task)?;
    predict(session, model.as_ref(), 0, &task.kind, set)
}
