//! Damage of a fixed seed: the same inputs are mutated in the same way whenever the tests run. Used by the tests of
//! `cluster` and of `worker`.

use std::fs;
use std::path::Path;

/// Words that a careless or malicious author might put where something sensible was.
const HOSTILE: &[&str] = &[
    "0",
    "-1",
    "1",
    "3",
    "0.1",
    "1e999",
    "-1e308",
    "1e-320",
    "NaN",
    ".nan",
    ".inf",
    "-.inf",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "100000000000000000000000000000000000000000",
    "null",
    "true",
    "\"\"",
    "''",
    "[]",
    "{}",
    "[[[[[[[[]]]]]]]]",
    "\"../../x\"",
    "\"/dev/null\"",
    "\"a\\u0000b\"",
    "*a",
    "&a [*a, *a]",
    "!!binary x",
    "<<: x",
    "\u{feff}",
    "ſ",
];

/// Puts another content into a file. Many file systems flush a file that is cut to nothing and written anew, which is slow;
/// a new one they do not.
pub fn replace(path: &Path, content: impl AsRef<[u8]>) {
    let _ = fs::remove_file(path);
    fs::write(path, content).expect("a temporary directory can be written");
}

/// A source of mutations (SplitMix64).
pub struct Mutator(u64);

impl Mutator {
    /// The mutations of that number.
    pub fn new(seed: u64) -> Mutator {
        Mutator(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0..n; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Where a span of at most `longest` begins and ends.
    fn span(&mut self, length: usize, longest: usize) -> (usize, usize) {
        let start = self.below(length + 1);
        (start, (start + self.below(longest + 1)).min(length))
    }

    /// `original` with one to three changes: a bit, a byte, a cut, a span removed, inserted, doubled or moved.
    pub fn bytes(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..1 + self.below(3) {
            self.change(&mut bytes);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let (start, end) = self.span(bytes.len(), 40);
        match self.below(8) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(start) {
                    *byte ^= 1 << (self.next() % 8);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(start) {
                    *byte = self.next() as u8;
                }
            }
            3 => bytes.truncate(start),
            4 => drop(bytes.drain(start..end)),
            5 => {
                let noise: Vec<u8> = (start..end).map(|_| self.next() as u8).collect();
                bytes.splice(start..start, noise);
            }
            6 => {
                let copy = bytes[start..end].to_vec();
                let at = self.below(bytes.len() + 1);
                bytes.splice(at..at, copy);
            }
            _ => {
                let moved: Vec<u8> = bytes.drain(start..end).collect();
                let at = self.below(bytes.len() + 1);
                bytes.splice(at..at, moved);
            }
        }
    }

    /// `original` with one to three changes of its words, numbers, lines and nesting, or of its bytes.
    pub fn text(&mut self, original: &str) -> Vec<u8> {
        let mut text = original.to_owned();
        for _ in 0..1 + self.below(3) {
            text = match self.below(6) {
                0 => return self.bytes(text.as_bytes()),
                1 => self.with_another_word(&text),
                2 => self.with_words_swapped(&text),
                3 => self.with_other_lines(&text),
                4 => self.nested(&text),
                _ => self.stretched(&text),
            };
        }
        text.into_bytes()
    }

    /// Where the words and numbers of a text are.
    fn words(text: &str) -> Vec<(usize, usize)> {
        let is_part = |c: char| c.is_alphanumeric() || "._-+".contains(c);
        let mut words: Vec<(usize, usize)> = vec![];
        for (at, c) in text.char_indices().filter(|(_, c)| is_part(*c)) {
            match words.last_mut() {
                Some((_, end)) if *end == at => *end = at + c.len_utf8(),
                _ => words.push((at, at + c.len_utf8())),
            }
        }
        words
    }

    fn with_another_word(&mut self, text: &str) -> String {
        let words = Self::words(text);
        let Some(&(start, end)) = words.get(self.below(words.len())) else { return String::new() };
        let hostile = HOSTILE[self.below(HOSTILE.len())];
        format!("{}{hostile}{}", &text[..start], &text[end..])
    }

    fn with_words_swapped(&mut self, text: &str) -> String {
        let words = Self::words(text);
        let [first, second] = [self.below(words.len()), self.below(words.len())];
        let (Some(&a), Some(&b)) = (words.get(first.min(second)), words.get(first.max(second))) else {
            return String::new();
        };
        if a == b {
            return text[..a.0].to_owned();
        }
        [&text[..a.0], &text[b.0..b.1], &text[a.1..b.0], &text[a.0..a.1], &text[b.1..]].concat()
    }

    fn with_other_lines(&mut self, text: &str) -> String {
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        let [from, to] = [self.below(lines.len()), self.below(lines.len())];
        match self.below(3) {
            _ if lines.is_empty() => {}
            0 => drop(lines.remove(from)),
            1 => lines.insert(to, lines[from]),
            _ => lines.swap(from, to),
        }
        lines.concat()
    }

    fn nested(&mut self, text: &str) -> String {
        let words = Self::words(text);
        let Some(&(start, end)) = words.get(self.below(words.len())) else { return String::new() };
        let depth = [1, 2, 10, 120, 130, 1000][self.below(6)];
        let (open, close) = [("[", "]"), ("{\"a\":", "}"), ("{a: ", "}"), ("- ", ""), ("? ", "")][self.below(5)];
        let (before, after) = (open.repeat(depth), close.repeat(self.below(2) * depth));
        format!("{}{before}{}{after}{}", &text[..start], &text[start..end], &text[end..])
    }

    fn stretched(&mut self, text: &str) -> String {
        let words = Self::words(text);
        let Some(&(start, end)) = words.get(self.below(words.len())) else { return String::new() };
        let long = text[start..end].repeat(1 + self.below(300));
        format!("{}{long}{}", &text[..start], &text[end..])
    }
}
