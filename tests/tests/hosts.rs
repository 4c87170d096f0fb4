//! Several hosts, made of namespaces on this machine: a run spans them, and one that is cut off is named.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::time::Duration;

use bam_tests::{Bam, Lab, Recipe, Run, Workplace};

/// `bam` with a rank on each of two hosts.
fn bam(lab: &Lab, place: &Workplace, run: &Run) -> Bam {
    bam_on(lab, place, run, "2", "n1,n2")
}

/// `bam` with ranks on these hosts.
fn bam_on(lab: &Lab, place: &Workplace, run: &Run, ranks: &str, hosts: &str) -> Bam {
    let agent = format!("cluster.mpirun_args=[--mca, plm_rsh_agent, {:?}]", lab.remote_shell());
    let directory = run.path().to_str().unwrap();
    let words = ["run", "recipe.yaml", "-n", ranks, "--hosts", hosts, "-o", &agent, "--run-dir", directory];
    lab.bam(place.path(), &words).within(Duration::from_secs(300))
}

#[test]
fn a_host_that_is_cut_off_is_named_and_the_run_goes_on_when_it_is_back() {
    let place = Workplace::new();
    let name = "a_host_that_is_cut_off_is_named_and_the_run_goes_on_when_it_is_back";
    let Some(lab) = Lab::of_hosts(name, &place.at("lab")) else { return };
    let mut recipe = Recipe::of(&["cola"]);
    recipe.mode = "multi".into();
    recipe.model = "max_length: 40".into();
    recipe.multi = "epochs: 40, batch_size: 16, learning_rate: 0.001".into();
    recipe.checkpoint = "every_steps: 10, keep: 2".into();
    place.recipe("recipe.yaml", &recipe);
    let whole = Run::new(place.at("runs/whole"));
    bam(&lab, &place, &whole).expect(0);
    let run = Run::new(place.at("runs/cut"));
    let mut running = bam(&lab, &place, &run).start();
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

#[test]
fn ranks_that_share_a_hosts_memory_learn_what_one_rank_learns() {
    let place = Workplace::new();
    let name = "ranks_that_share_a_hosts_memory_learn_what_one_rank_learns";
    let Some(lab) = Lab::of_hosts(name, &place.at("lab")) else { return };
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.mode = "multi".into();
    recipe.model = "max_length: 40".into();
    recipe.multi = "epochs: 1, batch_size: 16, learning_rate: 0.0005".into();
    place.recipe("recipe.yaml", &recipe);
    let alone = Run::new(place.at("runs/alone"));
    place.bam(["run", "recipe.yaml", "-n", "1", "--run-dir", alone.path().to_str().unwrap()]).expect(0);
    let expected = alone.steps("multi");
    // Where hosts have different numbers of ranks, all goes through MPI.
    for (ranks, hosts) in [("4", "n1:2,n2:2"), ("3", "n1:2,n2:1")] {
        let run = Run::new(place.at(format!("runs/{ranks}")));
        bam_on(&lab, &place, &run, ranks, hosts).expect(0);
        assert_eq!(run.receipt("multi"), alone.receipt("multi"), "{hosts}");
        let found = run.steps("multi");
        assert_eq!(found.len(), expected.len());
        for (one, other) in expected.iter().zip(&found) {
            let is_alike = (one.loss - other.loss).abs() <= 1e-4 * one.loss.abs();
            assert!(is_alike, "{hosts}, step {}: loss {} instead of {}", one.step, other.loss, one.loss);
        }
    }
    // Models side by side are on hosts of their own.
    let run = Run::new(place.at("runs/single"));
    let bam = bam_on(&lab, &place, &run, "4", "n1:2,n2:2").arg("-o").arg("mode=single");
    bam.arg("-o").arg("cluster.single_processes=2").expect(0);
    let is_on = |host: &str, stage: &str| run.log(stage).contains(&format!(" --host {host}:2 "));
    for (one, other) in [("n1", "n2"), ("n2", "n1")] {
        assert_eq!(is_on(one, "single-cola"), is_on(other, "single-warmth"), "{}", run.log("single-cola"));
    }
    assert!(is_on("n1", "single-cola") != is_on("n2", "single-cola"), "{}", run.log("single-cola"));
}
