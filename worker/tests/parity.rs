//! A known answer for training steps: loss, gradients and parameters after 1 and 3 steps, as computed independently in
//! float64, against ours in float32: alone, in two threads, in two MPI processes, with and
//! without accumulation. `PARITY_DIR` names the directory with the answer, else `shared/parity` beside the repository has
//! it; without either the tests skip and say so.

// Helpers of the tests fail as the tests do.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bam_cluster::comm::{Activity, Communicator, Solo, Threads};
use bam_cluster::config::{OptimizerKind, RegressionOutput, Reproducible};
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::task::Kind;
use bam_worker::comm::{Host, MpiWorld};
use bam_worker::gradient::{Reduction, Tail, clip_scale, global_norm, tail_length};
use bam_worker::model::{Bert, Head, Parameters, Sequence, StepSeed, parameter_count};
use bam_worker::objective::teacher_predictions;
use bam_worker::optim::{Optimizer, spans};
use bam_worker::snapshot::{one_file, read_model};
use bam_worker::train::{Item, Objective, backward};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Expected {
    config: EncoderConfig,
    tasks: Vec<TaskEntry>,
    lambda_gold: f64,
    optimizer: Settings,
    batch: Examples,
    cases: BTreeMap<String, Case>,
    forward: Forward,
    suggested_tolerance_f32: Tolerances,
}

#[derive(Deserialize)]
struct TaskEntry {
    name: String,
    kind: String,
    labels: usize,
}

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    layer_decay: f64,
    weight_decay: f64,
    clip_norm: f64,
    bias_correction: bool,
}

#[derive(Deserialize)]
struct Examples {
    input_ids: Vec<Vec<i32>>,
    token_type_ids: Vec<Vec<u8>>,
    lengths: Vec<usize>,
    task: Vec<usize>,
    gold: Vec<f32>,
    teacher: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Case {
    reduction: String,
    task_weights: BTreeMap<String, f64>,
    per_step: Vec<StepAnswer>,
    first_step_grad_l2: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct StepAnswer {
    loss: f64,
    grad_norm: f64,
}

#[derive(Deserialize)]
struct Forward {
    per_example_loss: Vec<f64>,
}

#[derive(Deserialize)]
struct Tolerances {
    loss_abs: f64,
    grad_norm_rel: f64,
    param_abs_3steps: f64,
}

fn directory() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/parity");
    let directory = std::env::var_os("PARITY_DIR").map(PathBuf::from).or_else(|| beside.is_dir().then_some(beside));
    if directory.is_none() {
        // Past cargo, which shows only what failed tests print; in one piece, since tests write at the same time.
        let text =
            b"\nskipped: a test of worker/tests/parity.rs (set PARITY_DIR to the directory of the known answer)\n";
        let _ = std::io::stderr().write_all(text);
    }
    directory
}

fn expected(directory: &Path) -> Expected {
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
    fn kinds(&self) -> Vec<Kind> {
        let kind = |t: &TaskEntry| match t.kind.as_str() {
            "classification" => {
                Kind::Classification { labels: (0..t.labels).map(|i| i.to_string()).collect(), thresholds: vec![] }
            }
            _ => Kind::Regression { min: 0.0, max: 1.0 },
        };
        self.tasks.iter().map(kind).collect()
    }

    fn model(&self, world: &dyn Communicator, directory: &Path) -> (Host, Bert) {
        let heads: Vec<Head> = self.tasks.iter().map(|t| Head { task: t.name.clone(), outputs: t.labels }).collect();
        let mut config = self.config.clone();
        config.hidden_dropout_prob = 0.0;
        config.attention_probs_dropout_prob = 0.0;
        let host = Host::find(world, parameter_count(&config, &heads), tail_length(self.tasks.len())).unwrap();
        let mut model = Bert::on_host(config, heads, &host);
        if host.leads() {
            read_model(&one_file(&directory.join("weights.safetensors")), model.parameters_mut()).unwrap();
        }
        host.local().barrier("first values").unwrap();
        (host, model)
    }

    fn items(&self) -> Vec<Item<'_>> {
        let b = &self.batch;
        let item = |i: usize| Item {
            task: b.task[i],
            sequence: Sequence { tokens: &b.input_ids[i][..b.lengths[i]], types: &b.token_type_ids[i][..b.lengths[i]] },
            gold: b.gold[i],
            teacher: Some(&b.teacher[i]),
            dropout: StepSeed::new(0, 0).example(i),
        };
        (0..b.task.len()).map(item).collect()
    }
}

/// Does one case's steps as one rank of `world` and compares everything that is known.
fn check_case(world: &dyn Communicator, directory: &Path, name: &str, micro_batch: usize) {
    let expected = expected(directory);
    let case = &expected.cases[name];
    let tolerance = &expected.suggested_tolerance_f32;
    let at = format!("case {name}, {} ranks, micro-batches of {micro_batch}", world.size());
    let (host, mut model) = expected.model(world, directory);
    let items = expected.items();
    let mine: Vec<Item> = items.iter().copied().skip(world.rank()).step_by(world.size()).collect();
    let objective = Objective {
        kinds: expected.kinds(),
        weights: expected.tasks.iter().map(|t| case.task_weights[&t.name]).collect(),
        divisor: if case.reduction == "sum" { 1.0 } else { items.len() as f64 },
        regression_output: RegressionOutput::Linear,
    };
    let o = &expected.optimizer;
    let p = model.parameters();
    let spans = spans(p.specs(), p.ranges(), expected.config.num_hidden_layers, o.layer_decay, o.weight_decay);
    let kind = if o.bias_correction { OptimizerKind::AdamW } else { OptimizerKind::BertAdam };
    let mut adam = Optimizer::new(kind, spans, host.moments());
    let shares = adam.shares(host.local().size(), expected.config.hidden_size);
    let share = &shares[host.local().rank()];
    let mut reduction = Reduction::new(Reproducible::Processes, 1, world);
    for (step, answer) in case.per_step.iter().enumerate() {
        model.parameters_mut().zero_gradients();
        let mut tail = Tail::new(expected.tasks.len());
        for micro in mine.chunks(micro_batch) {
            backward(&mut model, micro, &objective, expected.lambda_gold, &mut tail);
        }
        let n = model.parameters().len();
        let (buffer, words) = model.parameters_mut().gradients_and_words();
        tail.write(&mut buffer[n..]);
        reduction.agree(world, words).unwrap();
        let norm = reduction.finish(world, &host, share, buffer, words).unwrap().norm;
        let tail = Tail::read(&buffer[n..]);
        let loss_error = (f64::from(tail.loss) - answer.loss).abs();
        // The tolerance is for losses near 1; a sum over the batch is larger, and float32 rounds relative to size.
        assert!(
            loss_error < tolerance.loss_abs * answer.loss.max(1.0),
            "{at}, step {step}: loss is off by {loss_error}"
        );
        let (values, gradients) = model.parameters_mut().values_and_gradients();
        assert!((norm / answer.grad_norm - 1.0).abs() < tolerance.grad_norm_rel, "{at}, step {step}: norm {norm}");
        let scale = clip_scale(norm, o.clip_norm);
        let sum = |rank: usize| &host.gradients_of(rank)[shares[rank].clone()];
        let before: Vec<f32> = (0..shares.len()).flat_map(sum).copied().collect();
        host.local().barrier("compared").unwrap();
        adam.step(share, values, gradients, scale, o.lr, step as u64);
        host.local().barrier("update").unwrap();
        if step == 0 {
            check_gradients(&at, model.parameters(), &before, case);
        }
    }
    let answer = directory.join(format!("params_after_{name}.safetensors"));
    if answer.exists() {
        check_parameters(&at, &answer, &mut model, tolerance);
    }
}

fn check_gradients(at: &str, parameters: &Parameters, gradients: &[f32], case: &Case) {
    let whole = global_norm(gradients);
    for (spec, range) in parameters.specs().iter().zip(parameters.ranges()) {
        let norm = global_norm(&gradients[range.clone()]);
        let answer = case.first_step_grad_l2[&spec.name];
        // The key's bias has no gradient at all; what float32 leaves of it is relative to the whole.
        let limit = 1e-5 * answer + 1e-8 * whole;
        assert!((norm - answer).abs() < limit, "{at}: gradient of {}: {norm}, not {answer}", spec.name);
    }
}

/// Every parameter after the last step.
fn check_parameters(at: &str, answer: &Path, model: &mut Bert, tolerance: &Tolerances) {
    let bytes = std::fs::read(answer).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let specs = model.parameters().specs().to_vec();
    let ranges = model.parameters().ranges().to_vec();
    let values = model.parameters_mut().values_mut();
    let mut worst = 0f64;
    for (spec, range) in specs.iter().zip(ranges) {
        let tensor = file.tensor(&spec.name).unwrap();
        let known = tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()));
        for (ours, known) in values[range].iter().zip(known) {
            let error = (f64::from(*ours) - known).abs();
            worst = worst.max(error);
            assert!(error < tolerance.param_abs_3steps, "{at}: {} is off by {error}", spec.name);
        }
    }
    println!("{at}: no parameter is off by more than {worst:.1e}");
}

fn check_all(world: &dyn Communicator, directory: &Path) {
    let names: Vec<String> = expected(directory).cases.keys().cloned().collect();
    for name in &names {
        for micro_batch in [6, 2, 1] {
            check_case(world, directory, name, micro_batch);
        }
    }
}

#[test]
fn alone() {
    if let Some(directory) = directory() {
        check_all(&Solo, &directory);
    }
}

#[test]
fn the_loss_of_each_example() {
    let Some(directory) = directory() else { return };
    let expected = expected(&directory);
    let (_, mut model) = expected.model(&Solo, &directory);
    let objective = Objective {
        kinds: expected.kinds(),
        weights: vec![1.0; expected.tasks.len()],
        divisor: 1.0,
        regression_output: RegressionOutput::Linear,
    };
    for (item, answer) in expected.items().iter().zip(&expected.forward.per_example_loss) {
        let mut tail = Tail::new(expected.tasks.len());
        backward(&mut model, &[*item], &objective, expected.lambda_gold, &mut tail);
        assert!((f64::from(tail.loss) - answer).abs() < 2e-6, "{} against {answer}", tail.loss);
    }
}

#[test]
fn in_two_and_three_threads() {
    let Some(directory) = directory() else { return };
    for size in [2, 3] {
        std::thread::scope(|scope| {
            for rank in Threads::world(size, Duration::from_secs(60)) {
                let directory = &directory;
                scope.spawn(move || check_all(&rank, directory));
            }
        });
    }
}

const AS_RANK: &str = "BAM_PARITY_AS_RANK";

/// Starts itself again as two MPI processes, each of which comes here once more and takes the other branch.
#[test]
fn in_two_processes() {
    let Some(directory) = directory() else { return };
    if std::env::var_os(AS_RANK).is_some() {
        let (world, _universe) = MpiWorld::join(Activity::default()).unwrap();
        assert_eq!(world.size(), 2);
        return check_all(&world, &directory);
    }
    let output = Command::new("timeout")
        .args(["120", "mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"])
        .arg(std::env::current_exe().unwrap())
        .args(["in_two_processes", "--exact", "--nocapture"])
        .envs([(AS_RANK, "1"), ("OMP_NUM_THREADS", "1")])
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("test in_two_processes ... ok").count(), 2, "{said}");
}
