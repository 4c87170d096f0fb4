//! The recipes of `configs/glue` say what they stand for: each setting of each file against the paper's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bam_cluster::config::{
    Annealing, LossReduction, Mode, OptimizerKind, PerTask, RateScaling, Recipe, RegressionOutput, Sampling,
    SamplingMethod, TrainSettings, load,
};

const TASKS: [&str; 8] = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"];

fn recipes() -> BTreeMap<String, Recipe> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/glue");
    let paths: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths
        .iter()
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), load(path, &[]).unwrap()))
        .collect()
}

/// Epochs, batch, peak rate, layer-wise factors that are tried, and what every training of the paper has alike.
fn settings(settings: &TrainSettings) -> (u64, usize, f64, Vec<f64>) {
    assert_eq!((settings.warmup, settings.weight_decay, settings.clip_norm), (0.1, 0.01, Some(1.0)));
    let factor = |s: &TrainSettings| match s.layerwise_decay {
        PerTask::All(factor) => factor,
        PerTask::ByTask(_) => panic!("a factor for each task"),
    };
    let all = settings.candidates();
    assert!(all.iter().all(|s| s.peak_rate() == all[0].peak_rate()));
    (settings.epochs, settings.batch_size, all[0].peak_rate(), all.iter().map(factor).collect())
}

/// What differs between the recipes: mode, layer-wise factor of the model of all tasks, λ, exponent, whether there is
/// fine-tuning.
type Row = (Mode, f64, Option<f64>, f64, bool);

fn expected(name: &str) -> Row {
    use Mode::{Multi, MultiToMulti, Single, SingleToMulti, SingleToSingle};
    match name {
        "bert-base-single" | "bert-large-single" => (Single, 0.9, None, 0.75, false),
        "bert-base-multi" | "bert-large-multi" => (Multi, 0.9, None, 0.75, false),
        "bert-base-single-to-single" | "bert-large-single-to-single" => (SingleToSingle, 0.9, None, 0.75, false),
        "bert-base-multi-to-multi" | "bert-large-multi-to-multi" => (MultiToMulti, 0.9, None, 0.75, false),
        "ablation-lambda-0" => (SingleToMulti, 0.9, Some(0.0), 0.75, false),
        "ablation-lambda-half" => (SingleToMulti, 0.9, Some(0.5), 0.75, false),
        "ablation-no-layerwise-rates" => (SingleToMulti, 1.0, None, 0.75, false),
        "ablation-no-task-sampling" => (SingleToMulti, 0.9, None, 1.0, false),
        "fine-tuned-multi" => (Multi, 0.9, None, 0.75, true),
        "fine-tuned-single-to-multi" => (SingleToMulti, 0.9, None, 0.75, true),
        "bert-base-single-to-multi"
        | "bert-large-single-to-multi"
        | "reference-multiples"
        | "large-batch-512"
        | "large-batch-2048"
        | "large-batch-8192" => (SingleToMulti, 0.9, None, 0.75, false),
        other => panic!("{other}: what does it stand for?"),
    }
}

/// Batch, peak rate and optimizer of the model of all tasks.
fn batch(name: &str) -> (usize, f64, OptimizerKind) {
    match name {
        // The square root of four times as many.
        "large-batch-512" => (512, 2e-4, OptimizerKind::BertAdam),
        "large-batch-2048" => (2_048, 1.25e-3, OptimizerKind::Lamb),
        "large-batch-8192" => (8_192, 2.5e-3, OptimizerKind::Lamb),
        _ => (128, 1e-4, OptimizerKind::BertAdam),
    }
}

#[test]
fn every_recipe_has_the_settings_of_its_row() {
    let all = recipes();
    assert_eq!(all.len(), 20);
    for (name, recipe) in &all {
        let (mode, factor, lambda, exponent, is_tuned) = expected(name);
        assert_eq!((recipe.mode, &recipe.name), (mode, name));
        assert_eq!(recipe.data.tasks.iter().map(|task| task.name()).collect::<Vec<_>>(), TASKS, "{name}");
        assert_eq!((recipe.seed, recipe.trials, recipe.model.max_length), (1, 1, 128), "{name}");
        let encoder = if name.starts_with("bert-base") { "bert-base-uncased" } else { "bert-large-uncased" };
        assert!(recipe.model.path.to_str().unwrap().contains(encoder), "{name}: {}", recipe.model.path.display());

        let train = &recipe.train;
        let teaches_singly = matches!(mode, Mode::Single | Mode::SingleToSingle | Mode::SingleToMulti);
        if teaches_singly {
            assert_eq!(settings(&train.single), (3, 32, 5e-5, vec![1.0, 0.9]), "{name}: single");
            assert_eq!(train.single.optimizer, OptimizerKind::BertAdam, "{name}: single");
        }
        let (batch_size, rate, optimizer) = batch(name);
        assert_eq!(settings(&train.multi), (6, batch_size, rate, vec![factor]), "{name}: multi");
        assert_eq!(train.multi.optimizer, optimizer, "{name}: multi");
        let scaling = if batch_size > 128 { RateScaling::SquareRoot } else { RateScaling::None };
        assert_eq!((train.multi.rate_scaling, train.multi.micro_batch_size), (scaling, None), "{name}: multi");
        assert_eq!(train.fine_tune.is_some(), is_tuned, "{name}");
        if let Some(tuned) = &train.fine_tune {
            assert_eq!(settings(tuned), (3, 32, 1e-5, vec![0.9]), "{name}: fine_tune");
        }

        let annealing = if lambda.is_some() { Annealing::Constant } else { Annealing::Linear };
        assert_eq!((recipe.distill.annealing, recipe.distill.constant), (annealing, lambda), "{name}");
        assert_eq!((recipe.distill.temperature, recipe.distill.ensemble), (1.0, 1), "{name}");
        let is_reference = name == "reference-multiples";
        let method = if is_reference { SamplingMethod::Multiples } else { SamplingMethod::Proportional };
        assert_eq!(recipe.sampling, Sampling { method, exponent, ..Sampling::default() }, "{name}");
        let reduction = if is_reference { LossReduction::Sum } else { LossReduction::Mean };
        assert_eq!([train.single.loss_reduction, train.multi.loss_reduction], [reduction; 2], "{name}");
        let output = if is_reference { RegressionOutput::Linear } else { RegressionOutput::Sigmoid };
        assert_eq!((recipe.model.regression_output, recipe.data.double_unordered), (output, is_reference), "{name}");
        assert_eq!(recipe.without_effect(), Vec::<String>::new(), "{name}");
    }
}

/// The rows of an ablation and of Single→Multi are compared, so that nothing else may differ.
#[test]
fn an_ablation_differs_from_single_to_multi_in_its_own_setting_alone() {
    let all = recipes();
    let whole = serde_json::to_value(&all["bert-large-single-to-multi"]).unwrap();
    for (name, keys) in [
        ("ablation-lambda-0", vec!["/distill"]),
        ("ablation-lambda-half", vec!["/distill"]),
        ("ablation-no-layerwise-rates", vec!["/train/multi/layerwise_decay"]),
        ("ablation-no-task-sampling", vec!["/sampling/exponent"]),
        ("fine-tuned-single-to-multi", vec!["/train/fine_tune"]),
    ] {
        let mut recipe = serde_json::to_value(&all[name]).unwrap();
        for key in keys.into_iter().chain(["/name"]) {
            assert_ne!(recipe.pointer(key), whole.pointer(key), "{name}: {key}");
            *recipe.pointer_mut(key).unwrap() = whole.pointer(key).unwrap().clone();
        }
        assert_eq!(recipe, whole, "{name}");
    }
}

/// As the comment in these recipes says.
#[test]
fn fine_tuning_can_have_a_factor_for_each_task() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/glue/fine-tuned-multi.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, said) = text.split_once("own: layerwise_decay: ").unwrap();
    let factors = format!("train.fine_tune.layerwise_decay={}", said.lines().next().unwrap());
    let tuned = load(&path, &[factors.parse().unwrap()]).unwrap().train.fine_tune.unwrap();
    assert_eq!(["rte", "cola"].map(|task| tuned.layerwise_decay.of(&[task])), [Some(1.0), Some(0.9)]);
}
