//! One file over HTTP: written beside its place, gone on with where it was cut off, compared with its sum, renamed.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bam_cluster::{digest, files};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use sha1::{Digest, Sha1};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{RootCerts, TlsConfig};

use super::{FetchError, io_error, lock};

/// For a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tries in a row that bring no byte.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Answers that are no files.
const LONGEST_ANSWER: u64 = 64 << 20;

/// Asks servers for files.
#[derive(Debug)]
pub struct Downloads {
    agent: Agent,
    token: Option<String>,
    remedies: Remedies,
}

/// What to do when nothing comes.
#[derive(Debug, Clone, Default)]
pub struct Remedies {
    /// Without internet.
    pub unreachable: String,
    /// When the server wants to know who asks.
    pub denied: String,
    /// When there is no such file.
    pub missing: String,
}

/// A file that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it is.
    pub url: String,
    /// How it is called before people.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its sum.
    pub sum: Sum,
}

/// A sum that is known before a file comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sum {
    /// SHA-256 of the content.
    Sha256(String),
    /// The name that git gives to the content.
    Git(String),
}

impl Sum {
    /// The sum itself.
    pub fn text(&self) -> &str {
        match self {
            Sum::Sha256(text) | Sum::Git(text) => text,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Sum::Sha256(_) => "SHA-256",
            Sum::Git(_) => "git's sum",
        }
    }

    /// The sum of this kind of a file.
    fn of(&self, path: &Path) -> io::Result<String> {
        match self {
            Sum::Sha256(_) => digest::of_file(path),
            Sum::Git(_) => {
                let content = fs::read(path)?;
                let sum =
                    Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize();
                Ok(sum.iter().map(|b| format!("{b:02x}")).collect())
            }
        }
    }
}

/// Why a request brought less than the whole.
enum Stopped {
    /// Another try may do.
    Again(String),
    /// No try will.
    ForGood(FetchError),
}

impl Downloads {
    /// With a token for the servers that are asked; what they pass on to others does not get it.
    pub fn new(token: Option<String>, remedies: Remedies) -> Downloads {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("bam/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build()
            .new_agent();
        Downloads { agent, token, remedies }
    }

    /// A short answer, such as JSON.
    ///
    /// # Errors
    /// There is none.
    pub fn read(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let unreachable = |error: ureq::Error| self.unreachable(url, words(error));
        let mut response = self.request(url, 0).call().map_err(unreachable)?;
        match self.judge(url, response.status().as_u16()) {
            Ok(_) => {}
            Err(Stopped::ForGood(error)) => return Err(error),
            Err(Stopped::Again(_)) => {
                return Err(FetchError::Status { url: url.to_owned(), status: response.status().as_u16() });
            }
        }
        response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec().map_err(unreachable)
    }

    /// Brings a file to `target`. One that is there has been compared with its sum and is left alone.
    ///
    /// # Errors
    /// It does not come, or not as it should be.
    pub fn fetch(&self, wanted: &Wanted, target: &Path) -> Result<(), FetchError> {
        let part = part_of(target);
        let at_part = || io_error(&part);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(io_error(parent))?;
        }
        if target.exists() {
            return Ok(());
        }
        let mut file = files::open_to_lock(&part).map_err(at_part())?;
        // Another bam may be at it; what it has brought by then is there.
        lock(&file).map_err(at_part())?;
        if target.exists() {
            return Ok(());
        }
        let checked = self.checked(wanted, &mut file, &part);
        if let Err(FetchError::Wrong { .. }) = checked {
            fs::remove_file(&part).map_err(at_part())?;
        }
        checked?;
        fs::rename(&part, target).map_err(io_error(target))?;
        target.parent().map_or(Ok(()), files::sync_dir).map_err(io_error(target))
    }

    /// Makes the file whole and compares it with its sum.
    fn checked(&self, wanted: &Wanted, file: &mut File, part: &Path) -> Result<(), FetchError> {
        let at_part = || io_error(part);
        let left = file.metadata().map_err(at_part())?.len();
        self.complete(wanted, file, part)?;
        let mut found = wanted.sum.of(part).map_err(at_part())?;
        if left > 0 && found != wanted.sum.text() {
            // What was left by an earlier try may be of another version of the file.
            file.set_len(0).map_err(at_part())?;
            self.complete(wanted, file, part)?;
            found = wanted.sum.of(part).map_err(at_part())?;
        }
        if found != wanted.sum.text() {
            let (what, expected) = (wanted.sum.kind(), wanted.sum.text().to_owned());
            return Err(FetchError::Wrong { url: wanted.url.clone(), what, found, expected });
        }
        file.sync_all().map_err(at_part())
    }

    /// Asks until the whole file is there.
    fn complete(&self, wanted: &Wanted, file: &mut File, part: &Path) -> Result<(), FetchError> {
        let bar = bar(wanted);
        let length = |file: &File| file.metadata().map(|m| m.len()).map_err(io_error(part));
        let (mut best, mut tries, mut answered) = (length(file)?, 0, false);
        loop {
            let have = length(file)?;
            if have == wanted.size {
                bar.finish_and_clear();
                return Ok(());
            }
            let why = match self.go_on(wanted, file, part, &mut answered, &bar) {
                Ok(()) => continue,
                Err(Stopped::ForGood(error)) => return Err(error),
                Err(Stopped::Again(why)) => why,
            };
            let have = length(file)?;
            tries = if have > best { 0 } else { tries + 1 };
            best = best.max(have);
            if tries == TRIES {
                return Err(FetchError::Cut { url: wanted.url.clone(), have, size: wanted.size, tries, why });
            }
            thread::sleep(FIRST_PAUSE * (1 << tries));
        }
    }

    /// One request for what is lacking.
    fn go_on(
        &self,
        wanted: &Wanted,
        file: &mut File,
        part: &Path,
        answered: &mut bool,
        bar: &ProgressBar,
    ) -> Result<(), Stopped> {
        let url = &wanted.url;
        let on_disk = |e: io::Error| Stopped::ForGood(io_error(part)(e));
        let have = file.seek(SeekFrom::End(0)).map_err(on_disk)?;
        let have = if have > wanted.size { 0 } else { have };
        let response = match self.request(url, have).call() {
            Ok(response) => response,
            Err(e) if *answered => return Err(Stopped::Again(words(e))),
            Err(e) => return Err(Stopped::ForGood(self.unreachable(url, words(e)))),
        };
        *answered = true;
        if response.status() == 416 {
            // There is nothing from there on: what is here is not of this file.
            file.set_len(0).map_err(on_disk)?;
        }
        let goes_on = self.judge(url, response.status().as_u16())?
            && response.headers().get("content-range").and_then(|range| range.to_str().ok()).is_some_and(|range| {
                range.strip_prefix("bytes ").is_some_and(|range| range.starts_with(&format!("{have}-")))
            });
        let from = if goes_on { have } else { 0 };
        file.set_len(from).map_err(on_disk)?;
        file.seek(SeekFrom::Start(from)).map_err(on_disk)?;
        bar.set_position(from);
        let lacking = wanted.size - from;
        let size_is = |found: String| {
            let expected = wanted.size.to_string();
            Stopped::ForGood(FetchError::Wrong { url: url.clone(), what: "size", found, expected })
        };
        match response.body().content_length() {
            Some(length) if length != lacking && from > 0 => {
                file.set_len(0).map_err(on_disk)?;
                return Err(Stopped::Again("the file on the server has changed".to_owned()));
            }
            Some(length) if length != lacking => return Err(size_is(length.to_string())),
            _ => {}
        }
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let written = copy(&mut body.take(lacking + 1), file, bar).map_err(|e| match e {
            Copying::Read(e) => Stopped::Again(e.to_string()),
            Copying::Written(e) => on_disk(e),
        })?;
        if written > lacking {
            return Err(size_is(format!("more than {}", wanted.size)));
        }
        if written < lacking { Err(Stopped::Again("the connection was cut".to_owned())) } else { Ok(()) }
    }

    fn request(&self, url: &str, from: u64) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        let mut request = self.agent.get(url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request
    }

    /// Whether the answer goes on from where the request says; what else it may mean is no answer.
    fn judge(&self, url: &str, status: u16) -> Result<bool, Stopped> {
        let url = || url.to_owned();
        let for_good = |error| Err(Stopped::ForGood(error));
        match status {
            200 => Ok(false),
            206 => Ok(true),
            401 | 403 => for_good(FetchError::Denied { url: url(), status, remedy: self.remedies.denied.clone() }),
            404 | 410 => for_good(FetchError::Missing { url: url(), status, remedy: self.remedies.missing.clone() }),
            408 | 416 | 429 | 500.. => Err(Stopped::Again(format!("the server says {status}"))),
            _ => for_good(FetchError::Status { url: url(), status }),
        }
    }

    fn unreachable(&self, url: &str, why: String) -> FetchError {
        FetchError::Unreachable { url: url.to_owned(), why, remedy: self.remedies.unreachable.clone() }
    }
}

/// What the network says.
fn words(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Which side of a copy failed.
enum Copying {
    Read(io::Error),
    Written(io::Error),
}

/// Copies to the end, keeping all that came before an error; returns how much that is.
fn copy(from: &mut impl Read, to: &mut File, bar: &ProgressBar) -> Result<u64, Copying> {
    let (mut buffer, mut all) = (vec![0; 1 << 16], 0);
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Copying::Read(e)),
        };
        to.write_all(&buffer[..n]).map_err(Copying::Written)?;
        all += n as u64;
        bar.inc(n as u64);
    }
}

/// Where a file is before it is whole; Hugging Face's own tools call it so, too.
fn part_of(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".incomplete");
    target.with_file_name(name)
}

/// On a terminal: how much has come. Elsewhere: a line that says what is coming.
fn bar(wanted: &Wanted) -> ProgressBar {
    if !io::stderr().is_terminal() {
        // Nobody may be there to read it.
        let _ = writeln!(io::stderr(), "fetching {} ({})", wanted.name, HumanBytes(wanted.size));
        return ProgressBar::hidden();
    }
    let template = "{msg:24} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(wanted.size).with_style(style).with_message(wanted.name.clone())
}
