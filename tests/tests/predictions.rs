//! Answers to test sets, and the zip that GLUE's server takes.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use bam_tests::{FEW_ROWS, ROWS, Recipe, Run, Workplace, python, write_all_of_glue};

/// The files of a zip, as Python's zipfile reads them.
fn unpacked(python: &Path, zip: &Path) -> BTreeMap<String, String> {
    let script = "import json, sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
                  print(json.dumps({n: z.read(n).decode() for n in z.namelist()}))";
    let output = Command::new(python).args(["-c", script]).arg(zip).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn test_sets_are_answered_after_the_training_and_packed_for_glue() {
    let Some(python) = python("test_sets_are_answered_after_the_training_and_packed_for_glue") else { return };
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "stsb", "rte", "mrpc", "warmth"]);
    recipe.mode = "multi".into();
    recipe.multi = "epochs: 1, batch_size: 32, learning_rate: 0.002".into();
    place.recipe("recipe.yaml", &recipe);
    place.bam(["run", "recipe.yaml"]).expect(0);
    let run = Run::new(place.at("runs/tiny"));
    place.bam(["submission", "runs/tiny", "--partial"]).finish().expect_error(3, &["CoLA.tsv", "bam predict"]);
    let weights = run.weights_sha256("multi");
    let done = place.bam(["predict", "recipe.yaml", "--split", "dev,test"]).expect(0);
    for words in [
        "multi: done before",
        "'mrpc': test is not predicted",
        "MRPC/test.tsv",
        "'warmth': test is not",
        "predict: done",
    ] {
        assert!(format!("{done}").contains(words), "no '{words}' in {done}");
    }
    assert_eq!(run.weights_sha256("multi"), weights);
    let read = |name: &str| fs::read_to_string(run.stage("multi", &format!("predictions/{name}.tsv"))).unwrap();
    // What was answered at the end of the training is answered again.
    let dev = read("cola-dev");
    fs::remove_file(run.stage("multi", "predictions/cola-dev.tsv")).unwrap();
    place.bam(["predict", "recipe.yaml", "--split", "dev,test", "-n", "3"]).expect(0);
    assert_eq!(read("cola-dev"), dev);
    let answers = read("cola-test");
    assert_eq!((answers.lines().count(), answers.lines().next()), (ROWS / 4 + 1, Some("id\tprediction")));

    let refused =
        place.bam(["submission", "runs/tiny"]).finish().expect_error(3, &["MNLI-m.tsv", "QQP.tsv", "--partial"]);
    assert!(!refused.stderr.contains("RTE.tsv"), "{refused}");
    let packed = place.bam(["submission", "runs/tiny", "--partial"]).expect(0);
    assert!(packed.stderr.contains("warning: RTE.tsv: 60 answers, and GLUE's test set has 3,000"), "{packed}");
    assert!(packed.stdout.contains("\nWNLI.tsv: 146 rows (majority)\n"), "{packed}");
    let files = unpacked(&python, &run.at("submission.zip"));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["CoLA.tsv", "RTE.tsv", "STS-B.tsv", "WNLI.tsv"]);
    for (file, text) in &files {
        let rows = if file == "WNLI.tsv" { 146 } else { ROWS / 4 };
        assert_eq!(checked(file, text).len(), rows, "{file}");
    }
    assert!(checked("WNLI.tsv", &files["WNLI.tsv"]).iter().all(|answer| answer == "0"));
    // Other questions are answered, too; what was answered stays.
    place.bam(["predict", "recipe.yaml", "--split", "train"]).expect(0);
    assert_eq!(read("cola-train").lines().count(), ROWS + 1);
    assert_eq!(read("cola-test"), answers);
    let again = place.bam(["predict", "recipe.yaml"]).expect(0);
    assert!(!format!("{again}").contains("predict: done before"), "{again}");
    assert!(format!("{}", place.bam(["predict", "recipe.yaml"]).expect(0)).contains("predict: done before"));

    // Starts that ask something else, or nothing, leave the answers to the test sets.
    place.bam(["predict", "recipe.yaml", "--split", "dev"]).expect(0);
    place.bam(["run", "recipe.yaml"]).expect(0);
    place.bam(["submission", "runs/tiny", "--partial"]).expect(0);
    assert_eq!(unpacked(&python, &run.at("submission.zip")), files);

    // An answer that was lost is noticed, and given again.
    let path = run.stage("multi", "predictions/rte-test.tsv");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.lines().take(20).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let words = ["rte-test.tsv", "not what the model answered", "bam predict"];
    place.bam(["submission", "runs/tiny", "--partial"]).finish().expect_error(3, &words);
    // So is a damaged record of what was answered.
    fs::write(run.stage("predict", "answers.json"), "[]]").unwrap();
    let words = ["answers.json", "what was answered is damaged", "bam predict"];
    place.bam(["submission", "runs/tiny", "--partial"]).finish().expect_error(3, &words);
    place.bam(["predict", "recipe.yaml"]).expect(0);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    place.bam(["submission", "runs/tiny", "--partial"]).expect(0);
}

#[test]
fn all_eleven_files_are_answered_in_glues_words() {
    let Some(python) = python("all_eleven_files_are_answered_in_glues_words") else { return };
    let place = Workplace::new();
    write_all_of_glue(&place.at("glue"));
    // The same pairs in MNLI's own test set and in AX.
    let ax = fs::read_to_string(place.at("glue/diagnostic/diagnostic.tsv")).unwrap();
    place.edit("glue/MNLI/test_matched.tsv", |text| {
        let row = |line: &str| line.replacen('\t', "\t1\t1n\tletters\t( a )\t( b )\t(A a)\t(B b)\t", 1) + "\n";
        text.lines().next().unwrap().to_owned() + "\n" + &ax.lines().skip(1).map(row).collect::<String>()
    });
    let mut recipe = Recipe::of(&["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]);
    recipe.mode = "multi".into();
    recipe.multi = "epochs: 1, batch_size: 32, learning_rate: 0.002".into();
    place.recipe("recipe.yaml", &recipe);
    let done = place.bam(["predict", "recipe.yaml"]).expect(0);
    let said = format!("{done}");
    for words in [
        "task 'qqp': left out 1 of 32 rows of the training file and 1 of 8 of the dev file",
        "task 'mnli': ax has 8 rows, and GLUE's has 1,104",
    ] {
        assert!(said.contains(words), "no '{words}' in {said}");
    }
    let run = Run::new(place.at("runs/tiny"));
    let words = ["CoLA.tsv: 60 answers, and GLUE's test set has 1,063", "AX.tsv: 8 answers", "--partial"];
    place.bam(["submission", "runs/tiny"]).finish().expect_error(3, &words);
    assert!(!run.at("submission.zip").exists());
    let packed = place.bam(["submission", "runs/tiny", "--partial", "--to", "all.zip"]).expect(0);
    assert!(!packed.stdout.contains("without") && !packed.stdout.contains("majority"), "{packed}");
    assert_eq!(packed.stderr.matches("and GLUE's test set has").count(), 11, "{packed}");

    let files = unpacked(&python, &place.at("all.zip"));
    let expected = [
        ("AX.tsv", "mnli-ax"),
        ("CoLA.tsv", "cola-test"),
        ("MNLI-m.tsv", "mnli-test"),
        ("MNLI-mm.tsv", "mnli-test-mismatched"),
        ("MRPC.tsv", "mrpc-test"),
        ("QNLI.tsv", "qnli-test"),
        ("QQP.tsv", "qqp-test"),
        ("RTE.tsv", "rte-test"),
        ("SST-2.tsv", "sst2-test"),
        ("STS-B.tsv", "stsb-test"),
        ("WNLI.tsv", "wnli-test"),
    ];
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), expected.map(|(file, _)| file));
    for (file, answered) in expected {
        let answers = checked(file, &files[file]);
        let own_rows = ["CoLA.tsv", "RTE.tsv", "STS-B.tsv", "WNLI.tsv"].contains(&file);
        assert_eq!(answers.len(), if own_rows { ROWS / 4 } else { FEW_ROWS / 4 }, "{file}");
        let given = fs::read_to_string(run.stage("multi", &format!("predictions/{answered}.tsv"))).unwrap();
        let given: Vec<&str> = given.lines().skip(1).map(|line| line.split('\t').nth(1).unwrap()).collect();
        let same = |answer: &String, given: &str| match given.parse::<f64>() {
            Ok(score) if file == "STS-B.tsv" => (answer.parse::<f64>().unwrap() - score).abs() < 0.0006,
            _ => answer == given,
        };
        assert!(answers.iter().zip(given).all(|(answer, given)| same(answer, given)), "{file}");
    }
    // MNLI's head answers AX.
    assert_eq!(files["AX.tsv"], files["MNLI-m.tsv"]);
}

/// The answers of a file of a submission, each of which has to be of the task's and under its own number.
fn checked(file: &str, text: &str) -> Vec<String> {
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split('\t').collect()).collect();
    assert_eq!(lines[0], ["index", "prediction"], "{file}");
    for (i, line) in lines[1..].iter().enumerate() {
        let good = match file {
            "MNLI-m.tsv" | "MNLI-mm.tsv" | "AX.tsv" => ["contradiction", "entailment", "neutral"].contains(&line[1]),
            "RTE.tsv" | "QNLI.tsv" => ["entailment", "not_entailment"].contains(&line[1]),
            "STS-B.tsv" => line[1].len() == 5 && line[1].parse::<f64>().is_ok_and(|s| (0.0..=5.0).contains(&s)),
            _ => ["0", "1"].contains(&line[1]),
        };
        assert!(good && line[0] == i.to_string() && line.len() == 2, "{file}: {line:?}");
    }
    lines[1..].iter().map(|line| line[1].to_owned()).collect()
}

#[test]
fn a_test_file_without_its_column_of_labels_is_not_misread() {
    let place = Workplace::new();
    place.write("own/mood-test.tsv", "0\tthe good river\n1\ta bad door\n");
    let mood = |more: &str| {
        Recipe::task("mood").replace("dev_fraction", &format!("test: own/mood-test.tsv, {more}dev_fraction"))
    };
    let plan = |more: &str| {
        let recipe = Recipe { tasks: vec![mood(more)], ..Recipe::of(&[]) };
        place.recipe("recipe.yaml", &recipe);
        place.bam(["plan", "recipe.yaml", "-o", "predict=[test]"])
    };
    let words = ["own/mood-test.tsv", "there are 3 columns, and 2 here", "test_text"];
    plan("").finish().expect_error(3, &words);
    plan("test_text: 1, ").expect(0);
}

#[test]
fn a_test_file_with_a_missing_row_is_refused() {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["rte"]));
    place.edit("glue/RTE/test.tsv", |text| {
        text.lines().filter(|l| !l.starts_with("7\t")).map(|l| format!("{l}\n")).collect()
    });
    let words = ["RTE/test.tsv, line 9", "row 7 of task 'rte' has the number 8", "rows are missing"];
    place.bam(["predict", "recipe.yaml"]).finish().expect_error(3, &words);
    assert!(!place.at("runs").exists());
    place.bam(["predict", "recipe.yaml", "--split", "tset"]).finish().expect_error(2, &["tset", "'test'"]);
}
