//! Answers to test sets, and the zip that GLUE's server takes.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use bam_tests::{ROWS, Recipe, Run, Workplace, python};

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
    place.bam(["submission", "runs/tiny", "--partial"]).expect(0);
    let files = unpacked(&python, &run.at("submission.zip"));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["CoLA.tsv", "RTE.tsv", "STS-B.tsv", "WNLI.tsv"]);
    for (file, text) in &files {
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split('\t').collect()).collect();
        assert_eq!((lines.len(), &lines[0]), (ROWS / 4 + 1, &vec!["index", "prediction"]), "{file}");
        for (i, line) in lines[1..].iter().enumerate() {
            let good = match file.as_str() {
                "RTE.tsv" => ["entailment", "not_entailment"].contains(&line[1]),
                "STS-B.tsv" => line[1].len() == 5 && line[1].parse::<f64>().is_ok_and(|s| (0.0..=5.0).contains(&s)),
                "WNLI.tsv" => line[1] == "0",
                _ => ["0", "1"].contains(&line[1]),
            };
            assert!(good && line[0] == i.to_string(), "{file}: {line:?}");
        }
    }
    // Other questions are answered, too; what was answered stays.
    place.bam(["predict", "recipe.yaml", "--split", "train"]).expect(0);
    assert_eq!(read("cola-train").lines().count(), ROWS + 1);
    assert_eq!(read("cola-test"), answers);
    let again = place.bam(["predict", "recipe.yaml"]).expect(0);
    assert!(!format!("{again}").contains("predict: done before"), "{again}");
    assert!(format!("{}", place.bam(["predict", "recipe.yaml"]).expect(0)).contains("predict: done before"));

    // An answer that was lost is noticed.
    let path = run.stage("multi", "predictions/rte-test.tsv");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.lines().take(20).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    place
        .bam(["submission", "runs/tiny", "--partial"])
        .finish()
        .expect_error(3, &["rte-test.tsv", "19 answers for 60 rows"]);
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
