//! What `bam doctor` has ranks find out: who is there, and how fast they compute and talk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use bam_cluster::comm::{Activity, CommError, Communicator};
use bam_cluster::config::ClusterSection;
use bam_cluster::protocol::{Devices, Probe};

use crate::comm::preflight::preflight;
use crate::comm::{Host, MpiWorld};
use crate::control::host_name;
use crate::device::{Exchange, Place, binding};
use crate::train::rates;

/// Collectives whose time is taken together.
const COLLECTIVES: u32 = 200;
/// For so long GPUs are looked at, and waited for.
const LOOK_FOR: Duration = Duration::from_secs(10);
/// All-reduces, of which the fastest counts.
const REDUCTIONS: usize = 5;
/// Values of an all-reduce: as many as a few layers have.
const VALUES: usize = 4 << 20;
/// BERT-Base's width, and that of its feed-forward layers.
const WIDTHS: [usize; 2] = [768, 3072];

/// Finds it out, on all ranks of `world` together; `token` is a file that the launcher has written.
///
/// # Errors
/// A collective did not come about.
pub fn probe(world: &dyn Communicator, token: Option<&Path>) -> Result<Probe> {
    let hosts = world.all_gather("hosts", host_name().as_bytes())?;
    let hosts: Vec<String> = hosts.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut on_host: BTreeMap<&str, usize> = BTreeMap::new();
    hosts.iter().for_each(|host| *on_host.entry(host).or_default() += 1);
    let sees_token = world.all_gather("token", &[u8::from(token.is_some_and(Path::exists))])?;
    let (libtorch, libtorch_has_cuda) = libtorch();
    let share = Host::find(world, 1, 0)?.local().size();
    Ok(Probe {
        ranks: world.size(),
        share_memory: on_host.values().all(|ranks| *ranks == share),
        mpi: MpiWorld::library(),
        hdf5: hdf5_version(),
        gpus: tch::Cuda::device_count(),
        devices: devices(world)?,
        libtorch,
        libtorch_has_cuda,
        sees_token: sees_token.iter().map(|sees| sees.first() == Some(&1)).collect(),
        latency: latency(world)?,
        bandwidth: bandwidth(world)?,
        clocks: clocks(world)?,
        rates: rates(world, WIDTHS, Place::CPU)?,
        hosts,
    })
}

/// What ranks that have GPUs find out about them; nothing where one has none.
fn devices(world: &dyn Communicator) -> Result<Devices> {
    let mut found = Devices::default();
    let place = match Place::choose(world, &ClusterSection::default(), &[]) {
        Ok(place) if place.is_cuda() => place,
        Ok(_) => return Ok(found),
        // The same on all ranks.
        Err(error) => return Ok(Devices { problems: vec![format!("{error:#}")], ..found }),
    };
    let bindings = world.all_gather("bindings", &serde_json::to_vec(&binding(place))?)?;
    for binding in bindings {
        match serde_json::from_slice(&binding)? {
            Some(Ok(said)) => found.good.push(said),
            Some(Err(said)) => found.warnings.push(said),
            None => {}
        }
    }
    let looked = Exchange::open(world, place, LOOK_FOR, Activity::default())
        .and_then(|exchange| preflight(world, exchange.reducer(), place.device, LOOK_FOR));
    match looked {
        Ok(looked) => {
            found.good.extend(Some(looked.to_string()).filter(|said| !said.is_empty()));
            for finding in looked.findings {
                let list = if finding.is_fatal() { &mut found.problems } else { &mut found.warnings };
                list.push(finding.to_string());
            }
        }
        Err(error) => found.problems.push(format!("{error:#}")),
    }
    Ok(found)
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

/// The version of the libtorch that this process has loaded, and whether it comes with CUDA: what its directory says, since it
/// has no function for either.
pub fn libtorch() -> (String, bool) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    let mut libraries = paths.filter(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"));
    let Some(directory) = libraries.next().and_then(Path::parent) else { return (String::new(), false) };
    let said = |name: &str| fs::read_to_string(directory.with_file_name(name)).ok();
    // Of the archive, and of the Python package.
    let python = || said("version.py")?.split_once("__version__ = '")?.1.split('\'').next().map(str::to_owned);
    let version = said("build-version").or_else(python).unwrap_or_else(|| "of an unknown version".to_owned());
    (version.trim().to_owned(), directory.join("libtorch_cuda.so").exists())
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
            let one =
                |world: Threads| Probe { mpi: String::new(), ..probe(&world, Some(Path::new("/proc/self"))).unwrap() };
            let ranks: Vec<_> = world.into_iter().map(|world| scope.spawn(move || one(world))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let one = &probes[0];
        assert_eq!((one.ranks, one.hosts.len(), one.rates.len()), (2, 2, 2));
        assert_eq!(one.sees_token, [true, true]);
        assert!(one.libtorch.starts_with("2."), "{}", one.libtorch);
        assert!(one.share_memory && one.latency > 0.0 && one.bandwidth > 0.0 && one.clocks < 5.0);
        assert!(one.rates.iter().all(|rate| *rate > 1e8), "{:?}", one.rates);
    }
}
