//! How much of what the machine can multiply a training makes use of.

use std::time::{Duration, Instant};

use anyhow::Result;
use bam_cluster::comm::Communicator;
use bam_cluster::encoder::EncoderConfig;
use tch::{Device, Kind, Tensor};

use crate::device::Place;

/// For so long a rank is looked at, and for so many products at least, should the machine be busy with other things.
const MEASURE_FOR: Duration = Duration::from_millis(150);
const LEAST_PRODUCTS: usize = 8;
/// Rows of the matrix that is multiplied: a few hundred tokens at once is what training does.
const ROWS: i64 = 256;
/// Operations of one product: it takes a few milliseconds, so that the fastest of many is undisturbed also on a machine that
/// does other things.
const OPERATIONS: i64 = 200_000_000;
/// Width of the square matrices that a GPU multiplies: large enough for all of it to be at work for a millisecond or two.
const GPU_WIDTH: i64 = 8192;

/// Floating-point operations a second of all ranks together, when all of them do nothing but dense products at the same time, in
/// the numbers of their place: CPUs of this model's width, GPUs of a large one.
///
/// # Errors
/// A collective did not come about.
pub fn peak(world: &dyn Communicator, config: &EncoderConfig, place: Place) -> Result<f64> {
    Ok(rates(world, [config.hidden_size, config.intermediate_size], place)?.iter().sum())
}

/// The same of each rank, for a hidden and an intermediate size.
///
/// # Errors
/// As [`peak`].
pub fn rates(world: &dyn Communicator, [hidden, intermediate]: [usize; 2], place: Place) -> Result<Vec<f64>> {
    let options = (place.numbers.kind(), place.device);
    let [rows, hidden, columns] = match place.device {
        Device::Cuda(_) => [GPU_WIDTH; 3],
        _ => [ROWS, hidden as i64, (OPERATIONS / (2 * ROWS * hidden as i64)).clamp(1, intermediate as i64)],
    };
    let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, place.device)).to_kind(options.0);
    let (x, weight) = (random([rows, hidden]), random([columns, hidden]));
    let mut product = Tensor::empty([rows, columns], options);
    let one = (2 * rows * hidden * columns) as f64;
    world.barrier("measuring the machine")?;
    let mut fastest = f64::INFINITY;
    let (begin, mut products) = (Instant::now(), 0);
    while begin.elapsed() < MEASURE_FOR || products < LEAST_PRODUCTS {
        products += 1;
        let start = Instant::now();
        product = x.mm_out(&product, &weight.tr());
        if let Device::Cuda(index) = place.device {
            tch::Cuda::synchronize(index as i64);
        }
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    let rates = world.all_gather("measured rates", &(one / fastest).to_le_bytes())?;
    Ok(rates.iter().filter_map(|rate| rate.first_chunk()).map(|rate| f64::from_le_bytes(*rate)).collect())
}
