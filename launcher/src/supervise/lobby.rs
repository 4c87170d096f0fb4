//! Where connections wait until they have proved themselves: room for so many, and the oldest goes when it is full.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::event::ConnectionId;

/// A thread that was pushed out is gone in no time; this is for a machine that does much else.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The connections that wait.
#[derive(Debug)]
pub struct Lobby {
    room: usize,
    waiting: Mutex<VecDeque<Waiting>>,
    left: Condvar,
}

#[derive(Debug)]
struct Waiting {
    connection: ConnectionId,
    stream: Arc<TcpStream>,
    pushed_out: bool,
}

/// A place in the lobby, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    lobby: Arc<Lobby>,
    connection: ConnectionId,
}

impl Lobby {
    /// One with room for so many.
    pub fn new(room: usize) -> Arc<Lobby> {
        Arc::new(Lobby { room, waiting: Mutex::default(), left: Condvar::new() })
    }

    /// Takes a connection in; if the lobby is full, the oldest has to leave first.
    pub fn enter(self: &Arc<Lobby>, connection: ConnectionId, stream: Arc<TcpStream>) -> Seat {
        let mut waiting = self.lock();
        while waiting.len() >= self.room {
            if !waiting.iter().any(|w| w.pushed_out) {
                push_out(&mut waiting);
            }
            waiting = self.left.wait_timeout(waiting, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
        waiting.push_back(Waiting { connection, stream, pushed_out: false });
        Seat { lobby: self.clone(), connection }
    }

    /// Closes the oldest connection, to get its file descriptor back.
    pub fn make_room(&self) {
        push_out(&mut self.lock());
    }

    /// Closes all connections.
    pub fn clear(&self) {
        while push_out(&mut self.lock()) {}
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a connection; whether it was still welcome.
    fn remove(&self, connection: ConnectionId) -> Option<bool> {
        let mut waiting = self.lock();
        let at = waiting.iter().position(|w| w.connection == connection)?;
        let removed = waiting.remove(at)?;
        self.left.notify_all();
        Some(!removed.pushed_out)
    }
}

/// Closes the oldest connection that is still open; false if there is none. Its thread notices and leaves.
fn push_out(waiting: &mut VecDeque<Waiting>) -> bool {
    let Some(oldest) = waiting.iter_mut().find(|w| !w.pushed_out) else { return false };
    oldest.pushed_out = true;
    let _ = oldest.stream.shutdown(Shutdown::Both);
    true
}

impl Seat {
    /// Leaves the lobby. False if the connection was pushed out before.
    pub fn leave(self) -> bool {
        self.lobby.remove(self.connection).unwrap_or(false)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.remove(self.connection);
    }
}
