//! How fast training was, and where a step's time went.

use maud::{Markup, html};

use super::super::plot;
use super::super::story::{Story, Training};
use super::element;

/// The section of one run.
pub fn section(story: &Story) -> Markup {
    let trained = || {
        let of_stage =
            |stage: &'_ super::super::story::StageStory| stage.training.as_ref().is_some_and(|t| t.steps() > 0);
        story.stages.iter().filter(move |stage| of_stage(stage))
    };
    if trained().next().is_none() {
        return html! {};
    }
    let parts =
        trained().filter_map(|s| s.training.as_ref()).map(|t| t.curves.whole.parts()).next().unwrap_or_default();
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
                        @for stage in trained() {
                            @if let Some(training) = &stage.training { (row(&stage.name, training)) }
                        }
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
