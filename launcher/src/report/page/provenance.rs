//! What it takes to make the run again: commands, versions, recipe, sums of everything that went in and came out.

use maud::{Markup, html};

use super::super::story::Story;
use super::element;

/// The section of one run.
pub fn section(story: &Story) -> Markup {
    html! {
        section {
            h2 { "Provenance" }
            @for command in &story.commands {
                pre.command { "cd " (crate::shell::quoted(&command.directory)) "\n" (command.command) }
                p.hint { "bam " (command.version) " on " (command.host) ", first given at " (command.time) }
            }
            p.hint { "Plan: " code { (story.plan_hash) } }
            details {
                summary { "Recipe, with all defaults" }
                pre { (story.recipe) }
            }
            details {
                summary { "Sums (SHA-256) of what each stage was made from and made" }
                (element::table(&["Stage", "", "What", "SHA-256"], 4, &sums(story)))
            }
            details {
                summary { "How ranks were started" }
                @for stage in story.stages.iter().filter(|stage| !stage.starts.is_empty()) {
                    h3 { (stage.name) }
                    @if let Some(start) = stage.starts.last() { pre.command { (start.command) } }
                }
            }
        }
    }
}

/// What several stages are made from is named once.
fn sums(story: &Story) -> Vec<Vec<String>> {
    let mut known = vec![];
    let mut rows = vec![];
    for stage in &story.stages {
        for (name, sum) in &stage.inputs {
            if !known.contains(&(name, sum)) {
                known.push((name, sum));
                rows.push(vec![stage.name.clone(), "from".to_owned(), name.clone(), sum.clone()]);
            }
        }
        for (name, sum) in stage.record.iter().flat_map(|record| &record.outputs) {
            rows.push(vec![stage.name.clone(), "made".to_owned(), name.clone(), sum.clone()]);
        }
    }
    rows
}
