//! What happened on the way: stages and how long they took, starts and what ended them, batch jobs.

use maud::{Markup, html};

use super::super::story::{StageStory, Story};
use super::element;
use crate::history::{Entry, Event};
use crate::numbers::brief;

/// The section of one run.
pub fn section(story: &Story) -> Markup {
    let stages: Vec<Vec<String>> = story.stages.iter().map(stage).collect();
    let more: usize = story.stages.iter().map(|s| s.starts.len().saturating_sub(1)).sum();
    let notable = || story.stages.iter().filter(|s| s.starts.len() > 1 || s.starts.iter().any(|b| !b.said.is_empty()));
    let header = ["Stage", "", "Steps", "Starts", "Checkpoints", "Last start took"];
    html! {
        section {
            h2 { "What happened" }
            p {
                @match more {
                    0 => "No stage had to be started again.",
                    1 => "One start more than there are stages that were begun.",
                    n => { (n) " starts more than there are stages that were begun." }
                }
            }
            details open[more > 0 || story.stages.iter().any(|s| s.record.is_none())] {
                summary { "Stages" }
                (element::table(&header, 2, &stages))
            }
            @if notable().next().is_some() {
                details open[more > 0] {
                    summary { "Starts" }
                    @for stage in notable() { (starts(stage)) }
                }
            }
            @if !story.jobs.is_empty() {
                details {
                    summary { "Batch jobs" }
                    (element::table(&["Time", "Job", "", "Host", "Done"], 5, &story.jobs.iter().map(job).collect::<Vec<_>>()))
                }
            }
        }
    }
}

fn stage(stage: &StageStory) -> Vec<String> {
    let standing = match (&stage.record, stage.is_begun) {
        (Some(_), _) => "done",
        (None, true) => "begun",
        (None, false) => "not begun",
    };
    let steps = stage.training.as_ref().map_or(String::new(), |t| {
        let (done, total) = (t.steps(), t.plan.schedule.total_steps);
        if done == total {
            element::grouped(total)
        } else {
            format!("{} of {}", element::grouped(done), element::grouped(total))
        }
    });
    let checkpoints: usize = stage.starts.iter().map(|start| start.checkpoints).sum();
    vec![
        stage.name.clone(),
        standing.to_owned(),
        steps,
        stage.starts.len().to_string(),
        if stage.training.is_some() { checkpoints.to_string() } else { String::new() },
        stage.record.as_ref().map_or(String::new(), |record| brief(record.seconds)),
    ]
}

fn starts(stage: &StageStory) -> Markup {
    html! {
        h3 { (stage.name) }
        ol.starts {
            @for start in &stage.starts {
                li {
                    time { (start.time) }
                    @if start.checkpoints > 0 { " · checkpoints: " (start.checkpoints) }
                    @for said in &start.said { p { (said) } }
                }
            }
        }
    }
}

fn job(entry: &Entry) -> Vec<String> {
    let what = match entry.event {
        Event::Start if entry.restart == 0 => "started".to_owned(),
        Event::Start => format!("started again, {} times by now", entry.restart),
        Event::Stop => format!("ended: {}", entry.reason.as_deref().unwrap_or_default()),
    };
    let kept = format!("{} stages, {} steps in checkpoints of others", entry.kept.stages, entry.kept.steps);
    vec![entry.time.clone(), entry.job.clone(), what, entry.host.clone(), kept]
}
