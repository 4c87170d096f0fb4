//! Numbers as people read them: `12,345`, `1.34 GB`, `3 min 20 s`.

/// `12,345`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `90.8 MB`.
pub fn bytes(n: f64) -> String {
    match n {
        n if n >= 1e12 => format!("{:.2} TB", n / 1e12),
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n:.0} B"),
    }
}

/// Seconds: `40 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn brief(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, _) if seconds < 9.95 => format!("{seconds:.1} s"),
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

/// `1 rank`, `2,000 ranks`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{} {what}s", thousands(n)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([7, 999, 1_000, 335_141_888].map(thousands), ["7", "999", "1,000", "335,141,888"]);
        assert_eq!(
            [0.0, 1_500.0, 90_800_000.0, 1.34e9, 2e12].map(bytes),
            ["0 B", "1.5 kB", "90.8 MB", "1.34 GB", "2.00 TB"]
        );
        assert_eq!([1, 2_000].map(|n| count(n, "rank")), ["1 rank", "2,000 ranks"]);
    }

    #[test]
    fn durations_are_brief() {
        let said = [4.2, 40.4, 200.0, 7_500.0, 273_600.0].map(brief);
        assert_eq!(said, ["4.2 s", "40 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"]);
    }
}
