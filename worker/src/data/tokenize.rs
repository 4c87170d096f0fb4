//! Text to token ids as BERT wants them: `[CLS] a [SEP] b [SEP]`, with the encoder's own WordPiece vocabulary.

use std::fs;
use std::path::PathBuf;

use bam_cluster::config::Truncation;
use bam_cluster::encoder::{BertRules, Encoder, EncoderError, Normalizing, SPECIAL_TOKENS, Vocabulary};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use super::words::Words;

/// A longer word becomes `[UNK]`, as in BERT.
const MAX_CHARACTERS_PER_WORD: usize = 100;

/// A vocabulary or tokenizer that cannot be used, or a text that it fails on.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TokenizeError {
    /// The file that defines the tokens.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub problem: String,
}

impl From<EncoderError> for TokenizeError {
    fn from(EncoderError { path, problem }: EncoderError) -> Self {
        TokenizeError { path, problem }
    }
}

/// One example's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids with `[CLS]` and `[SEP]`, at most the maximal length.
    pub ids: Vec<i32>,
    /// How many of them belong to the first segment, up to and including the first `[SEP]`.
    pub first_segment: usize,
}

impl Tokens {
    /// The segment of each token: 0 up to and including the first `[SEP]`, 1 after it.
    pub fn types(&self) -> impl Iterator<Item = u8> {
        (0..self.ids.len()).map(|i| u8::from(i >= self.first_segment))
    }
}

/// An encoder's way of cutting text into tokens.
///
/// Text is text: a `[SEP]` that somebody wrote in an example is a bracket, a word and a bracket, and separates nothing.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// None where a word's tokens may depend on what is around it.
    words: Option<Words>,
    path: PathBuf,
    truncation: Truncation,
    cls: i32,
    sep: i32,
}

impl Tokenizer {
    /// Opens the tokenizer of `encoder`: `tokenizer.json` where there is one, else BERT's rules with `vocab.txt`; how it cleans
    /// texts is for `tokenizer_config.json` to say ([`Normalizing`]). Whatever truncation and padding the file asks for is
    /// switched off.
    ///
    /// # Errors
    /// A file is unreadable, lacks a special token, has more tokens than the encoder, or contradicts `vocab.txt`.
    pub fn open(encoder: &Encoder, truncation: Truncation) -> Result<Tokenizer, TokenizeError> {
        let vocabulary = encoder.vocabulary()?;
        let special = vocabulary.special_ids()?;
        let path = encoder.tokenizer();
        let refuse = |problem: String| TokenizeError { path: path.clone(), problem };
        let mut inner = if path.ends_with("tokenizer.json") {
            let json = fs::read(&path).map_err(|e| refuse(e.to_string()))?;
            tokenizers::Tokenizer::from_bytes(json).map_err(|e| {
                refuse(format!("is not a tokenizer: {e}\n  fetch it again, or remove it to go by vocab.txt alone"))
            })?
        } else {
            of_vocabulary(&vocabulary)?
        };
        if let Normalizing::Bert(rules) = encoder.normalizing()? {
            inner.with_normalizer(Some(normalizer(rules)));
        }
        inner.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        check(&inner, &vocabulary, special, encoder.config.vocab_size).map_err(refuse)?;
        let [_, _, cls, sep] = special;
        let words = Words::of(&inner);
        Ok(Tokenizer { inner, words, path, truncation, cls: cls as i32, sep: sep as i32 })
    }

    /// The tokens of one text or pair of texts, at most `max_length` (at least 3) with the special ones.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode(&self, text: &str, text_b: Option<&str>, max_length: usize) -> Result<Tokens, TokenizeError> {
        let a = self.segment(text)?;
        let b = text_b.map(|t| self.segment(t)).transpose()?;
        let special = if b.is_some() { 3 } else { 2 };
        let room = max_length.saturating_sub(special);
        let (keep_a, keep_b) = kept(self.truncation, a.len(), b.as_ref().map_or(0, Vec::len), room);
        let mut ids = Vec::with_capacity(keep_a + keep_b + special);
        ids.push(self.cls);
        ids.extend(&a[..keep_a]);
        ids.push(self.sep);
        let first_segment = ids.len();
        if let Some(b) = b {
            ids.extend(&b[..keep_b]);
            ids.push(self.sep);
        }
        Ok(Tokens { ids, first_segment })
    }

    fn segment(&self, text: &str) -> Result<Vec<i32>, TokenizeError> {
        let find = |text: &str| {
            let encoding = self.inner.encode_fast(text, false)?;
            Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
        };
        let ids = match &self.words {
            Some(words) => {
                // About as many as there are in English.
                let mut ids = Vec::with_capacity(text.len() / 4 + 1);
                words.encode(text, &mut ids, find).map(|()| ids)
            }
            None => find(text),
        };
        ids.map_err(|e| {
            let start: String = text.chars().take(40).collect();
            TokenizeError { path: self.path.clone(), problem: format!("fails on the text '{start}…': {e}") }
        })
    }
}

/// How many tokens each of two segments keeps when there is room for `room` together; one segment alone has `b` 0.
fn kept(truncation: Truncation, a: usize, b: usize, room: usize) -> (usize, usize) {
    let (short, half) = (a.min(b), room / 2);
    if a + b <= room {
        (a, b)
    } else if short <= half {
        // Only the longer one is cut.
        if a <= b { (a, room - a) } else { (room - b, b) }
    } else {
        let odd = room % 2;
        match truncation {
            Truncation::HuggingFace if a <= b => (half, half + odd),
            Truncation::HuggingFace | Truncation::Bert => (half + odd, half),
        }
    }
}

fn normalizer(rules: BertRules) -> BertNormalizer {
    let BertRules { clean_text, chinese, strip_accents, lower_case } = rules;
    BertNormalizer::new(clean_text, chinese, Some(strip_accents), lower_case)
}

/// BERT's way of cutting words, with the tokens of `vocab.txt`.
fn of_vocabulary(vocabulary: &Vocabulary) -> Result<tokenizers::Tokenizer, TokenizeError> {
    let refuse = |e: tokenizers::Error| TokenizeError { path: vocabulary.path.clone(), problem: e.to_string() };
    let model = WordPiece::builder()
        .vocab(WordPiece::read_bytes(vocabulary.text().as_bytes()).map_err(refuse)?)
        .unk_token("[UNK]".to_owned())
        .continuing_subword_prefix("##".to_owned())
        .max_input_chars_per_word(MAX_CHARACTERS_PER_WORD)
        .build()
        .map_err(refuse)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(tokenizer)
}

/// Compares a tokenizer with the vocabulary beside it, which is the truth about token ids, and with the encoder's embeddings.
fn check(
    tokenizer: &tokenizers::Tokenizer,
    vocabulary: &Vocabulary,
    special: [usize; 4],
    embeddings: usize,
) -> Result<(), String> {
    let remedy = "take all files of the encoder from the same model, or remove tokenizer.json to go by vocab.txt alone";
    for (name, id) in SPECIAL_TOKENS.iter().zip(special) {
        match tokenizer.token_to_id(name) {
            Some(here) if here as usize == id => {}
            Some(here) => return Err(format!("{name} is token {here} here, but {id} in vocab.txt\n  {remedy}")),
            None => return Err(format!("there is no {name} here\n  {remedy}")),
        }
    }
    let tokens = tokenizer.get_vocab(true);
    if tokens.len() != vocabulary.tokens.len() {
        let (here, there) = (tokens.len(), vocabulary.tokens.len());
        return Err(format!("there are {here} tokens here, but {there} in vocab.txt\n  {remedy}"));
    }
    match tokens.values().max() {
        Some(&largest) if largest as usize >= embeddings => Err(format!(
            "the largest token id is {largest}, but the encoder has embeddings for {embeddings} tokens\n  {remedy}"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bam_cluster::encoder::{EncoderConfig, Weights};
    use proptest::prelude::*;
    use tokenizers::{PaddingParams, PaddingStrategy, TruncationParams};

    use super::*;

    const WORDS: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[\n]\nsep\nplay\n##ing\nPlay\ncafe\n!\n";

    fn encoder(directory: &Path) -> Encoder {
        let shape = r#"{"vocab_size":12,"hidden_size":4,"num_hidden_layers":1,"num_attention_heads":1,
            "intermediate_size":4,"max_position_embeddings":16}"#;
        let config: EncoderConfig = serde_json::from_str(shape).unwrap();
        let whole_layers = config.num_hidden_layers;
        Encoder { directory: directory.to_owned(), config, whole_layers, weights: Weights::Safetensors(vec![]) }
    }

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [&[("vocab.txt", WORDS)], files].concat() {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    fn tokenizer(files: &[(&str, &str)]) -> Result<Tokenizer, TokenizeError> {
        Tokenizer::open(&encoder(directory(files).path()), Truncation::default())
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<i32> {
        tokenizer.encode(text, None, 16).unwrap().ids
    }

    /// The tokenizer of [`WORDS`] as Hugging Face would save it, after `change`.
    fn json(change: impl Fn(&mut tokenizers::Tokenizer)) -> String {
        let mut tokenizer = tokenizer(&[]).unwrap().inner;
        change(&mut tokenizer);
        tokenizer.to_string(false).unwrap()
    }

    #[test]
    fn a_pair_is_framed_and_its_segments_are_numbered() {
        let tokenizer = tokenizer(&[]).unwrap();
        let tokens = tokenizer.encode("Playing!", Some("play xyz"), 16).unwrap();
        assert_eq!(tokens.ids, [2, 7, 8, 11, 3, 7, 1, 3]);
        assert_eq!(tokens.first_segment, 5);
        assert_eq!(tokens.types().collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 1, 1]);
        let single = tokenizer.encode("", None, 16).unwrap();
        assert_eq!((single.ids, single.first_segment), (vec![2, 3], 2));
    }

    #[test]
    fn the_longer_segment_is_cut_first() {
        let tokenizer = tokenizer(&[]).unwrap();
        let cut = |a, b, max| tokenizer.encode(a, b, max).unwrap();
        assert_eq!(cut("! ! ! ! !", Some("play !"), 7).ids, [2, 11, 11, 3, 7, 11, 3]);
        assert_eq!(cut("! !", Some("play play"), 6).ids, [2, 11, 3, 7, 7, 3]);
        assert_eq!(cut("! ! ! ! !", None, 4).ids, [2, 11, 11, 3]);
    }

    #[test]
    fn lower_casing_and_accents_follow_the_tokenizers_config() {
        let lower = tokenizer(&[]).unwrap();
        assert_eq!(ids(&lower, "Play Café"), [2, 7, 10, 3]);
        let cased =
            tokenizer(&[("tokenizer_config.json", r#"{"do_lower_case": false, "strip_accents": null}"#)]).unwrap();
        assert_eq!(ids(&cased, "Play Café"), [2, 9, 1, 3]);
        let wrong = tokenizer(&[("tokenizer_config.json", r#"{"do_lower_case": "no"}"#)]).err().unwrap().to_string();
        assert!(wrong.contains("do_lower_case is \"no\""), "{wrong}");
        // They hold against a tokenizer.json, too, as in transformers.
        let saved = json(|_| {});
        let cased = ("tokenizer_config.json", r#"{"do_lower_case": false}"#);
        assert_eq!(ids(&tokenizer(&[("tokenizer.json", &saved), cased]).unwrap(), "Play Café"), [2, 9, 1, 3]);
        let plain = ("tokenizer_config.json", r#"{"do_lower_case": false, "tokenizer_class": "TokenizersBackend"}"#);
        assert_eq!(ids(&tokenizer(&[("tokenizer.json", &saved), plain]).unwrap(), "Play Café"), [2, 7, 10, 3]);
    }

    #[test]
    fn a_tokenizer_json_is_enough() {
        let saved = json(|_| {});
        let files = directory(&[("tokenizer.json", &saved)]);
        fs::remove_file(files.path().join("vocab.txt")).unwrap();
        let tokenizer = Tokenizer::open(&encoder(files.path()), Truncation::default()).unwrap();
        assert_eq!(ids(&tokenizer, "Playing café!"), [2, 7, 8, 10, 11, 3]);
    }

    #[test]
    fn special_tokens_in_a_text_are_text() {
        let plain = tokenizer(&[]).unwrap();
        let special = json(|t| {
            t.add_special_tokens(&[tokenizers::AddedToken::from("[SEP]", true)]);
        });
        let whole = tokenizer(&[("tokenizer.json", &special)]).unwrap();
        for tokenizer in [plain, whole] {
            assert_eq!(ids(&tokenizer, "[SEP]"), [2, 4, 6, 5, 3]);
        }
    }

    #[test]
    fn a_tokenizer_that_looks_beyond_a_word_is_given_whole_texts() {
        let two_words = json(|t| {
            t.add_tokens(&[tokenizers::AddedToken::from("play !", false)]);
        });
        let longer = format!("{WORDS}play !\n");
        let shape = |e: &mut Encoder| e.config.vocab_size = 13;
        let files = directory(&[("vocab.txt", &longer), ("tokenizer.json", &two_words)]);
        let mut encoder = encoder(files.path());
        shape(&mut encoder);
        let tokenizer = Tokenizer::open(&encoder, Truncation::default()).unwrap();
        assert!(tokenizer.words.is_none());
        assert_eq!(ids(&tokenizer, "play ! play"), [2, 12, 7, 3]);
    }

    #[test]
    fn a_saved_tokenizer_neither_cuts_nor_pads() {
        let saved = json(|t| {
            let truncation = TruncationParams { max_length: 2, ..Default::default() };
            let padding = PaddingParams { strategy: PaddingStrategy::Fixed(9), ..Default::default() };
            t.with_padding(Some(padding)).with_truncation(Some(truncation)).unwrap();
        });
        let tokenizer = tokenizer(&[("tokenizer.json", &saved)]).unwrap();
        assert_eq!(ids(&tokenizer, "play play play !"), [2, 7, 7, 7, 11, 3]);
    }

    #[test]
    fn files_that_contradict_one_another_are_refused() {
        let swapped = WORDS.replace("[CLS]\n[SEP]", "[SEP]\n[CLS]");
        let longer = format!("{WORDS}more\n");
        let saved = json(|_| {});
        let cases: [(&[(&str, &str)], &str); 5] = [
            (&[("vocab.txt", &swapped), ("tokenizer.json", &saved)], "[CLS] is token 2 here, but 3 in vocab.txt"),
            (&[("vocab.txt", &longer), ("tokenizer.json", &saved)], "12 tokens here, but 13 in vocab.txt"),
            (&[("vocab.txt", &longer)], "the largest token id is 12, but the encoder has embeddings for 12"),
            (&[("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n")], "the vocabulary has no [SEP]"),
            (&[("tokenizer.json", "{}")], "is not a tokenizer"),
        ];
        for (files, expected) in cases {
            let message = tokenizer(files).err().unwrap().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    /// Characters that BERT's rules treat in every way: letters, marks, signs, spaces, controls, Chinese, and none at all.
    const CHARACTERS: &str = "playing!'[]  \t\n\r\u{0}\u{7f}\u{a0}\u{ad}\u{301}\u{308}éÉİßΣς中文、“”—…\u{200b}\u{200d}\u{2028}\u{3000}\u{fffd}\u{fe0f}🙂각ﬁ١\u{345}";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn word_by_word_is_as_in_one_piece(
            texts in prop::collection::vec(
                prop::collection::vec(prop::sample::select(CHARACTERS.chars().collect::<Vec<_>>()), 0..30), 1..4
            ),
            noise in "\\PC{0,20}",
            lower_case in any::<bool>(),
            accents in prop::sample::select(vec!["true", "false", "null"]),
        ) {
            let settings = format!(r#"{{"do_lower_case": {lower_case}, "strip_accents": {accents}}}"#);
            // Nearly every character is a token, so that nothing hides behind [UNK].
            let letters: std::collections::BTreeSet<char> = CHARACTERS.chars().filter(|c| c.is_alphanumeric()).collect();
            let pieces: String = letters.iter().map(|c| format!("{c}\n##{c}\n")).collect();
            let vocabulary = format!("[PAD]\n[UNK]\n[CLS]\n[SEP]\n{pieces}\u{301}\n##\u{301}\n##\u{308}\n'\n!\n…\n");
            let files = directory(&[("vocab.txt", &vocabulary), ("tokenizer_config.json", &settings)]);
            let mut encoder = encoder(files.path());
            encoder.config.vocab_size = vocabulary.lines().count();
            let tokenizer = Tokenizer::open(&encoder, Truncation::default()).unwrap();
            prop_assert!(tokenizer.words.is_some());
            for text in texts.into_iter().map(String::from_iter).chain([noise]) {
                let whole = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
                let whole: Vec<i32> = whole.get_ids().iter().map(|&id| id as i32).collect();
                // The second time, every word is known.
                for _ in 0..2 {
                    prop_assert_eq!(&tokenizer.segment(&text).unwrap(), &whole, "{:?}", &text);
                }
            }
        }
    }

    /// `_truncate_seq_pair` of BERT's `run_classifier.py`, token by token.
    fn as_bert_does(mut a: usize, mut b: usize, room: usize) -> (usize, usize) {
        while a + b > room {
            if a > b { a -= 1 } else { b -= 1 }
        }
        (a, b)
    }

    proptest! {
        #[test]
        fn cutting_fills_the_room_and_evens_out(a in 0..300usize, b in 0..300usize, room in 0..300usize) {
            let (keep_a, keep_b) = kept(Truncation::HuggingFace, a, b, room);
            prop_assert!(keep_a <= a && keep_b <= b);
            prop_assert_eq!(keep_a + keep_b, room.min(a + b));
            // Whoever is cut never becomes the shorter one by more than one token.
            prop_assert!(keep_a == a || keep_a + 1 >= keep_b);
            prop_assert!(keep_b == b || keep_b + 1 >= keep_a);
            prop_assert_eq!(kept(Truncation::Bert, a, b, room), as_bert_does(a, b, room));
        }

        #[test]
        fn any_text_gives_a_framed_sequence_of_known_tokens(a in "\\PC{0,40}", b in "\\PC{0,40}", max in 3..20usize) {
            let tokenizer = tokenizer(&[]).unwrap();
            let tokens = tokenizer.encode(&a, Some(&b), max).unwrap();
            prop_assert!(tokens.ids.len() <= max);
            prop_assert!(tokens.ids.iter().all(|id| (0..12).contains(id)));
            prop_assert_eq!(tokens.ids[0], 2);
            prop_assert_eq!(tokens.ids.iter().filter(|id| **id == 3).count(), 2);
            prop_assert_eq!(tokens.ids[tokens.first_segment - 1], 3);
        }
    }
}
