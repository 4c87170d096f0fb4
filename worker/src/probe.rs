//! What `bam doctor` has ranks find out: who is there, and how fast they compute and talk.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use bam_cluster::comm::{CommError, Communicator};
use bam_cluster::protocol::Probe;

use crate::comm::{Host, MpiWorld};
use crate::control::host_name;
use crate::device::Place;
use crate::train::rates;

/// Collectives whose time is taken together.
const COLLECTIVES: u32 = 200;
/// All-reduces, of which the fastest counts.
const REDUCTIONS: usize = 5;
/// Values of an all-reduce: as many as a few layers have.
const VALUES: usize = 4 << 20;
/// BERT-Base's width, and that of its feed-forward layers.
const WIDTHS: [usize; 2] = [768, 3072];

/// Finds it out, on all ranks of `world` together.
///
/// # Errors
/// A collective did not come about.
pub fn probe(world: &dyn Communicator) -> Result<Probe> {
    let hosts = world.all_gather("hosts", host_name().as_bytes())?;
    let hosts: Vec<String> = hosts.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut on_host: BTreeMap<&str, usize> = BTreeMap::new();
    hosts.iter().for_each(|host| *on_host.entry(host).or_default() += 1);
    let share = Host::find(world, 1, 0)?.local().size();
    Ok(Probe {
        ranks: world.size(),
        share_memory: on_host.values().all(|ranks| *ranks == share),
        mpi: MpiWorld::library(),
        hdf5: hdf5_version(),
        gpus: tch::Cuda::device_count(),
        latency: latency(world)?,
        bandwidth: bandwidth(world)?,
        clocks: clocks(world)?,
        rates: rates(world, WIDTHS, Place::CPU)?,
        hosts,
    })
}

fn latency(world: &dyn Communicator) -> Result<f64, CommError> {
    world.barrier("before the clock")?;
    let since = Instant::now();
    for _ in 0..COLLECTIVES {
        world.barrier("empty")?;
    }
    Ok(since.elapsed().as_secs_f64() / f64::from(COLLECTIVES))
}

fn bandwidth(world: &dyn Communicator) -> Result<f64, CommError> {
    let mut values = vec![0f32; VALUES];
    let mut fastest = f64::INFINITY;
    for _ in 0..REDUCTIONS {
        world.barrier("before the clock")?;
        let since = Instant::now();
        world.all_reduce_sum("values", &mut values)?;
        fastest = fastest.min(since.elapsed().as_secs_f64());
    }
    Ok(size_of_val(&values[..]) as f64 / fastest)
}

/// Asked for right after a barrier, so that what is between the ranks themselves is milliseconds.
fn clocks(world: &dyn Communicator) -> Result<f64, CommError> {
    world.barrier("clocks")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let all = world.all_gather("clocks", &now.to_le_bytes())?;
    let all: Vec<f64> = all.iter().filter_map(|c| c.first_chunk()).map(|c| f64::from_le_bytes(*c)).collect();
    let (first, last) = all.iter().fold((f64::MAX, f64::MIN), |(a, b), c| (a.min(*c), b.max(*c)));
    Ok(last - first)
}

fn hdf5_version() -> String {
    let (major, minor, release) = hdf5::library_version();
    format!("{major}.{minor}.{release}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bam_cluster::comm::Threads;

    use super::*;

    #[test]
    fn ranks_know_one_another() {
        let probes: Vec<Probe> = std::thread::scope(|scope| {
            let world = Threads::world(2, Duration::from_secs(60));
            // MPI is not here to be asked for its name.
            let one = |world: Threads| Probe { mpi: String::new(), ..probe(&world).unwrap() };
            let ranks: Vec<_> = world.into_iter().map(|world| scope.spawn(move || one(world))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let one = &probes[0];
        assert_eq!((one.ranks, one.hosts.len(), one.rates.len()), (2, 2, 2));
        assert!(one.share_memory && one.latency > 0.0 && one.bandwidth > 0.0 && one.clocks < 5.0);
        assert!(one.rates.iter().all(|rate| *rate > 1e8), "{:?}", one.rates);
    }
}
