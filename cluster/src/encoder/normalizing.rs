//! What becomes of a text before it is cut into words: lower-casing, accents, Chinese characters. As transformers decides it
//! (4 and 5 alike): what `tokenizer_config.json` says, and BERT's defaults where it is silent, hold whatever the normalizer of
//! `tokenizer.json` says, as long as that is BERT's.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::EncoderError;
use super::vocabulary::TOKENIZER;

/// The file with the tokenizer's settings.
pub(super) const SETTINGS: &str = "tokenizer_config.json";
/// Tokenizers of these classes go by `tokenizer.json` alone.
const PLAIN_CLASSES: [&str; 2] = ["PreTrainedTokenizerFast", "TokenizersBackend"];

/// How a text is normalised. Two encoders whose rules and vocabularies are equal make the same tokens of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalizing {
    /// BERT's rules.
    Bert(BertRules),
    /// A normalizer of another kind, as `tokenizer.json` describes it; null if it has none.
    Other(Value),
}

/// The switches of BERT's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BertRules {
    /// Drops control characters, and makes every white space a blank.
    pub clean_text: bool,
    /// Makes every Chinese character a word of its own.
    pub chinese: bool,
    /// Drops accents.
    pub strip_accents: bool,
    /// Makes capitals small.
    pub lower_case: bool,
}

impl fmt::Display for Normalizing {
    /// For messages: what the rules do.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let BertRules { clean_text, chinese, strip_accents, lower_case } = match self {
            Normalizing::Bert(rules) => *rules,
            Normalizing::Other(normalizer) => {
                let kind = normalizer.get("type").and_then(Value::as_str).unwrap_or("none");
                return write!(f, "rules of its own ({kind})");
            }
        };
        let case = if lower_case { "lower case" } else { "cased" };
        let accents = if strip_accents { "dropped" } else { "kept" };
        let characters = if chinese { "apart" } else { "together" };
        let controls = if clean_text { "" } else { ", control characters kept" };
        write!(f, "{case}, accents {accents}, Chinese characters {characters}{controls}")
    }
}

/// The rules of a model directory, and whether they are those that `tokenizer.json` has by itself.
pub(super) fn read(directory: &Path) -> Result<(Normalizing, bool), EncoderError> {
    let settings = json(directory, SETTINGS)?.unwrap_or_default();
    let normalizer = match json(directory, TOKENIZER)? {
        None => return Ok((Normalizing::Bert(with_settings(directory, &settings, true)?), false)),
        Some(mut tokenizer) => tokenizer.get_mut("normalizer").map(Value::take).unwrap_or_default(),
    };
    if normalizer.get("type").and_then(Value::as_str) != Some("BertNormalizer") {
        return Ok((Normalizing::Other(normalizer), true));
    }
    let switch = |name: &str| normalizer.get(name).and_then(Value::as_bool);
    let clean_text = switch("clean_text").unwrap_or(true);
    let lower_case = switch("lowercase").unwrap_or(true);
    let own = BertRules {
        clean_text,
        chinese: switch("handle_chinese_chars").unwrap_or(true),
        strip_accents: switch("strip_accents").unwrap_or(lower_case),
        lower_case,
    };
    let class = settings.get("tokenizer_class").and_then(Value::as_str);
    if class.is_some_and(|class| PLAIN_CLASSES.contains(&class)) {
        return Ok((Normalizing::Bert(own), true));
    }
    let rules = with_settings(directory, &settings, clean_text)?;
    Ok((Normalizing::Bert(rules), rules == own))
}

/// What `tokenizer_config.json` says, or BERT's defaults.
fn with_settings(directory: &Path, settings: &Value, clean_text: bool) -> Result<BertRules, EncoderError> {
    let switch = |name: &str| match settings.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(EncoderError {
            path: directory.join(SETTINGS),
            problem: format!("{name} is {other}; it has to be true or false"),
        }),
    };
    let lower_case = switch("do_lower_case")?.unwrap_or(true);
    Ok(BertRules {
        clean_text,
        chinese: switch("tokenize_chinese_chars")?.unwrap_or(true),
        strip_accents: switch("strip_accents")?.unwrap_or(lower_case),
        lower_case,
    })
}

/// A JSON file of the directory, if it is there.
fn json(directory: &Path, name: &str) -> Result<Option<Value>, EncoderError> {
    let path = directory.join(name);
    let refuse = |problem: String| EncoderError { path: path.clone(), problem };
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| refuse(format!("is not JSON: {e}"))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(refuse(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The rules of a directory with these two files.
    fn rules(normalizer: Option<Value>, settings: Option<Value>) -> Result<(Normalizing, bool), EncoderError> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(normalizer) = normalizer {
            fs::write(dir.path().join(TOKENIZER), json!({ "normalizer": normalizer }).to_string()).unwrap();
        }
        if let Some(settings) = settings {
            fs::write(dir.path().join(SETTINGS), settings.to_string()).unwrap();
        }
        read(dir.path())
    }

    fn bert(lower_case: bool, strip_accents: bool, chinese: bool) -> Normalizing {
        Normalizing::Bert(BertRules { clean_text: true, chinese, strip_accents, lower_case })
    }

    #[test]
    fn the_settings_and_berts_defaults_hold_against_tokenizer_json() {
        let saved = |lower_case: bool, strip: Value| {
            Some(json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": strip, "lowercase": lower_case }))
        };
        // What transformers 4.57.6 and 5.24.0 were seen to do with such directories.
        for (normalizer, settings, expected, is_own) in [
            (saved(true, Value::Null), None, bert(true, true, true), true),
            (saved(false, Value::Null), None, bert(true, true, true), false),
            (saved(false, Value::Null), Some(json!({})), bert(true, true, true), false),
            (saved(true, Value::Null), Some(json!({ "do_lower_case": false })), bert(false, false, true), false),
            (saved(true, Value::Null), Some(json!({ "strip_accents": false })), bert(true, false, true), false),
            (saved(true, json!(false)), Some(json!({ "do_lower_case": true })), bert(true, true, true), false),
            (
                saved(false, Value::Null),
                Some(json!({ "do_lower_case": false, "tokenize_chinese_chars": false })),
                bert(false, false, false),
                false,
            ),
            (
                saved(false, Value::Null),
                Some(json!({ "tokenizer_class": "PreTrainedTokenizerFast" })),
                bert(false, false, true),
                true,
            ),
            (None, Some(json!({ "do_lower_case": false, "strip_accents": null })), bert(false, false, true), false),
            (None, None, bert(true, true, true), false),
        ] {
            let about = format!("{normalizer:?} {settings:?}");
            assert_eq!(rules(normalizer, settings).unwrap(), (expected, is_own), "{about}");
        }
    }

    #[test]
    fn another_normalizer_is_left_alone_and_a_wrong_setting_is_named() {
        let nfc = json!({ "type": "NFC" });
        let settings = Some(json!({ "do_lower_case": true }));
        assert_eq!(rules(Some(nfc.clone()), settings).unwrap(), (Normalizing::Other(nfc), true));
        let wrong = rules(None, Some(json!({ "do_lower_case": "no" }))).unwrap_err().to_string();
        assert!(wrong.contains("do_lower_case is \"no\""), "{wrong}");
    }
}
