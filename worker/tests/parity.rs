//! A known answer for training steps: loss, gradients and parameters after 1 and 3 steps, as computed independently in
//! float64, against both engines: the one for CPUs alone, in threads, in two MPI processes, with and without accumulation; the
//! one for GPUs on a CPU and, where there is one, on a GPU, in float32 and in bfloat16. `PARITY_DIR` names the directory with the
//! answer, else `shared/parity` beside the repository has it; without either the tests skip and say so.

// Helpers of the tests fail as the tests do.
#![allow(clippy::unwrap_used)]

mod known_answer;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bam_cluster::comm::{Activity, Communicator, Solo, Threads};
use bam_cluster::config::{OptimizerKind, ReducePrecision, RegressionOutput, Reproducible};
use bam_worker::comm::{Host, MpiWorld, Staged};
use bam_worker::device::{DeviceLearner, Exchange, Numbers, Place, Together};
use bam_worker::gradient::{Tail, clip_scale, global_norm, tail_length};
use bam_worker::model::{Bert, Parameters, parameter_count};
use bam_worker::optim::{Span, spans};
use bam_worker::shim;
use bam_worker::snapshot::{one_file, read_model};
use bam_worker::train::{Clock, HostLearner, Item, Learner, Objective, Shard, backward};
use tch::Device;

use known_answer::{Case, Expected, directory, expected};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Engine {
    Host,
    Device(Place),
}

const ON_CPU: Engine = Engine::Device(Place::CPU);

impl Engine {
    fn rounds(self) -> bool {
        matches!(self, Engine::Device(Place { numbers: Numbers::Bf16, .. }))
    }

    fn learner(self, world: &dyn Communicator, expected: &Expected, directory: &Path) -> Box<dyn Learner> {
        let (config, heads) = (expected.shape(), expected.heads());
        let weights = one_file(&directory.join("weights.safetensors"));
        let o = &expected.optimizer;
        let kind = if o.bias_correction { OptimizerKind::AdamW } else { OptimizerKind::BertAdam };
        let layers = config.num_hidden_layers;
        let spans =
            |p: &Parameters| -> Vec<Span> { spans(p.specs(), p.ranges(), layers, o.layer_decay, o.weight_decay) };
        match self {
            Engine::Host => {
                let host =
                    Host::find(world, parameter_count(&config, &heads), tail_length(expected.tasks.len())).unwrap();
                let mut model = Bert::on_host(config, heads, &host);
                if host.leads() {
                    read_model(&weights, model.parameters_mut()).unwrap();
                }
                host.local().barrier("first values").unwrap();
                let spans = spans(model.parameters());
                Box::new(HostLearner::new(world, model, host, kind, spans, Reproducible::Processes, 1))
            }
            Engine::Device(place) => {
                let mut model = Bert::new(config, heads);
                read_model(&weights, model.parameters_mut()).unwrap();
                let spans = spans(model.parameters());
                let together = Together {
                    world,
                    reproducible: Reproducible::Processes,
                    virtual_shards: 1,
                    exchange: Exchange::Staged(Staged(world.split("all ranks", 0).unwrap())),
                    reduce_precision: ReducePrecision::Fp32,
                };
                Box::new(DeviceLearner::new(&mut model, place, kind, &spans, together).unwrap())
            }
        }
    }
}

/// How far from the known answer numbers may be.
#[derive(Clone, Copy)]
struct Limits {
    loss: f64,
    norm: f64,
    /// Of a tensor's gradient, relative to that tensor's and to the whole gradient's norm.
    gradient: [f64; 2],
    parameter: f64,
}

impl Limits {
    fn of(engine: Engine, expected: &Expected) -> Limits {
        let t = &expected.suggested_tolerance_f32;
        match engine {
            Engine::Device(Place { numbers: Numbers::Bf16, .. }) => {
                Limits { loss: 1e-2, norm: 1e-2, gradient: [1e-2, 1e-2], parameter: 1e-2 }
            }
            Engine::Device(Place { device: Device::Cuda(_), .. }) => {
                Limits { loss: 1e-5, norm: 1e-5, gradient: [1e-5, 1e-6], parameter: 1e-5 }
            }
            _ => Limits {
                loss: t.loss_abs,
                norm: t.grad_norm_rel,
                gradient: [1e-5, 1e-8],
                parameter: t.param_abs_3steps,
            },
        }
    }
}

/// Does one case's steps as one rank of `world` and compares everything that is known.
fn check_case(engine: Engine, world: &dyn Communicator, directory: &Path, name: &str, micro_batch: usize) {
    let expected = expected(directory);
    let case = &expected.cases[name];
    let limits = Limits::of(engine, &expected);
    let at = format!("{engine:?}, case {name}, {} ranks, micro-batches of {micro_batch}", world.size());
    let mut learner = engine.learner(world, &expected, directory);
    let items = expected.items();
    let mine: Vec<Item> = items.iter().copied().skip(world.rank()).step_by(world.size()).collect();
    let micro_batches = mine.chunks(micro_batch).map(<[Item]>::to_vec).collect();
    let shard = Shard { number: world.rank(), micro_batches };
    let objective = expected.objective(case);
    let mut clock = Clock::untraced(Activity::default());
    let o = &expected.optimizer;
    for (step, answer) in case.per_step.iter().enumerate() {
        learner.differentiate(&shard, &objective, expected.lambda_gold, &mut clock).unwrap();
        learner.agree(world, false, &mut clock).unwrap();
        let (tail, reduced) = learner.reduce(world).unwrap();
        // What is rounded to bfloat16 in one step grows in the next ones.
        if step == 0 || !engine.rounds() {
            // The tolerance is for losses near 1; a sum over the batch is larger, and float32 rounds relative to size.
            let loss_error = (f64::from(tail.loss) - answer.loss).abs();
            assert!(loss_error < limits.loss * answer.loss.max(1.0), "{at}, step {step}: loss is off by {loss_error}");
            let norm_error = (reduced.norm / answer.grad_norm - 1.0).abs();
            assert!(norm_error < limits.norm, "{at}, step {step}: norm {}, not {}", reduced.norm, answer.grad_norm);
        }
        let scale = clip_scale(reduced.norm, o.clip_norm);
        learner.update(scale, o.lr, step as u64).unwrap();
        if step == 0 {
            // The first moment is a tenth of the clipped gradient.
            let gradients: Vec<f32> = learner.tensors()[1].iter().map(|m| m * (10.0 / scale) as f32).collect();
            check_gradients(&at, learner.as_ref(), &gradients, case, limits);
        }
    }
    let answer = directory.join(format!("params_after_{name}.safetensors"));
    if answer.exists() {
        check_parameters(&at, &answer, learner.as_mut(), limits);
    }
}

fn check_gradients(at: &str, learner: &dyn Learner, gradients: &[f32], case: &Case, limits: Limits) {
    let whole = global_norm(gradients);
    let (specs, ranges) = learner.shape();
    for (spec, range) in specs.iter().zip(ranges) {
        let norm = global_norm(&gradients[range.clone()]);
        let answer = case.first_step_grad_l2[&spec.name];
        // The key's bias has no gradient at all; what float32 leaves of it is relative to the whole.
        let limit = limits.gradient[0] * answer + limits.gradient[1] * whole;
        assert!((norm - answer).abs() < limit, "{at}: gradient of {}: {norm}, not {answer}", spec.name);
    }
}

/// Every parameter after the last step.
fn check_parameters(at: &str, answer: &Path, learner: &mut dyn Learner, limits: Limits) {
    let bytes = std::fs::read(answer).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (specs, ranges) = learner.shape();
    let (specs, ranges) = (specs.to_vec(), ranges.to_vec());
    let values = learner.values();
    let mut worst = 0f64;
    for (spec, range) in specs.iter().zip(ranges) {
        let tensor = file.tensor(&spec.name).unwrap();
        let known = tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()));
        for (ours, known) in values[range].iter().zip(known) {
            let error = (f64::from(*ours) - known).abs();
            worst = worst.max(error);
            assert!(error < limits.parameter, "{at}: {} is off by {error}", spec.name);
        }
    }
    println!("{at}: no parameter is off by more than {worst:.1e}");
}

fn check_all(engine: Engine, world: &dyn Communicator, directory: &Path) {
    let names: Vec<String> = expected(directory).cases.keys().cloned().collect();
    for name in &names {
        for micro_batch in [6, 2, 1] {
            check_case(engine, world, directory, name, micro_batch);
        }
    }
}

#[test]
fn alone() {
    if let Some(directory) = directory() {
        for engine in [Engine::Host, ON_CPU] {
            check_all(engine, &Solo, &directory);
        }
    }
}

#[test]
fn in_bfloat16() {
    if let Some(directory) = directory() {
        check_all(Engine::Device(Place { numbers: Numbers::Bf16, ..Place::CPU }), &Solo, &directory);
    }
}

/// Part of `make test-gpu`.
#[test]
fn on_a_gpu() {
    let Some(directory) = directory() else { return };
    let gpus = if shim::cuda().is_ok() { tch::Cuda::device_count() } else { 0 };
    if gpus == 0 {
        known_answer::skip("a test of worker/tests/parity.rs on a GPU (there is none)");
        return;
    }
    for numbers in [Numbers::Fp32, Numbers::Bf16] {
        check_all(Engine::Device(Place { device: Device::Cuda(0), numbers, is_shared: false }), &Solo, &directory);
    }
}

#[test]
fn the_loss_of_each_example() {
    let Some(directory) = directory() else { return };
    let expected = expected(&directory);
    let mut model = Bert::new(expected.shape(), expected.heads());
    read_model(&one_file(&directory.join("weights.safetensors")), model.parameters_mut()).unwrap();
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
    for (engine, size) in [(Engine::Host, 2), (Engine::Host, 3), (ON_CPU, 2), (ON_CPU, 3)] {
        std::thread::scope(|scope| {
            for rank in Threads::world(size, Duration::from_secs(60)) {
                let directory = &directory;
                scope.spawn(move || check_all(engine, &rank, directory));
            }
        });
    }
}

const AS_RANK: &str = "BAM_PARITY_AS_RANK";

/// Starts itself again as two MPI processes, each of which comes here once more and takes the other branch.
#[test]
fn in_two_processes() {
    let Some(directory) = directory() else { return };
    if let Some(place) = std::env::var_os(AS_RANK) {
        let (world, _universe) = MpiWorld::join(Activity::default()).unwrap();
        assert_eq!(world.size(), 2);
        for engine in [Engine::Host, ON_CPU] {
            check_all(engine, &world, &directory);
        }
        // What ranks print comes through mpirun in pieces.
        std::fs::write(Path::new(&place).join(world.rank().to_string()), "checked").unwrap();
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["120", "mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"])
        .arg(std::env::current_exe().unwrap())
        .args(["in_two_processes", "--exact", "--nocapture"])
        .env(AS_RANK, place.path())
        .env("OMP_NUM_THREADS", "1")
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(["0", "1"].iter().all(|rank| place.path().join(rank).exists()), "{said}");
}
