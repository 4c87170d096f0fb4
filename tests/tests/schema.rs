//! The JSON Schema of recipes, as editors use it: what is shipped is accepted, what is misspelt or mistyped is not, and the files in
//! docs/ are those that the code prints.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::path::{Path, PathBuf};

use bam_tests::{Recipe, Workplace, repository};
use serde_json::Value;

fn printed(arguments: &[&str]) -> String {
    Workplace::new().bam(arguments.iter().copied()).expect(0).stdout
}

fn validator() -> jsonschema::Validator {
    jsonschema::draft7::new(&serde_json::from_str(&printed(&["schema"])).unwrap()).unwrap()
}

/// What a YAML text is to a validator.
fn tree(text: &str) -> Value {
    serde_json::to_value(serde_norway::from_str::<serde_norway::Value>(text).unwrap()).unwrap()
}

fn recipes(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    let of = |path: PathBuf| if path.is_dir() { recipes(&path) } else { vec![path] };
    entries.flat_map(of).filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect()
}

#[test]
fn the_files_in_docs_are_in_step_with_the_code() {
    for (file, arguments) in
        [("docs/recipe.schema.json", &["schema"][..]), ("docs/recipe.md", &["schema", "--markdown"])]
    {
        let path = repository().join(file);
        let printed = printed(arguments);
        if std::env::var_os("BAM_UPDATE_DOCS").is_some() {
            fs::write(&path, &printed).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(there == printed, "{file} is behind the code: bam {} > {file}", arguments.join(" "));
    }
}

#[test]
fn every_shipped_recipe_is_accepted() {
    let (validator, shipped) = (validator(), recipes(&repository().join("configs")));
    assert!(shipped.len() >= 22, "{shipped:?}");
    for path in shipped {
        let recipe = tree(&fs::read_to_string(&path).unwrap());
        let errors: Vec<String> =
            validator.iter_errors(&recipe).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    }
}

/// Most that a recipe can say, beside what the shipped ones say.
const FULL: &str = "
name: full
mode: multi-to-multi
reproducible: world-size
model: { path: bert-base-uncased, layers: null, dropout: 0.1, truncation: bert, regression_output: linear }
data:
  glue: glue
  tasks: [cola, { name: own, train: a.tsv, dev: b.tsv, text: -1, text_b: second, label: 0, type: regression, range: [0, 1] }]
train:
  single: { layerwise_decay: { cola: 1, default: 0.9 }, search: { learning_rate: [5.0e-5, 3.0e-5] } }
  fine_tune: {}
distill: { teachers: { cola: /a, own: [/b, { path: /c, labels: [x, y] }] }, lambda: 0.5, annealing: constant }
sampling: { method: multiples, exponent: 1 }
predict: [test, dev]
cluster: { hosts: [n1, 'n2:4'], launcher: srun }
slurm: { time: 90, memory: 64G, mail: { user: me }, jobs: { report: { partition: cpu, time: '1:00:00' } } }
";

#[test]
fn what_a_recipe_can_say_is_accepted_and_what_it_cannot_is_not() {
    let validator = validator();
    assert!(validator.is_valid(&tree(FULL)), "{:?}", validator.iter_errors(&tree(FULL)).next());
    let place = Workplace::new();
    for (right, wrong) in [
        ("mode: multi-to-multi", "mode: multi-to-mutli"),
        ("mode: multi-to-multi", "mode: [multi]"),
        ("name: full", "names: full"),
        ("name: full", "name: 7"),
        ("layers: null", "layers: many"),
        ("layers: null", "layer: 4"),
        ("truncation: bert", "truncation: berd"),
        ("tasks: [cola,", "tasks: [colla,"),
        ("label: 0", "lable: 0"),
        ("type: regression", "type: regresion"),
        ("range: [0, 1]", "range: [0, 1, 2]"),
        ("fine_tune: {}", "fine_tune: { epoch: 3 }"),
        ("fine_tune: {}", "finetune: {}"),
        ("default: 0.9", "default: high"),
        ("learning_rate: [5.0e-5, 3.0e-5]", "learning_rate: 5.0e-5"),
        ("path: /c", "paht: /c"),
        ("lambda: 0.5", "lambda: half"),
        ("predict: [test, dev]", "predict: [tset]"),
        ("exponent: 1", "exponent: one"),
        ("launcher: srun", "launcher: ssh"),
        ("time: 90", "time: [90]"),
        ("user: me", "usr: me"),
        ("jobs: { report:", "jobs: { reprot:"),
        ("partition: cpu", "parition: cpu"),
    ] {
        assert!(FULL.contains(right), "{right}");
        let text = FULL.replacen(right, wrong, 1);
        assert!(!validator.is_valid(&tree(&text)), "the schema takes '{wrong}'");
        // And so it is with bam itself, which reads the recipe before anything else.
        place.write("wrong.yaml", &text);
        place.bam(["plan", "wrong.yaml"]).expect(2);
    }
}

#[test]
fn a_recipe_that_bam_has_completed_is_accepted() {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["cola", "mood", "warmth"]));
    place.bam(["run", "recipe.yaml", "--stages", "prepare"]).expect(0);
    let completed = tree(&fs::read_to_string(place.at("runs/tiny/config.yaml")).unwrap());
    let validator = validator();
    let errors: Vec<String> =
        validator.iter_errors(&completed).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?}");
}
