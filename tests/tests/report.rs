//! What is reported of runs, in every form, and read again by those it is for: programs, TensorBoard, a browser.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use bam_tests::{Browser, Recipe, Run, Scheme, Workplace, python, repository};
use serde_json::Value;

/// Two trials of a recipe with text in it that a page must not take for its own. A rank of the first student is killed
/// between two checkpoints, so that steps are done again.
struct Trials {
    place: Workplace,
    run: Run,
    stdout: String,
}

const NASTY: &str = "</pre><script>alert(1)</script>";

fn trials() -> &'static Trials {
    static ONCE: OnceLock<Trials> = OnceLock::new();
    ONCE.get_or_init(|| {
        let place = Workplace::shared("report");
        let mut recipe = Recipe::of(&["cola", "stsb"]);
        recipe.trials = 2;
        recipe.tasks.push(Recipe::task("mood").replace("neutral", &format!("\"{NASTY}\"")));
        recipe.multi = "epochs: 2, batch_size: 16, learning_rate: 0.002".into();
        recipe.cluster = "processes: 1".into();
        place.recipe("recipe.yaml", &recipe);
        let done = place.bam(["run", "recipe.yaml", "--inject", "student:kill:0:step-31"]).expect(0);
        Trials { run: Run::new(place.at("runs/tiny")), stdout: done.stdout, place }
    })
}

fn report(arguments: &[&str]) -> String {
    trials().place.bam([&["report"], arguments].concat()).expect(0).stdout
}

fn page() -> PathBuf {
    trials().run.at("report.html")
}

#[test]
fn programs_get_json_and_csv() {
    let Trials { run, .. } = trials();
    let all: Value = serde_json::from_str(&report(&["runs/tiny", "--json", "--tests", "--published"])).unwrap();
    assert_eq!(all["runs"], Value::Array(vec![run.json("report.json")]));
    assert_eq!(all["published"]["table_1"][4]["models"], "Single→Multi");
    let tests = all["tests"].as_array().unwrap();
    let average = tests.iter().find(|test| test["task"].is_null()).unwrap();
    assert_eq!(
        (&average["tested"]["models"], &average["against"]["models"]),
        (&"single-to-multi".into(), &"single".into())
    );
    assert!(average["p_holm"].as_f64().unwrap() >= average["p"].as_f64().unwrap());
    assert!(serde_json::from_str::<Value>(&report(&["runs/tiny", "--format", "json"])).unwrap()["tests"].is_null());

    let csv = report(&["runs/tiny", "--format", "csv"]);
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("run,models,trial,member,stage,task,split,metric,score,examples"));
    // Two kinds of models, two trials; one metric of two tasks and two of the third.
    assert_eq!(lines.clone().count(), 2 * 2 * 4, "{csv}");
    let row: Vec<&str> = lines
        .find(|line| line.contains("single-to-multi,2,1,student@2,stsb,dev,spearman"))
        .unwrap()
        .split(',')
        .collect();
    assert_eq!(run.json("stages/student@2/dev.json")["stsb"]["metrics"]["spearman"], row[8].parse::<f64>().unwrap());
}

#[test]
fn papers_get_rows_and_terminals_what_they_had() {
    let Trials { stdout, place, .. } = trials();
    assert_eq!(&report(&["runs/tiny"]), stdout);
    let latex = report(&["runs/tiny", "--format", "latex", "--tests", "--published"]);
    let line = |start: &str| latex.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{latex}"));
    assert_eq!(line("Model"), "Model & Avg. & CoLA & STS-B & mood \\\\");
    assert!(line("Single$\\to$Multi &").contains("\\scriptsize["), "{latex}");
    assert_eq!(line("Single$\\to$Multi (published)").matches('&').count(), 4);
    assert!(
        latex.contains("\\begin{tabular}{@{}lrrrr@{}}\n\\toprule") && latex.ends_with("\\bottomrule\n\\end{tabular}\n")
    );

    let both = report(&["runs/tiny", "runs/tiny", "--format", "latex", "--to", "table.tex"]);
    assert_eq!((both.as_str(), fs::read_to_string(place.at("table.tex")).unwrap().matches("(tiny)").count()), ("", 4));
    let page = ["report", "runs/tiny", "runs/tiny", "--format", "html"];
    place.bam(page).finish().expect_error(2, &["--to report.html"]);
    assert_eq!(report(&[&page[1..], &["--to", "both.html"]].concat()), "both.html\n");
    let both = fs::read_to_string(place.at("both.html")).unwrap();
    assert!(both.matches("<article>").count() == 2 && both.contains("Kinds of models"), "{both}");
    place.bam(["report", "runs/tiny", "--format", "csv", "--tests"]).finish().expect_error(2, &["CSV"]);
    place.bam(["report", "runs"]).finish().expect_error(2, &["is not the directory of a run"]);
}

#[test]
fn an_exported_model_has_a_card() {
    let Trials { place, run, .. } = trials();
    place.bam(["export", "runs/tiny", "--to", "exported"]).expect(0);
    let card = fs::read_to_string(place.at("exported/mood/README.md")).unwrap();
    let accuracy = run.json("stages/student/dev.json")["mood"]["metrics"]["accuracy"].as_f64().unwrap();
    for words in [
        "library_name: transformers",
        &format!("| accuracy | {accuracy:.4} |"),
        "taught by teacher-cola, teacher-stsb, teacher-mood",
        "AutoModelForSequenceClassification.from_pretrained",
        "max_length=40",
    ] {
        assert!(card.contains(words), "'{words}' is not in {card}");
    }
}

#[test]
fn a_page_tells_everything_and_needs_nothing() {
    let Trials { run, .. } = trials();
    let text = fs::read_to_string(page()).unwrap();
    for words in [
        "Results on dev",
        "More than chance?",
        "student, trial 1",
        "Loss by task",
        "weight of the gold labels",
        "Learning rate",
        "Examples drawn in",
        "Where a step&#39;s time goes",
        "One start more than there are stages",
        "was killed by signal 9",
        "run recipe.yaml --inject student:kill:0:step-31",
        "&lt;/pre&gt;&lt;script&gt;alert(1)",
        run.json("stages/student/done.json")["outputs"]["model"].as_str().unwrap(),
    ] {
        let plain = words.replace("&#39;", "'");
        assert!(text.contains(words) || text.contains(&plain), "'{words}' is not in {text}");
    }
    for foreign in ["<script", "src=", "href=", "@import", "url("] {
        assert!(!text.contains(foreign), "{foreign}");
    }
    // Made again from the directory, it is the same.
    assert_eq!(report(&["runs/tiny", "--format", "html"]), "runs/tiny/report.html\n");
    assert_eq!(fs::read_to_string(page()).unwrap(), text);
}

#[test]
fn a_run_that_is_not_complete_has_a_page_too() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "mood"]);
    recipe.cluster = "processes: 1".into();
    recipe.single = "epochs: 1, batch_size: 16".into();
    place.recipe("recipe.yaml", &recipe);
    let page = || {
        place.bam(["report", "runs/tiny", "--format", "html"]).expect(0);
        fs::read_to_string(place.at("runs/tiny/report.html")).unwrap()
    };
    place.bam(["run", "recipe.yaml", "--stages", "prepare"]).expect(0);
    let before = page();
    for words in ["No step has been done yet", "No model has been judged yet", "Not complete: teacher-cola"] {
        assert!(before.contains(words), "'{words}' is not in {before}");
    }
    place.bam(["run", "recipe.yaml", "--stages", "teacher-cola"]).expect(0);
    // As a training leaves it that is at work.
    fs::copy(place.at("runs/tiny/stages/teacher-cola/metrics.jsonl"), place.at("metrics")).unwrap();
    let half = fs::read_to_string(place.at("metrics")).unwrap();
    fs::create_dir_all(place.at("runs/tiny/stages/student")).unwrap();
    fs::write(place.at("runs/tiny/stages/student/metrics.jsonl"), &half[..half.len() * 2 / 3]).unwrap();
    let after = page();
    for words in
        ["Not complete: teacher-mood, logits, student", "Loss by task", "Models of one task", "--stages teacher-cola"]
    {
        assert!(after.contains(words), "'{words}' is not in {after}");
    }
    place.bam(["run", "recipe.yaml", "--stages", "report"]).expect(1);
}

#[test]
fn tensorboard_reads_every_step_once() {
    let test = "tensorboard_reads_every_step_once";
    let Some(python) = python(test) else { return };
    let Trials { run, .. } = trials();
    let directory = run.stage("student", "tensorboard");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "a file for each start");
    let script = repository().join("tests/read_with_tensorboard.py");
    let output = Command::new(python).arg(script).arg(&directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let scalars = |tag: &str| -> Vec<(u64, f32)> {
        let found = all[directory.to_str().unwrap()][tag].as_array().unwrap_or_else(|| panic!("no {tag} in {all}"));
        found.iter().map(|pair| (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap() as f32)).collect()
    };
    let steps = run.steps("student");
    assert!(steps.len() > 31);
    assert_eq!(scalars("train/loss"), steps.iter().map(|s| (s.step, s.loss as f32)).collect::<Vec<_>>());
    assert_eq!(scalars("train/lambda"), steps.iter().map(|s| (s.step, s.lambda as f32)).collect::<Vec<_>>());
    for tag in [
        "train/learning_rate",
        "train/gradient_norm",
        "speed/samples_per_second",
        "speed/tokens_per_second",
        "speed/mfu",
    ] {
        assert_eq!(scalars(tag).len(), steps.len(), "{tag}");
    }
    let of_cola = steps.iter().filter_map(|s| Some((s.step, *s.task_losses.get("cola")? as f32)));
    assert_eq!(scalars("loss/cola"), of_cola.collect::<Vec<_>>());
    let dev = run.json("stages/student/dev.json")["stsb"]["metrics"]["spearman"].as_f64().unwrap();
    assert_eq!(scalars("dev/stsb/spearman"), [(steps.len() as u64, dev as f32)]);
}

#[test]
fn a_browser_shows_the_page_in_light_and_dark_and_narrow() {
    let Some(browser) = Browser::find("a_browser_shows_the_page_in_light_and_dark_and_narrow") else { return };
    let size = (1100, 1600);
    let [light, dark] = [Scheme::Light, Scheme::Dark].map(|scheme| browser.picture(&page(), size, scheme));
    for picture in [&light, &dark] {
        assert_eq!((picture.width, picture.height), (1100, 1600));
        // Nothing but paper would have one.
        assert!(picture.colours() > 100, "{} colours", picture.colours());
    }
    assert!(light.brightness() > 200.0 && dark.brightness() < 80.0, "{} {}", light.brightness(), dark.brightness());
    // Nothing sticks out where there is little room: wide tables scroll by themselves.
    let measuring = trials().place.at("measuring.html");
    let script = "<script>document.querySelectorAll('details').forEach(d => d.open = true);\
                  const e = document.documentElement; document.title = `${innerWidth} ${e.scrollWidth}`</script></body>";
    fs::write(&measuring, fs::read_to_string(page()).unwrap().replace("</body>", script)).unwrap();
    let document = browser.document(&measuring, (380, 800));
    let title = document.split("<title>").nth(1).unwrap().split("</title>").next().unwrap();
    let widths: Vec<u32> = title.split(' ').map(|n| n.parse().unwrap()).collect();
    assert!(widths[0] <= 500 && widths[1] <= widths[0], "{title}");
}
