//! A server on this machine's loopback that answers as a test says: whole files, parts of them, cut connections, refusals.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What came.
#[derive(Debug, Clone)]
pub struct Request {
    /// With what is after the `?`.
    pub path: String,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What goes back.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status; 200 becomes 206 where a part is asked for and `in_parts`.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
    /// Whether parts may be asked for.
    pub in_parts: bool,
    /// The connection is cut after so many bytes of what should be sent.
    pub cut_after: Option<usize>,
    /// Where it is instead.
    pub location: Option<String>,
}

impl Answer {
    /// A file, of which parts may be asked for.
    pub fn file(body: &[u8]) -> Answer {
        Answer { status: 200, body: body.to_owned(), in_parts: true, ..Answer::default() }
    }

    /// A status alone.
    pub fn status(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }
}

/// The server. Dropped, it is gone.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Starts one. `answer` also gets the number of requests for the same path that came before.
    pub fn start(answer: impl Fn(&Request, usize) -> Answer + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, is_over) = (Arc::new(Mutex::new(vec![])), Arc::new(AtomicBool::new(false)));
        let (seen, over) = (Arc::clone(&requests), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever hangs up is no concern of the server's.
                let _ = serve(&stream.unwrap(), &seen, &answer);
            }
        });
        Server { address, requests, is_over, thread: Some(thread) }
    }

    /// Its address, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    mut stream: &TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &impl Fn(&Request, usize) -> Answer,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let Some(path) = first.split(' ').nth(1) else { return Ok(()) };
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    let request = Request { path: path.to_owned(), headers: headers.collect() };
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.iter().filter(|r| r.path == request.path).count() - 1
    };
    let answer = answer(&request, before);
    let asked = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from: Option<usize> = asked.filter(|_| answer.in_parts && answer.status == 200);
    let (status, body) = match from {
        Some(from) if from >= answer.body.len() => (416, &[][..]),
        Some(from) => (206, &answer.body[from..]),
        None => (answer.status, &answer.body[..]),
    };
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n", body.len())?;
    if let (206, Some(from)) = (status, from) {
        let whole = answer.body.len();
        write!(stream, "Content-Range: bytes {from}-{}/{whole}\r\n", whole - 1)?;
    }
    if let Some(location) = &answer.location {
        write!(stream, "Location: {location}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&body[..answer.cut_after.unwrap_or(body.len()).min(body.len())])
}
