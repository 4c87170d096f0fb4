//! `bam rehearse`: does this recipe survive trouble on this machine? Proved by trying.

use anyhow::Context;
use bam_cluster::config::Reproducible;
use bam_cluster::exit_code;

use crate::cli::RehearseArguments;
use crate::project::Project;
use crate::rehearsal::{EVERY_STEPS, Extent, Outcome, Rehearsal, cut_down, scenarios};
use crate::report::plain_table;
use crate::supervise::Interrupts;

/// Rehearses.
pub fn run(arguments: &RehearseArguments) -> anyhow::Result<u8> {
    let whole = Project::load(&arguments.recipe)?;
    let mut cut = arguments.recipe.clone();
    cut.overrides.extend(cut_down(&whole.recipe, &whole.plan.tasks));
    let small = Project::load(&cut)?;
    let processes = small.recipe.cluster.processes;
    let is_exact = small.recipe.reproducible == Reproducible::WorldSize;
    let extent = if arguments.every_point { Extent::EveryPoint } else { Extent::Kinds };
    let all = scenarios(&small.plan, processes, EVERY_STEPS, is_exact, extent);
    let rehearsal = Rehearsal {
        directory: super::directory_or_default(arguments.dir.as_deref(), &format!("{}-rehearsal", small.recipe.name))?,
        config: arguments.recipe.config.clone(),
        overrides: cut.changes(),
        processes,
        plan: small.plan,
        interrupts: Interrupts::listen().context("cannot listen for signals")?,
    };
    super::tell(&format!("{} rehearsals in {}", all.len(), rehearsal.directory.display()));
    let outcomes = rehearsal.run(&all, super::tell)?;
    super::print(&render(&outcomes))?;
    Ok(if outcomes.iter().all(|o| o.proof.is_ok()) { exit_code::DONE } else { exit_code::FAILURE })
}

fn render(outcomes: &[Outcome]) -> String {
    let row = |o: &Outcome| {
        vec![
            o.title.clone(),
            o.noticed.map_or("–".to_owned(), |s| format!("{s:.1} s")),
            match &o.proof {
                Ok(what) => (*what).to_owned(),
                Err(_) => "FAILED".to_owned(),
            },
        ]
    };
    let rows: Vec<Vec<String>> = outcomes.iter().map(row).collect();
    let mut text = format!("\n{}", plain_table(&["What happened", "Noticed after", "In the end"], 1, &rows));
    text += "\nWhat bam said\n";
    for outcome in outcomes {
        if let Some(sentence) = &outcome.sentence {
            text += &format!("  {sentence}\n");
        }
    }
    let failed: Vec<String> =
        outcomes.iter().filter_map(|o| o.proof.as_ref().err().map(|why| format!("\n{}: {why}\n", o.title))).collect();
    let survived = outcomes.len() - failed.len();
    text + &failed.concat() + &format!("\n{survived} of {} survived\n", outcomes.len())
}
