//! The known answer of `PARITY_DIR`: one mixed batch, its losses and gradients, and parameters after one and three steps,
//! computed independently in float64. Shared by the tests that compare with it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use bam_cluster::config::RegressionOutput;
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::task::Kind;
use bam_worker::model::{Head, Sequence, StepSeed};
use bam_worker::objective::teacher_predictions;
use bam_worker::train::{Item, Objective};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Expected {
    pub config: EncoderConfig,
    pub tasks: Vec<TaskEntry>,
    pub lambda_gold: f64,
    pub optimizer: Settings,
    pub batch: Examples,
    pub cases: BTreeMap<String, Case>,
    pub forward: Forward,
    pub suggested_tolerance_f32: Tolerances,
}

#[derive(Deserialize)]
pub struct TaskEntry {
    pub name: String,
    pub kind: String,
    pub labels: usize,
}

#[derive(Deserialize)]
pub struct Settings {
    pub lr: f64,
    pub layer_decay: f64,
    pub weight_decay: f64,
    pub clip_norm: f64,
    pub bias_correction: bool,
}

#[derive(Deserialize)]
pub struct Examples {
    pub input_ids: Vec<Vec<i32>>,
    pub token_type_ids: Vec<Vec<u8>>,
    pub lengths: Vec<usize>,
    pub task: Vec<usize>,
    pub gold: Vec<f32>,
    pub teacher: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
pub struct Case {
    pub reduction: String,
    pub task_weights: BTreeMap<String, f64>,
    pub per_step: Vec<StepAnswer>,
    pub first_step_grad_l2: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
pub struct StepAnswer {
    pub loss: f64,
    pub grad_norm: f64,
}

#[derive(Deserialize)]
pub struct Forward {
    pub per_example_loss: Vec<f64>,
}

#[derive(Deserialize)]
pub struct Tolerances {
    pub loss_abs: f64,
    pub grad_norm_rel: f64,
    pub param_abs_3steps: f64,
}

/// Says that something is skipped: past cargo, which shows only what failed tests print; in one piece, since tests write at the
/// same time.
pub fn skip(what: &str) {
    let _ = std::io::stderr().write_all(format!("\nskipped: {what}\n").as_bytes());
}

pub fn directory() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/parity");
    let directory = std::env::var_os("PARITY_DIR").map(PathBuf::from).or_else(|| beside.is_dir().then_some(beside));
    if directory.is_none() {
        skip("a test of worker/tests/parity.rs (set PARITY_DIR to the directory of the known answer)");
    }
    directory
}

pub fn expected(directory: &Path) -> Expected {
    let text = std::fs::read(directory.join("expected.json")).unwrap();
    let mut expected: Expected = serde_json::from_slice(&text).unwrap();
    let kinds = expected.kinds();
    for (logits, &task) in expected.batch.teacher.iter_mut().zip(&expected.batch.task) {
        let row = tch::Tensor::from_slice(logits).view([1, -1]);
        let said = teacher_predictions(&[row], kinds[task].is_classification(), 1.0, RegressionOutput::Linear);
        *logits = Vec::try_from(said.flatten(0, -1)).unwrap();
    }
    expected
}

impl Expected {
    pub fn kinds(&self) -> Vec<Kind> {
        let kind = |t: &TaskEntry| match t.kind.as_str() {
            "classification" => {
                Kind::Classification { labels: (0..t.labels).map(|i| i.to_string()).collect(), thresholds: vec![] }
            }
            _ => Kind::Regression { min: 0.0, max: 1.0 },
        };
        self.tasks.iter().map(kind).collect()
    }

    pub fn heads(&self) -> Vec<Head> {
        self.tasks.iter().map(|t| Head { task: t.name.clone(), outputs: t.labels }).collect()
    }

    /// The shape, without dropout.
    pub fn shape(&self) -> EncoderConfig {
        EncoderConfig { hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0, ..self.config.clone() }
    }

    pub fn objective(&self, case: &Case) -> Objective {
        Objective {
            kinds: self.kinds(),
            weights: self.tasks.iter().map(|t| case.task_weights[&t.name]).collect(),
            divisor: if case.reduction == "sum" { 1.0 } else { self.batch.task.len() as f64 },
            regression_output: RegressionOutput::Linear,
        }
    }

    pub fn items(&self) -> Vec<Item<'_>> {
        let b = &self.batch;
        let item = |i: usize| Item {
            task: b.task[i],
            example: i,
            sequence: Sequence { tokens: &b.input_ids[i][..b.lengths[i]], types: &b.token_type_ids[i][..b.lengths[i]] },
            gold: b.gold[i],
            teacher: Some(&b.teacher[i]),
            dropout: StepSeed::new(0, 0).example(i),
        };
        (0..b.task.len()).map(item).collect()
    }
}
