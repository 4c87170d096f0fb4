//! Several hosts, made of network name spaces on this one: a run spans them, and one that is cut off is named.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bam_tests::{Bam, Recipe, Run, Workplace, program, repository, say_skipped};

/// Hosts `n1`, `n2` and `ctl`, from which a run is started. They vanish in the end.
struct Lab {
    script: PathBuf,
    directory: PathBuf,
}

impl Lab {
    /// None where hosts cannot be made; it has been said why.
    fn up(test: &str, place: &Workplace) -> Option<Lab> {
        let script = repository().join("../shared/lab/netns-lab.sh");
        if !script.exists() {
            say_skipped(test, "there is no script here that makes hosts of network name spaces");
            return None;
        }
        let lab = Lab { script, directory: place.at("lab") };
        let up = lab.command(&["up", "2"]).output().unwrap();
        if !up.status.success() {
            say_skipped(test, "network name spaces cannot be made here (it takes root and iproute2)");
            return None;
        }
        Some(lab)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.script);
        command.args(words);
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        command
    }

    /// Names of its own, so that labs do not get in each other's way.
    fn environment(&self) -> [(&'static str, String); 3] {
        let number = std::process::id();
        let directory = self.directory.display().to_string();
        [
            ("LAB_DIR", directory),
            ("LAB_PREFIX", format!("b{number}")),
            ("LAB_SUBNET", format!("10.{}.9", 100 + number % 100)),
        ]
    }

    fn run(&self, words: &[&str]) {
        let done = self.command(words).output().unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    }

    /// `bam` on the host `ctl`, with a rank on each of the others.
    fn bam(&self, place: &Workplace, run: &Run) -> Bam {
        let agent = format!("cluster.mpirun_args=[--mca, plm_rsh_agent, {}/rsh-agent]", self.directory.display());
        let bam = program("bam");
        let words = [
            "exec",
            "ctl",
            bam.to_str().unwrap(),
            "run",
            "recipe.yaml",
            "-n",
            "2",
            "--hosts",
            "n1,n2",
            "-o",
            &agent,
            "--run-dir",
            run.path().to_str().unwrap(),
        ];
        let mut bam = Bam::of_program(&self.script, place.path(), words).within(Duration::from_secs(300));
        for (name, value) in self.environment() {
            bam = bam.env(name, value);
        }
        bam
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

#[test]
fn a_host_that_is_cut_off_is_named_and_the_run_goes_on_when_it_is_back() {
    let place = Workplace::new();
    let Some(lab) = Lab::up("a_host_that_is_cut_off_is_named_and_the_run_goes_on_when_it_is_back", &place) else {
        return;
    };
    let mut recipe = Recipe::of(&["cola"]);
    recipe.mode = "multi".into();
    recipe.model = "max_length: 40".into();
    recipe.multi = "epochs: 40, batch_size: 16, learning_rate: 0.001".into();
    recipe.checkpoint = "every_steps: 10, keep: 2".into();
    place.recipe("recipe.yaml", &recipe);
    let whole = Run::new(place.at("runs/whole"));
    lab.bam(&place, &whole).expect(0);
    let run = Run::new(place.at("runs/cut"));
    let mut running = lab.bam(&place, &run).start();
    running.wait_until("step 25", || run.steps("multi").len() >= 25);
    lab.run(&["cut", "n2"]);
    let noticed = running.wait_for_words("host n2 has not been heard of");
    println!("a cut cable was noticed after {noticed:?}");
    assert!(noticed < Duration::from_secs(20), "{noticed:?}");
    lab.run(&["heal", "n2"]);
    let finished = running.finish().expect(0);
    for part in ["rank", "last heard of at step", "the network to it is cut", "going on from the checkpoint of step"] {
        assert!(finished.stderr.contains(part), "{part}: {finished}");
    }
    assert_eq!(run.weights_sha256("multi"), whole.weights_sha256("multi"));
    assert_eq!(run.receipt("multi"), whole.receipt("multi"));
}
