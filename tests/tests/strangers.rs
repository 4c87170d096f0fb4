//! The control channel: strangers are refused, the secret is nobody else's, and a run does not mind them.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bam_tests::{Recipe, Run, Workplace, tree};
use serde_json::{Value, json};

/// Says something to the launcher and waits until it hangs up.
fn is_refused(address: &str, words: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    // It may hang up before everything is said.
    let _ = stream.write_all(words);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer.is_empty(),
        Err(e) => answer.is_empty() && e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn strangers_are_refused_and_the_run_goes_on() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.mode = "multi".into();
    recipe.multi = "epochs: 20, batch_size: 16".into();
    recipe.checkpoint = "every_steps: 10".into();
    place.recipe("recipe.yaml", &recipe);
    let run = Run::new(place.at("runs/tiny"));
    let mut running = place.bam(["run", "recipe.yaml"]).start();
    running.wait_until("some steps", || run.steps("multi").len() >= 5);
    let ranks = running.ranks(2);
    let control: Value = run.json("stages/multi/control.json");
    let mode = fs::metadata(run.stage("multi", "control.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the file with the secret");
    let (address, secret) = (control["address"].as_str().unwrap(), control["secret"].as_str().unwrap());
    for process in tree(running.pid()) {
        assert!(!process.command_line().contains(secret), "the secret is on the command line of {process:?}");
    }

    let _silent = TcpStream::connect(address).unwrap();
    let hello = |secret: &str, incarnation: u64| {
        let message = json!({
            "type": "hello", "secret": secret, "incarnation": incarnation,
            "rank": 0, "world_size": 2, "host": "elsewhere", "pid": 1,
        });
        format!("{message}\n").into_bytes()
    };
    let own = control["incarnation"].as_u64().unwrap();
    assert!(is_refused(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(is_refused(address, &[[0xff; 300].as_slice(), b"\n"].concat()));
    assert!(is_refused(address, &vec![b'x'; 5 << 20]), "a line without end");
    assert!(is_refused(address, b"{\"type\":\"done\",\"outcome\":\"finished\",\"outputs\":{}}\n"));
    assert!(is_refused(address, &hello("0123456789abcdef0123456789abcdef", own)));
    assert!(is_refused(address, &hello(secret, own - 1)), "a rank of an earlier start");
    assert!(is_refused(address, &hello(secret, own)), "a second rank 0");
    assert!(ranks.iter().all(|r| r.is_alive()), "the run ended before the strangers came; make it longer");

    running.finish().expect(0);
    assert_eq!(run.steps("multi").len(), 600);
    let log = run.log("multi");
    assert!(log.matches("refused a connection").count() >= 7, "{log}");
    assert!(!log.contains(secret), "the secret is in the log");
    assert!(!run.stage("multi", "control.json").exists());
}
