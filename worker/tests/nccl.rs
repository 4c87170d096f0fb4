//! The NCCL communicator against a library that stands in for NCCL and CUDA, works on the host's memory and fails on purpose;
//! where there are GPUs and NCCL, also against these.

// Helpers of the tests fail as the tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "each test program needs a part of it")]
mod nccl_stub;

use std::time::Duration;

use bam_cluster::comm::{Activity, Communicator, Solo, Threads};
use bam_cluster::config::Reproducible;
use bam_worker::comm::nccl::{DeviceTreeSum, Library, Nccl, NcclError, Version};
use bam_worker::comm::preflight::preflight;
use bam_worker::comm::{DeviceReducer, Host, ReduceError};
use bam_worker::gradient::{Reduction, TouchedRows, Tree};
use nccl_stub::{PATIENCE, Stub, threads, until};
use tch::{Device, Kind, Tensor};

/// A deadline that passes; long enough for what comes before it, also on a busy machine.
const SHORT: Duration = Duration::from_secs(1);

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float)).unwrap()
}

fn ones(length: i64) -> Tensor {
    Tensor::ones(length, (Kind::Float, Device::Cpu))
}

#[test]
fn a_library_that_is_of_no_use_is_named() {
    let good = Stub::new(&[]);
    let missing = Library::load(Some("libnccl-nowhere.so"), Some(&good.file())).err().unwrap();
    let told = missing.to_string();
    assert!(matches!(missing, NcclError::LibraryMissing { library: "NCCL", .. }));
    assert!(told.contains("tried libnccl-nowhere.so") && told.contains("BAM_NCCL"), "{told}");
    let missing = Library::load(Some(&good.file()), Some("libcudart-nowhere.so")).err().unwrap().to_string();
    assert!(missing.starts_with("the CUDA runtime cannot be loaded") && missing.contains("BAM_CUDART"), "{missing}");

    let damaged = good.file() + ".text";
    std::fs::write(&damaged, "no library").unwrap();
    assert!(matches!(Library::load(Some(&damaged), None).err(), Some(NcclError::LibraryMissing { .. })));

    let old = Stub::new(&["VERSION=21703", "WITHOUT_REDUCE_SCATTER"]).library().err().unwrap();
    assert!(matches!(&old, NcclError::TooOld { found: Version(21703), .. }));
    assert!(old.to_string().ends_with("is NCCL 2.17.3; bam needs 2.18.0 or newer"), "{old}");

    let lacking = Stub::new(&["WITHOUT_REDUCE_SCATTER"]).library().err().unwrap();
    assert!(matches!(lacking, NcclError::SymbolMissing { symbol: "ncclReduceScatter", .. }), "{lacking}");
}

/// The i-th value of a rank: their sums are exact in bf16, too.
fn value(rank: usize, i: usize) -> f32 {
    (8 * rank + i) as f32
}

fn values(ranks: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    range.map(|i| (0..ranks).map(|rank| value(rank, i)).sum()).collect()
}

#[test]
fn collectives_are_right_for_one_to_four_ranks() {
    let stub = Stub::new(&[]);
    for (ranks, kind) in [1, 2, 3, 4].into_iter().flat_map(|ranks| [(ranks, Kind::Float), (ranks, Kind::BFloat16)]) {
        stub.on_ranks(ranks, PATIENCE, |_, nccl| {
            let nccl = nccl.unwrap();
            let (rank, length) = (nccl.rank(), 6 * ranks);
            let own =
                (Tensor::arange(length as i64, (Kind::Float, Device::Cpu)) + f64::from(value(rank, 0))).to_kind(kind);

            // Three one after another, waited for once: as buckets of a gradient are.
            let whole = own.copy();
            for bucket in [4..6, 1..4, 0..1] {
                let part = whole.narrow(0, (bucket.start * ranks) as i64, (bucket.len() * ranks) as i64);
                nccl.all_reduce_sum("bucket", &part).unwrap();
            }
            nccl.wait_on_device().unwrap();
            assert_eq!(floats(&whole), values(ranks, 0..length));

            let (told, everyones) = (own.copy(), Tensor::zeros_like(&own));
            nccl.broadcast("told", ranks - 1, &told).unwrap();
            nccl.all_gather("gathered", &own.narrow(0, 0, 6), &everyones).unwrap();
            let scattered = own.copy();
            let part = scattered.narrow(0, 6 * rank as i64, 6);
            nccl.reduce_scatter("scattered", &scattered, &part).unwrap();
            nccl.settle("all").unwrap();
            assert_eq!(floats(&told), (0..length).map(|i| value(ranks - 1, i)).collect::<Vec<_>>());
            assert_eq!(floats(&everyones), (0..length).map(|i| value(i / 6, i % 6)).collect::<Vec<_>>());
            assert_eq!(floats(&part), values(ranks, 6 * rank..6 * rank + 6));

            // In place, each rank's values where all are to be.
            let own_place = everyones.narrow(0, 6 * rank as i64, 6);
            let _ = own_place.shallow_clone().fill_(f64::from(value(rank, 0)));
            nccl.all_gather("in place", &own_place, &everyones).unwrap();
            nccl.wait_on_device().unwrap();
            assert_eq!(floats(&everyones), (0..length).map(|i| value(i / 6, 0)).collect::<Vec<_>>());
        });
    }
}

#[test]
fn every_rank_gets_what_is_meant_for_it() {
    // Rank a sends its values b … b + (a + b) % 3 to rank b: to some ranks none.
    let sent = |a: usize, b: usize| b..b + (a + b) % 3;
    let stub = Stub::new(&[]);
    for ranks in 1..=4 {
        stub.on_ranks(ranks, PATIENCE, |_, nccl| {
            let nccl = nccl.unwrap();
            let rank = nccl.rank();
            let send = Tensor::arange(8, (Kind::Float, Device::Cpu)) + f64::from(value(rank, 0));
            let to: Vec<_> = (0..ranks).map(|peer| sent(rank, peer)).collect();
            // The last rank's first.
            let mut from = vec![0..0; ranks];
            let mut expected = vec![];
            for peer in (0..ranks).rev() {
                let begin = expected.len();
                expected.extend(sent(peer, rank).map(|i| value(peer, i)));
                from[peer] = begin..expected.len();
            }
            let receive = -ones(10);
            nccl.all_to_all("exchanged", (&send, &to), (&receive, &from)).unwrap();
            nccl.wait_on_device().unwrap();
            expected.resize(10, -1.0);
            assert_eq!(floats(&receive), expected);
        });
    }
}

#[test]
fn a_communicator_says_what_it_is() {
    let stub = Stub::new(&[]);
    let lines = stub.on_ranks(2, PATIENCE, |_, nccl| {
        let nccl = nccl.unwrap();
        assert_eq!(DeviceReducer::name(&nccl), "NCCL 2.28.9");
        nccl.describe().to_string()
    });
    assert!(lines[1].starts_with(&format!("NCCL 2.28.9 ({}) among 2 GPUs (", stub.file())), "{}", lines[1]);
    assert!(lines[1].contains("rank 1 is on GPU 0000:01:00.0; set by the user: "), "{}", lines[1]);
}

#[test]
fn all_ranks_are_told_who_cannot_take_part() {
    let (stub, other) = (Stub::new(&[]), Stub::new(&["VERSION=22703"]));
    let join = |world: &Threads, library, device| {
        Nccl::join(library, world, device, PATIENCE, Activity::default()).err().unwrap()
    };
    let all_alike = |errors: Vec<NcclError>| {
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        errors[0].to_string()
    };
    let told = all_alike(threads(3, |world| {
        let nowhere = || Library::load(Some("libnccl-nowhere.so"), None);
        join(world, if world.rank() == 1 { nowhere() } else { stub.library() }, world.rank() as i32)
    }));
    assert!(told.starts_with("NCCL's start failed on 1 of 3 ranks: rank 1 on "), "{told}");
    assert!(told.contains("NCCL cannot be loaded (tried libnccl-nowhere.so)"), "{told}");

    let told = all_alike(threads(2, |world| join(world, stub.library(), world.rank() as i32 * 99)));
    assert!(told.ends_with(": cudaSetDevice failed: invalid device ordinal (CUDA error 101)"), "{told}");

    let told = all_alike(threads(3, |world| join(world, stub.library(), world.rank() as i32 / 2)));
    assert!(told.starts_with("ranks 0 and 1 are both on GPU 0000:00:00.0 of "), "{told}");

    let told = all_alike(threads(2, |world| {
        join(world, if world.rank() == 1 { other.library() } else { stub.library() }, world.rank() as i32)
    }));
    assert!(told.contains("has NCCL 2.27.3 and rank 0 has 2.28.9"), "{told}");
    assert_eq!(stub.count("communicator made") + other.count("communicator made"), 0);
}

#[test]
fn ranks_that_do_not_find_one_another_give_up_together() {
    let stub = Stub::new(&["INIT_NEVER_ENDS"]);
    let errors = stub.on_ranks(2, SHORT, |_, nccl| nccl.err().unwrap());
    assert!(matches!(&errors[0], NcclError::NotEverywhere { ranks, .. } if ranks.len() == 2), "{errors:?}");
    let told = errors[1].to_string();
    assert!(told.starts_with("NCCL's init failed on 2 of 2 ranks: rank 0 on "), "{told}");
    assert!(told.contains("NCCL was not ready after ") && told.contains("NCCL_SOCKET_IFNAME"), "{told}");
    assert_eq!(stub.count("communicator aborted"), 2);
}

#[test]
fn an_asynchronous_error_names_the_collective() {
    let stub = Stub::new(&["BROKEN_FROM=3"]);
    let errors = stub.on_ranks(2, PATIENCE, |_, nccl| {
        let nccl = nccl.unwrap();
        let values = ones(4);
        for name in ["first", "second", "third", "fourth"] {
            // Whether the fourth can still be started depends on how far the third is.
            if let Err(e) = nccl.all_reduce_sum(name, &values) {
                return (e, nccl.all_reduce_sum("later", &values).unwrap_err());
            }
        }
        (nccl.settle("all").unwrap_err(), nccl.all_reduce_sum("later", &values).unwrap_err())
    });
    for (error, later) in errors {
        let told = error.to_string();
        let words = "failed: remote process exited or there was a network error: the stub's last words";
        assert!(["third", "fourth"].iter().any(|name| told == format!("NCCL collective '{name}' {words}")), "{told}");
        let told = later.to_string();
        assert!(matches!(later, NcclError::Aborted { name: "later", .. }) && told.contains(words), "{told}");
    }
    assert_eq!(stub.count("communicator aborted"), 2);
}

#[test]
fn a_collective_that_is_stuck_is_given_up() {
    let stub = Stub::new(&["STUCK_FROM=2"]);
    let activity = Activity::default();
    let errors = threads(2, |world| {
        let activity = if world.rank() == 0 { activity.clone() } else { Activity::default() };
        let nccl = Nccl::join(stub.library(), world, world.rank() as i32, SHORT, activity).unwrap();
        nccl.sum("layer 2", &ones(4)).unwrap();
        nccl.sum("layer 1", &ones(4)).unwrap();
        DeviceReducer::settle(&nccl, "step").unwrap_err()
    });
    for error in errors {
        assert!(matches!(error, ReduceError::Nccl(NcclError::Deadline { name: "layer 1", .. })), "{error}");
        assert!(error.to_string().starts_with("NCCL collective 'layer 1' was given up after "), "{error}");
    }
    assert_eq!(activity.snapshot().collective, Some("step"));
    assert_eq!(stub.count("communicator aborted"), 2);
}

#[test]
fn a_watchdog_ends_what_another_thread_waits_for() {
    let stub = Stub::new(&["STUCK_FROM=1"]);
    stub.on_ranks(2, PATIENCE, |_, nccl| {
        let nccl = nccl.unwrap();
        let (handle, values) = (nccl.abort_handle(), ones(4));
        nccl.all_reduce_sum("gradients", &values).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let handle = handle.clone();
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    handle.abort("rank 7 is gone");
                });
            }
            let error = nccl.settle("step").unwrap_err();
            assert!(matches!(&error, NcclError::Aborted { reason, .. } if reason == "rank 7 is gone"), "{error}");
        });
        handle.abort("too late");
        let error = nccl.broadcast("weights", 0, &values).unwrap_err().to_string();
        assert_eq!(error, "NCCL collective 'weights' cannot be: the communicator was aborted, because rank 7 is gone");
        assert!(matches!(nccl.wait_on_device(), Err(NcclError::Aborted { .. })));
        drop(nccl);
        handle.abort("later still");
    });
    assert_eq!(stub.count("communicator aborted"), 2);
}

#[test]
fn an_abort_that_does_not_return_keeps_nobody() {
    let stub = Stub::new(&["STUCK_FROM=1", "ABORT_NEVER_RETURNS"]);
    stub.on_ranks(2, PATIENCE, |_, nccl| {
        let nccl = nccl.unwrap();
        nccl.all_reduce_sum("gradients", &ones(4)).unwrap();
        nccl.abort_handle().abort("rank 7 is gone");
        assert!(nccl.settle("step").is_err());
    });
}

#[test]
fn what_is_dropped_in_the_middle_is_aborted() {
    let stub = Stub::new(&["STUCK_FROM=1"]);
    stub.on_ranks(2, PATIENCE, |_, nccl| nccl.unwrap().all_reduce_sum("gradients", &ones(4)).unwrap());
    assert_eq!(stub.count("communicator aborted"), 2);
}

#[test]
fn nothing_is_left_of_many_communicators() {
    let threads_of_ends = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
        names.filter(|name| name.trim() == "NCCL's end").count()
    };
    let stub = Stub::new(&[]);
    for _ in 0..20 {
        stub.on_ranks(2, PATIENCE, |_, nccl| {
            let nccl = nccl.unwrap();
            nccl.all_reduce_sum("gradients", &ones(4)).unwrap();
            nccl.settle("step").unwrap();
        });
    }
    assert_eq!((stub.count("communicator made"), stub.count("communicator destroyed")), (40, 40));
    // Those of the two ranks above whose abort does not return stay.
    until(|| threads_of_ends() <= 2);
}

/// Values of all magnitudes, so that almost no other order of additions gives the same bits.
fn gradient(shard: usize, length: usize) -> Vec<f32> {
    let value = |i: usize| {
        let noise = ((shard * 7919 + i * 104_729 + 12_345) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        let sign = if noise.is_multiple_of(2) { 1.0 } else { -1.0 };
        sign * (1.0 + (noise % 1000) as f32 / 999.0) * 10f32.powi((noise / 1000 % 9) as i32 - 4)
    };
    (0..length).map(value).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The sum as one rank makes it on the host.
fn sum_on_host(shards: usize, length: usize) -> Vec<f32> {
    let host = Host::find(&Solo, length, 0).unwrap();
    let mut reduction = Reduction::new(Reproducible::WorldSize, shards, &Solo);
    let (mut buffer, mut words) = (vec![0.0; length], TouchedRows::none(1, 1));
    for shard in 0..shards {
        buffer.copy_from_slice(&gradient(shard, length));
        reduction.take(shard, &mut buffer, &mut words);
    }
    reduction.finish(&Solo, &host, &(0..length), &mut buffer, &words).unwrap();
    buffer
}

/// This rank's nodes, added up as its shards come.
fn nodes_of(tree: Tree, rank: usize, ranks: usize, length: usize) -> Vec<Tensor> {
    let (mut nodes, shards): (Vec<Tensor>, _) = (vec![], tree.shards_of(rank, ranks));
    for shard in shards.clone() {
        let mut node = Tensor::from_slice(&gradient(shard, length));
        for _ in 0..tree.nodes_completed(shards.start, shard) {
            node += nodes.pop().unwrap();
        }
        nodes.push(node);
    }
    nodes
}

#[test]
fn the_tree_gives_the_hosts_bits_for_every_number_of_ranks() {
    let stub = Stub::new(&[]);
    // Several chunks, the last of which may not divide among the ranks; less values than ranks.
    for (shards, length, chunk) in [(8, 50, 16), (5, 37, 12), (4, 48, 1 << 20), (7, 2, 64)] {
        let expected = sum_on_host(shards, length);
        for ranks in 1..=4 {
            let tree = Tree::over(shards);
            let sums = stub.on_ranks(ranks, PATIENCE, |_, nccl| {
                let nccl = nccl.unwrap();
                let mut sum = DeviceTreeSum::in_chunks(tree, ranks, chunk);
                let mut made = || {
                    let nodes = nodes_of(tree, nccl.rank(), ranks, length);
                    sum.sum(&nccl, &nodes).unwrap();
                    bits(&floats(&nodes[nodes.len() - 1]))
                };
                // Twice, since memory is used again.
                [made(), made()]
            });
            for made in sums.into_iter().flatten() {
                assert_eq!(made, bits(&expected), "{shards} shards on {ranks} ranks");
            }
        }
        let in_order = |i: usize| (1..shards).fold(gradient(0, length)[i], |sum, s| sum + gradient(s, length)[i]);
        let differs = (0..length).any(|i| in_order(i).to_bits() != expected[i].to_bits());
        assert!(differs || length == 2, "another order gives the same bits");
    }
}

#[test]
fn a_preflight_finds_nothing_wrong_with_right_sums() {
    let stub = Stub::new(&[]);
    let found = stub.on_ranks(2, PATIENCE, |world, nccl| {
        preflight(world, &nccl.unwrap(), Device::Cpu, Duration::from_millis(300)).unwrap()
    });
    assert_eq!(found[0], found[1]);
    assert!(found[0].ranks.iter().all(|rank| rank.wrong.is_empty() && rank.reducer == "NCCL 2.28.9"), "{found:?}");
    assert!(!found[0].sums.is_empty() && found[0].sums[0].seconds > 0.0);
}

#[test]
fn the_real_cuda_runtime_says_what_is_missing() {
    let stub = Stub::new(&[]);
    // libtorch brings it, also where there is no GPU.
    let library = match Library::load(Some(&stub.file()), None) {
        Ok(_) if tch::Cuda::is_available() => return println!("skipped: there is a GPU"),
        Err(NcclError::LibraryMissing { .. }) => return println!("skipped: there is no CUDA runtime here"),
        library => library,
    };
    let error = Nccl::join(library, &Solo, 0, SHORT, Activity::default()).err().unwrap().to_string();
    assert!(error.starts_with("NCCL's start failed on 1 of 1 ranks: rank 0 on "), "{error}");
    assert!(error.contains(": cudaSetDevice failed: ") && error.contains("(CUDA error "), "{error}");
}

#[test]
fn the_real_nccl_says_what_is_missing() {
    let _ = bam_worker::shim::cuda();
    let stub = Stub::new(&[]);
    // The stub's CUDA takes any machine for one with GPUs; NCCL has its own view.
    let library = match Library::load(std::env::var("BAM_NCCL").ok().as_deref(), Some(&stub.file())) {
        Ok(_) if tch::Cuda::is_available() => return println!("skipped: there is a GPU"),
        Err(NcclError::LibraryMissing { .. }) => return println!("skipped: there is no NCCL here"),
        library => library,
    };
    let error = Nccl::join(library, &Solo, 0, SHORT, Activity::default()).err().unwrap().to_string();
    assert!(error.starts_with("NCCL's init failed on 1 of 1 ranks: rank 0 on "), "{error}");
    assert!(error.contains(": ncclCommInitRankConfig failed: ") && error.contains("Cuda failure"), "{error}");
}

#[test]
fn the_real_nccl_takes_a_rank_that_is_alone_on_a_gpu() {
    if bam_worker::shim::cuda().is_err() || !tch::Cuda::is_available() {
        return println!("skipped: there is no GPU");
    }
    let library = Library::find();
    let nccl = Nccl::join(library, &Solo, 0, PATIENCE, Activity::default()).unwrap();
    println!("{}", nccl.describe());
    for kind in [Kind::Float, Kind::BFloat16] {
        let values = Tensor::arange(1 << 20, (kind, Device::Cuda(0)));
        let before = values.copy();
        nccl.all_reduce_sum("gradients", &values).unwrap();
        nccl.wait_on_device().unwrap();
        nccl.settle("step").unwrap();
        assert!(values.equal(&before));
    }
    let found = preflight(&Solo, &nccl, Device::Cuda(0), Duration::from_secs(5)).unwrap();
    assert_eq!(found.findings, []);
    println!("{found:?}");
}
