//! The control server: lets this start's ranks in once they have proved themselves, keeps strangers out, passes on what
//! is said.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use bam_cluster::files;
use bam_cluster::protocol::channel::{self, Receiver};
use bam_cluster::protocol::{ControlFile, FromRank, Hello, Reach, Secret};

use super::ears::Ears;
use super::event::{ConnectionId, Event};
use super::lobby::{Lobby, Seat};

/// How long somebody who connected may take to prove himself and to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long an order may wait for a rank that does not read.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// How many strangers may keep a connection (and a thread) waiting, besides as many as there are ranks.
pub const STRANGERS: usize = 64;
/// A thread that hears a proof needs little, and there may be thousands of them when ranks come all at once.
const STACK: usize = 256 << 10;
/// Out of file descriptors, most likely; some come back.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);
/// It is this host's own address, so that it answers at once or is too busy to need waking.
const WAKE_WITHIN: Duration = Duration::from_secs(1);

/// Listens for as long as it lives; the file by which ranks find it is there for as long, too.
#[derive(Debug)]
pub struct ControlServer {
    own_address: Option<SocketAddr>,
    file: PathBuf,
    incarnation: u64,
    closing: Arc<AtomicBool>,
    lobby: Arc<Lobby>,
    ears: Arc<Ears>,
}

/// What every connection is measured by and where it leads.
struct Door {
    admission: ControlFile,
    events: Sender<Event>,
    closing: Arc<AtomicBool>,
    lobby: Arc<Lobby>,
    ears: Arc<Ears>,
}

impl ControlServer {
    /// Listens for `ranks` ranks, which are where `reach` says, and says in `file` how to get in. What happens goes to
    /// `events`.
    ///
    /// # Errors
    /// No port, no randomness, or the file cannot be written.
    pub fn open(
        file: PathBuf,
        incarnation: u64,
        places: &[usize],
        reach: Reach,
        ranks: usize,
        events: Sender<Event>,
    ) -> io::Result<ControlServer> {
        let (listener, addresses) = reach.listen()?;
        let own_address = addresses.last().copied();
        let admission = ControlFile { addresses, secret: Secret::random()?, incarnation, places: places.to_vec() };
        write_privately(&file, &admission)?;
        let (closing, lobby) = (Arc::new(AtomicBool::new(false)), Lobby::new(STRANGERS + ranks));
        let ears = Ears::open(events.clone())?;
        let (own_closing, own_lobby, own_ears) = (closing.clone(), lobby.clone(), ears.clone());
        let server =
            ControlServer { own_address, file, incarnation, closing: own_closing, lobby: own_lobby, ears: own_ears };
        thread::spawn(move || accept(&listener, Arc::new(Door { admission, events, closing, lobby, ears })));
        Ok(server)
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // An orphan must not take a newer start's file away.
        let is_own = |file: ControlFile| file.incarnation == self.incarnation;
        if files::read_json(&self.file).ok().flatten().is_some_and(is_own) {
            let _ = fs::remove_file(&self.file);
        }
        self.closing.store(true, Ordering::SeqCst);
        self.lobby.clear();
        self.ears.close();
        // Wakes the thread that waits for connections.
        if let Some(address) = self.own_address {
            let _ = TcpStream::connect_timeout(&address, WAKE_WITHIN);
        }
    }
}

fn accept(listener: &TcpListener, door: Arc<Door>) {
    let mut connection: ConnectionId = 0;
    loop {
        let accepted = listener.accept();
        if door.closing.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, from)) = accepted else {
            door.lobby.make_room();
            thread::sleep(AFTER_FAILED_ACCEPT);
            continue;
        };
        connection += 1;
        let stream = Arc::new(stream);
        let seat = door.lobby.enter(connection, stream.clone());
        let guest = Guest { stream, from: SocketAddr::new(from.ip().to_canonical(), from.port()), connection };
        let door = door.clone();
        // A thread for each until it is in, so that one who says nothing keeps nobody waiting. Where no more threads are to be had, the
        // connection is closed and its rank comes again.
        let _ = thread::Builder::new().stack_size(STACK).spawn(move || serve(guest, seat, &door));
    }
}

/// Somebody who connected.
struct Guest {
    stream: Arc<TcpStream>,
    from: SocketAddr,
    connection: ConnectionId,
}

/// Lets a connection in, or not. A dispatcher that is gone needs no events, so that failed sends are no matter.
fn serve(guest: Guest, seat: Seat, door: &Door) {
    let Guest { stream, from, connection } = guest;
    match admit(&stream, seat, &door.admission) {
        Ok((sender, receiver, hello)) => {
            let _ = door.events.send(Event::Joined { connection, hello, sender });
            door.ears.listen_to(connection, from, receiver.into_inbox());
        }
        Err(reason) => drop(door.events.send(Event::Refused { from, reason })),
    }
}

type Admitted = (channel::Sender, Receiver, Hello);

fn admit(stream: &Arc<TcpStream>, seat: Seat, admission: &ControlFile) -> Result<Admitted, String> {
    stream.set_write_timeout(Some(WRITE_WITHIN)).map_err(|e| e.to_string())?;
    let proven = channel::accept(stream, &admission.secret, HELLO_WITHIN);
    // Before the rank hears that it is in: one that was pushed out has to know that it must come again.
    if !seat.leave() {
        return Err("it had not proved itself when too many others came".to_owned());
    }
    let (sender, mut receiver) = proven.and_then(channel::Proven::confirm).map_err(|e| e.to_string())?;
    let hello = match receiver.receive() {
        Ok(Some(FromRank::Hello(hello))) => hello,
        Ok(Some(_)) => return Err("it did not say hello first".to_owned()),
        Ok(None) => return Err("it left without a word".to_owned()),
        Err(e) => return Err(e.to_string()),
    };
    if hello.incarnation != admission.incarnation {
        return Err(format!("it belongs to start {}, this is start {}", hello.incarnation, admission.incarnation));
    }
    Ok((sender, receiver, hello))
}

/// Writes the file so that it is never readable by others and never half there.
fn write_privately(path: &Path, admission: &ControlFile) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    let _ = fs::remove_file(&aside);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(&serde_json::to_vec(admission)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc::{self, Receiver as Events};
    use std::time::Instant;

    use bam_cluster::protocol::channel::ChannelError;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    fn server(dir: &Path) -> (ControlServer, ControlFile, Events<Event>) {
        server_for(dir, 2)
    }

    fn server_for(dir: &Path, ranks: usize) -> (ControlServer, ControlFile, Events<Event>) {
        let (sender, events) = mpsc::channel();
        let path = dir.join("control.json");
        let server = ControlServer::open(path.clone(), 3, &[], Reach::ThisHost, ranks, sender).unwrap();
        let admission = files::read_json(&path).unwrap().unwrap();
        (server, admission, events)
    }

    fn hello(incarnation: u64) -> FromRank {
        let (host, device) = ("h".into(), "cpu".into());
        FromRank::Hello(Hello { incarnation, rank: 1, world_size: 2, host, pid: 7, device })
    }

    fn join(admission: &ControlFile) -> (channel::Sender, Receiver) {
        channel::connect(&admission.addresses, &admission.secret, Duration::from_secs(10)).unwrap()
    }

    fn knock(admission: &ControlFile) -> TcpStream {
        TcpStream::connect(admission.addresses[0]).unwrap()
    }

    fn refusal(events: &Events<Event>) -> String {
        match events.recv_timeout(Duration::from_secs(5)).unwrap() {
            Event::Refused { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_control_file_is_private_and_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (server, admission, _events) = server(dir.path());
        let path = dir.path().join("control.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(admission.addresses.iter().all(|a| a.ip().is_loopback()));
        let mut waiting = knock(&admission);
        drop(server);
        assert!(!path.exists());
        waiting.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let end = waiting.read(&mut [0]);
        assert!(end.as_ref().is_ok_and(|n| *n == 0) || end.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn the_control_file_of_a_newer_start_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (orphan, admission, _events) = server(dir.path());
        let path = dir.path().join("control.json");
        write_privately(&path, &ControlFile { incarnation: admission.incarnation + 1, ..admission }).unwrap();
        drop(orphan);
        assert!(path.exists());
    }

    #[test]
    fn a_rank_is_heard_past_silent_and_garbled_strangers() {
        let dir = tempfile::tempdir().unwrap();
        let (_server, admission, events) = server(dir.path());
        let _silent = knock(&admission);
        let mut garbled = knock(&admission);
        garbled.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(refusal(&events).contains("no greeting"));
        let (mut sender, _receiver) = join(&admission);
        sender.send(&hello(3)).unwrap();
        assert!(matches!(events.recv().unwrap(), Event::Joined { hello, .. } if hello.rank == 1));
        sender.send(&FromRank::Ready { next_step: 5 }).unwrap();
        let said = events.recv().unwrap();
        assert!(matches!(said, Event::Said { message: FromRank::Ready { next_step: 5 }, .. }), "{said:?}");
        sender.hang_up();
        assert!(matches!(events.recv().unwrap(), Event::Left { .. }));
    }

    #[test]
    fn another_secret_or_start_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_server, admission, events) = server(dir.path());
        let foreign = ControlFile { secret: Secret::random().unwrap(), ..admission.clone() };
        let error = channel::connect(&foreign.addresses, &foreign.secret, Duration::ZERO).unwrap_err();
        assert!(matches!(error, ChannelError::Unreachable { .. }), "{error}");
        assert!(refusal(&events).contains("does not know the secret"));
        join(&admission).0.send(&hello(2)).unwrap();
        assert!(refusal(&events).contains("start 2"));
        join(&admission).0.send(&FromRank::Ready { next_step: 0 }).unwrap();
        assert!(refusal(&events).contains("did not say hello"));
    }

    #[test]
    fn a_thousand_ranks_that_come_at_once_are_all_heard_and_few_threads_are_kept() {
        const RANKS: usize = 1000;
        let dir = tempfile::tempdir().unwrap();
        let (_server, admission, events) = server_for(dir.path(), RANKS);
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most).unwrap();
        let come = |_| {
            let admission = admission.clone();
            let come = move || {
                let (mut sender, _) = join(&admission);
                sender.send(&hello(3)).unwrap();
                sender.send(&FromRank::Ready { next_step: 1 }).unwrap();
                sender
            };
            thread::Builder::new().stack_size(STACK).spawn(come).unwrap()
        };
        let threads: Vec<_> = (0..RANKS).map(come).collect();
        let ranks: Vec<channel::Sender> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        let (mut joined, mut said, mut left) = (0, 0, 0);
        for event in events.iter().take(2 * RANKS) {
            match event {
                Event::Joined { .. } => joined += 1,
                Event::Said { .. } => said += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((joined, said), (RANKS, RANKS));
        let threads = fs::read_dir("/proc/self/task").unwrap().count();
        assert!(threads < 200, "{threads} threads");
        ranks.iter().for_each(channel::Sender::hang_up);
        events.iter().take(RANKS).for_each(|e| left += usize::from(matches!(e, Event::Left { .. })));
        assert_eq!(left, RANKS);
    }

    #[test]
    fn a_thousand_idle_connections_keep_no_rank_waiting_and_few_threads_busy() {
        let dir = tempfile::tempdir().unwrap();
        let (_server, admission, events) = server(dir.path());
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most).unwrap();
        let idle: Vec<TcpStream> = (0..1000).map(|_| knock(&admission)).collect();
        let since = Instant::now();
        let (mut sender, _receiver) = join(&admission);
        sender.send(&hello(3)).unwrap();
        let pushed_out = events.iter().take_while(|e| !matches!(e, Event::Joined { .. })).count();
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        // The rank itself took a place for a moment.
        let room = STRANGERS + 2;
        assert!((1000 - room..=1001 - room).contains(&pushed_out), "{pushed_out}");
        let threads = fs::read_dir("/proc/self/task").unwrap().count();
        assert!(threads < room + 60, "{threads} threads");
        drop(idle);
        sender.send(&FromRank::Ready { next_step: 1 }).unwrap();
        assert!(events.iter().any(|e| matches!(e, Event::Said { .. })), "the rank is heard");
    }
}
