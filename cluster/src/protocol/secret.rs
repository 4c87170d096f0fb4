//! The secret of one start of a run: random, and printed by nothing.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::digest::hex;

/// What the ranks of a start and their launcher share, as hexadecimal text. `Debug` does not show it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A new one that nobody can guess.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn random() -> io::Result<Secret> {
        Ok(Secret(hex(&random()?)))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// 256 random bits.
pub(super) fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ControlFile;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::random().unwrap();
        let text = serde_json::to_string(&secret).unwrap();
        let text = text.trim_matches('"');
        assert_eq!(text.len(), 64);
        let file = ControlFile { addresses: vec![], secret, incarnation: 1, places: vec![] };
        assert!(serde_json::to_string(&file).unwrap().contains(text));
        for shown in [format!("{file:?}"), format!("{file:#?}")] {
            assert!(!shown.contains(text) && shown.contains("Secret(…)"), "{shown}");
        }
    }
}
