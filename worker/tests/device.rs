//! The engine for GPUs, run on a CPU, against the engine for CPUs: gradients, outputs, optimizers, ranks, dropout.

// Helpers of the tests fail as the tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "each test program needs a part of it")]
mod nccl_stub;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bam_cluster::comm::{Activity, Communicator, Solo, Threads};
use bam_cluster::config::{OptimizerKind, ReducePrecision, RegressionOutput, Reproducible};
use bam_cluster::task::Kind;
use bam_worker::comm::nccl::Nccl;
use bam_worker::comm::{Host, Staged};
use bam_worker::device::{DeviceBert, DeviceLearner, Exchange, Numbers, Place, Together};
use bam_worker::eval::Scorer;
use bam_worker::gradient::tail_length;
use bam_worker::model::{Bert, Head, Parameters, Sequence, StepSeed, parameter_count};
use bam_worker::optim::{Span, spans};
use bam_worker::train::{Clock, HostLearner, Item, Learner, Objective, Shard};

const LENGTHS: [usize; 9] = [7, 33, 1, 12, 7, 20, 12, 12, 5];
const WORDS: usize = 60;
const KIND: OptimizerKind = OptimizerKind::BertAdam;

fn heads() -> Vec<Head> {
    [("a", 3), ("b", 1)].map(|(task, outputs)| Head { task: task.into(), outputs }).into()
}

fn config(dropout: f64) -> bam_cluster::encoder::EncoderConfig {
    let config = serde_json::json!({
        "vocab_size": WORDS, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
        "max_position_embeddings": 40, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    });
    serde_json::from_value(config).unwrap()
}

/// Large enough for attention to be far from uniform.
fn fill(model: &mut Bert) {
    for (i, value) in model.parameters_mut().values_mut().iter_mut().enumerate() {
        *value = ((i as u64 * 2_654_435_761) % 1000) as f32 / 1500.0 - 0.3;
    }
}

fn all_spans(p: &Parameters) -> Vec<Span> {
    spans(p.specs(), p.ranges(), 3, 0.9, 0.01)
}

fn on_host(world: &dyn Communicator, reproducible: Reproducible) -> Box<dyn Learner> {
    let host = Host::find(world, parameter_count(&config(0.0), &heads()), tail_length(2)).unwrap();
    let mut model = Bert::on_host(config(0.0), heads(), &host);
    if host.leads() {
        fill(&mut model);
    }
    host.local().barrier("first values").unwrap();
    let spans = all_spans(model.parameters());
    Box::new(HostLearner::new(world, model, host, KIND, spans, reproducible, SHARDS))
}

/// What a device's learner is made for.
#[derive(Clone, Copy)]
struct Setting {
    dropout: f64,
    numbers: Numbers,
    reproducible: Reproducible,
    reduce_precision: ReducePrecision,
}

const PLAIN: Setting = Setting {
    dropout: 0.0,
    numbers: Numbers::Fp32,
    reproducible: Reproducible::Processes,
    reduce_precision: ReducePrecision::Fp32,
};

const SHARDS: usize = 8;

fn on_device(world: &dyn Communicator, setting: Setting) -> Box<dyn Learner> {
    on_device_by(world, setting, Exchange::Staged(Staged(world.split("all ranks", 0).unwrap())))
}

fn on_device_by(world: &dyn Communicator, setting: Setting, exchange: Exchange) -> Box<dyn Learner> {
    let mut model = Bert::new(config(setting.dropout), heads());
    fill(&mut model);
    let spans = all_spans(model.parameters());
    let together = Together {
        world,
        reproducible: setting.reproducible,
        virtual_shards: SHARDS,
        exchange,
        reduce_precision: setting.reduce_precision,
    };
    let place = Place { numbers: setting.numbers, ..Place::CPU };
    Box::new(DeviceLearner::new(&mut model, place, KIND, &spans, together).unwrap())
}

fn objective() -> Objective {
    let labels = ["x", "y", "z"].map(str::to_owned).into();
    Objective {
        kinds: vec![Kind::Classification { labels, thresholds: vec![] }, Kind::Regression { min: 0.0, max: 1.0 }],
        weights: vec![1.0, 0.7],
        divisor: LENGTHS.len() as f64,
        regression_output: RegressionOutput::Sigmoid,
    }
}

fn tokens() -> Vec<Vec<i32>> {
    // Half of the words, so that they are sent row by row.
    let token = |i: usize| move |j: usize| ((i * 31 + j * 17) % (WORDS / 2)) as i32;
    LENGTHS.iter().enumerate().map(|(i, &n)| (0..n).map(token(i)).collect()).collect()
}

/// The examples of a step.
fn items<'a>(tokens: &'a [Vec<i32>], types: &'a [u8], step: u64) -> Vec<Item<'a>> {
    let item = |i: usize| Item {
        task: i % 2,
        example: i,
        sequence: Sequence { tokens: &tokens[i], types: &types[..tokens[i].len()] },
        gold: [(i / 2 % 3) as f32, i as f32 / 10.0][i % 2],
        teacher: None,
        dropout: StepSeed::new(1, step).example(i),
    };
    (0..LENGTHS.len()).map(item).collect()
}

/// Masks come from a generator that all threads share: one test at a time.
static GENERATOR: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loss, norm and first moments after the first step, and the parameters after the last.
struct Trained {
    loss: f32,
    norm: f64,
    first_moments: Vec<f32>,
    values: Vec<f32>,
}

/// Does `steps` steps as one rank.
fn train(learner: &mut dyn Learner, world: &dyn Communicator, micro_batch: usize, steps: u64) -> Trained {
    let (tokens, types, objective) = (tokens(), [[0u8; 20], [1; 20]].concat(), objective());
    let mut clock = Clock::untraced(Activity::default());
    let mut first = None;
    for step in 0..steps {
        let items = items(&tokens, &types, step);
        for number in learner.own() {
            let shards = learner.shards();
            let own: Vec<Item> = items.iter().skip(number).step_by(shards).copied().collect();
            let micro_batches = own.chunks(micro_batch).map(<[Item]>::to_vec).collect();
            learner.differentiate(&Shard { number, micro_batches }, &objective, 0.5, &mut clock).unwrap();
        }
        learner.agree(world, false, &mut clock).unwrap();
        let (tail, reduced) = learner.reduce(world).unwrap();
        assert_eq!(tail.task_counts, [5.0, 4.0]);
        assert_eq!(tail.tokens as usize, LENGTHS.iter().sum::<usize>());
        learner.update(1.0, 1e-3, step).unwrap();
        first.get_or_insert_with(|| (tail.loss, reduced.norm, learner.tensors()[1].to_vec()));
    }
    let (loss, norm, first_moments) = first.unwrap();
    Trained { loss, norm, first_moments, values: learner.values().to_vec() }
}

/// The same on every rank of a world of threads; returns what the last rank has.
fn in_threads(
    ranks: usize,
    micro_batch: usize,
    steps: u64,
    learner: impl Fn(&Threads) -> Box<dyn Learner> + Sync,
) -> Trained {
    std::thread::scope(|scope| {
        let learner = &learner;
        let one = |world: Threads| {
            scope.spawn(move || {
                tch::set_num_threads(1);
                train(learner(&world).as_mut(), &world, micro_batch, steps)
            })
        };
        let all: Vec<_> = Threads::world(ranks, Duration::from_secs(120)).into_iter().map(one).collect();
        all.into_iter().map(|one| one.join().unwrap()).last().unwrap()
    })
}

/// The largest difference, relative to the largest value of each tensor's neighbourhood.
fn compare(found: &[f32], expected: &[f32], limit: f32, at: &str) {
    let largest = expected.iter().fold(0f32, |m, g| m.max(g.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= limit * largest, "{at}: value {i} is {found}, not {expected} (largest {largest})");
    }
}

#[test]
fn gradients_are_those_of_the_engine_for_cpus() {
    let _alone = alone();
    let expected = train(on_host(&Solo, Reproducible::Processes).as_mut(), &Solo, 9, 1);
    for micro_batch in [9, 4, 1] {
        let found = train(on_device(&Solo, PLAIN).as_mut(), &Solo, micro_batch, 1);
        assert!((found.loss - expected.loss).abs() < 1e-6 && (found.norm / expected.norm - 1.0).abs() < 1e-5);
        compare(&found.first_moments, &expected.first_moments, 1e-5, "one rank");
    }
    for (ranks, reduce_precision, limit) in
        [(2, ReducePrecision::Fp32, 1e-5), (3, ReducePrecision::Fp32, 1e-5), (2, ReducePrecision::Bf16, 1e-2)]
    {
        let found = in_threads(ranks, 2, 1, |world| on_device(world, Setting { reduce_precision, ..PLAIN }));
        compare(&found.first_moments, &expected.first_moments, limit, &format!("{ranks} ranks, {reduce_precision:?}"));
    }
    // More ranks than examples: those without any take part all the same.
    let found = in_threads(11, 1, 1, |world| on_device(world, PLAIN));
    compare(&found.first_moments, &expected.first_moments, 1e-5, "eleven ranks");
    let bf16 = train(on_device(&Solo, Setting { numbers: Numbers::Bf16, ..PLAIN }).as_mut(), &Solo, 9, 1);
    compare(&bf16.first_moments, &expected.first_moments, 3e-2, "bfloat16");
}

/// The library that stands in for NCCL works on the host's memory, on a thread of its own for each stream.
#[test]
fn gradients_that_go_through_nccl_are_the_same() {
    let _alone = alone();
    let stub = nccl_stub::Stub::new(&[]);
    let by_nccl = |world: &Threads, setting: Setting| {
        let (device, patience) = (world.rank() as i32, nccl_stub::PATIENCE);
        let nccl = Nccl::join(stub.library(), world, device, patience, Activity::default()).unwrap();
        on_device_by(world, setting, Exchange::Nccl(nccl))
    };
    let expected = train(on_host(&Solo, Reproducible::Processes).as_mut(), &Solo, 9, 3);
    for ranks in [2, 3] {
        let found = in_threads(ranks, 2, 3, |world| by_nccl(world, PLAIN));
        compare(&found.first_moments, &expected.first_moments, 1e-5, &format!("{ranks} ranks by NCCL"));
        compare(&found.values, &expected.values, 1e-4, &format!("{ranks} ranks by NCCL, three steps"));
    }
    let rounded = Setting { reduce_precision: ReducePrecision::Bf16, ..PLAIN };
    let found = in_threads(2, 2, 1, |world| by_nccl(world, rounded));
    compare(&found.first_moments, &expected.first_moments, 1e-2, "in bfloat16 by NCCL");
    // The fixed tree, on the devices and through the hosts: the same bits.
    let exact = Setting { reproducible: Reproducible::WorldSize, ..PLAIN };
    let bits = |trained: Trained| trained.values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    let alone = bits(in_threads(1, 2, 2, |world| on_device(world, exact)));
    for ranks in [2, 3, 4] {
        assert!(bits(in_threads(ranks, 2, 2, |world| by_nccl(world, exact))) == alone, "{ranks} ranks in the tree");
    }
}

#[test]
fn several_steps_end_in_the_same_parameters() {
    let _alone = alone();
    let expected = train(on_host(&Solo, Reproducible::Processes).as_mut(), &Solo, 9, 5);
    let found = in_threads(2, 3, 5, |world| on_device(world, PLAIN));
    compare(&found.values, &expected.values, 1e-4, "five steps");
}

#[test]
fn any_number_of_ranks_learns_the_same_bits() {
    let _alone = alone();
    for numbers in [Numbers::Fp32, Numbers::Bf16] {
        // Without dropout: ranks that are threads of one process would draw from one generator by turns.
        let setting = Setting { numbers, reproducible: Reproducible::WorldSize, ..PLAIN };
        let bits = |ranks: usize| -> Vec<u32> {
            in_threads(ranks, 2, 3, |world| on_device(world, setting)).values.iter().map(|v| v.to_bits()).collect()
        };
        let alone = bits(1);
        for ranks in [2, 3, 4, 8] {
            assert!(bits(ranks) == alone, "{ranks} ranks, {numbers:?}");
        }
    }
}

#[test]
fn answers_are_those_of_the_engine_for_cpus() {
    let _alone = alone();
    let mut model = Bert::new(config(0.1), heads());
    fill(&mut model);
    let (tokens, types) = (tokens(), [[0u8; 20], [1; 20]].concat());
    let sequences: Vec<Sequence> = tokens.iter().map(|t| Sequence { tokens: t, types: &types[..t.len()] }).collect();
    for (numbers, limit) in [(Numbers::Fp32, 1e-5), (Numbers::Bf16, 3e-2)] {
        let device = DeviceBert::new(&mut model, Place { numbers, ..Place::CPU });
        for head in [0, 1] {
            let expected = Scorer::outputs(&model, head, &sequences).unwrap();
            compare(&device.outputs(head, &sequences).unwrap(), &expected, limit, "answers");
        }
    }
}

#[test]
fn dropout_follows_from_the_seed_and_drops_what_it_should() {
    let _alone = alone();
    let setting = Setting { dropout: 0.1, ..PLAIN };
    let once = || train(on_device(&Solo, setting).as_mut(), &Solo, 4, 3);
    let (one, other) = (once(), once());
    assert!(one.values.iter().zip(&other.values).all(|(a, b)| a.to_bits() == b.to_bits()), "seeds are not all");
    // The mean loss over many masks is that of the engine for CPUs, whose masks are its own.
    let mean = |make: &dyn Fn() -> Box<dyn Learner>| {
        let (tokens, types, objective) = (tokens(), [0u8; 40], objective());
        let mut learner = make();
        let mut clock = Clock::untraced(Activity::default());
        let losses: Vec<f64> = (0..300)
            .map(|step| {
                let shard = Shard { number: 0, micro_batches: vec![items(&tokens, &types, step)] };
                learner.differentiate(&shard, &objective, 0.5, &mut clock).unwrap();
                learner.agree(&Solo, false, &mut clock).unwrap();
                f64::from(learner.reduce(&Solo).unwrap().0.loss)
            })
            .collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (losses.len() - 1) as f64;
        (mean, (variance / losses.len() as f64).sqrt())
    };
    let host = || -> Box<dyn Learner> {
        let host = Host::find(&Solo, parameter_count(&config(0.1), &heads()), tail_length(2)).unwrap();
        let mut model = Bert::on_host(config(0.1), heads(), &host);
        fill(&mut model);
        let spans = all_spans(model.parameters());
        Box::new(HostLearner::new(&Solo, model, host, KIND, spans, Reproducible::Processes, SHARDS))
    };
    let (expected, error) = mean(&host);
    let (found, found_error) = mean(&|| on_device(&Solo, setting));
    let limit = 4.0 * error.hypot(found_error);
    assert!((found - expected).abs() < limit, "mean loss {found}, not {expected} ± {limit}");
}
