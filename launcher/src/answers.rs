//! Which questions a run's models have answered, over all starts: a plan knows the questions of one start alone, and the
//! next start may ask others.

use std::io;
use std::path::Path;

use bam_cluster::digest;
use bam_cluster::files;
use bam_cluster::plan::{Plan, PredictStage, Question};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::Sums;
use serde::{Deserialize, Serialize};

/// One entry of `stages/predict/answers.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// What was asked.
    pub question: Question,
    /// The trial that the model belongs to.
    pub trial: u64,
    /// SHA-256 of the model's weights.
    pub model: String,
    /// SHA-256 of the file that the examples came from.
    pub source: String,
    /// SHA-256 of the file with the answers.
    pub answers: String,
}

/// Everything that was answered so far.
///
/// # Errors
/// The record cannot be read.
pub fn read(run: &RunDir) -> io::Result<Vec<Answered>> {
    Ok(files::read_json(&run.answers())?.unwrap_or_default())
}

/// Whether a record that cannot be read is none: cut short, or changed by somebody. Asking again makes a new one.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// What was answered so far and can still be known.
fn known(run: &RunDir) -> io::Result<Vec<Answered>> {
    read(run).or_else(|error| if is_damage(&error) { Ok(vec![]) } else { Err(error) })
}

/// Adds what a start has answered, in the place of older answers to the same questions, and of a damaged record.
///
/// # Errors
/// The record cannot be read or written.
pub fn note(run: &RunDir, plan: &Plan, work: &PredictStage, inputs: &Sums, outputs: &Sums) -> io::Result<()> {
    let mut all = known(run)?;
    for question in &work.questions {
        all.retain(|old| !is_same(&old.question, question));
        all.push(answered(plan, question, inputs, outputs));
    }
    files::write_json(&run.answers(), &all)
}

/// Whether all these questions have been answered from these inputs, and the answers are there as they were given.
///
/// # Errors
/// The record cannot be read.
pub fn are_kept(run: &RunDir, plan: &Plan, work: &PredictStage, inputs: &Sums, outputs: &Sums) -> io::Result<bool> {
    let all = known(run)?;
    let is_kept = |question: &Question| {
        let path = run.predictions(&question.stage, &question.task, &question.split);
        let expected = answered(plan, question, inputs, outputs);
        all.contains(&expected) && is_as_given(&path, &expected)
    };
    Ok(work.questions.iter().all(is_kept))
}

/// Whether a file holds the answers that were given.
pub fn is_as_given(path: &Path, answered: &Answered) -> bool {
    digest::of_file(path).is_ok_and(|sum| sum == answered.answers)
}

fn answered(plan: &Plan, question: &Question, inputs: &Sums, outputs: &Sums) -> Answered {
    let Question { stage, task, split, .. } = question;
    let input = |name: String| inputs.get(&name).cloned().unwrap_or_default();
    Answered {
        question: question.clone(),
        trial: plan.stage(stage).and_then(|stage| stage.model()).map_or(1, |model| model.trial),
        model: input(format!("model {stage}")),
        source: input(format!("source {task}-{split}")),
        answers: outputs.get(&question.key()).cloned().unwrap_or_default(),
    }
}

fn is_same(a: &Question, b: &Question) -> bool {
    (&a.stage, &a.task, &a.split) == (&b.stage, &b.task, &b.split)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(pairs: &[(&str, &str)]) -> Sums {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn question(split: &str) -> Question {
        Question { stage: "multi".into(), task: "rte".into(), split: split.into(), examples: 1 }
    }

    #[test]
    fn other_questions_leave_what_was_answered() {
        let directory = tempfile::tempdir().unwrap();
        let run = RunDir::new(directory.path());
        let plan = Plan { recipe: String::new(), tasks: vec![], stages: vec![] };
        let inputs = sums(&[("model multi", "m"), ("source rte-test", "t"), ("source rte-dev", "d")]);
        let ask = |split: &str, answers: &str| {
            let work = PredictStage { questions: vec![question(split)] };
            let path = run.predictions("multi", "rte", split);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, answers).unwrap();
            let outputs = sums(&[(question(split).key().as_str(), digest::of_bytes(answers).as_str())]);
            note(&run, &plan, &work, &inputs, &outputs).unwrap();
            (work, outputs)
        };
        let (test, given) = ask("test", "yes");
        ask("dev", "no");
        ask("dev", "perhaps");
        let all = read(&run).unwrap();
        assert_eq!(all.iter().map(|a| a.question.split.as_str()).collect::<Vec<_>>(), ["test", "dev"]);
        assert_eq!((all[1].source.as_str(), &all[1].answers), ("d", &digest::of_bytes("perhaps")));
        let kept = |inputs: &Sums| are_kept(&run, &plan, &test, inputs, &given).unwrap();
        assert!(kept(&inputs));
        assert!(!kept(&sums(&[("model multi", "another"), ("source rte-test", "t")])));
        std::fs::write(run.predictions("multi", "rte", "test"), "maybe").unwrap();
        assert!(!kept(&inputs));
        // Of a damaged record nothing is kept, and the next answers take its place.
        for damaged in ["[]]", "", "[{", "{}"] {
            std::fs::write(run.answers(), damaged).unwrap();
            assert!(is_damage(&read(&run).unwrap_err()), "{damaged}");
            assert!(!kept(&inputs), "{damaged}");
            ask("test", "yes");
            assert_eq!(read(&run).unwrap().len(), 1, "{damaged}");
            assert!(kept(&inputs), "{damaged}");
        }
    }
}
