//! SHA-256 of values and files, as lower-case hexadecimal text: the only hash that bam writes down.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// SHA-256 of `bytes`.
pub fn of_bytes(bytes: impl AsRef<[u8]>) -> String {
    hex(&raw(bytes))
}

/// SHA-256 of `bytes`, not yet turned into text.
pub fn raw(bytes: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(bytes.as_ref()).into()
}

/// SHA-256 of bytes that come in parts.
pub fn of_parts<T: AsRef<Vec<u8>>>(parts: impl Iterator<Item = T>) -> String {
    let mut hasher = Sha256::new();
    parts.for_each(|part| hasher.update(part.as_ref()));
    let sum: [u8; 32] = hasher.finalize().into();
    hex(&sum)
}

/// SHA-256 of a value's JSON form. Struct fields keep their order of declaration, so equal values hash equally.
pub fn of_json<T: Serialize>(value: &T) -> String {
    // Serialising into memory fails only for maps with non-string keys, which no type of ours has.
    let text = serde_json::to_vec(value).unwrap_or_else(|e| unreachable!("not serialisable as JSON: {e}"));
    of_bytes(text)
}

/// SHA-256 of a file's content, read in pieces.
pub fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            let sum: [u8; 32] = hasher.finalize().into();
            return Ok(hex(&sum));
        }
        hasher.update(&buffer[..n]);
    }
}

/// The first 12 digits of a digest, for people.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// A 32-byte seed for the random stream that `parts` name. Different names give independent streams.
pub fn seed(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// The first eight bytes of [`seed`] as a number, for generators that take one.
pub fn seed_u64(parts: &[&str]) -> u64 {
    let bytes = seed(parts);
    let mut first = [0u8; 8];
    first.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(first)
}

/// `bytes` as lower-case hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_the_empty_string_is_the_published_one() {
        assert_eq!(of_bytes(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn seeds_depend_on_where_one_part_ends() {
        assert_ne!(seed(&["ab", "c"]), seed(&["a", "bc"]));
    }
}
