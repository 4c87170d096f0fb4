//! An encoder's vocabulary: its tokens in the order of their ids, from `vocab.txt`, or from `tokenizer.json` where that is all
//! there is (transformers 5 saves no `vocab.txt`). Where both are there, they have to say the same.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::EncoderError;

/// The file with a token a line.
pub(super) const VOCABULARY: &str = "vocab.txt";
/// The file in which Hugging Face's fast tokenizers keep all that they are.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// The tokens that BERT cannot do without.
pub const SPECIAL_TOKENS: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];

/// Tokens by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The file that it came from.
    pub path: PathBuf,
    /// The token of each id from 0 on.
    pub tokens: Vec<String>,
}

impl Vocabulary {
    /// Reads the vocabulary of a model directory.
    ///
    /// # Errors
    /// There is none, it is no WordPiece vocabulary, an id has no token or two, or two files contradict one another.
    pub fn read(directory: &Path) -> Result<Vocabulary, EncoderError> {
        let (plain, whole) = (directory.join(VOCABULARY), directory.join(TOKENIZER));
        let refuse = |path: &Path, problem: String| EncoderError { path: path.to_owned(), problem };
        let of_whole = || {
            let json = fs::read(&whole).map_err(|e| refuse(&whole, e.to_string()))?;
            of_tokenizer(&json).map_err(|problem| refuse(&whole, problem))
        };
        if !plain.exists() && whole.exists() {
            let tokens = of_whole()?;
            return Ok(Vocabulary { path: whole, tokens });
        }
        let text = fs::read_to_string(&plain).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => refuse(&plain, nothing_there()),
            _ => refuse(&plain, e.to_string()),
        })?;
        let tokens: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        if whole.exists()
            && let Some(difference) = difference(&of_whole()?, &tokens)
        {
            return Err(refuse(&whole, difference));
        }
        Ok(Vocabulary { path: plain, tokens })
    }

    /// The vocabulary as the text of `vocab.txt`.
    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| format!("{token}\n")).collect()
    }

    /// The ids of [`SPECIAL_TOKENS`].
    ///
    /// # Errors
    /// One of them is missing.
    pub fn special_ids(&self) -> Result<[usize; 4], EncoderError> {
        let mut ids = [0; 4];
        for (id, name) in ids.iter_mut().zip(SPECIAL_TOKENS) {
            *id = self.tokens.iter().position(|token| token == name).ok_or_else(|| {
                self.refuse(format!(
                    "the vocabulary has no {name}: it is not BERT's\n  take all files from the encoder's own model"
                ))
            })?;
        }
        Ok(ids)
    }

    /// Compares it with an encoder that has embeddings for `rows` tokens.
    ///
    /// # Errors
    /// The numbers do not fit, a token comes twice, or a special one is missing.
    pub(super) fn check(&self, rows: usize) -> Result<(), EncoderError> {
        let tokens = self.tokens.len();
        // Some encoders round their embedding up to a multiple of a power of two.
        let rounded_up = [8, 64, 128].iter().any(|&k| rows == tokens.next_multiple_of(k));
        if tokens != rows && !rounded_up {
            return Err(self.refuse(format!(
                "the vocabulary has {tokens} tokens, but the encoder beside it has embeddings for {rows}\n  \
                 take config.json, model.safetensors and vocab.txt from the same model"
            )));
        }
        let mut ids = HashMap::with_capacity(tokens);
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(before) = ids.insert(token, id) {
                return Err(self.refuse(format!(
                    "tokens {before} and {id} (counted from 0) are the same: '{token}'\n  take vocab.txt from the \
                     encoder's own model"
                )));
            }
        }
        self.special_ids().map(drop)
    }

    fn refuse(&self, problem: String) -> EncoderError {
        EncoderError { path: self.path.clone(), problem }
    }
}

fn nothing_there() -> String {
    "there is neither vocab.txt nor tokenizer.json here, one of which says how text becomes tokens\n  copy them from the model \
     that this one was made from, or have transformers write them: \
     AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)"
        .to_owned()
}

/// The first token in which a `tokenizer.json` differs from the `vocab.txt` beside it, as a sentence about the first.
fn difference(whole: &[String], plain: &[String]) -> Option<String> {
    // White space at a line's end is no part of a token in vocab.txt.
    let differ = |(whole, plain): (&String, &String)| whole.trim_end() != plain;
    let said = match whole.iter().zip(plain).position(differ) {
        Some(id) => {
            let token = &whole[id];
            match plain.iter().position(|other| other == token) {
                Some(other) => format!("{token} is token {id} here, but {other} in {VOCABULARY}"),
                None => format!("token {id} is '{token}' here, but '{}' in {VOCABULARY}", plain[id]),
            }
        }
        None if whole.len() == plain.len() => return None,
        None => {
            let (here, there) = (whole.len(), plain.len());
            let more = if here > there { &whole[there] } else { &plain[here] };
            format!(
                "there are {here} tokens here, but {there} in {VOCABULARY}; the first that is in one alone is '{more}'"
            )
        }
    };
    Some(format!("{said}\n  take both files from the encoder's own model, or remove the one that is not from there"))
}

/// The part of `tokenizer.json` that is a vocabulary.
#[derive(Deserialize)]
struct Saved {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

/// A token beside the model's own; the special ones are often in both.
#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, usize>,
}

/// What kind of model it is: the others' vocabularies are of another form.
#[derive(Deserialize)]
struct Kind {
    model: KindOfModel,
}

#[derive(Deserialize)]
struct KindOfModel {
    /// Not in files of old.
    #[serde(rename = "type")]
    name: Option<String>,
}

/// The tokens of a `tokenizer.json`; the error is a sentence.
fn of_tokenizer(json: &[u8]) -> Result<Vec<String>, String> {
    let garbled = |e: serde_json::Error| format!("is not a tokenizer: {e}\n  fetch or copy it again");
    let Kind { model: KindOfModel { name } } = serde_json::from_slice(json).map_err(garbled)?;
    if let Some(name) = name.filter(|name| name != "WordPiece") {
        return Err(format!("is a tokenizer of kind {name}; BERT's is WordPiece"));
    }
    let Saved { added_tokens, model } = serde_json::from_slice(json).map_err(garbled)?;
    let mut by_id: BTreeMap<usize, String> = BTreeMap::new();
    let added = added_tokens.into_iter().map(|added| (added.content, added.id));
    for (token, id) in model.vocab.into_iter().chain(added) {
        match by_id.get(&id) {
            Some(other) if *other != token => {
                return Err(format!("gives id {id} to both '{other}' and '{token}'\n  fetch or copy it again"));
            }
            _ => drop(by_id.insert(id, token)),
        }
    }
    if let Some((gap, _)) = by_id.keys().enumerate().find(|(place, id)| place != *id) {
        return Err(format!("has no token with id {gap}\n  fetch or copy it again"));
    }
    Ok(by_id.into_values().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_tokens_of_a_tokenizer_are_in_the_order_of_their_ids() {
        let read = |json: serde_json::Value| of_tokenizer(json.to_string().as_bytes());
        let vocab = json!({ "b": 2, "[PAD]": 0, "a": 1 });
        let added = json!([{ "id": 0, "content": "[PAD]", "special": true }, { "id": 3, "content": "new" }]);
        let model = json!({ "type": "WordPiece", "vocab": vocab });
        assert_eq!(read(json!({ "added_tokens": added, "model": model })).unwrap(), ["[PAD]", "a", "b", "new"]);
        assert_eq!(read(json!({ "model": { "vocab": vocab } })).unwrap().len(), 3);
        let bpe = read(json!({ "model": { "type": "Unigram", "vocab": [["a", 0.5]] } })).unwrap_err();
        assert!(bpe.contains("of kind Unigram"), "{bpe}");
        let gap = read(json!({ "model": { "vocab": { "a": 0, "b": 2 } } })).unwrap_err();
        assert!(gap.contains("no token with id 1"), "{gap}");
        let twice = json!([{ "id": 1, "content": "z" }]);
        let twice = read(json!({ "added_tokens": twice, "model": model })).unwrap_err();
        assert!(twice.contains("id 1 to both 'a' and 'z'"), "{twice}");
        assert!(read(json!([])).unwrap_err().contains("is not a tokenizer"));
    }

    #[test]
    fn a_vocabulary_is_the_same_in_either_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Vocabulary::read(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("neither vocab.txt nor tokenizer.json") && missing.contains("save_pretrained"));
        let json = json!({ "model": { "type": "WordPiece", "vocab": { "[PAD]": 0, "é": 1 } } });
        fs::write(dir.path().join(TOKENIZER), json.to_string()).unwrap();
        let whole = Vocabulary::read(dir.path()).unwrap();
        assert!(whole.path.ends_with(TOKENIZER));
        fs::write(dir.path().join(VOCABULARY), whole.text()).unwrap();
        let plain = Vocabulary::read(dir.path()).unwrap();
        assert!(plain.path.ends_with(VOCABULARY));
        assert_eq!(plain.tokens, whole.tokens);
    }

    #[test]
    fn files_that_disagree_are_refused_with_the_first_token_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let json = json!({ "model": { "type": "WordPiece", "vocab": { "[PAD]": 0, "a": 1, "b": 2, " \u{2028}": 3 } } });
        fs::write(dir.path().join(TOKENIZER), json.to_string()).unwrap();
        let beside = |plain: &str| {
            fs::write(dir.path().join(VOCABULARY), plain).unwrap();
            Vocabulary::read(dir.path()).map_err(|error| error.to_string())
        };
        assert_eq!(beside("[PAD]\na\nb\n \u{2028}\n").unwrap().tokens.len(), 4);
        for (plain, expected) in [
            ("[PAD]\nb\na\n\n", "a is token 1 here, but 2 in vocab.txt"),
            ("[PAD]\na\nx\n\n", "token 2 is 'b' here, but 'x' in vocab.txt"),
            ("[PAD]\na\n", "there are 4 tokens here, but 2 in vocab.txt; the first that is in one alone is 'b'"),
            (
                "[PAD]\na\nb\n\nc\n",
                "there are 4 tokens here, but 5 in vocab.txt; the first that is in one alone is 'c'",
            ),
        ] {
            let message = beside(plain).unwrap_err();
            assert!(message.contains(TOKENIZER) && message.contains(expected), "{message}");
        }
        // Neither is one that cannot be understood: it is what cuts the texts.
        fs::write(dir.path().join(TOKENIZER), "{").unwrap();
        assert!(beside("[PAD]\na\nb\n\n").unwrap_err().contains("is not a tokenizer"));
    }
}
