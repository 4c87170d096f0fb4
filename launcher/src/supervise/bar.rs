//! The line of one stage on a terminal, as wide as that is: name, bar, count, and as many figures as there is room for.

use super::figures::{Figures, STARTING};

/// Between figures.
const BETWEEN: &str = " · ";

/// How a stage is, in so many columns; its name takes `name_width` of them.
pub fn stage_line(stage: &str, figures: &Figures, name_width: usize, width: usize) -> String {
    let name = format!("{:<name_width$}", shortened(stage, name_width));
    let (done, total) = (figures.done(), figures.total());
    if total == 0 {
        return format!("{name}  {STARTING}");
    }
    let share = done as f64 / total as f64;
    // Below fifty columns, there is no room for a bar.
    let cells = match width {
        0..50 => 0,
        50..80 => 8,
        80..120 => 12,
        120.. => 20,
    };
    let mut line = name;
    if cells > 0 {
        line += &format!("  {}", bar(share, cells));
    }
    line += &format!("  {:>3.0} %  {done}/{total}", (100.0 * share).floor());
    with_as_many(line, &figures.details(), width)
}

/// `start` with as many of `parts`, from the first on, as fit into so many columns.
pub fn with_as_many(start: String, parts: &[String], width: usize) -> String {
    let mut line = start;
    let mut before = "  ";
    for part in parts {
        if line.chars().count() + before.chars().count() + part.chars().count() > width {
            break;
        }
        line += before;
        line += part;
        before = BETWEEN;
    }
    line
}

/// A bar of so many cells, filled to half a cell.
fn bar(share: f64, cells: usize) -> String {
    let halves = (share.clamp(0.0, 1.0) * 2.0 * cells as f64).floor() as usize;
    let (full, half) = (halves / 2, halves % 2);
    "━".repeat(full) + &"╸".repeat(half) + &"┄".repeat(cells - full - half)
}

/// A name in so many columns.
fn shortened(name: &str, width: usize) -> String {
    if name.chars().count() <= width {
        return name.to_owned();
    }
    name.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn figures() -> Figures {
        let mut figures = Figures::of_training(50, 200);
        figures.examples(50, 200, Duration::from_secs(5));
        figures
    }

    #[test]
    fn a_line_has_what_there_is_room_for() {
        let line = |width| stage_line("teacher-cola", &figures(), 12, width);
        assert!(
            line(120).starts_with("teacher-cola  ━━━━━┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄   25 %  50/200  15 s left · "),
            "{}",
            line(120)
        );
        assert!(line(120).ends_with("checkpoint 50"), "{}", line(120));
        assert_eq!(line(60), "teacher-cola  ━━┄┄┄┄┄┄   25 %  50/200  15 s left");
        assert_eq!(line(40), "teacher-cola   25 %  50/200  15 s left");
        for width in 30..200 {
            assert!(line(width).chars().count() <= width, "{width}: {}", line(width));
        }
        assert_eq!(stage_line("teacher-editorials", &Figures::default(), 12, 80), "teacher-edi…  starting");
    }

    #[test]
    fn a_bar_is_filled_to_half_a_cell() {
        assert_eq!([0.0, 0.3, 0.5, 1.0, 7.0].map(|share| bar(share, 4)), ["┄┄┄┄", "━┄┄┄", "━━┄┄", "━━━━", "━━━━"]);
        assert_eq!(bar(0.375, 4), "━╸┄┄");
    }
}
