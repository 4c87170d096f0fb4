//! With `reproducible: world-size` training with dropout ends with the same bits for every number of ranks.

// Helpers of the tests fail as the tests do.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bam_cluster::comm::Threads;
use bam_cluster::config::{OptimizerKind, RegressionOutput, Reproducible};
use bam_cluster::plan::slice_by_cost;
use bam_cluster::task::Kind;
use bam_worker::comm::Host;
use bam_worker::gradient::{Reduction, Tail, clip_scale, tail_length};
use bam_worker::model::{Bert, Head, Sequence, StepSeed, parameter_count};
use bam_worker::optim::{Optimizer, spans};
use bam_worker::train::{Item, Objective, backward};

const SHARDS: usize = 8;
const BATCH: usize = 20;
const STEPS: u64 = 3;

fn model(world: &Threads) -> (Host, Bert) {
    let config = serde_json::json!({
        "vocab_size": 500, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    });
    let heads = [("a", 3), ("b", 1)].map(|(task, outputs)| Head { task: task.into(), outputs });
    let config = serde_json::from_value(config).unwrap();
    let host = Host::find(world, parameter_count(&config, &heads), tail_length(2)).unwrap();
    let mut model = Bert::on_host(config, heads.into(), &host);
    if host.leads() {
        for (i, value) in model.parameters_mut().values_mut().iter_mut().enumerate() {
            *value = ((i * 2_654_435_761) % 1000) as f32 / 5000.0 - 0.1;
        }
    }
    host.local().barrier("first values").unwrap();
    (host, model)
}

fn objective() -> Objective {
    let labels = ["x", "y", "z"].map(str::to_owned).into();
    Objective {
        kinds: vec![Kind::Classification { labels, thresholds: vec![] }, Kind::Regression { min: 0.0, max: 1.0 }],
        weights: vec![1.0, 0.7],
        divisor: BATCH as f64,
        regression_output: RegressionOutput::Sigmoid,
    }
}

/// Tokens of examples of different lengths.
fn tokens() -> Vec<Vec<i32>> {
    let token = |i: usize| move |j: usize| ((i * 31 + j * 17) % 500) as i32;
    (0..BATCH).map(|i| (0..4 + i * 7 % 13).map(token(i)).collect()).collect()
}

/// The bits of tail and parameters after each step, as one rank has them.
fn train(world: &Threads, micro_batch: usize) -> Vec<(Tail, Vec<u32>)> {
    let (host, mut model) = model(world);
    let (objective, tokens) = (objective(), tokens());
    let types = [0u8; 32];
    let item = |step: u64, i: usize| Item {
        task: i % 2,
        example: i,
        sequence: Sequence { tokens: &tokens[i], types: &types[..tokens[i].len()] },
        gold: [(i / 2 % 3) as f32, i as f32 / BATCH as f32][i % 2],
        teacher: None,
        dropout: StepSeed::new(1, step).example(i),
    };
    let p = model.parameters();
    let spans = spans(p.specs(), p.ranges(), 2, 0.9, 0.01);
    let mut optimizer = Optimizer::new(OptimizerKind::BertAdam, spans, host.moments());
    let share = optimizer.shares(host.local().size(), 16).swap_remove(host.local().rank());
    let mut reduction = Reduction::new(Reproducible::WorldSize, SHARDS, world);
    let costs: Vec<u64> = tokens.iter().map(|t| t.len() as u64).collect();
    let slices = slice_by_cost(&costs, SHARDS);
    let step = |step: u64| {
        let n = model.parameters().len();
        for shard in reduction.own() {
            model.parameters_mut().zero_gradients();
            let mut tail = Tail::new(2);
            for examples in slices[shard].chunks(micro_batch) {
                let items: Vec<Item> = examples.iter().map(|&i| item(step, i)).collect();
                assert!(backward(&mut model, &items, &objective, 0.5, &mut tail).diverged.is_empty());
            }
            let (buffer, words) = model.parameters_mut().gradients_and_words();
            tail.write(&mut buffer[n..]);
            reduction.take(shard, buffer, words);
        }
        let (buffer, words) = model.parameters_mut().gradients_and_words();
        reduction.agree(world, words).unwrap();
        let norm = reduction.finish(world, &host, &share, buffer, words).unwrap().norm;
        let tail = Tail::read(&buffer[n..]);
        let (values, gradients) = model.parameters_mut().values_and_gradients();
        optimizer.step(&share, values, gradients, clip_scale(norm, 1.0), 1e-2, step);
        host.local().barrier("update").unwrap();
        (tail, values.iter().map(|v| v.to_bits()).collect())
    };
    (0..STEPS).map(step).collect()
}

#[test]
fn any_number_of_ranks_learns_the_same_bits() {
    tch::set_num_threads(1);
    for micro_batch in [BATCH, 2] {
        let of = |ranks: usize| {
            let all: Vec<_> = std::thread::scope(|scope| {
                let world = Threads::world(ranks, Duration::from_secs(120));
                let threads: Vec<_> = world.into_iter().map(|w| scope.spawn(move || train(&w, micro_batch))).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert!(all.iter().all(|one| *one == all[0]), "{ranks} ranks differ from one another");
            all.into_iter().next().unwrap()
        };
        let alone = of(1);
        assert_eq!(alone[0].0.task_counts, [BATCH as f32 / 2.0; 2]);
        assert!(alone[0].1 != alone[1].1, "nothing was learnt");
        for ranks in [2, 3, 4, 5, 8] {
            assert!(of(ranks) == alone, "{ranks} ranks, micro-batches of {micro_batch}");
        }
    }
}
