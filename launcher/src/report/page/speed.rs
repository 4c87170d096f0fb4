//! How fast training was, and where a step's time went.

use maud::{Markup, html};

use super::super::plot;
use super::super::story::{StageStory, Story, Training};
use super::element;

/// The section of one run.
pub fn section<'a>(story: &'a Story) -> Markup {
    let of_stage =
        |stage: &'a StageStory| Some((stage.name.as_str(), stage.training.as_ref().filter(|t| t.steps() > 0)?));
    let trained: Vec<(&str, &Training)> = story.stages.iter().filter_map(of_stage).collect();
    let Some((_, first)) = trained.first() else { return html! {} };
    let parts = first.curves.whole.parts();
    let legend: Vec<(usize, &str)> = parts.iter().enumerate().map(|(i, (name, _))| (i, *name)).collect();
    html! {
        section {
            h2 { "Speed" }
            (element::names(&legend))
            div.scroll {
                table {
                    thead { tr {
                        th { "Stage" } th.n { "Samples/s" } th.n { "Tokens/s" } th.n { "MFU" } th.n { "A step" }
                        th.n { "Reduced a step" } th { "Where a step's time goes" }
                    } }
                    tbody {
                        @for (name, training) in &trained { (row(name, training)) }
                    }
                }
            }
            p.hint {
                "MFU: model FLOPs utilisation, what a batch is worth over what the ranks could multiply in that time. \
                 Parts of a step as rank 0 saw them; hover for figures."
            }
        }
    }
}

fn row(name: &str, training: &Training) -> Markup {
    let whole = &training.curves.whole;
    html! {
        tr {
            td { (name) }
            td.n { (format!("{:.1}", whole.samples_per_second())) }
            td.n { (element::grouped(whole.tokens_per_second().round() as u64)) }
            td.n { (format!("{:.0} %", 100.0 * whole.utilisation())) }
            td.n { (format!("{:.3} s", whole.step_seconds())) }
            td.n { (bytes(whole.bytes_reduced())) }
            td.wide { div.bar {
                @for (i, (part, share)) in whole.parts().iter().enumerate() {
                    i class=(format!("c{}", plot::colour_of(i))) style=(format!("width:{:.2}%", 100.0 * share))
                        title=(format!("{part}: {:.1} %", 100.0 * share)) {}
                }
            } }
        }
    }
}

/// Bytes for people.
fn bytes(count: f64) -> String {
    match count {
        c if c < 1.0 => "–".to_owned(),
        c if c < 1024.0 * 1024.0 => format!("{:.0} KiB", c / 1024.0),
        c => format!("{:.1} MiB", c / 1024.0 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_brief() {
        assert_eq!([0.0, 2048.0, 44_040_192.0].map(bytes), ["–", "2 KiB", "42.0 MiB"]);
    }
}
