//! Before a run: do all ranks add up rightly, how fast, and is one of them slow or sick?

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use bam_cluster::comm::Communicator;
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, Tensor, no_grad};

use super::DeviceReducer;
use crate::control::host_name;
use crate::probe::libtorch;
use crate::shim::cuda_driver;

/// The smallest sum, and by what each is larger than the one before.
const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 256 << 20;
const GROWTH: usize = 4;
/// Of each size and each rate the fastest of so many counts.
const TRIES: usize = 3;
/// Bytes that are copied from the host to measure how fast that is.
const COPIED: usize = 64 << 20;
/// A rank is slow whose rate is below this share of the median.
const SLOW: f64 = 0.5;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preflight {
    /// Each rank's report.
    pub ranks: Vec<RankReport>,
    /// How fast sums are, by size: those that there was time for.
    pub sums: Vec<SumTime>,
    /// What is wrong; empty: nothing.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Preflight {
    /// How fast the largest sum was; nothing for a rank that is alone.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ranks = self.ranks.len();
        match self.sums.last() {
            Some(sum) if ranks > 1 => {
                let (mebibytes, rate) = (sum.bytes as f64 / (1 << 20) as f64, sum.bus_bandwidth(ranks) / 1e9);
                write!(
                    f,
                    "{ranks} devices add up {mebibytes:.1} MiB at {rate:.1} GB/s a link, by {}",
                    self.ranks[0].reducer
                )
            }
            _ => Ok(()),
        }
    }
}

/// What a rank knows of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// Where it is.
    pub host: String,
    /// What it computes on.
    pub device: String,
    /// How it sums, with the version.
    pub reducer: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Version of CUDA that the driver supports; empty without a driver.
    pub driver: String,
    /// Of the sizes that were summed, in bytes, those that came out wrong, and in how many values.
    pub wrong: Vec<(usize, i64)>,
    /// Floating-point operations a second in a product of float32 matrices.
    pub compute: f64,
    /// Bytes a second from the host's memory to the device's.
    pub copy: f64,
}

/// How long a sum takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SumTime {
    /// Of what each rank has.
    pub bytes: usize,
    /// On the slowest rank.
    pub seconds: f64,
}

impl SumTime {
    /// Bytes a second that a rank's link carries if ranks exchange no more than they need to, 2 (n − 1) / n of the whole: the
    /// "bus bandwidth" of NCCL's tests, which is comparable among numbers of ranks.
    pub fn bus_bandwidth(&self, ranks: usize) -> f64 {
        2.0 * (ranks - 1) as f64 / ranks as f64 * self.bytes as f64 / self.seconds
    }
}

/// Something that is wrong with a rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Finding {
    /// A sum came out wrong.
    WrongSum {
        /// On which rank.
        rank: usize,
        /// Where it is.
        host: String,
        /// Size of the sum in bytes.
        bytes: usize,
        /// In how many values.
        values: i64,
    },
    /// A rank has another version of something.
    OtherVersion {
        /// Which rank.
        rank: usize,
        /// Where it is.
        host: String,
        /// Of what.
        what: &'static str,
        /// Its version.
        found: String,
        /// That of rank 0.
        expected: String,
    },
    /// A rank is much slower than others.
    Slow {
        /// Which rank.
        rank: usize,
        /// Where it is.
        host: String,
        /// At what.
        at: SlowAt,
        /// Its rate, in operations or bytes a second.
        rate: f64,
        /// What ranks usually have.
        median: f64,
    },
}

/// What a rank can be slow at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlowAt {
    /// Products of matrices.
    Computing,
    /// Copies from the host.
    Copying,
}

impl Finding {
    /// Whether a training would come out wrong.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Finding::WrongSum { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Finding::WrongSum { rank, host, bytes, values } => write!(
                f,
                "rank {rank} on {host} got {values} wrong values in a sum of {bytes} bytes: its GPU, memory or link is \
                 faulty; leave that host out and have it checked"
            ),
            Finding::OtherVersion { rank, host, what, found, expected } => {
                write!(
                    f,
                    "rank {rank} on {host} has {what} {found} and rank 0 has {expected}: all should have the same"
                )
            }
            Finding::Slow { rank, host, at, rate, median } => {
                let (does, unit, advice) = match at {
                    SlowAt::Computing => ("computes", "GFLOP/s", "it is shared, throttled or sick (see nvidia-smi -q)"),
                    SlowAt::Copying => ("copies from the host", "GB/s", "look at its PCIe link and CPU binding"),
                };
                let (rate, median) = (rate / 1e9, median / 1e9);
                write!(f, "rank {rank} on {host} {does} at {rate:.1} {unit}, others at {median:.1}: {advice}")
            }
        }
    }
}

/// Sums known values of 4 KiB, 16 KiB … 256 MiB, for about as long as `limit`, and measures each rank by itself.
///
/// # Errors
/// A collective did not come about.
pub fn preflight(
    world: &dyn Communicator,
    reducer: &dyn DeviceReducer,
    device: Device,
    limit: Duration,
) -> Result<Preflight> {
    let (mut sums, mut wrong) = (vec![], vec![]);
    let begin = Instant::now();
    let mut bytes = SMALLEST;
    while bytes <= LARGEST {
        let (errors, seconds) = no_grad(|| sum_known_values(world, reducer, device, bytes))?;
        if errors > 0 {
            wrong.push((bytes, errors));
        }
        let elapsed = begin.elapsed().as_secs_f64();
        // The slowest counts, so that all ranks stop at the same size.
        let slowest = slowest(world, [seconds, elapsed])?;
        sums.push(SumTime { bytes, seconds: slowest[0] });
        // The next will take longer than this one did.
        if slowest[1] + slowest[0] * (GROWTH * (TRIES + 1)) as f64 > limit.as_secs_f64() {
            break;
        }
        bytes *= GROWTH;
    }
    world.barrier("measuring ranks")?;
    let (compute, copy) = no_grad(|| (compute_rate(device), copy_rate(device)));
    let (host, device, reducer) = (host_name(), name_of(device), reducer.name());
    let (libtorch, driver) = (libtorch().0, cuda_driver().unwrap_or_default());
    let own = RankReport { host, device, reducer, libtorch, driver, wrong, compute, copy };
    let ranks = world.all_gather("reports of ranks", &serde_json::to_vec(&own)?)?;
    let ranks: Vec<RankReport> = ranks.iter().map(|report| serde_json::from_slice(report)).collect::<Result<_, _>>()?;
    Ok(Preflight { findings: judge(&ranks), ranks, sums })
}

/// Of what a version is, and where a report has it.
type Version = (&'static str, fn(&RankReport) -> &String);

/// What is wrong with these ranks.
pub fn judge(ranks: &[RankReport]) -> Vec<Finding> {
    let mut findings = vec![];
    let (compute, copy) = (median(ranks.iter().map(|r| r.compute)), median(ranks.iter().map(|r| r.copy)));
    for (rank, report) in ranks.iter().enumerate() {
        let host = || report.host.clone();
        let wrong = |&(bytes, values)| Finding::WrongSum { rank, host: host(), bytes, values };
        findings.extend(report.wrong.iter().map(wrong));
        let versions: [Version; 3] =
            [("the reducer", |r| &r.reducer), ("libtorch", |r| &r.libtorch), ("a driver for CUDA", |r| &r.driver)];
        for (what, of) in versions.into_iter().filter(|(_, of)| of(report) != of(&ranks[0])) {
            let (found, expected) = (of(report).clone(), of(&ranks[0]).clone());
            findings.push(Finding::OtherVersion { rank, host: host(), what, found, expected });
        }
        let rates = [(SlowAt::Computing, report.compute, compute), (SlowAt::Copying, report.copy, copy)];
        for (at, rate, median) in rates.into_iter().filter(|(_, rate, median)| *rate < SLOW * median) {
            findings.push(Finding::Slow { rank, host: host(), at, rate, median });
        }
    }
    findings
}

fn median(rates: impl Iterator<Item = f64>) -> f64 {
    let mut rates: Vec<f64> = rates.collect();
    rates.sort_by(f64::total_cmp);
    let middle = rates.len() / 2;
    match rates.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => f64::midpoint(rates[middle - 1], rates[middle]),
        _ => rates[middle],
    }
}

/// How many values came out wrong, and the seconds of the fastest sum.
fn sum_known_values(
    world: &dyn Communicator,
    reducer: &dyn DeviceReducer,
    device: Device,
    bytes: usize,
) -> Result<(i64, f64)> {
    let pattern = Tensor::arange((bytes / size_of::<f32>()) as i64, (Kind::Float, device)).remainder(PERIOD);
    let mut values = &pattern * weight(world.rank());
    reducer.sum("known values", &values)?;
    reducer.wait()?;
    reducer.settle("known values")?;
    let expected = &pattern * (0..world.size()).map(weight).sum::<f64>();
    let errors = values.ne_tensor(&expected).sum(Kind::Int64).int64_value(&[]);
    let mut fastest = f64::INFINITY;
    for _ in 0..TRIES {
        // No overflow, however often it is summed.
        let _ = values.zero_();
        finish(device);
        world.barrier("before the clock")?;
        let begin = Instant::now();
        reducer.sum("known values", &values)?;
        reducer.settle("known values")?;
        fastest = fastest.min(begin.elapsed().as_secs_f64());
    }
    reducer.wait()?;
    Ok((errors, fastest))
}

/// Values repeat after so many, and ranks have small multiples of them: float32 has all sums exactly, in whatever order, with
/// up to sixteen thousand ranks.
const PERIOD: f64 = 251.0;

fn weight(rank: usize) -> f64 {
    (rank % 7 + 1) as f64
}

fn slowest(world: &dyn Communicator, own: [f64; 2]) -> Result<[f64; 2]> {
    let all = world.all_gather("times of a sum", bytemuck::bytes_of(&own))?;
    let times = all.iter().map(|bytes| bytemuck::pod_read_unaligned::<[f64; 2]>(bytes));
    Ok(times.fold([0.0; 2], |most, one| [most[0].max(one[0]), most[1].max(one[1])]))
}

fn compute_rate(device: Device) -> f64 {
    let size: i64 = if device.is_cuda() { 4096 } else { 512 };
    let [a, b] = [(); 2].map(|()| Tensor::randn([size, size], (Kind::Float, device)));
    let seconds = fastest(device, || drop(a.mm(&b)));
    2.0 * (size as f64).powi(3) / seconds
}

fn copy_rate(device: Device) -> f64 {
    let length = [(COPIED / size_of::<f32>()) as i64];
    let host = Tensor::ones(length, (Kind::Float, Device::Cpu));
    let mut there = Tensor::zeros(length, (Kind::Float, device));
    COPIED as f64 / fastest(device, || there.copy_(&host))
}

/// Seconds of the fastest of some tries, after one that makes ready.
fn fastest(device: Device, mut work: impl FnMut()) -> f64 {
    let mut fastest = f64::INFINITY;
    work();
    for _ in 0..TRIES {
        finish(device);
        let begin = Instant::now();
        work();
        finish(device);
        fastest = fastest.min(begin.elapsed().as_secs_f64());
    }
    fastest
}

/// Waits until the device has nothing to do.
fn finish(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

fn name_of(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bam_cluster::comm::Threads;

    use super::*;
    use crate::comm::Staged;

    fn report(compute: f64, copy: f64) -> RankReport {
        let (host, device, reducer) = ("node".to_owned(), "cuda:0".to_owned(), "NCCL 2.28.9".to_owned());
        RankReport {
            host,
            device,
            reducer,
            libtorch: "2.11.0".into(),
            driver: "13.0".into(),
            wrong: vec![],
            compute,
            copy,
        }
    }

    #[test]
    fn a_rank_below_half_the_median_is_named() {
        let ranks = [report(10e9, 5e9), report(4.9e9, 5e9), report(10e9, 2e9), report(12e9, 6e9)];
        let told: Vec<String> = judge(&ranks).iter().map(ToString::to_string).collect();
        let slow = "it is shared, throttled or sick (see nvidia-smi -q)";
        assert_eq!(told[0], format!("rank 1 on node computes at 4.9 GFLOP/s, others at 10.0: {slow}"));
        assert!(told[1].starts_with("rank 2 on node copies from the host at 2.0 GB/s, others at 5.0"), "{}", told[1]);
        assert_eq!(told.len(), 2);
        assert_eq!(judge(&[report(5.1e9, 1e9), report(10e9, 1e9), report(10e9, 1e9)]), []);
        // Of two, the slower one is judged by the middle between both.
        assert_eq!(judge(&[report(10e9, 1e9), report(3e9, 1e9)]).len(), 1);
        assert_eq!(judge(&[report(10e9, 1e9), report(4e9, 1e9)]), []);
        assert_eq!(judge(&[]), []);
    }

    #[test]
    fn wrong_sums_and_other_versions_are_named() {
        let mut ranks = vec![report(1e9, 1e9); 3];
        ranks[2].wrong = vec![(4096, 7), (65536, 9)];
        ranks[1].reducer = "NCCL 2.27.3".to_owned();
        ranks[1].driver = "12.9".to_owned();
        let told: Vec<String> = judge(&ranks).iter().map(ToString::to_string).collect();
        let other = "rank 1 on node has the reducer NCCL 2.27.3 and rank 0 has NCCL 2.28.9: all should have the same";
        assert_eq!(told[0], other);
        assert!(told[1].starts_with("rank 1 on node has a driver for CUDA 12.9 and rank 0 has 13.0"), "{}", told[1]);
        assert!(told[2].starts_with("rank 2 on node got 7 wrong values in a sum of 4096 bytes: "), "{}", told[2]);
        assert_eq!(told.len(), 4);
    }

    #[test]
    fn links_carry_less_than_twice_the_sum() {
        let sum = SumTime { bytes: 1 << 20, seconds: 0.5 };
        assert_eq!([1, 2, 4].map(|ranks| sum.bus_bandwidth(ranks)), [0.0, 2_097_152.0, 3_145_728.0]);
    }

    /// One rank's link adds a little to one value of larger sums.
    struct Faulty(Staged, bool);

    impl DeviceReducer for Faulty {
        fn sum(&self, name: &'static str, bucket: &Tensor) -> Result<(), crate::comm::ReduceError> {
            self.0.sum(name, bucket)?;
            if self.1 && bucket.numel() > 1024 {
                let _ = bucket.narrow(0, 5, 1).g_add_scalar_(1.0);
            }
            Ok(())
        }

        fn wait(&self) -> Result<(), crate::comm::ReduceError> {
            self.0.wait()
        }

        fn settle(&self, name: &'static str) -> Result<(), crate::comm::ReduceError> {
            self.0.settle(name)
        }

        fn name(&self) -> String {
            self.0.name()
        }
    }

    #[test]
    fn a_rank_that_gets_wrong_sums_is_found_by_all() {
        let one = |world: Threads| {
            let faulty = Faulty(Staged(world.split("all ranks", 0).unwrap()), world.rank() == 1);
            preflight(&world, &faulty, Device::Cpu, Duration::from_millis(200)).unwrap()
        };
        let found: Vec<Preflight> = std::thread::scope(|scope| {
            let world = Threads::world(2, Duration::from_secs(60));
            let threads: Vec<_> = world.into_iter().map(|world| scope.spawn(|| one(world))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(found[0] == found[1] && found[0].sums[0].bytes == SMALLEST, "{found:?}");
        let sizes: Vec<usize> = found[0].sums.iter().map(|sum| sum.bytes).filter(|bytes| *bytes > SMALLEST).collect();
        assert_eq!(found[0].ranks[1].wrong, sizes.iter().map(|&bytes| (bytes, 1)).collect::<Vec<_>>());
        assert!(found[0].ranks[0].wrong.is_empty() && found[0].ranks.iter().all(|r| r.compute > 0.0 && r.copy > 0.0));
    }
}
