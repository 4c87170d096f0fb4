//! N ranks as threads of one process, for tests that need a cluster and no MPI.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{CommError, Communicator};

/// One rank of a world of threads. Move each to a thread of its own.
pub struct Threads {
    rank: usize,
    size: usize,
    deadline: Duration,
    meeting: Arc<Meeting>,
    /// How often this rank has split the world.
    splits: Cell<usize>,
}

/// Where the ranks meet: each leaves its bytes, the last one publishes them all.
struct Meeting {
    round: Mutex<Round>,
    published: Condvar,
    /// Where the parts of the world meet, by number of the split and color.
    parts: Mutex<HashMap<(usize, u32), Arc<Meeting>>>,
}

/// Every rank's bytes, by rank.
type Published = Result<Arc<Vec<Vec<u8>>>, CommError>;

struct Round {
    name: Option<&'static str>,
    left: Vec<Option<Vec<u8>>>,
    number: u64,
    outcome: Published,
}

impl Threads {
    /// All ranks of a world of `size`.
    pub fn world(size: usize, deadline: Duration) -> Vec<Threads> {
        let meeting = Meeting::of(size);
        (0..size).map(|rank| Threads { rank, size, deadline, meeting: meeting.clone(), splits: Cell::new(0) }).collect()
    }

    fn exchange(&self, name: &'static str, bytes: Vec<u8>) -> Published {
        let mut round = self.round();
        if let Some(other) = round.name.replace(name)
            && other != name
        {
            self.publish(&mut round, Err(CommError::Mismatch { one: other, other: name }));
            return round.outcome.clone();
        }
        round.left[self.rank] = Some(bytes);
        if round.left.iter().all(Option::is_some) {
            let all = round.left.iter_mut().filter_map(Option::take).collect();
            self.publish(&mut round, Ok(Arc::new(all)));
            return round.outcome.clone();
        }
        let number = round.number;
        let since = Instant::now();
        while round.number == number {
            let Some(remaining) = self.deadline.checked_sub(since.elapsed()) else {
                let arrived = round.left.iter().filter(|l| l.is_some()).count();
                return Err(CommError::Deadline { name, arrived, size: self.size, waited: self.deadline });
            };
            let waited = self.meeting.published.wait_timeout(round, remaining);
            round = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        round.outcome.clone()
    }

    fn publish(&self, round: &mut Round, outcome: Published) {
        round.outcome = outcome;
        round.name = None;
        round.left.fill(None);
        round.number += 1;
        self.meeting.published.notify_all();
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.meeting.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meeting {
    fn of(size: usize) -> Arc<Meeting> {
        let round = Round { name: None, left: vec![None; size], number: 0, outcome: Ok(Arc::default()) };
        Arc::new(Meeting { round: Mutex::new(round), published: Condvar::new(), parts: Mutex::default() })
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, name: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.exchange(name, bytes.to_vec()).map(|all| all.to_vec())
    }

    fn broadcast(&self, name: &'static str, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, CommError> {
        self.exchange(name, bytes).map(|all| all[root].clone())
    }

    fn all_reduce_sum(&self, name: &'static str, values: &mut [f32]) -> Result<(), CommError> {
        let all = self.exchange(name, to_bytes(values))?;
        values.fill(0.0);
        for one in all.iter() {
            for (sum, value) in values.iter_mut().zip(from_bytes(one)) {
                *sum += value;
            }
        }
        Ok(())
    }

    fn all_to_all(
        &self,
        name: &'static str,
        send: &[f32],
        to: &[Range<usize>],
        receive: &mut [f32],
        from: &[Range<usize>],
    ) -> Result<(), CommError> {
        for (receiver, part) in to.iter().enumerate() {
            let all = self.exchange(name, to_bytes(&send[part.clone()]))?;
            if receiver == self.rank {
                for (part, bytes) in from.iter().zip(all.iter()) {
                    receive[part.clone()].copy_from_slice(&from_bytes(bytes).collect::<Vec<_>>());
                }
            }
        }
        Ok(())
    }

    fn split(&self, name: &'static str, color: u32) -> Result<Box<dyn Communicator>, CommError> {
        let colors = self.exchange(name, color.to_ne_bytes().to_vec())?;
        let alike: Vec<usize> = (0..self.size).filter(|&rank| colors[rank] == color.to_ne_bytes()).collect();
        let number = self.splits.replace(self.splits.get() + 1);
        let mut parts = self.meeting.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let meeting = parts.entry((number, color)).or_insert_with(|| Meeting::of(alike.len())).clone();
        let rank = alike.iter().take_while(|&&rank| rank < self.rank).count();
        let part = Threads { rank, size: alike.len(), deadline: self.deadline, meeting, splits: Cell::new(0) };
        Ok(Box::new(part))
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run<T: Send>(size: usize, deadline: Duration, f: impl Fn(Threads) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let f = &f;
            let ranks: Vec<_> =
                Threads::world(size, deadline).into_iter().map(|comm| scope.spawn(move || f(comm))).collect();
            ranks.into_iter().map(|r| r.join().unwrap()).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn sums_are_right_and_the_same_bits_everywhere(size in 1usize..6, rounds in 1usize..8) {
            let sums = run(size, Duration::from_secs(20), |comm| {
                (0..rounds).map(|round| {
                    let mut values = [0.1 * (comm.rank() + 1) as f32, round as f32];
                    comm.all_reduce_sum("sum", &mut values).unwrap();
                    values.map(f32::to_bits)
                }).collect::<Vec<_>>()
            });
            prop_assert!(sums.iter().all(|s| *s == sums[0]));
            for (round, s) in sums[0].iter().enumerate() {
                prop_assert_eq!(f32::from_bits(s[1]), (round * size) as f32);
            }
        }
    }

    #[test]
    fn broadcast_and_gather_keep_ranks_apart() {
        let out = run(3, Duration::from_secs(20), |comm| {
            let me = vec![comm.rank() as u8; comm.rank()];
            (comm.all_gather("g", &me).unwrap(), comm.broadcast("b", 2, me).unwrap())
        });
        for (gathered, broadcast) in out {
            assert_eq!(gathered, [vec![], vec![1], vec![2, 2]]);
            assert_eq!(broadcast, [2, 2]);
        }
    }

    #[test]
    fn every_rank_gets_what_is_meant_for_it() {
        let received = run(3, Duration::from_secs(20), |comm| {
            // Rank r sends r + 1 values to each rank but rank 1, which gets nothing.
            let rank = comm.rank();
            let send: Vec<f32> = (0..6).map(|i| (10 * rank + i) as f32).collect();
            let to = [0..rank + 1, 0..0, 2..rank + 3];
            let from = if rank == 1 { [0..0, 0..0, 0..0] } else { [5..6, 3..5, 0..3] };
            let mut receive = [-1.0; 6];
            comm.all_to_all("a", &send, &to, &mut receive, &from).unwrap();
            receive
        });
        assert_eq!(received[0], [20.0, 21.0, 22.0, 10.0, 11.0, 0.0]);
        assert_eq!(received[1], [-1.0; 6]);
        assert_eq!(received[2], [22.0, 23.0, 24.0, 12.0, 13.0, 2.0]);
    }

    #[test]
    fn a_missing_rank_is_reported_when_the_deadline_passes() {
        let mut world = Threads::world(2, Duration::from_millis(50));
        let error = world.remove(0).barrier("start").unwrap_err();
        assert!(error.to_string().contains("'start'") && error.to_string().contains("1 of 2"), "{error}");
    }

    #[test]
    fn ranks_in_different_collectives_are_told_so() {
        let errors =
            run(2, Duration::from_secs(20), |comm| comm.barrier(if comm.rank() == 0 { "a" } else { "b" }).is_err());
        assert_eq!(errors, [true, true]);
    }
}
