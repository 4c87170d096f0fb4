//! The ranks of one host, and the memory in which they train one model together.
//!
//! Parameters and moments are there once for a host. Each of its ranks has gradients of its own, which the others read: it
//! adds up and updates its share of the model, and nobody sends anything to a rank of the same host. Ranks take turns:
//! parameters are read by all until they have agreed that all gradients are there, and each rank's share is written by it
//! alone until all have met again.

use std::collections::HashMap;
use std::ops::Range;
use std::process;

use bam_cluster::comm::{CommError, Communicator};
use tch::{Device, Kind, Tensor};

use super::shared_memory::{Address, SharedMemory};
use crate::tensor_memory::floats;

/// One rank's view of its host.
pub struct Host {
    local: Box<dyn Communicator>,
    across: Box<dyn Communicator>,
    room: Room,
}

/// The flat buffers of a model in training. Tensors are handles: all of one name are the same memory on every rank.
struct Room {
    values: Tensor,
    moments: [Tensor; 2],
    /// Of each rank of the host.
    gradients: Vec<Tensor>,
}

impl Host {
    /// The ranks of `world` on this rank's host, with room for so many parameters and `tail` more values behind their
    /// gradients. Where hosts have different numbers of ranks, or cannot share memory, each rank is a host of its own.
    ///
    /// # Errors
    /// A collective did not come about.
    pub fn find(world: &dyn Communicator, parameters: usize, tail: usize) -> Result<Host, CommError> {
        Host::find_named(world, &identity(), parameters, tail)
    }

    /// As [`find`](Self::find), of ranks that say on which host they are.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub(crate) fn find_named(
        world: &dyn Communicator,
        name: &str,
        parameters: usize,
        tail: usize,
    ) -> Result<Host, CommError> {
        let names = world.all_gather("hosts", name.as_bytes())?;
        let own: Vec<usize> = (0..names.len()).filter(|&rank| names[rank] == names[world.rank()]).collect();
        let mut ranks: HashMap<&[u8], usize> = HashMap::new();
        names.iter().for_each(|host| *ranks.entry(host).or_default() += 1);
        let (mut number, mut place, mut room) = (world.rank(), 0, None);
        if own.len() > 1 && ranks.values().all(|count| *count == own.len()) {
            room = shared_room(world, &own, parameters, tail)?;
        }
        if room.is_some() {
            number = own[0];
            place = own.iter().take_while(|&&rank| rank < world.rank()).count();
        }
        let room = room.unwrap_or_else(|| Room::new(&mut |n| zeros(n), parameters, tail, 1));
        let local = world.split("ranks of a host", number as u32)?;
        let across = world.split("hosts", place as u32)?;
        Ok(Host { local, across, room })
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.room.values.numel()
    }

    /// The ranks of this host.
    pub fn local(&self) -> &dyn Communicator {
        self.local.as_ref()
    }

    /// This rank and those of the same place on the other hosts.
    pub fn across(&self) -> &dyn Communicator {
        self.across.as_ref()
    }

    /// Whether this rank does for its host what needs to be done once.
    pub fn leads(&self) -> bool {
        self.local.rank() == 0
    }

    /// All parameters: the same memory on all ranks of the host.
    pub fn values(&self) -> Tensor {
        self.room.values.shallow_clone()
    }

    /// The optimizer's two moments of all parameters: the same memory on all ranks of the host.
    pub fn moments(&self) -> [Tensor; 2] {
        self.room.moments.each_ref().map(Tensor::shallow_clone)
    }

    /// This rank's gradients, and the tail.
    pub fn gradients(&self) -> Tensor {
        self.room.gradients[self.local.rank()].shallow_clone()
    }

    /// The gradients and the tail of a rank of this host.
    pub fn gradients_of(&self, rank: usize) -> &[f32] {
        floats(&self.room.gradients[rank])
    }

    /// Adds to a part of `gradients`, which are this rank's, what the host's other ranks have there.
    pub fn add_others(&self, gradients: &mut [f32], part: Range<usize>) {
        for start in part.clone().step_by(BLOCK) {
            let block = start..part.end.min(start + BLOCK);
            for rank in (0..self.local.size()).filter(|&rank| rank != self.local.rank()) {
                for (sum, value) in gradients[block.clone()].iter_mut().zip(&self.gradients_of(rank)[block.clone()]) {
                    *sum += value;
                }
            }
        }
    }
}

/// Values that are added up at once: they stay in the cache until all ranks' are in the sum.
const BLOCK: usize = 1 << 14;
/// Buffers begin at a page, so that none of them shares one with another.
const PAGE: usize = 1024;

impl Room {
    fn new(take: &mut dyn FnMut(usize) -> Tensor, parameters: usize, tail: usize, ranks: usize) -> Room {
        Room {
            values: take(parameters),
            moments: [take(parameters), take(parameters)],
            gradients: (0..ranks).map(|_| take(parameters + tail)).collect(),
        }
    }

    /// In `whole`, one buffer behind the other.
    fn within(whole: &Tensor, parameters: usize, tail: usize, ranks: usize) -> Room {
        let mut used = 0;
        let mut take = |n: usize| {
            let part = whole.narrow(0, used as i64, n as i64);
            used += n.next_multiple_of(PAGE);
            part
        };
        Room::new(&mut take, parameters, tail, ranks)
    }

    /// Values of all its buffers.
    fn length(parameters: usize, tail: usize, ranks: usize) -> usize {
        3 * parameters.next_multiple_of(PAGE) + ranks * (parameters + tail).next_multiple_of(PAGE)
    }
}

/// The room of the host's ranks `own`; none, on all ranks of the world alike, if one of them cannot see its host's.
fn shared_room(
    world: &dyn Communicator,
    own: &[usize],
    parameters: usize,
    tail: usize,
) -> Result<Option<Room>, CommError> {
    let length = Room::length(parameters, tail, own.len());
    let made = if world.rank() == own[0] { SharedMemory::create(length).ok() } else { None };
    let address = made.as_ref().and_then(|memory| memory.address().ok());
    let offers = world.all_gather("memory of hosts", &serde_json::to_vec(&address).unwrap_or_default())?;
    let offer: Option<Address> = serde_json::from_slice(&offers[own[0]]).ok().flatten();
    let whole = offer.and_then(|address| {
        let seen = SharedMemory::open(&address, length).and_then(|memory| memory.map());
        seen.inspect_err(|e| tracing::warn!("memory of this host's other ranks: {e}; MPI reduces the gradients")).ok()
    });
    // Whoever made the memory keeps it open until all have found it.
    let seen = world.all_gather("memory of hosts is seen", &[u8::from(whole.is_some())])?;
    drop(made);
    let is_seen = seen.iter().all(|one| one == &[1]);
    Ok(whole.filter(|_| is_seen).map(|whole| Room::within(&whole, parameters, tail, own.len())))
}

fn zeros(n: usize) -> Tensor {
    Tensor::zeros([n as i64], (Kind::Float, Device::Cpu))
}

/// What tells this host from all others: ranks that name the same host see the same kernel.
pub fn identity() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    match (host, boot) {
        (Some(host), Some(boot)) => format!("{host} {}", boot.trim()),
        (host, _) => format!("{} {}", host.unwrap_or_default(), process::id()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bam_cluster::comm::Threads;

    use super::*;
    use crate::tensor_memory::floats_mut;

    fn on_hosts<T: Send>(hosts: &[&str], f: impl Fn(&Threads, Host) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let (f, hosts) = (&f, &hosts);
            let ranks: Vec<_> = Threads::world(hosts.len(), Duration::from_secs(60))
                .into_iter()
                .map(|world| {
                    scope.spawn(move || {
                        let host = Host::find_named(&world, hosts[world.rank()], 3000, 2).unwrap();
                        f(&world, host)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_of_a_host_see_the_same_parameters_and_one_anothers_gradients() {
        let seen = on_hosts(&["a", "b", "a", "b"], |world, host| {
            if host.leads() {
                floats_mut(&mut host.values())[2999] = 10.0 + world.rank() as f32;
                floats_mut(&mut host.moments()[1])[0] = 5.0;
            }
            floats_mut(&mut host.gradients()).fill(1.0 + world.rank() as f32);
            world.barrier("written").unwrap();
            let mut sums = vec![0.0; 3002];
            host.add_others(&mut sums, 2000..3002);
            assert!(sums[..2000].iter().all(|s| *s == 0.0) && sums[2000..].iter().all(|s| *s == sums[2000]));
            let places = (host.local().rank(), host.local().size(), host.across().rank(), host.across().size());
            (places, floats(&host.values())[2999], floats(&host.moments()[1])[0], sums[2000])
        });
        assert_eq!(
            seen,
            [
                ((0, 2, 0, 2), 10.0, 5.0, 3.0),
                ((0, 2, 1, 2), 11.0, 5.0, 4.0),
                ((1, 2, 0, 2), 10.0, 5.0, 1.0),
                ((1, 2, 1, 2), 11.0, 5.0, 2.0)
            ]
        );
    }

    #[test]
    fn where_hosts_differ_in_size_each_rank_is_one() {
        let seen = on_hosts(&["a", "a", "b"], |world, host| {
            floats_mut(&mut host.values())[0] = world.rank() as f32;
            world.barrier("written").unwrap();
            (host.local().size(), host.across().rank(), host.across().size(), floats(&host.values())[0])
        });
        assert_eq!(seen, [(1, 0, 3, 0.0), (1, 1, 3, 1.0), (1, 2, 3, 2.0)]);
    }
}
