//! Text cut where BERT's rules cut it in any case, so that the tokens of a word that comes again need not be found again.

use std::cell::RefCell;
use std::collections::HashMap;

use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// So many words are remembered; most of those that come later are rare.
const MOST: usize = 1 << 18;
/// A longer word is rare.
const LONGEST: usize = 48;

/// Words and their token ids.
#[derive(Debug, Default)]
pub(super) struct Words(RefCell<HashMap<Box<str>, Box<[i32]>>>);

impl Words {
    /// For a tokenizer whose rules are BERT's: a word's tokens follow from the word alone. Another one may look at what is
    /// around it, or have tokens of several words.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Words> {
        let is_bert = matches!(tokenizer.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(_)))
            && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
            // Special ones are text like any other here.
            && tokenizer.get_added_tokens_decoder().values().all(|token| token.special);
        is_bert.then(Words::default)
    }

    /// Appends the token ids of `text` to `ids`; `find` finds those of a word.
    pub(super) fn encode(
        &self,
        text: &str,
        ids: &mut Vec<i32>,
        find: impl Fn(&str) -> tokenizers::Result<Vec<i32>>,
    ) -> tokenizers::Result<()> {
        let mut known = self.0.borrow_mut();
        for word in words(text) {
            if let Some(tokens) = known.get(word) {
                ids.extend_from_slice(tokens);
                continue;
            }
            let tokens = find(word)?;
            ids.extend_from_slice(&tokens);
            if word.len() <= LONGEST && known.len() < MOST {
                known.insert(word.into(), tokens.into());
            }
        }
        Ok(())
    }
}

/// What is between spaces; where all of that is ASCII, signs are words of their own. Beyond ASCII, a letter may be followed
/// by marks that belong to it.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|chunk| !chunk.is_empty()).flat_map(|chunk| Word { rest: chunk, is_ascii: chunk.is_ascii() })
}

struct Word<'a> {
    rest: &'a str,
    is_ascii: bool,
}

impl<'a> Iterator for Word<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let sign = if self.is_ascii { self.rest.bytes().position(|b| b.is_ascii_punctuation()) } else { None };
        let (word, rest) = self.rest.split_at(sign.map_or(self.rest.len(), |at| at.max(1)));
        self.rest = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_words_of_their_own_in_ascii_alone() {
        let cut = |text| words(text).collect::<Vec<_>>();
        assert_eq!(cut(" don't  (stop)...\tnow "), ["don", "'", "t", "(", "stop", ")", ".", ".", ".", "\tnow"]);
        assert_eq!(cut("na\u{ef}ve?! e\u{301}'s"), ["na\u{ef}ve?!", "e\u{301}'s"]);
        assert_eq!(cut("   "), [""; 0]);
    }
}
