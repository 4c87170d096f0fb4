//! Parts that sections are made of: tables, figures with legends, facts.

use maud::{Markup, PreEscaped, html};

use super::super::plot;

/// A table whose first `left` columns are text, and the others numbers.
pub fn table(header: &[impl AsRef<str>], left: usize, rows: &[Vec<String>]) -> Markup {
    let class = |column: usize| (column >= left).then_some("n");
    html! {
        div.scroll {
            table {
                thead { tr { @for (i, name) in header.iter().enumerate() { th class=[class(i)] { (name.as_ref()) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                @if i < left { td { (cell) } } @else { td.n { (minus(cell)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A figure with a minus, which is no hyphen.
pub fn minus(figure: &str) -> String {
    figure.replace('-', "−")
}

/// A plot under its title, with a legend if there are names for one: (colour, name).
pub fn figure(title: &str, unit: &str, legend: &[(usize, &str)], svg: &str) -> Markup {
    html! {
        figure {
            figcaption { b { (title) } @if !unit.is_empty() { span.unit { (unit) } } }
            (PreEscaped(svg))
            @if !legend.is_empty() { (names(legend)) }
        }
    }
}

/// A legend.
pub fn names(legend: &[(usize, &str)]) -> Markup {
    html! {
        ul.legend {
            @for (colour, name) in legend {
                li { i class=(format!("c{}", plot::colour_of(*colour))) {} (name) }
            }
        }
    }
}

/// A name and a figure.
pub fn fact(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// A number with a thin space between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let of_place = |(i, digit): (usize, char)| {
        let is_start = i > 0 && (digits.len() - i).is_multiple_of(3);
        is_start.then_some('\u{202f}').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(of_place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!([7, 999, 1000, 1_234_567].map(grouped), ["7", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
    }

    #[test]
    fn text_is_text() {
        let table = table(&["<b>"], 1, &[vec!["<script>alert(1)</script>".to_owned(), "1".to_owned()]]).into_string();
        assert!(
            !table.contains("<script") && table.contains("&lt;script&gt;") && table.contains("&lt;b&gt;"),
            "{table}"
        );
    }
}
