//! Plots as SVG to be put into a page, whose style sheet gives the colours named here others in the dark.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width and height of [`lines`], in units that a page scales to what room there is.
const SIZE: (u32, u32) = (680, 400);
/// Width of [`dots`], height of one of their rows, and what is above and below all rows.
const WIDTH_OF_ROWS: u32 = 540;
const ROW: u32 = 38;
const AROUND_ROWS: u32 = 46;
/// Size of letters: what is still read when the page is as narrow as a telephone. Rows of dots are shown larger.
const LETTERS: u32 = 30;
const LETTERS_OF_ROWS: u32 = 22;
const GRID: RGBColor = RGBColor(0xe3, 0xe6, 0xea);
const AXIS: RGBColor = RGBColor(0x9a, 0xa3, 0xad);
/// Longest name beside an axis, in letters.
const LONGEST_NAME: usize = 14;

/// Colours of series; more series begin again.
pub const COLOURS: [RGBColor; 10] = [
    RGBColor(0x2f, 0x6d, 0xb3),
    RGBColor(0xd1, 0x66, 0x2b),
    RGBColor(0x3a, 0x8f, 0x5c),
    RGBColor(0xb8, 0x3a, 0x5e),
    RGBColor(0x7a, 0x5b, 0xb5),
    RGBColor(0x8c, 0x6d, 0x46),
    RGBColor(0x1f, 0x98, 0xa8),
    RGBColor(0xc7, 0x54, 0x9f),
    RGBColor(0x8f, 0x8a, 0x1f),
    RGBColor(0x5b, 0x65, 0x70),
];

/// The number of a series' colour.
pub fn colour_of(series: usize) -> usize {
    series % COLOURS.len()
}

/// One curve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// What it is called in the legend.
    pub label: String,
    /// Number of its colour.
    pub colour: usize,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
    /// For each of some x, the lowest and the highest value.
    pub band: Vec<(f64, f64, f64)>,
}

/// Values of a series in rows: (row, value).
#[derive(Debug, Clone, PartialEq)]
pub struct Dots {
    /// Number of its colour.
    pub colour: usize,
    /// One dot each.
    pub values: Vec<(usize, f64)>,
}

/// Curves over optimizer steps. `from_zero`: the axis of values begins at 0.
///
/// # Errors
/// The plotting library has some.
pub fn lines(series: &[Series], from_zero: bool) -> anyhow::Result<String> {
    let xs = || series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let ys = || series.iter().flat_map(|s| s.points.iter().map(|p| p.1)).filter(|y| y.is_finite());
    // Shorter axes would have the same whole number twice.
    let last = xs().fold(5.0, f64::max);
    let (low, high) = axis(ys(), from_zero);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw_lines(&area, series, last, (low, high)).map_err(|e| anyhow!("a plot cannot be drawn: {e}"))?;
    }
    Ok(svg)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_lines(area: &DrawingArea<SVGBackend, Shift>, series: &[Series], last: f64, (low, high): (f64, f64)) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin_top(14)
        .margin_right(26)
        .margin_bottom(6)
        .x_label_area_size(82)
        .y_label_area_size(98)
        .build_cartesian_2d(0.0..last, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|x| tick(*x))
        .y_label_formatter(&|y| tick(*y))
        .x_desc("optimizer step")
        .label_style(("sans-serif", LETTERS))
        .axis_desc_style(("sans-serif", LETTERS))
        .draw()?;
    let inside = |y: f64| y.clamp(low, high);
    for one in series {
        let colour = COLOURS[colour_of(one.colour)];
        let up = one.band.iter().map(|(x, _, high)| (*x, inside(*high)));
        let down = one.band.iter().rev().map(|(x, low, _)| (*x, inside(*low)));
        let band: Vec<(f64, f64)> = up.chain(down).collect();
        if one.band.len() > 1 {
            chart.draw_series([Polygon::new(band, colour.mix(0.18).filled())])?;
        }
        let points = || one.points.iter().filter(|(_, y)| y.is_finite()).map(|(x, y)| (*x, inside(*y)));
        if points().count() > 1 {
            chart.draw_series(LineSeries::new(points(), colour.stroke_width(3)))?;
        } else {
            chart.draw_series(points().map(|point| Circle::new(point, 6, colour.filled())))?;
        }
    }
    area.present()?;
    Ok(())
}

/// Dots in named rows over one axis of values, the first row on top.
///
/// # Errors
/// The plotting library has some.
pub fn dots(rows: &[String], series: &[Dots]) -> anyhow::Result<String> {
    let (low, high) = axis(series.iter().flat_map(|s| s.values.iter().map(|v| v.1)), false);
    let height = ROW * rows.len() as u32 + AROUND_ROWS;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH_OF_ROWS, height)).into_drawing_area();
        draw_dots(&area, rows, series, (low, high)).map_err(|e| anyhow!("a plot cannot be drawn: {e}"))?;
    }
    Ok(svg)
}

fn draw_dots(
    area: &DrawingArea<SVGBackend, Shift>,
    rows: &[String],
    series: &[Dots],
    (low, high): (f64, f64),
) -> Drawn {
    let bottom = rows.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin_top(8)
        .margin_right(30)
        .margin_left(160)
        .x_label_area_size(40)
        .build_cartesian_2d(low..high, bottom..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .x_labels(6)
        .y_labels(0)
        .x_label_formatter(&|x| tick(*x))
        .label_style(("sans-serif", LETTERS_OF_ROWS))
        .draw()?;
    let style = TextStyle::from(("sans-serif", LETTERS_OF_ROWS)).pos(Pos::new(HPos::Right, VPos::Center));
    for (i, row) in rows.iter().enumerate() {
        let (_, y) = chart.backend_coord(&(low, i as f64 + 0.5));
        area.draw(&Text::new(short(row), (150, y), style.clone()))?;
        let line = [(low, i as f64 + 0.5), (high, i as f64 + 0.5)];
        chart.draw_series([PathElement::new(line, GRID)])?;
    }
    // Series lie beside one another, so that equal values are seen.
    let step = 0.56 / series.len().max(1) as f64;
    for (i, one) in series.iter().enumerate() {
        let place = 0.5 + step * (i as f64 - (series.len() as f64 - 1.0) / 2.0);
        let colour = COLOURS[colour_of(one.colour)].mix(0.85);
        let dot = |(row, value): &(usize, f64)| Circle::new((*value, *row as f64 + place), 6, colour.filled());
        chart.draw_series(one.values.iter().map(dot))?;
    }
    area.present()?;
    Ok(())
}

/// A range that holds all values, with a little room around them.
fn axis(values: impl Iterator<Item = f64>, from_zero: bool) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let low = if from_zero { low.min(0.0) } else { low };
    let room = if high > low { (high - low) * 0.06 } else { high.abs().max(1.0) * 0.1 };
    (if from_zero && low >= 0.0 { 0.0 } else { low - room }, high + room)
}

fn short(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    name.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
}

/// A number beside an axis.
fn tick(value: f64) -> String {
    let size = value.abs();
    let trimmed = |text: String| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match size {
        s if s < 1e-12 => "0".to_owned(),
        s if s < 1e-3 => {
            let text = format!("{value:.1e}");
            text.replace(".0e", "e")
        }
        s if s < 10_000.0 => trimmed(format!("{value:.3}")),
        s if s < 1e6 => trimmed(format!("{:.1}", value / 1e3)) + "k",
        _ => trimmed(format!("{:.1}", value / 1e6)) + "M",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        let shown = [0.0, 0.25, 2.0, 1e-4, 2.5e-5, 1500.0, 50_000.0, 12_500.0, 2e6].map(tick);
        assert_eq!(shown, ["0", "0.25", "2", "1e-4", "2.5e-5", "1500", "50k", "12.5k", "2M"]);
    }

    #[test]
    fn an_axis_holds_its_values() {
        assert_eq!(axis([].into_iter(), true), (0.0, 1.06));
        assert_eq!(axis([0.0, 1.0].into_iter(), true), (0.0, 1.06));
        let (low, high) = axis([3.0].into_iter(), false);
        assert!(low < 3.0 && high > 3.0);
    }

    #[test]
    fn plots_have_a_mark_for_whatever_there_is() {
        let series = |n: u32| Series { points: (0..n).map(|i| (f64::from(i), 1.0)).collect(), ..Series::default() };
        assert!(lines(&[series(3)], true).unwrap().contains("<polyline"));
        assert!(lines(&[series(1)], true).unwrap().contains("<circle"));
        let nan = Series { points: vec![(0.0, f64::NAN)], ..Series::default() };
        assert!(!lines(&[nan], true).unwrap().contains("NaN"));
        let svg = dots(&["<a>".to_owned()], &[Dots { colour: 0, values: vec![(0, 50.0), (0, 60.0)] }]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("&lt;a&gt;") && !svg.contains("<a>"));
    }
}
