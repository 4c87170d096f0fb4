//! The control server: lets this start's ranks in by their secret, keeps strangers out, passes on what is said.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use bam_cluster::protocol::{self, ControlFile, FromRank, Hello};

use super::event::{ConnectionId, Event};

/// How long somebody who connected may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long an order may wait for a rank that does not read.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// Listens for as long as it lives; the file by which ranks find it is there for as long, too.
#[derive(Debug)]
pub struct ControlServer {
    address: SocketAddr,
    file: PathBuf,
    closing: Arc<AtomicBool>,
}

impl ControlServer {
    /// Listens on this host and says in `file` how to get in. What happens goes to `events`.
    ///
    /// # Errors
    /// No port, no randomness, or the file cannot be written.
    pub fn open(file: PathBuf, incarnation: u64, events: Sender<Event>) -> io::Result<ControlServer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let admission = ControlFile { address: listener.local_addr()?, secret: secret()?, incarnation };
        write_privately(&file, &admission)?;
        let closing = Arc::new(AtomicBool::new(false));
        let server = ControlServer { address: admission.address, file, closing: closing.clone() };
        thread::spawn(move || accept(&listener, &admission, &events, &closing));
        Ok(server)
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
        self.closing.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, admission: &ControlFile, events: &Sender<Event>, closing: &AtomicBool) {
    let admission = Arc::new(admission.clone());
    let mut connection: ConnectionId = 0;
    loop {
        let Ok((stream, from)) = listener.accept() else {
            // Out of file descriptors, most likely; some may come back.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if closing.load(Ordering::SeqCst) {
            return;
        }
        connection += 1;
        let (admission, events) = (admission.clone(), events.clone());
        // A thread for each, so that one who says nothing keeps nobody waiting.
        thread::spawn(move || serve(stream, from, connection, &admission, &events));
    }
}

/// One connection from hello to end. A dispatcher that is gone needs no events, so that failed sends are no matter.
fn serve(
    stream: TcpStream,
    from: SocketAddr,
    connection: ConnectionId,
    admission: &ControlFile,
    events: &Sender<Event>,
) {
    let (mut reader, hello, stream) = match admit(stream, admission) {
        Ok(admitted) => admitted,
        Err(reason) => return drop(events.send(Event::Refused { from, reason })),
    };
    let _ = events.send(Event::Joined { connection, hello, stream });
    while let Ok(Some(message)) = protocol::receive::<FromRank>(&mut reader) {
        let _ = events.send(Event::Said { connection, message });
    }
    let _ = events.send(Event::Left { connection });
}

type Admitted = (BufReader<TcpStream>, Hello, TcpStream);

fn admit(stream: TcpStream, admission: &ControlFile) -> Result<Admitted, String> {
    let io = |e: io::Error| e.to_string();
    stream.set_nodelay(true).map_err(io)?;
    stream.set_read_timeout(Some(HELLO_WITHIN)).map_err(io)?;
    stream.set_write_timeout(Some(WRITE_WITHIN)).map_err(io)?;
    let mut reader = BufReader::new(stream.try_clone().map_err(io)?);
    let hello = match protocol::receive::<FromRank>(&mut reader) {
        Ok(Some(FromRank::Hello(hello))) => hello,
        Ok(Some(_)) => return Err("it did not say hello first".to_owned()),
        Ok(None) => return Err("it left without a word".to_owned()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            return Err(format!("it said nothing for {HELLO_WITHIN:?}"));
        }
        Err(_) => return Err("what it said is no message of a rank".to_owned()),
    };
    if hello.secret != admission.secret {
        return Err("it does not know the secret of this start".to_owned());
    }
    if hello.incarnation != admission.incarnation {
        return Err(format!("it belongs to start {}, this is start {}", hello.incarnation, admission.incarnation));
    }
    stream.set_read_timeout(None).map_err(io)?;
    Ok((reader, hello, stream))
}

/// 32 hexadecimal digits that nobody can guess.
fn secret() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
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
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc::{self, Receiver};

    fn server(dir: &Path) -> (ControlServer, ControlFile, Receiver<Event>) {
        let (sender, events) = mpsc::channel();
        let path = dir.join("control.json");
        let server = ControlServer::open(path.clone(), 3, sender).unwrap();
        let admission = bam_cluster::files::read_json(&path).unwrap().unwrap();
        (server, admission, events)
    }

    fn hello(admission: &ControlFile) -> Hello {
        let (secret, incarnation) = (admission.secret.clone(), admission.incarnation);
        Hello { secret, incarnation, rank: 1, world_size: 2, host: "h".into(), pid: 7, device: "cpu".into() }
    }

    fn say(admission: &ControlFile, hello: Hello) -> TcpStream {
        let mut stream = TcpStream::connect(admission.address).unwrap();
        protocol::send(&mut stream, &FromRank::Hello(hello)).unwrap();
        stream
    }

    #[test]
    fn the_control_file_is_private_and_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (server, admission, _events) = server(dir.path());
        let path = dir.path().join("control.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(admission.secret.len(), 32);
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_rank_is_heard_past_silent_and_garbled_strangers() {
        let dir = tempfile::tempdir().unwrap();
        let (_server, admission, events) = server(dir.path());
        let _silent = TcpStream::connect(admission.address).unwrap();
        let mut garbled = TcpStream::connect(admission.address).unwrap();
        garbled.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(events.recv().unwrap(), Event::Refused { reason, .. } if reason.contains("no message")));
        let stream = say(&admission, hello(&admission));
        assert!(matches!(events.recv().unwrap(), Event::Joined { hello, .. } if hello.rank == 1));
        drop(stream);
        assert!(matches!(events.recv().unwrap(), Event::Left { .. }));
    }

    #[test]
    fn another_secret_or_start_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_server, admission, events) = server(dir.path());
        say(&admission, Hello { secret: "0".repeat(32), ..hello(&admission) });
        assert!(matches!(events.recv().unwrap(), Event::Refused { reason, .. } if reason.contains("secret")));
        say(&admission, Hello { incarnation: 2, ..hello(&admission) });
        assert!(matches!(events.recv().unwrap(), Event::Refused { reason, .. } if reason.contains("start 2")));
    }
}
