//! Listens to all ranks that are in, in one thread however many they are: thousands of threads are more than some hosts
//! allow a user, and cost memory.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bam_cluster::protocol::FromRank;
use bam_cluster::protocol::channel::{ChannelError, Inbox};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::event::{ConnectionId, Event};

/// So much is read from one connection before it is the next one's turn.
const AT_ONCE: usize = 64 << 10;
/// So much of a new connection, which has said little yet.
const FIRST: usize = 4 << 10;
/// So many connections are taken from the kernel in one go.
const READY: usize = 256;
/// Stands for the wish to end; connections are numbered from 1.
const WAKE: ConnectionId = 0;

/// One who listens to many.
#[derive(Debug)]
pub struct Ears {
    epoll: Epoll,
    wake: EventFd,
    ranks: Mutex<HashMap<ConnectionId, Rank>>,
    events: Sender<Event>,
}

#[derive(Debug)]
struct Rank {
    from: SocketAddr,
    inbox: Inbox,
}

impl Ears {
    /// Begins to listen. What is heard goes to `events`.
    ///
    /// # Errors
    /// The system has no file descriptors or no thread left.
    pub fn open(events: Sender<Event>) -> io::Result<Arc<Ears>> {
        let (epoll, wake) = (Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, EventFd::new()?);
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let ears = Arc::new(Ears { epoll, wake, ranks: Mutex::default(), events });
        let listener = ears.clone();
        thread::Builder::new().spawn(move || listener.listen())?;
        Ok(ears)
    }

    /// Listens to one more, until it leaves.
    pub fn listen_to(&self, connection: ConnectionId, from: SocketAddr, inbox: Inbox) {
        let mut rank = Rank { from, inbox };
        // What was read ahead is not announced by the kernel.
        let is_open = self.hear(connection, &mut rank, &mut [0; FIRST]);
        // From here on it may be its turn, which waits until it is known.
        let mut ranks = self.lock();
        if is_open && self.epoll.add(&rank.inbox, EpollEvent::new(EpollFlags::EPOLLIN, connection)).is_ok() {
            ranks.insert(connection, rank);
        } else {
            self.tell(Event::Left { connection });
        }
    }

    /// Listens no more.
    pub fn close(&self) {
        // Fails only where it was said billions of times before.
        let _ = self.wake.write(1);
    }

    fn listen(&self) {
        let mut ready = [EpollEvent::empty(); READY];
        let mut space = vec![0; AT_ONCE];
        loop {
            let announced = match self.epoll.wait(&mut ready, EpollTimeout::NONE) {
                Ok(n) => &ready[..n],
                Err(Errno::EINTR) => continue,
                // The descriptor is our own and open: there is no other error.
                Err(_) => return,
            };
            for event in announced {
                match event.data() {
                    WAKE => return,
                    connection => self.turn_to(connection, &mut space),
                }
            }
        }
    }

    /// Hears what a connection has to say now.
    fn turn_to(&self, connection: ConnectionId, space: &mut [u8]) {
        let mut ranks = self.lock();
        let Some(rank) = ranks.get_mut(&connection) else { return };
        if !self.hear(connection, rank, space) {
            let _ = self.epoll.delete(&rank.inbox);
            ranks.remove(&connection);
            self.tell(Event::Left { connection });
        }
    }

    /// Passes on what has come; false if nothing more will.
    fn hear(&self, connection: ConnectionId, rank: &mut Rank, space: &mut [u8]) -> bool {
        let said = |message: FromRank| self.tell(Event::Said { connection, message });
        match rank.inbox.receive(space, said) {
            Ok(is_open) => is_open,
            // mpirun says better why a rank is gone.
            Err(ChannelError::Io(_)) => false,
            Err(e) => {
                self.tell(Event::Refused { from: rank.from, reason: e.to_string() });
                false
            }
        }
    }

    /// A dispatcher that is gone needs no events.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Rank>> {
        // Whoever panicked has left whole ranks behind.
        self.ranks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
