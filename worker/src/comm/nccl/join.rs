//! How ranks that have met on the host make a communicator: all of them, or none.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bam_cluster::comm::{Activity, Communicator};
use serde::{Deserialize, Serialize};

use super::abort::Shared;
use super::communicator::{Nccl, Pause};
use super::describe::{Description, count_hosts, environment};
use super::functions::UniqueId;
use super::library::{Library, Progress};
use super::{NcclError, RankTrouble, Version};
use crate::control::host_name;

/// What ranks tell one another before they begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    host: String,
    /// Tells hosts of the same name from one another: what the kernel calls this start of it.
    boot: String,
    gpu: String,
    version: i32,
    trouble: Option<String>,
}

impl Nccl {
    /// Makes a communicator of all ranks of `world`, this one on the GPU with CUDA's number `device`. All ranks fail together,
    /// and say which are to blame, also where one has no [`Library`]. `deadline` is that of each later operation, too.
    ///
    /// # Errors
    /// A rank has no NCCL or no such GPU, versions differ, two ranks are on one GPU, ranks do not reach one another within the
    /// deadline, or a collective of `world` did not come about.
    pub fn join(
        library: Result<Arc<Library>, NcclError>,
        world: &dyn Communicator,
        device: i32,
        deadline: Duration,
        activity: Activity,
    ) -> Result<Nccl, NcclError> {
        let all = exchange(world, Facts::gather(&library, device))?;
        judge(&all)?;
        let library = library?;
        let id = meeting_place(&library, world, &all)?;
        let about = Description {
            version: library.version(),
            file: library.file().to_owned(),
            rank: world.rank(),
            gpu: all[world.rank()].gpu.clone(),
            hosts: count_hosts(all.iter().map(|facts| &*facts.host)),
            environment: environment(),
        };
        let ready = init(&library, world, device, id, deadline, &activity)
            .and_then(|shared| Nccl::new(shared, (world.rank(), world.size()), deadline, activity, about));
        let agreed = agree(world, &all, ready.as_ref().err());
        // One that is ready is of no use alone.
        if let (Err(e), Ok(nccl)) = (&agreed, &ready) {
            nccl.abort_handle().abort(&e.to_string());
        }
        agreed.and(ready)
    }
}

impl Facts {
    fn gather(library: &Result<Arc<Library>, NcclError>, device: i32) -> Facts {
        let found = library.as_ref().map_err(Clone::clone).and_then(|library| {
            library.set_device(device)?;
            Ok((library.version(), library.bus_id(device)?))
        });
        let (version, gpu, trouble) = match found {
            Ok((version, gpu)) => (version.0, gpu, None),
            Err(e) => (0, String::new(), Some(e.to_string())),
        };
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Facts { host: host_name(), boot: boot.trim().to_owned(), gpu, version, trouble }
    }
}

fn exchange(world: &dyn Communicator, own: Facts) -> Result<Vec<Facts>, NcclError> {
    let own = serde_json::to_vec(&own).unwrap_or_default();
    let all = world.all_gather("GPUs of all ranks", &own)?;
    let unreadable = |e: serde_json::Error| Facts {
        host: "an unknown host".to_owned(),
        boot: String::new(),
        gpu: String::new(),
        version: 0,
        trouble: Some(format!("what it says of itself cannot be read: {e}")),
    };
    Ok(all.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_else(unreadable)).collect())
}

/// Whether these ranks can make a communicator.
fn judge(all: &[Facts]) -> Result<(), NcclError> {
    not_everywhere("NCCL's start", all, |rank| all[rank].trouble.as_deref())?;
    for (rank, facts) in all.iter().enumerate() {
        if facts.version != all[0].version {
            let (found, expected) = (Version(facts.version), Version(all[0].version));
            return Err(NcclError::VersionsDiffer { rank, host: facts.host.clone(), found, expected });
        }
        let here = |other: &Facts| (&other.host, &other.boot, &other.gpu) == (&facts.host, &facts.boot, &facts.gpu);
        if let Some(other) = all[..rank].iter().position(here) {
            let (host, gpu) = (facts.host.clone(), facts.gpu.clone());
            return Err(NcclError::SameGpu { ranks: [other, rank], host, gpu });
        }
    }
    Ok(())
}

fn not_everywhere<'a>(
    step: &'static str,
    all: &[Facts],
    trouble: impl Fn(usize) -> Option<&'a str>,
) -> Result<(), NcclError> {
    let of_rank = |(rank, facts): (usize, &Facts)| {
        let trouble = trouble(rank)?.to_owned();
        Some(RankTrouble { rank, host: facts.host.clone(), trouble })
    };
    let ranks: Vec<RankTrouble> = all.iter().enumerate().filter_map(of_rank).collect();
    if ranks.is_empty() { Ok(()) } else { Err(NcclError::NotEverywhere { step, size: all.len(), ranks }) }
}

/// The id of rank 0, or its words on why it has none.
fn meeting_place(library: &Library, world: &dyn Communicator, all: &[Facts]) -> Result<UniqueId, NcclError> {
    let own = if world.rank() == 0 { Some(library.unique_id()) } else { None };
    let said = match &own {
        Some(Ok(id)) => id.to_vec(),
        Some(Err(e)) => e.to_string().into_bytes(),
        None => vec![],
    };
    let said = world.broadcast("NCCL's id", 0, said)?;
    said.as_slice().try_into().map_err(|_| {
        let trouble = String::from_utf8_lossy(&said).into_owned();
        let ranks = vec![RankTrouble { rank: 0, host: all[0].host.clone(), trouble }];
        NcclError::NotEverywhere { step: "NCCL's id", size: all.len(), ranks }
    })
}

/// Makes the communicator, and looks at it until it is ready.
fn init(
    library: &Arc<Library>,
    world: &dyn Communicator,
    device: i32,
    id: UniqueId,
    deadline: Duration,
    activity: &Activity,
) -> Result<Arc<Shared>, NcclError> {
    const NAME: &str = "NCCL init";
    let _in_collective = activity.enter(NAME);
    library.set_device(device)?;
    let shared = Shared::new(library.clone(), device, library.init(world.size(), id, world.rank())?);
    let mut pause = Pause::new(deadline);
    let outcome = loop {
        match shared.with(NAME, |library, comm| library.state(comm)) {
            Ok(Progress::Done) => break Ok(()),
            Ok(Progress::InProgress) => {}
            Err(e) => break Err(e),
        }
        if let Some(waited) = pause.is_too_long() {
            break Err(NcclError::InitDeadline { waited });
        }
    };
    outcome.inspect_err(|e| shared.fail(&e.to_string()))?;
    Ok(shared)
}

/// Whether all ranks are ready.
fn agree(world: &dyn Communicator, all: &[Facts], own: Option<&NcclError>) -> Result<(), NcclError> {
    let own = own.map(ToString::to_string).unwrap_or_default();
    let said = world.all_gather("NCCL is ready", own.as_bytes())?;
    let said: Vec<_> = said.iter().map(|words| String::from_utf8_lossy(words)).collect();
    not_everywhere("NCCL's init", all, |rank| Some(&*said[rank]).filter(|words| !words.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(host: &str, boot: &str, gpu: &str) -> Facts {
        Facts { host: host.into(), boot: boot.into(), gpu: gpu.into(), version: 22809, trouble: None }
    }

    #[test]
    fn ranks_that_each_have_a_gpu_can_begin() {
        // Hosts may have the same name, and number their GPUs alike.
        let all = [facts("a", "1", "x"), facts("a", "1", "y"), facts("a", "2", "x"), facts("b", "3", "x")];
        assert_eq!(judge(&all), Ok(()));
    }

    #[test]
    fn whoever_cannot_begin_is_named() {
        let mut all = vec![facts("a", "1", "x"), facts("b", "2", "x"), facts("b", "2", "x")];
        let error = judge(&all).unwrap_err();
        assert_eq!(error, NcclError::SameGpu { ranks: [1, 2], host: "b".into(), gpu: "x".into() });
        assert!(error.to_string().starts_with("ranks 1 and 2 are both on GPU x of b, "), "{error}");
        all[2].version = 22703;
        let error = judge(&all).unwrap_err().to_string();
        assert!(error.starts_with("rank 2 on b has NCCL 2.27.3 and rank 0 has 2.28.9: "), "{error}");
        all[1].trouble = Some("no GPU".into());
        let error = judge(&all).unwrap_err().to_string();
        assert_eq!(error, "NCCL's start failed on 1 of 3 ranks: rank 1 on b: no GPU");
    }
}
