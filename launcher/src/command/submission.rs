//! `bam submission`: a run's answers to GLUE's test sets as the zip that GLUE's server takes, checked before it is
//! written.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bam_cluster::config::{self, Recipe};
use bam_cluster::digest;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::Question;
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::StageRecord;
use bam_cluster::task::{Kind, SUBMISSION, SubmissionFile, Task, glue_task};
use zip::ZipWriter;
use zip::write::FileOptions;

use super::report::plan_of;
use crate::answers::{self, Answered};
use crate::cli::SubmissionArguments;
use crate::numbers::thousands;

/// The commonest answer to WNLI, which no model of its time learnt better than.
const WNLI_MAJORITY: &str = "0";

/// What helps where answers are not what they should be.
const ASK_AGAIN: &str = "bam predict CONFIG has the questions answered again";

/// A submission that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// Answers are missing altogether.
    #[error(
        "{run}: there are no answers for {missing}\n  bam predict CONFIG makes those of tasks that the run has learnt \
         and whose test files are there; --partial leaves the others out, but GLUE takes only all eleven files{own}"
    )]
    Missing {
        /// The run's directory.
        run: PathBuf,
        /// Names of files of the submission.
        missing: String,
        /// What is to be said of tasks that have GLUE's names and are not GLUE's.
        own: String,
    },
    /// A file of answers is not what it should be.
    #[error("{path}: {problem}\n  {remedy}")]
    Answers {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Test files that were answered are not GLUE's.
    #[error(
        "{run}: {mismatches}\n  GLUE's server takes an answer to each row of its own test sets: fetch them again (bam fetch \
         glue) and have them answered (bam predict CONFIG); --partial packs what there is"
    )]
    Rows {
        /// The run's directory.
        run: PathBuf,
        /// Which files, with how many answers.
        mismatches: String,
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

/// One file of the zip.
struct Part {
    /// What GLUE wants of it.
    wanted: &'static SubmissionFile,
    /// Answers in the order of the test set's rows.
    rows: Vec<String>,
    /// Whether they are WNLI's commonest answer rather than a model's.
    is_majority: bool,
}

impl Part {
    /// What is to be said of a test set that is not as long as GLUE's.
    fn mismatch(&self) -> Option<String> {
        let SubmissionFile { file, rows: official, .. } = self.wanted;
        let found = self.rows.len();
        (found != *official)
            .then(|| format!("{file}: {} answers, and GLUE's test set has {}", thousands(found), thousands(*official)))
    }
}

/// What was packed.
struct Packed {
    /// Where the zip is.
    path: PathBuf,
    parts: Vec<Part>,
    /// Names of files that were left out.
    missing: Vec<&'static str>,
    /// What GLUE's server would not take.
    warnings: Vec<String>,
}

/// Writes a submission and says what is in it.
pub fn run(arguments: &SubmissionArguments) -> anyhow::Result<u8> {
    let Packed { path, parts, missing, warnings } = pack(arguments)?;
    for warning in warnings {
        super::tell(&format!("warning: {warning}"));
    }
    for Part { wanted, rows, is_majority } in &parts {
        let majority = if *is_majority { " (majority)" } else { "" };
        super::print(&format!("{}: {} rows{majority}\n", wanted.file, rows.len()))?;
    }
    let left_out = if missing.is_empty() { String::new() } else { format!(" (without {})", missing.join(", ")) };
    super::print(&format!("{}{left_out}\n", path.display()))?;
    Ok(exit_code::DONE)
}

fn pack(arguments: &SubmissionArguments) -> anyhow::Result<Packed> {
    let run = RunDir::new(&arguments.run_dir);
    plan_of(&run)?;
    let recipe = config::load_resolved(&run.recipe())?;
    let all = recorded(&run)?;
    let trials = all.iter().map(|answered| answered.trial).chain([recipe.trials]).max().unwrap_or_default();
    if !(1..=trials).contains(&arguments.trial) {
        let (run, trial) = (run.path().to_owned(), arguments.trial);
        return Err(SubmissionError::Trial { run, trial, trials }.into());
    }
    let (mut parts, mut missing) = (vec![], vec![]);
    for wanted in &SUBMISSION {
        let of_wanted = |a: &&Answered| {
            (a.question.task.as_str(), a.question.split.as_str(), a.trial)
                == (wanted.task, wanted.split, arguments.trial)
        };
        // A task of one's own may have a GLUE task's name.
        let answered = if recipe.is_glue(wanted.task) { all.iter().find(of_wanted) } else { None };
        if let Some(answered) = answered {
            let rows = rows(&run, &recipe, answered, wanted)?;
            parts.push(Part { wanted, rows, is_majority: false });
        } else if wanted.task == "wnli" && !recipe.is_glue("wnli") {
            let rows = vec![WNLI_MAJORITY.to_owned(); wanted.rows];
            parts.push(Part { wanted, rows, is_majority: true });
        } else {
            missing.push(wanted.file);
        }
    }
    if parts.iter().all(|part| part.is_majority) || !missing.is_empty() && !arguments.partial {
        let (run, missing, own) = (run.path().to_owned(), missing.join(", "), own_namesakes(&recipe));
        return Err(SubmissionError::Missing { run, missing, own }.into());
    }
    let mismatches: Vec<String> = parts.iter().filter_map(Part::mismatch).collect();
    if !mismatches.is_empty() && !arguments.partial {
        let (run, mismatches) = (run.path().to_owned(), mismatches.join("\n  "));
        return Err(SubmissionError::Rows { run, mismatches }.into());
    }
    let path = arguments.to.clone().unwrap_or_else(|| run.path().join("submission.zip"));
    // What is written aside first needs a directory with a name.
    let path = std::path::absolute(path)?;
    files::write_atomically(&path, &zip(&parts)?).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Packed { path, parts, missing, warnings: mismatches })
}

/// Everything that the run's models have answered.
fn recorded(run: &RunDir) -> anyhow::Result<Vec<Answered>> {
    let path = run.answers();
    match answers::read(run) {
        Err(error) if answers::is_damage(&error) => {
            let problem = format!("the record of what was answered is damaged: {error}");
            Err(SubmissionError::Answers { path, problem, remedy: ASK_AGAIN }.into())
        }
        all => all.with_context(|| path.display().to_string()),
    }
}

/// Tasks of the recipe's own that have GLUE's names, as a further line of an error.
fn own_namesakes(recipe: &Recipe) -> String {
    let all = recipe.data.tasks.iter().map(|entry| entry.name());
    let names: Vec<&str> = all.filter(|name| recipe.is_namesake(name)).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("\n  not GLUE's, but of the recipe's own: {}", names.join(", "))
}

/// What a model answered, row by row, as GLUE writes it: proved to be this model's answers to the file that is there now.
fn rows(run: &RunDir, recipe: &Recipe, answered: &Answered, wanted: &SubmissionFile) -> anyhow::Result<Vec<String>> {
    let Question { stage, task, split, examples } = &answered.question;
    let path = run.predictions(stage, task, split);
    let refuse = |problem: String| SubmissionError::Answers { path: path.clone(), problem, remedy: ASK_AGAIN };
    let text = fs::read_to_string(&path).map_err(|e| refuse(e.to_string()))?;
    if digest::of_bytes(&text) != answered.answers {
        return Err(refuse("this is not what the model answered; the file has been changed since".to_owned()).into());
    }
    let done = run.done(stage);
    let Some(record) = files::read_json::<StageRecord>(&done).with_context(|| done.display().to_string())? else {
        let problem = format!("stage '{stage}', whose model answered, is not complete any more");
        return Err(SubmissionError::Answers { path, problem, remedy: "bam run CONFIG completes it" }.into());
    };
    if record.outputs.get("model") != Some(&answered.model) {
        return Err(refuse(format!("another model answered than stage '{stage}' has made since")).into());
    }
    let glue = recipe.data.glue.as_deref().unwrap_or(Path::new(""));
    let task = glue_task(wanted.task, glue).with_context(|| format!("GLUE has no task '{}'", wanted.task))?;
    let split = task.source.further.iter().find(|split| split.name == wanted.split);
    // Where the file is gone, its rows were counted when it was answered.
    if let Some(file) = split.and_then(|split| split.file()) {
        let sum = digest::of_file(file).with_context(|| file.display().to_string())?;
        if sum != answered.source {
            let problem = format!("these answers are to other questions than {} asks now", file.display());
            return Err(refuse(problem).into());
        }
    }
    Ok(parsed(&text, &task, *examples).map_err(refuse)?)
}

/// The answers of a file, each under its own number.
fn parsed(text: &str, task: &Task, examples: usize) -> Result<Vec<String>, String> {
    let mut rows = vec![];
    for (place, line) in text.lines().skip(1).enumerate() {
        let mut fields = line.split('\t');
        let (id, answer) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        if id.parse() != Ok(place) {
            return Err(format!("row {place} has the number '{id}'"));
        }
        rows.push(written(answer, &task.kind).ok_or_else(|| format!("row {place}: '{answer}' is no answer"))?);
    }
    if rows.len() != examples {
        return Err(format!("has {} answers for {examples} rows", rows.len()));
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

fn zip(parts: &[Part]) -> anyhow::Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(vec![]));
    for Part { wanted, rows, .. } in parts {
        // A fixed date, so that equal answers make equal files.
        let options = FileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(wanted.file, options)?;
        archive.write_all(b"index\tprediction\n")?;
        for (index, answer) in rows.iter().enumerate() {
            writeln!(archive, "{index}\t{answer}")?;
        }
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use bam_cluster::plan::Plan;
    use zip::ZipArchive;

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

    /// A run whose models have answered every test set with as many rows as GLUE's, but for those that are said to have
    /// others.
    struct Made {
        directory: tempfile::TempDir,
        all: Vec<Answered>,
    }

    impl Made {
        fn new(tasks: &str, other_rows: &[(&str, usize)]) -> Made {
            let directory = tempfile::tempdir().unwrap();
            let made = |name: &str| directory.path().join(name);
            let recipe = format!("name: x\nmodel: {{ path: m }}\ndata: {{ glue: glue, tasks: [{tasks}] }}\n");
            fs::write(made("config.yaml"), recipe).unwrap();
            let plan = Plan { recipe: String::new(), tasks: vec![], stages: vec![] };
            fs::write(made("plan.json"), serde_json::to_vec(&plan).unwrap()).unwrap();
            let run = RunDir::new(directory.path());
            let outputs = [("model".to_owned(), "m".to_owned())].into();
            let record = StageRecord { inputs: BTreeMap::new(), outputs, seconds: 1.0 };
            files::write_json(&run.done("multi"), &record).unwrap();
            let mut all = vec![];
            for wanted in SUBMISSION.iter().filter(|wanted| wanted.task != "wnli") {
                let rows = other_rows.iter().find(|(file, _)| *file == wanted.file).map_or(wanted.rows, |(_, n)| *n);
                let answer = match wanted.task {
                    "stsb" => "5.25",
                    "mnli" => "neutral",
                    "qnli" | "rte" => "not_entailment",
                    _ => "1",
                };
                let text: String = (0..rows).map(|i| format!("{i}\t{answer}\n")).collect();
                let text = format!("id\tprediction\n{text}");
                let path = run.predictions("multi", wanted.task, wanted.split);
                files::write_atomically(&path, text.as_bytes()).unwrap();
                let (task, split) = (wanted.task.to_owned(), wanted.split.to_owned());
                let question = Question { stage: "multi".into(), task, split, examples: rows };
                let (model, source, answers) = ("m".into(), digest::of_bytes("questions"), digest::of_bytes(&text));
                all.push(Answered { question, trial: 1, model, source, answers });
            }
            files::write_json(&run.answers(), &all).unwrap();
            Made { directory, all }
        }

        fn run(&self) -> RunDir {
            RunDir::new(self.directory.path())
        }

        /// Rows and first answer of each file of the zip, or why there is none.
        fn packed(&self, partial: bool) -> Result<BTreeMap<String, (usize, String)>, String> {
            let run_dir = self.directory.path().to_owned();
            let arguments = SubmissionArguments { run_dir, trial: 1, partial, to: None };
            let packed = pack(&arguments).map_err(|e| format!("{e:#}"))?;
            let mut archive = ZipArchive::new(fs::File::open(packed.path).unwrap()).unwrap();
            let mut files = BTreeMap::new();
            for i in 0..archive.len() {
                let mut file = archive.by_index(i).unwrap();
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert!(text.starts_with("index\tprediction\n0\t"), "{text:.60}");
                let first = text.lines().nth(1).unwrap().split('\t').nth(1).unwrap().to_owned();
                files.insert(file.name().to_owned(), (text.lines().count() - 1, first));
            }
            Ok(files)
        }
    }

    const ALL: &str = "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte";

    #[test]
    fn a_submission_has_an_answer_to_each_row_of_glues_test_sets() {
        let files = Made::new(ALL, &[]).packed(false).unwrap();
        let expected: BTreeMap<String, usize> = SUBMISSION.iter().map(|f| (f.file.to_owned(), f.rows)).collect();
        assert_eq!(files.iter().map(|(file, (rows, _))| (file.clone(), *rows)).collect::<BTreeMap<_, _>>(), expected);
        assert_eq!(expected.values().sum::<usize>(), 426_309);
        let first = |file: &str| files[file].1.as_str();
        assert_eq!((first("STS-B.tsv"), first("AX.tsv"), first("WNLI.tsv")), ("5.000", "neutral", "0"));
    }

    #[test]
    fn a_test_set_with_other_rows_than_glues_is_refused_unless_that_is_wanted() {
        let made = Made::new(ALL, &[("RTE.tsv", 2_000)]);
        let message = made.packed(false).unwrap_err();
        for words in ["RTE.tsv: 2,000 answers, and GLUE's test set has 3,000", "bam fetch glue", "--partial"] {
            assert!(message.contains(words), "'{words}' is not in {message}");
        }
        assert!(!made.directory.path().join("submission.zip").exists());
        assert_eq!(made.packed(true).unwrap()["RTE.tsv"].0, 2_000);
    }

    #[test]
    fn a_task_of_ones_own_answers_for_none_of_glues() {
        let own = "{ name: rte, train: a, dev: b, text: 0, label: 1, type: classification, labels: [entailment, not] }";
        let made = Made::new(&format!("cola, {own}"), &[]);
        let message = made.packed(false).unwrap_err();
        assert!(message.contains("RTE.tsv") && message.contains("of the recipe's own: rte"), "{message}");
        assert_eq!(made.packed(true).unwrap().into_keys().collect::<Vec<_>>(), ["CoLA.tsv", "WNLI.tsv"]);
        let made = Made::new(&format!("cola, {}", own.replace("rte", "wnli")), &[]);
        assert_eq!(made.packed(true).unwrap().into_keys().collect::<Vec<_>>(), ["CoLA.tsv", "WNLI.tsv"]);
    }

    #[test]
    fn a_recipe_that_trains_wnli_has_to_answer_it() {
        let made = Made::new(&format!("{ALL}, wnli"), &[]);
        let message = made.packed(false).unwrap_err();
        assert!(message.contains("no answers for WNLI.tsv\n"), "{message}");
        let files = made.packed(true).unwrap();
        assert!(files.len() == 10 && !files.contains_key("WNLI.tsv"), "{:?}", files.keys());
    }

    #[test]
    fn answers_of_another_model_or_to_other_questions_are_refused() {
        let made = Made::new(ALL, &[]);
        let glue = made.directory.path().join("glue/RTE");
        fs::create_dir_all(&glue).unwrap();
        fs::write(glue.join("test.tsv"), "questions").unwrap();
        assert!(made.packed(false).is_ok());
        fs::write(glue.join("test.tsv"), "others").unwrap();
        let message = made.packed(false).unwrap_err();
        assert!(message.contains("rte-test.tsv") && message.contains("other questions than"), "{message}");
        fs::remove_file(glue.join("test.tsv")).unwrap();
        let mut all = made.all.clone();
        all[0].model = "another".into();
        files::write_json(&made.run().answers(), &all).unwrap();
        let message = made.packed(false).unwrap_err();
        assert!(message.contains("cola-test.tsv: another model answered than stage 'multi'"), "{message}");
    }

    #[test]
    fn a_stage_or_a_record_that_is_gone_is_said_with_its_remedy() {
        let made = Made::new(ALL, &[]);
        let run = made.run();
        let record = fs::read(run.done("multi")).unwrap();
        fs::remove_file(run.done("multi")).unwrap();
        let message = made.packed(false).unwrap_err();
        assert!(message.contains("stage 'multi', whose model answered, is not complete any more"), "{message}");
        assert!(message.ends_with("bam run CONFIG completes it"), "{message}");
        fs::write(run.done("multi"), record).unwrap();
        for damaged in ["[]]", "[{"] {
            fs::write(run.answers(), damaged).unwrap();
            let message = made.packed(true).unwrap_err();
            for words in ["answers.json: the record of what was answered is damaged: ", ASK_AGAIN] {
                assert!(message.contains(words), "'{words}' is not in {message}");
            }
        }
    }

    #[test]
    fn answers_stand_under_their_numbers() {
        let task = glue_task("rte", Path::new("glue")).unwrap();
        let parse = |rows: &str, examples| parsed(&format!("id\tprediction\n{rows}"), &task, examples);
        assert_eq!(parse("0\tentailment\n", 1).unwrap(), ["entailment"]);
        assert_eq!(parse("1\tentailment\n", 1).unwrap_err(), "row 0 has the number '1'");
        assert_eq!(parse("0\tyes\n", 1).unwrap_err(), "row 0: 'yes' is no answer");
        assert_eq!(parse("0\tentailment\n", 2).unwrap_err(), "has 1 answers for 2 rows");
    }
}
