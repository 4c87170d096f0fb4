//! How tables look: aligned columns under a rule, names to the left, numbers to the right; shares in percent.

use bam_cluster::task::Metric;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table with `header`; the first `left` columns are names, the others numbers.
pub fn plain_table(header: &[&str], left: usize, rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header.to_vec());
    table.add_rows(rows.iter().cloned());
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n", table.trim_fmt())
}

/// What a score of this metric is multiplied by to be shown, and how many decimals it has.
pub fn scale(metric: Metric) -> (f64, usize) {
    if metric.is_share() { (100.0, 1) } else { (1.0, 3) }
}

/// One score as tables show it.
pub fn figure(score: f64, metric: Metric) -> String {
    let (factor, digits) = scale(metric);
    format!("{:.digits$}", factor * score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percents_and_errors_are_not() {
        let of = |metric| figure(0.1234, metric);
        assert_eq!(
            (of(Metric::Accuracy), of(Metric::Spearman), of(Metric::Mse)),
            ("12.3".into(), "12.3".into(), "0.123".into())
        );
    }
}
