//! The control channel: strangers are refused, the secret is nobody else's, and a run does not mind them.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bam_tests::{Process, Recipe, Run, Workplace, tree, write_program};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

const STEPS: usize = 600;

/// Says something to the launcher and waits until it hangs up; what it answered.
fn answer(address: &str, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    // It may hang up before everything is said.
    let _ = stream.write_all(words);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(e) = stream.read_to_end(&mut answer) {
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "after {words:?}");
    }
    answer
}

fn is_refused(address: &str, words: &[u8]) -> bool {
    answer(address, words).is_empty()
}

/// Stands between ranks and launcher, passes everything on, and keeps what the ranks say.
struct Recorder {
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    /// Takes the ranks' place at the address in `original`, which is written before the first of them connects.
    fn start(listener: TcpListener, original: &Path) -> Recorder {
        let said: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (records, original) = (said.clone(), original.to_owned());
        thread::spawn(move || {
            for rank in listener.incoming() {
                let rank = rank.unwrap();
                let control: Value = serde_json::from_slice(&fs::read(&original).unwrap()).unwrap();
                let launcher = TcpStream::connect(control["addresses"][0].as_str().unwrap()).unwrap();
                let number = {
                    let mut records = records.lock().unwrap();
                    records.push(vec![]);
                    records.len() - 1
                };
                let (records, to, from) = (records.clone(), launcher.try_clone().unwrap(), rank.try_clone().unwrap());
                thread::spawn(move || pass_on(from, to, |bytes| records.lock().unwrap()[number].extend(bytes)));
                thread::spawn(move || pass_on(launcher, rank, |_| {}));
            }
        });
        Recorder { said }
    }

    /// What ranks have said so far, by connection.
    fn said(&self) -> Vec<Vec<u8>> {
        self.said.lock().unwrap().clone()
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, keep: impl Fn(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        keep(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn holds(content: &[u8], secret: &str) -> bool {
    content.windows(secret.len()).any(|w| w == secret.as_bytes())
}

/// Every file of the run but the control file itself.
fn assert_nowhere(directory: &Path, secret: &str) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_nowhere(&path, secret);
        } else if path.file_name().unwrap() != "control.json"
            // Files that are written aside come and go.
            && let Ok(content) = fs::read(&path)
        {
            assert!(!holds(&content, secret), "the secret is in {}", path.display());
        }
    }
}

fn assert_not_shown(process: &Process, secret: &str) {
    for view in ["cmdline", "environ"] {
        let content = fs::read(format!("/proc/{}/{view}", process.pid)).unwrap();
        assert!(!holds(&content, secret), "the secret is in {view} of {process:?}");
    }
}

/// The recipe of these tests and the weights that it leads to when nobody interferes.
fn undisturbed(place: &Workplace) -> String {
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.mode = "multi".into();
    recipe.multi = "epochs: 20, batch_size: 16".into();
    recipe.checkpoint = "every_steps: 100".into();
    place.recipe("recipe.yaml", &recipe);
    let run = Run::new(place.at("runs/undisturbed"));
    place.bam(["run", "recipe.yaml", "--run-dir", "runs/undisturbed"]).expect(0);
    run.weights_sha256("multi")
}

#[test]
fn strangers_are_refused_and_the_run_goes_on_to_the_same_weights() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most).unwrap();
    let place = Workplace::new();
    let weights = undisturbed(&place);
    let run = Run::new(place.at("runs/tiny"));

    // A wire-tap between the ranks and the launcher.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let original = place.at("original.json");
    let script = format!(
        "#!/bin/sh\nfor file in {}/stages/*/control.json; do\n    [ -f \"$file\" ] || continue\n    \
         cp \"$file\" {}\n    sed -i 's/\"127[^\"]*\"/\"{}\"/' \"$file\"\ndone\nexec mpirun \"$@\"\n",
        run.path().display(),
        original.display(),
        listener.local_addr().unwrap()
    );
    let mpirun = place.at("mpirun");
    write_program(&mpirun, &script);
    let recorder = Recorder::start(listener, &original);

    let mut running = place.bam(["run", "recipe.yaml"]).env("BAM_MPIRUN", &mpirun).start();
    running.wait_until("some steps", || run.steps("multi").len() >= 5);
    let ranks = running.ranks(2);
    let mode = fs::metadata(run.stage("multi", "control.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the file with the secret");
    let control: Value = serde_json::from_slice(&fs::read(&original).unwrap()).unwrap();
    let (address, secret) = (control["addresses"][0].as_str().unwrap(), control["secret"].as_str().unwrap());
    assert_eq!(secret.len(), 64);
    let all = tree(running.pid());
    assert!(all.len() >= 4, "bam, mpirun and two ranks: {all:?}");
    all.iter().for_each(|process| assert_not_shown(process, secret));
    assert_nowhere(run.path(), secret);

    let idle: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert!(is_refused(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(is_refused(address, &[[0xff; 300].as_slice(), b"\n"].concat()));
    assert!(is_refused(address, &vec![b'x'; 5 << 20]), "a line without end");
    assert!(is_refused(address, b"{\"type\":\"done\",\"outcome\":\"finished\",\"outputs\":{}}\n"));
    // As ranks said hello before they had to prove anything.
    let message = json!({ "type": "hello", "secret": secret, "incarnation": control["incarnation"],
                          "rank": 0, "world_size": 2, "host": "elsewhere", "pid": 1 });
    assert!(is_refused(address, format!("{message}\n").as_bytes()));
    // Everything that ranks have said in this stage and before, said again.
    let said = recorder.said();
    assert!(said.len() >= 4 && said.iter().all(|s| s.len() > 300), "two ranks of two stages were recorded");
    for words in &said {
        assert!(!holds(words, secret), "the secret travels");
        let answer = answer(address, words);
        assert_eq!(answer.len(), "bam-control 1 ".len() + 64 + 1, "a nonce and no more: {answer:?}");
    }
    assert!(ranks.iter().all(|r| r.is_alive()), "the run ended before the strangers came; make it longer");
    drop(idle);

    let done = running.finish().expect(0);
    assert!(!holds(done.stderr.as_bytes(), secret) && !holds(done.stdout.as_bytes(), secret));
    assert_eq!(run.steps("multi").len(), STEPS);
    assert_eq!(run.weights_sha256("multi"), weights, "the run was disturbed");
    let log = run.log("multi");
    assert_eq!(log.matches("refused a connection").count(), 20, "{log}");
    assert!(log.contains("more connections in"), "{log}");
    assert_nowhere(run.path(), secret);
    assert!(!run.stage("multi", "control.json").exists());
}
