//! `bam submission`: a run's answers to GLUE's test sets as the zip that GLUE's server takes, checked before it is
//! written.

use std::io::{Cursor, Write};
use std::path::PathBuf;

use anyhow::Context;
use bam_cluster::config;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::{Plan, Question, Stage, StageWork};
use bam_cluster::run_dir::RunDir;
use bam_cluster::task::{Kind, SUBMISSION, SubmissionFile, Task, glue_task, read_split};
use zip::ZipWriter;
use zip::write::FileOptions;

use super::report::plan_of;
use crate::cli::SubmissionArguments;

/// The commonest answer to WNLI, which no model of its time learnt better than.
const WNLI_MAJORITY: &str = "0";

/// A submission that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// Answers are missing altogether.
    #[error(
        "{run}: there are no answers for {missing}\n  bam predict CONFIG makes those of tasks that the run has learnt \
         and whose test files are there; --partial leaves the others out, but GLUE takes only all eleven files"
    )]
    Missing {
        /// The run's directory.
        run: PathBuf,
        /// Names of files of the submission.
        missing: String,
    },
    /// A file of answers is not what it should be.
    #[error("{path}: {problem}\n  remove it and run bam predict again")]
    Answers {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is no such trial.
    #[error("{run}: there is no trial {trial}, only {trials}")]
    Trial {
        /// The run's directory.
        run: PathBuf,
        /// As asked for.
        trial: u64,
        /// How many there are.
        trials: u64,
    },
}

/// Writes a submission.
pub fn run(arguments: &SubmissionArguments) -> anyhow::Result<u8> {
    let run = RunDir::new(&arguments.run_dir);
    let plan = plan_of(&run)?;
    let recipe = config::load_resolved(&run.recipe())?;
    if arguments.trial == 0 || arguments.trial > recipe.trials {
        let (run, trial, trials) = (run.path().to_owned(), arguments.trial, recipe.trials);
        return Err(SubmissionError::Trial { run, trial, trials }.into());
    }
    let tasks = recipe.tasks();
    let (mut contents, mut missing, mut answered) = (vec![], vec![], false);
    for wanted in SUBMISSION {
        let task = tasks.iter().find(|t| t.name == wanted.task);
        let question = question(&plan, &wanted, arguments.trial).filter(|_| run.done("predict").exists());
        let rows = match (question, task) {
            (Some(question), Some(task)) => {
                answered = true;
                Some(answers(&run, question, task)?)
            }
            _ if wanted.task == "wnli" => majority(&recipe)?,
            _ => None,
        };
        match rows {
            Some(rows) => contents.push((wanted.file, rows)),
            None => missing.push(wanted.file),
        }
    }
    if !answered || !missing.is_empty() && !arguments.partial {
        let missing = missing.join(", ");
        return Err(SubmissionError::Missing { run: run.path().to_owned(), missing }.into());
    }
    let path = arguments.to.clone().unwrap_or_else(|| run.path().join("submission.zip"));
    files::write_atomically(&path, &zip(&contents)?).with_context(|| format!("cannot write {}", path.display()))?;
    for (file, rows) in &contents {
        super::print(&format!("{file}: {} rows\n", rows.len()))?;
    }
    let left_out = if missing.is_empty() { String::new() } else { format!(" (without {})", missing.join(", ")) };
    super::print(&format!("{}{left_out}\n", path.display()))?;
    Ok(exit_code::DONE)
}

/// The question whose answers a file of the submission holds.
fn question<'a>(plan: &'a Plan, wanted: &SubmissionFile, trial: u64) -> Option<&'a Question> {
    let of_trial = |name: &str| plan.stage(name).and_then(Stage::model).is_some_and(|model| model.trial == trial);
    let questions = plan.stages.iter().filter_map(|stage| match &stage.work {
        StageWork::Predict(predict) => Some(&predict.questions),
        _ => None,
    });
    questions.flatten().find(|q| q.task == wanted.task && q.split == wanted.split && of_trial(&q.stage))
}

/// What a model answered, row by row, as GLUE writes it.
fn answers(run: &RunDir, question: &Question, task: &Task) -> anyhow::Result<Vec<String>> {
    let path = run.predictions(&question.stage, &question.task, &question.split);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let refuse = |problem: String| SubmissionError::Answers { path: path.clone(), problem };
    let mut rows = vec![];
    for (place, line) in text.lines().skip(1).enumerate() {
        let mut fields = line.split('\t');
        let (id, answer) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        if id.parse() != Ok(place) {
            return Err(refuse(format!("row {place} has the number '{id}'")).into());
        }
        let answer =
            written(answer, &task.kind).ok_or_else(|| refuse(format!("row {place}: '{answer}' is no answer")))?;
        rows.push(answer);
    }
    if rows.len() != question.examples {
        return Err(refuse(format!("has {} answers for {} rows", rows.len(), question.examples)).into());
    }
    Ok(rows)
}

/// An answer as GLUE writes it: a class by its name, a score of STS-B within its range with three decimals.
fn written(answer: &str, kind: &Kind) -> Option<String> {
    match kind {
        Kind::Classification { labels, .. } => labels.iter().find(|l| *l == answer).cloned(),
        Kind::Regression { min, max } => {
            // A zero added: a negative one would be written as -0.000.
            answer.parse::<f64>().ok().filter(|s| s.is_finite()).map(|s| format!("{:.3}", s.clamp(*min, *max) + 0.0))
        }
    }
}

/// The majority's answer for each row of WNLI's test file; none if the file is not there.
fn majority(recipe: &config::Recipe) -> anyhow::Result<Option<Vec<String>>> {
    let task = recipe.data.glue.as_ref().and_then(|glue| glue_task("wnli", glue));
    let found = task.as_ref().and_then(|t| t.source.further.iter().find_map(|s| Some((t, s, s.file()?))));
    let Some((task, split, file)) = found else { return Ok(None) };
    let rows = read_split(task, split, file)?.examples.len();
    Ok(Some(vec![WNLI_MAJORITY.to_owned(); rows]))
}

fn zip(contents: &[(&str, Vec<String>)]) -> anyhow::Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(vec![]));
    for (file, rows) in contents {
        // A fixed date, so that equal answers make equal files.
        let options = FileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(*file, options)?;
        archive.write_all(b"index\tprediction\n")?;
        for (index, answer) in rows.iter().enumerate() {
            writeln!(archive, "{index}\t{answer}")?;
        }
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_written_as_glue_wants_them() {
        let stsb = Kind::Regression { min: 0.0, max: 5.0 };
        let answers = ["5.2", "-0.1", "-0", "3.1415927", "1e-7"];
        assert_eq!(answers.map(|s| written(s, &stsb).unwrap()), ["5.000", "0.000", "0.000", "3.142", "0.000"]);
        assert_eq!((written("nan", &stsb), written("", &stsb)), (None, None));
        let rte =
            Kind::Classification { labels: vec!["entailment".into(), "not_entailment".into()], thresholds: vec![] };
        assert_eq!(written("entailment", &rte).as_deref(), Some("entailment"));
        assert_eq!(written("0", &rte), None);
    }
}
