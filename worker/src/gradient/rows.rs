//! Which rows of the word embeddings have a gradient. A batch has a few hundred words out of 30,522, whose rows are half of a
//! small model: nobody needs to set the others to zero, send them, or add up their squares.

use std::collections::BTreeSet;
use std::ops::Range;

/// Rows of a matrix that lies at the beginning of the flat buffers; all others' gradients are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TouchedRows {
    count: usize,
    width: usize,
    rows: BTreeSet<usize>,
}

impl TouchedRows {
    /// None of `count` rows of `width` values.
    pub fn none(count: usize, width: usize) -> Self {
        TouchedRows { count, width, rows: BTreeSet::new() }
    }

    /// Adds rows.
    pub fn extend(&mut self, rows: impl IntoIterator<Item = usize>) {
        self.rows.extend(rows);
    }

    /// Adds all rows.
    pub fn touch_all(&mut self) {
        self.rows = (0..self.count).collect();
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// The rows, ascending.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().copied()
    }

    /// Values of one row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Values of all rows that are touched.
    pub fn values(&self) -> usize {
        self.rows.len() * self.width
    }

    /// Values of the whole matrix: where in the flat buffers it ends.
    pub fn end(&self) -> usize {
        self.count * self.width
    }

    /// Where the touched rows lie within a part of the flat buffers, neighbours together.
    pub fn ranges_within(&self, part: &Range<usize>) -> Vec<Range<usize>> {
        let cut = self.ranges().into_iter().map(|r| r.start.max(part.start)..r.end.min(part.end));
        cut.filter(|range| !range.is_empty()).collect()
    }

    /// Where the touched rows lie, neighbours together.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = vec![];
        for row in &self.rows {
            let (start, end) = (row * self.width, (row + 1) * self.width);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        let mut rows = TouchedRows::none(8, 10);
        rows.extend([5, 2, 3, 5]);
        assert_eq!(rows.ranges(), [20..40, 50..60]);
        assert_eq!((rows.values(), rows.end()), (30, 80));
        assert_eq!(rows.ranges_within(&(25..55)), [25..40, 50..55]);
        assert!(rows.ranges_within(&(40..50)).is_empty() && rows.ranges_within(&(60..90)).is_empty());
        rows.touch_all();
        assert_eq!(rows.ranges(), vec![0..80]);
        rows.clear();
        assert!(rows.ranges().is_empty());
    }
}
