//! The authenticated channel between launcher and rank, as both programs use it: each side proves that it knows the
//! secret, which never travels, and every message carries a code that no one else can make.
//!
//! Both sides say `bam-control 1 NONCE`, the rank first. From the secret and both nonces follows the key of this one
//! conversation. With it the rank proves itself, then the launcher. After that every message is a line `MAC JSON`, where
//! the HMAC-SHA256 covers the direction, the number of the line and the JSON, so that a forged, changed, replayed,
//! reordered, reflected or cut message is recognised before it is parsed. What is said is not encrypted.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use nix::errno::Errno;
use nix::sys::socket::sockopt::TcpUserTimeout;
use nix::sys::socket::{MsgFlags, recv, setsockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

use super::secret::{Secret, random};
use crate::digest::hex;

/// What a conversation begins with. The number changes whenever the channel does.
const GREETING: &str = "bam-control 1 ";
/// What each side says, authenticated, to prove itself.
const PROOF: &[u8] = b"proof";
/// Nothing that is said before the proof is longer.
const LONGEST_GREETING: usize = 96;
/// No message of ours comes near this.
const LONGEST_LINE: usize = 1 << 22;

/// One attempt to connect to an address may take so long, and the proofs that follow so long.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
const PROVE_WITHIN: Duration = Duration::from_secs(10);
/// Between two attempts; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A conversation that cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The other side took too long.
    #[error("it did not prove itself in time")]
    Late,
    /// The other side hung up before it had proved itself.
    #[error("it hung up before it had proved that it knows the secret of this start")]
    Left,
    /// The other side speaks something else.
    #[error("what it said is no greeting of bam")]
    Stranger,
    /// The other side does not know the secret.
    #[error("it does not know the secret of this start")]
    Impostor,
    /// A line is not from the other side, or not the next one.
    #[error("line {0} is not authentic: it was forged, changed, repeated, left out or cut short")]
    Forged(u64),
    /// The other side says something that has no meaning here.
    #[error("what it said is no message: {0}")]
    Meaningless(serde_json::Error),
    /// Nobody with the secret is there.
    #[error("nobody who knows the secret of this start answers at {addresses}: {problem}")]
    Unreachable {
        /// Where.
        addresses: String,
        /// What the last attempt came to.
        problem: String,
    },
}

type Result<T> = std::result::Result<T, ChannelError>;

/// Who speaks.
#[derive(Debug, Clone, Copy)]
enum Side {
    Rank = b'r' as isize,
    Launcher = b'l' as isize,
}

/// Makes or checks the codes of one direction, line after line.
#[cfg_attr(test, derive(Clone))]
struct Seal {
    key: Hmac<Sha256>,
    side: Side,
    lines: u64,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Seal({:?}, {} lines)", self.side, self.lines)
    }
}

impl Seal {
    /// The seals of rank and launcher in the conversation that began with these nonces.
    fn both(secret: &Secret, rank_nonce: &[u8; 32], launcher_nonce: &[u8; 32]) -> (Seal, Seal) {
        let mut mac = keyed(secret.as_bytes());
        mac.update(GREETING.as_bytes());
        mac.update(rank_nonce);
        mac.update(launcher_nonce);
        let key = keyed(&mac.finalize().into_bytes());
        (Seal { key: key.clone(), side: Side::Rank, lines: 0 }, Seal { key, side: Side::Launcher, lines: 0 })
    }

    /// The code of the next line.
    fn mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.key.clone();
        mac.update(&[self.side as u8]);
        mac.update(&self.lines.to_le_bytes());
        mac.update(body);
        mac
    }

    /// The next line to say.
    fn close(&mut self, body: &[u8]) -> Vec<u8> {
        let mac = hex(&self.mac(body).finalize().into_bytes());
        self.lines += 1;
        [mac.as_bytes(), b" ", body, b"\n"].concat()
    }

    /// What the next line that was heard says, if it is authentic.
    fn open<'a>(&mut self, line: &'a [u8]) -> Option<&'a [u8]> {
        let (mac, rest) = line.split_at_checked(64)?;
        let body = rest.strip_prefix(b" ")?.strip_suffix(b"\n")?;
        // Compares in constant time.
        self.mac(body).verify_slice(&unhex(mac)?).ok()?;
        self.lines += 1;
        Some(body)
    }

    /// The message in the next line that was heard.
    fn message<T: DeserializeOwned>(&mut self, line: &[u8]) -> Result<T> {
        let body = self.open(line).ok_or(ChannelError::Forged(self.lines))?;
        serde_json::from_slice(body).map_err(ChannelError::Meaningless)
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"))
}

/// 64 lower-case hexadecimal digits as bytes.
fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    let bytes: Vec<u8> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// A line with its end, of at most `longest` bytes; `None` where the other side has hung up. The end is missing where
/// the line is longer, or the other side hung up in it.
fn read_line(reader: &mut impl BufRead, longest: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = Read::take(reader, longest as u64).read_until(b'\n', &mut line)?;
    Ok((read > 0).then_some(line))
}

/// [`read_line`] before both sides have proved themselves.
fn read_early(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    match read_line(reader, LONGEST_GREETING) {
        Ok(line) => line.ok_or(ChannelError::Left),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(ChannelError::Late),
        // What is unread when the other side hangs up resets the connection.
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset) => Err(ChannelError::Left),
        Err(e) => Err(e.into()),
    }
}

fn greet(writer: &mut impl Write, nonce: &[u8; 32]) -> Result<()> {
    Ok(writer.write_all(format!("{GREETING}{}\n", hex(nonce)).as_bytes())?)
}

fn read_greeting(reader: &mut impl BufRead) -> Result<[u8; 32]> {
    let line = read_early(reader)?;
    let nonce = line.strip_prefix(GREETING.as_bytes()).and_then(|rest| rest.strip_suffix(b"\n"));
    nonce.and_then(unhex).ok_or(ChannelError::Stranger)
}

fn read_proof(reader: &mut impl BufRead, seal: &mut Seal) -> Result<()> {
    let line = read_early(reader)?;
    if seal.open(&line) == Some(PROOF) { Ok(()) } else { Err(ChannelError::Impostor) }
}

/// The rank's part of the beginning. Returns the rank's seal and the launcher's.
fn begin_as_rank(
    reader: &mut impl BufRead,
    writer: &mut impl Write,
    secret: &Secret,
    nonce: &[u8; 32],
) -> Result<(Seal, Seal)> {
    greet(writer, nonce)?;
    let (mut own, mut theirs) = Seal::both(secret, nonce, &read_greeting(reader)?);
    writer.write_all(&own.close(PROOF))?;
    read_proof(reader, &mut theirs)?;
    Ok((own, theirs))
}

/// The launcher's part of the beginning, all but its own proof. Returns the launcher's seal and the rank's.
fn begin_as_launcher(
    reader: &mut impl BufRead,
    writer: &mut impl Write,
    secret: &Secret,
    nonce: &[u8; 32],
) -> Result<(Seal, Seal)> {
    // Who does not even greet learns nothing of who listens here.
    let rank_nonce = read_greeting(reader)?;
    greet(writer, nonce)?;
    let (mut theirs, own) = Seal::both(secret, &rank_nonce, nonce);
    read_proof(reader, &mut theirs)?;
    Ok((own, theirs))
}

/// A connection that one can stop waiting for, however slowly bytes trickle in.
#[derive(Debug)]
pub struct Connection {
    stream: Arc<TcpStream>,
    deadline: Option<Instant>,
}

impl Connection {
    fn new(stream: &Arc<TcpStream>) -> Connection {
        Connection { stream: stream.clone(), deadline: None }
    }

    fn wait(&mut self, within: Option<Duration>) {
        self.deadline = within.map(|time| Instant::now() + time);
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)?;
        (&*self.stream).read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The half of a channel that speaks.
pub struct Sender<W = Connection> {
    writer: W,
    seal: Seal,
}

impl<W: Write> Sender<W> {
    /// Says something.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        let body = serde_json::to_vec(message).map_err(ChannelError::Meaningless)?;
        self.writer.write_all(&self.seal.close(&body))?;
        Ok(self.writer.flush()?)
    }
}

impl Sender {
    /// Ends the conversation, for both halves of both sides.
    pub fn hang_up(&self) {
        let _ = self.writer.stream.shutdown(Shutdown::Both);
    }
}

impl<W> fmt::Debug for Sender<W> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Sender({} lines)", self.seal.lines)
    }
}

/// The half of a channel that listens.
pub struct Receiver<R = BufReader<Connection>> {
    reader: R,
    seal: Seal,
}

impl<R: BufRead> Receiver<R> {
    /// Waits for the next message; `None` where the other side has hung up.
    ///
    /// # Errors
    /// The connection broke, or what came is not what the other side said next, or no message.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(line) = read_line(&mut self.reader, LONGEST_LINE)? else { return Ok(None) };
        self.seal.message(&line).map(Some)
    }
}

impl Receiver {
    /// From now on messages may take so long, or for ever.
    pub fn wait(&mut self, within: Option<Duration>) {
        self.reader.get_mut().wait(within);
    }

    /// From now on nothing is waited for.
    pub fn into_inbox(self) -> Inbox {
        let came = self.reader.buffer().to_vec();
        Inbox { stream: self.reader.into_inner().stream, lines: Lines { seal: self.seal, came } }
    }
}

impl<R> fmt::Debug for Receiver<R> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Receiver({} lines)", self.seal.lines)
    }
}

/// The half of a channel that listens without waiting, so that one thread can hear many.
#[derive(Debug)]
pub struct Inbox {
    stream: Arc<TcpStream>,
    lines: Lines,
}

impl Inbox {
    /// Passes on the messages that have come. `space` is where to put what is read in one go; there may be more than that,
    /// or the rest of a message may be on its way. False when the other side has hung up.
    ///
    /// # Errors
    /// The connection broke, or what came is not what the other side said next, or no message.
    pub fn receive<T: DeserializeOwned>(&mut self, space: &mut [u8], mut heard: impl FnMut(T)) -> Result<bool> {
        self.lines.take(&[], &mut heard)?;
        match recv(self.stream.as_raw_fd(), space, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => self.lines.end().map(|()| false),
            Ok(n) => self.lines.take(&space[..n], &mut heard).map(|()| true),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Bytes as they come, cut into lines.
#[derive(Debug)]
struct Lines {
    seal: Seal,
    /// What has come and has not been heard yet.
    came: Vec<u8>,
}

impl Lines {
    /// Passes on the messages that are whole with these bytes.
    fn take<T: DeserializeOwned>(&mut self, bytes: &[u8], heard: &mut impl FnMut(T)) -> Result<()> {
        self.came.extend_from_slice(bytes);
        let mut done = 0;
        while let Some(length) = self.came[done..].iter().position(|b| *b == b'\n') {
            let line = done..done + length + 1;
            done = line.end;
            self.check(line.len())?;
            heard(self.seal.message(&self.came[line])?);
        }
        self.came.drain(..done);
        self.check(self.came.len())
    }

    /// Nothing more comes.
    fn end(&self) -> Result<()> {
        if self.came.is_empty() { Ok(()) } else { Err(ChannelError::Forged(self.seal.lines)) }
    }

    fn check(&self, length: usize) -> Result<()> {
        if length > LONGEST_LINE { Err(ChannelError::Forged(self.seal.lines)) } else { Ok(()) }
    }
}

/// A rank's way to the launcher: tries the addresses in turn, again and again until somebody there proves to know the
/// secret. A launcher that is besieged may hang up on a rank at first.
///
/// # Errors
/// [`ChannelError::Unreachable`] after the time given.
pub fn connect(addresses: &[SocketAddr], secret: &Secret, within: Duration) -> Result<(Sender, Receiver)> {
    let deadline = Instant::now() + within;
    let mut pause = FIRST_PAUSE;
    loop {
        let mut problem = "the control file names no address".to_owned();
        for address in addresses {
            match connect_to(address, secret, deadline) {
                Ok(channel) => return Ok(channel),
                Err(e) => problem = e.to_string(),
            }
        }
        if Instant::now() + pause >= deadline {
            let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
            return Err(ChannelError::Unreachable { addresses: addresses.join(", "), problem });
        }
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(2 * pause);
    }
}

/// Milliseconds for which a rank's words may stay unacknowledged before its connection counts as broken.
const UNACKNOWLEDGED_MS: u32 = 60_000;

fn connect_to(address: &SocketAddr, secret: &Secret, deadline: Instant) -> Result<(Sender, Receiver)> {
    let left = deadline.saturating_duration_since(Instant::now()).max(FIRST_PAUSE);
    let stream = Arc::new(TcpStream::connect_timeout(address, left.min(CONNECT_WITHIN))?);
    // A rank beats every second: a launcher that acknowledges none for so long is cut off, and the rank must not go on.
    setsockopt(&*stream, TcpUserTimeout, &UNACKNOWLEDGED_MS).map_err(io::Error::from)?;
    let (mut writer, mut reader) = ends(&stream, left.min(PROVE_WITHIN))?;
    let (own, theirs) = begin_as_rank(&mut reader, &mut writer, secret, &random()?)?;
    let mut receiver = Receiver { reader, seal: theirs };
    receiver.wait(None);
    Ok((Sender { writer, seal: own }, receiver))
}

/// Where to write to and where to read from, for so long.
fn ends(stream: &Arc<TcpStream>, within: Duration) -> Result<(Connection, BufReader<Connection>)> {
    stream.set_nodelay(true)?;
    let mut reader = Connection::new(stream);
    reader.wait(Some(within));
    Ok((Connection::new(stream), BufReader::new(reader)))
}

/// A rank that has proved itself and to which the launcher has not yet done so: nothing binds them so far.
#[derive(Debug)]
pub struct Proven {
    sender: Sender,
    receiver: Receiver,
}

/// The launcher's side: hears the proof of whoever connected. Everything together may take so long as given.
///
/// # Errors
/// It is no rank of this start.
pub fn accept(stream: &Arc<TcpStream>, secret: &Secret, within: Duration) -> Result<Proven> {
    let (mut writer, mut reader) = ends(stream, within)?;
    let (own, theirs) = begin_as_launcher(&mut reader, &mut writer, secret, &random()?)?;
    Ok(Proven { sender: Sender { writer, seal: own }, receiver: Receiver { reader, seal: theirs } })
}

impl Proven {
    /// Proves the launcher to the rank. The time that [`accept`] got still runs for the first message; see
    /// [`Receiver::wait`].
    ///
    /// # Errors
    /// The rank is gone.
    pub fn confirm(mut self) -> Result<(Sender, Receiver)> {
        let proof = self.sender.seal.close(PROOF);
        self.sender.writer.write_all(&proof)?;
        Ok((self.sender, self.receiver))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, TcpListener};

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{FromRank, Heartbeat, LastCollective, Outcome, ToRank};

    fn messages() -> Vec<FromRank> {
        let beat = |sequence| {
            let collective = Some(LastCollective { name: "gradients".into(), sequence, waiting: Some(0.5) });
            let (phase, step) = ("train".into(), Some(7));
            FromRank::Heartbeat(Heartbeat { phase, step, collective, idle: 0.5, memory: None })
        };
        let outputs = BTreeMap::from([("model".into(), "ab".into())]);
        vec![
            beat(1),
            beat(1),
            FromRank::Note { message: "a\nb".into() },
            FromRank::Done(Outcome::Stopped { step: 3 }),
            FromRank::Done(Outcome::Finished { outputs }),
        ]
    }

    /// One conversation as somebody on the wire records it.
    struct Record {
        secret: Secret,
        launcher_nonce: [u8; 32],
        /// Greeting, proof and messages of the rank.
        rank: Vec<Vec<u8>>,
        /// Greeting, proof and orders of the launcher.
        launcher: Vec<Vec<u8>>,
    }

    fn lines(wire: &[u8]) -> Vec<Vec<u8>> {
        wire.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
    }

    fn record() -> Record {
        let secret = Secret::random().unwrap();
        let [rank_nonce, launcher_nonce] = [random().unwrap(), random().unwrap()];
        let (rank, launcher) = Seal::both(&secret, &rank_nonce, &launcher_nonce);
        let say = |nonce, mut seal: Seal, messages: &dyn Fn(&mut Sender<&mut Vec<u8>>)| {
            let mut wire = vec![];
            greet(&mut wire, nonce).unwrap();
            wire.extend(seal.close(PROOF));
            messages(&mut Sender { writer: &mut wire, seal });
            lines(&wire)
        };
        let rank = say(&rank_nonce, rank, &|sender| messages().iter().for_each(|m| sender.send(m).unwrap()));
        let launcher = say(&launcher_nonce, launcher, &|sender| sender.send(&ToRank::Finish).unwrap());
        Record { secret, launcher_nonce, rank, launcher }
    }

    /// What the launcher of `record` hears if this is said to it: messages up to the first that it refuses, and whether
    /// it refused anything.
    fn heard(record: &Record, said: &[u8]) -> (Vec<FromRank>, bool) {
        let mut reader = said;
        let mut messages = vec![];
        let Ok((_, seal)) = begin_as_launcher(&mut reader, &mut vec![], &record.secret, &record.launcher_nonce) else {
            return (messages, true);
        };
        let (at_once, refused) = heard_in_pieces(seal.clone(), reader, reader.len());
        for longest in [1, 7, 64] {
            assert_eq!(
                heard_in_pieces(seal.clone(), reader, longest),
                (at_once.clone(), refused),
                "pieces of {longest}"
            );
        }
        let mut receiver = Receiver { reader, seal };
        let waited = loop {
            match receiver.receive() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break (messages, false),
                Err(_) => break (messages, true),
            }
        };
        assert_eq!(waited, (at_once, refused), "who does not wait hears the same");
        waited
    }

    /// What one who does not wait hears if what is said comes in pieces.
    fn heard_in_pieces(seal: Seal, said: &[u8], longest: usize) -> (Vec<FromRank>, bool) {
        let (mut lines, mut messages) = (Lines { seal, came: vec![] }, vec![]);
        let mut pieces = said.chunks(longest.max(1));
        let taken = pieces.try_for_each(|piece| lines.take(piece, &mut |message| messages.push(message)));
        let refused = taken.and_then(|()| lines.end()).is_err();
        (messages, refused)
    }

    #[test]
    fn what_is_said_is_heard() {
        let record = record();
        assert_eq!(heard(&record, &record.rank.concat()), (messages(), false));
        let wire = record.rank.concat();
        let secret = serde_json::to_string(&record.secret).unwrap();
        let secret = secret.trim_matches('"').as_bytes();
        assert!(!wire.windows(secret.len()).any(|w| w == secret), "the secret travels");
    }

    #[test]
    fn every_change_of_a_byte_and_every_cut_is_noticed() {
        let record = record();
        let whole = record.rank.concat();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                let (messages_heard, refused) = heard(&record, &changed);
                assert!(refused && messages().starts_with(&messages_heard), "byte {at}, bit {bit}");
            }
            let (messages_heard, refused) = heard(&record, &whole[..at]);
            // Hanging up between two messages is everybody's right.
            let at_an_end = at > 0 && whole[at - 1] == b'\n' && lines(&whole[..at]).len() >= 2;
            assert!(refused != at_an_end && messages().starts_with(&messages_heard), "cut at {at}");
        }
    }

    #[test]
    fn a_recorded_conversation_is_worth_nothing_in_another_one() {
        let [old, new] = [record(), record()];
        let again = Record { secret: old.secret.clone(), launcher_nonce: random().unwrap(), ..record() };
        assert_eq!(heard(&again, &old.rank.concat()), (vec![], true), "the same secret, another conversation");
        assert_eq!(heard(&new, &old.rank.concat()), (vec![], true), "another start");
        // The launcher's own words come back: its greeting is as good as any, its proof is not.
        assert_eq!(heard(&old, &old.launcher.concat()), (vec![], true));
        let [greeting, proof] = [&old.rank[0], &old.launcher[1]];
        assert_eq!(heard(&old, &[greeting.as_slice(), proof].concat()), (vec![], true));
        let reflected = [&old.rank[0][..], &old.rank[1], &old.launcher[2]].concat();
        assert_eq!(heard(&old, &reflected), (vec![], true));
    }

    #[test]
    fn a_rank_does_not_believe_in_a_launcher_that_proves_nothing() {
        let record = record();
        let nonce = random().unwrap();
        for said in [record.launcher.concat(), record.rank.concat(), record.launcher[0].clone(), vec![]] {
            assert!(begin_as_rank(&mut said.as_slice(), &mut vec![], &record.secret, &nonce).is_err());
        }
        // One that only repeats what the rank says.
        let mut wire = vec![];
        greet(&mut wire, &nonce).unwrap();
        let (mut own, _) = Seal::both(&record.secret, &nonce, &nonce);
        wire.extend(own.close(PROOF));
        let echoed = begin_as_rank(&mut wire.as_slice(), &mut vec![], &record.secret, &nonce);
        assert!(matches!(echoed, Err(ChannelError::Impostor)));
    }

    #[test]
    fn nothing_without_end_is_read() {
        let record = record();
        struct Endless(usize);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(b'x');
                self.0 += buffer.len();
                Ok(buffer.len())
            }
        }
        let mut reader = BufReader::with_capacity(64, Endless(0));
        let refused = begin_as_launcher(&mut reader, &mut vec![], &record.secret, &record.launcher_nonce);
        assert!(matches!(refused, Err(ChannelError::Stranger)));
        assert!(reader.get_ref().0 <= 2 * LONGEST_GREETING);
        let (seal, _) = Seal::both(&record.secret, &[0; 32], &[1; 32]);
        let mut receiver = Receiver { reader: BufReader::new(Endless(0)), seal };
        assert!(matches!(receiver.receive::<FromRank>(), Err(ChannelError::Forged(0))));
        assert!(receiver.reader.get_ref().0 <= LONGEST_LINE + (1 << 16));
        let (seal, _) = Seal::both(&record.secret, &[0; 32], &[1; 32]);
        let mut lines = Lines { seal, came: vec![] };
        let piece = vec![b'x'; 1 << 16];
        let pieces = (0..).find(|_| lines.take(&piece, &mut |_: FromRank| ()).is_err()).unwrap();
        assert!(pieces * piece.len() <= LONGEST_LINE);
    }

    #[test]
    fn who_does_not_wait_hears_what_was_read_ahead_and_the_end() {
        let secret = Secret::random().unwrap();
        let (listener, address) = listener();
        let known = secret.clone();
        let rank = thread::spawn(move || {
            let (mut sender, _receiver) = connect(&[address], &known, PROVE_WITHIN).unwrap();
            messages().iter().for_each(|m| sender.send(m).unwrap());
            sender.hang_up();
        });
        let stream = Arc::new(listener.accept().unwrap().0);
        let (_, mut receiver) = accept(&stream, &secret, PROVE_WITHIN).unwrap().confirm().unwrap();
        let mut all: Vec<FromRank> = vec![receiver.receive().unwrap().unwrap()];
        // More than the first message may have come with it.
        rank.join().unwrap();
        let (mut inbox, mut space) = (receiver.into_inbox(), [0; 100]);
        while inbox.receive(&mut space, |message| all.push(message)).unwrap() {}
        assert_eq!(all, messages());
    }

    #[test]
    fn an_authentic_line_without_meaning_is_an_error() {
        let record = record();
        let (mut seal, _) = Seal::both(&record.secret, &[0; 32], &[1; 32]);
        let deep = ["[".repeat(100_000), "{\"a\":".repeat(100_000)];
        let words =
            ["", "{}", "null", "{\"type\":\"done\"}", &deep[0], &deep[1], "{\"type\":\"ready\",\"next_step\":-1}"];
        let wire: Vec<u8> = words.iter().flat_map(|w| seal.close(w.as_bytes())).collect();
        let (seal, _) = Seal::both(&record.secret, &[0; 32], &[1; 32]);
        let mut receiver = Receiver { reader: wire.as_slice(), seal };
        for word in words {
            let error = receiver.receive::<FromRank>().unwrap_err();
            assert!(matches!(error, ChannelError::Meaningless(_)), "{word}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn lines_in_any_other_order_are_refused(order in prop::collection::vec(0..9usize, 0..12)) {
            let record = record();
            let all: Vec<&Vec<u8>> = record.rank.iter().chain(&record.launcher[1..]).collect();
            let said: Vec<u8> = order.iter().flat_map(|&i| all[i].iter().copied()).collect();
            let right = order.iter().enumerate().take_while(|(at, i)| at == *i).count();
            let (messages_heard, refused) = heard(&record, &said);
            let expected = right.min(record.rank.len()).saturating_sub(2);
            prop_assert_eq!(messages_heard, &messages()[..expected]);
            prop_assert_eq!(refused, right < order.len() || right < 2);
        }

        #[test]
        fn damage_anywhere_is_noticed(
            at in any::<prop::sample::Index>(),
            removed in 0..80usize,
            inserted in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let record = record();
            let whole = record.rank.concat();
            let at = at.index(whole.len());
            let end = (at + removed).min(whole.len());
            let said = [&whole[..at], &inserted, &whole[end..]].concat();
            let (messages_heard, refused) = heard(&record, &said);
            prop_assert!(messages().starts_with(&messages_heard));
            // Cut off at the end of a line, it is a conversation that ended sooner.
            prop_assert!(refused || said == whole || whole.starts_with(&said) && said.ends_with(b"\n"));
        }

        #[test]
        fn noise_is_refused(said in prop::collection::vec(any::<u8>(), 0..400)) {
            let record = record();
            prop_assert_eq!(heard(&record, &said), (vec![], true));
            let greeted = [record.rank[0].as_slice(), &said].concat();
            prop_assert_eq!(heard(&record, &greeted), (vec![], true));
            let proved = [record.rank[..2].concat(), said.clone()].concat();
            prop_assert_eq!(heard(&record, &proved), (vec![], !said.is_empty()));
        }
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn a_rank_finds_the_launcher_past_dead_addresses_impostors_and_closed_doors() {
        let secret = Secret::random().unwrap();
        let (closed, dead) = listener();
        drop(closed);
        let (impostors, impostor) = listener();
        let other = Secret::random().unwrap();
        thread::spawn(move || {
            for stream in impostors.incoming() {
                let stream = Arc::new(stream.unwrap());
                assert!(accept(&stream, &other, PROVE_WITHIN).is_err());
            }
        });
        let (listener, address) = listener();
        let known = secret.clone();
        let launcher = thread::spawn(move || {
            // At first it hangs up.
            drop(listener.accept().unwrap());
            let stream = Arc::new(listener.accept().unwrap().0);
            let (mut sender, mut receiver) = accept(&stream, &known, PROVE_WITHIN).unwrap().confirm().unwrap();
            sender.send(&ToRank::Stop).unwrap();
            receiver.receive::<FromRank>().unwrap()
        });
        let (mut sender, mut receiver) = connect(&[dead, impostor, address], &secret, PROVE_WITHIN).unwrap();
        assert_eq!(receiver.receive::<ToRank>().unwrap(), Some(ToRank::Stop));
        sender.send(&messages()[0]).unwrap();
        assert_eq!(launcher.join().unwrap(), Some(messages()[0].clone()));
        let error = connect(&[dead, impostor], &secret, Duration::from_millis(200)).unwrap_err().to_string();
        assert!(error.contains(&dead.to_string()) && error.contains(&impostor.to_string()), "{error}");
    }

    #[test]
    fn who_is_slow_to_prove_himself_is_not_waited_for() {
        let secret = Secret::random().unwrap();
        let (listener, address) = listener();
        let mut slow = TcpStream::connect(address).unwrap();
        let stream = Arc::new(listener.accept().unwrap().0);
        // A byte now and then is no progress.
        let dribble = thread::spawn(move || {
            for byte in GREETING.bytes().cycle() {
                if slow.write_all(&[byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let since = Instant::now();
        let refused = accept(&stream, &secret, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(refused, ChannelError::Late), "{refused}");
        assert!(since.elapsed() < Duration::from_secs(8));
        drop(stream);
        dribble.join().unwrap();
    }
}
