//! CLIP's byte-pair tokenizer, token for token as `transformers` has it.
//!
//! The pairs come from the model's folder or from `tokenizer/` beside it, where pipelines keep them, and else, for a model with
//! as many tokens as OpenAI's, from the OpenAI vocabulary that this build carries.

use super::folder::{read_json, unusable};
use crate::{Result, data::read_bounded, error::At};
use instant_clip_tokenizer as clip;
use regex::Regex;
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use tch::Tensor;
use unicode_normalization::UnicodeNormalization as _;

/// Largest file of a vocabulary, bytes.
const FILE: u64 = 16 << 20;
/// Tokens that are no merged pair: each byte within a word and at its end, start and end of the text.
const UNMERGED: usize = 2 * 256 + 2;
/// Tokens of OpenAI's vocabulary.
const OPENAI: i64 = 49_408;
/// Characters of one run without spaces that are looked at, many times what a text's tokens can cover.
const RUN: usize = 4096;
/// Words, as `transformers` cuts them: what lowers to a mark, contractions, letters, single numerals, runs of anything else.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Text to token ids.
pub struct Tokenizer {
    pairs: clip::Tokenizer,
    words: Regex,
    length: usize,
    pad: i64,
}

/// What the files of a vocabulary come to.
struct Vocabulary {
    folder: PathBuf,
    ids: HashMap<String, usize>,
    /// Each two tokens with a space between.
    merges: Vec<String>,
}

/// A name, or an object that carries it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Name(String),
    Token { content: String },
}

impl Tokenizer {
    /// The tokenizer of the text model in `folder`, which knows `vocabulary` tokens and reads texts of `length`.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Data`] if no vocabulary is at hand, or it is none of CLIP's form and of this size.
    pub fn open(folder: &Path, vocabulary: i64, length: i64) -> Result<Self> {
        let length = usize::try_from(length).ok().filter(|length| *length > 2);
        let length = length.ok_or_else(|| unusable(folder, "reads texts too short for a start, a word and an end"))?;
        let (pairs, pad) = match find(folder)? {
            Some(found) => {
                let pairs = found.pairs(vocabulary)?;
                let pad = found.pad()?;
                (pairs, pad)
            }
            None if vocabulary == OPENAI => (clip::Tokenizer::new(), None),
            None => {
                let why = "lacks its tokenizer; put vocab.json and merges.txt, or tokenizer.json, into the folder or into tokenizer/ beside it";
                return Err(unusable(folder, why));
            }
        };
        let pad = pad.unwrap_or_else(|| pairs.end_of_text().to_u16().into());
        let words = Regex::new(WORDS).map_err(|e| unusable(folder, format!("cannot be tokenized: {e}")))?;
        Ok(Self { pairs, words, length, pad })
    }

    /// The ids of a text from its start to its end, not padded; what does not fit the length is dropped.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let (start, end) = (self.pairs.start_of_text(), self.pairs.end_of_text());
        let mut ids = vec![start];
        for run in text.split_whitespace() {
            let run = run.char_indices().nth(RUN).map_or(run, |(cut, _)| &run[..cut]);
            for part in split_specials(run) {
                match part {
                    START => ids.push(start),
                    END => ids.push(end),
                    _ => {
                        // One by one: the crate has marks of an older tokenizer, which no single word is.
                        let text = normalise(part);
                        self.words.find_iter(&text).for_each(|word| self.pairs.encode(word.as_str(), &mut ids));
                    }
                }
            }
            if ids.len() >= self.length {
                break; // a long text costs no more than its beginning
            }
        }
        ids.truncate(self.length - 1);
        ids.push(end);
        ids.into_iter().map(|token| token.to_u16().into()).collect()
    }

    /// The ids of texts, each padded to the model's length: `(B, L)` int64 on the CPU.
    pub fn batch(&self, texts: &[impl AsRef<str>]) -> Tensor {
        let row = |text: &str| {
            let mut ids = self.encode(text);
            ids.resize(self.length, self.pad);
            ids
        };
        let ids: Vec<i64> = texts.iter().flat_map(|text| row(text.as_ref())).collect();
        Tensor::from_slice(&ids).reshape([texts.len() as i64, self.length as i64])
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("length", &self.length).field("pad", &self.pad).finish_non_exhaustive()
    }
}

/// Composed (NFC) and in lower case letter by letter: a sigma at a word's end is a sigma.
fn normalise(text: &str) -> String {
    text.nfc().flat_map(char::to_lowercase).collect()
}

/// The text in pieces: the marks of start and end, which count wherever they stand, and what lies between.
fn split_specials(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((at, mark)) = [START, END].iter().filter_map(|mark| Some((rest.find(mark)?, mark))).min() {
        parts.extend([&rest[..at], &rest[at..at + mark.len()]]);
        rest = &rest[at + mark.len()..];
    }
    parts.push(rest);
    parts
}

fn find(folder: &Path) -> Result<Option<Vocabulary>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair([String; 2]),
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: HashMap<String, usize>,
        merges: Vec<Merge>,
    }
    #[derive(Deserialize)]
    struct Whole {
        model: Model,
    }
    let beside = folder.parent().map(|parent| parent.join("tokenizer"));
    for folder in [Some(folder.to_owned()), beside].into_iter().flatten() {
        let [ids, merges, whole] = ["vocab.json", "merges.txt", "tokenizer.json"].map(|name| folder.join(name));
        if ids.exists() && merges.exists() {
            let text = read_bounded(&merges, FILE).at("read", &merges)?;
            let text = String::from_utf8(text).map_err(|_| unusable(&merges, "is no UTF-8 text"))?;
            let pairs = text.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned); // after the version
            return Ok(Some(Vocabulary { ids: read_json(&ids, FILE)?, merges: pairs.collect(), folder }));
        }
        if whole.exists() {
            let Model { vocab, merges } = read_json::<Whole>(&whole, FILE)?.model;
            let line = |merge| match merge {
                Merge::Line(line) => line,
                Merge::Pair([a, b]) => format!("{a} {b}"),
            };
            return Ok(Some(Vocabulary { ids: vocab, merges: merges.into_iter().map(line).collect(), folder }));
        }
    }
    Ok(None)
}

impl Vocabulary {
    /// The pairs, once the ids are known to be those of CLIP's numbering: bytes, bytes that end a word, pairs in order, start, end.
    fn pairs(&self, vocabulary: i64) -> Result<clip::Tokenizer> {
        let bad = |why: String| unusable(&self.folder, why);
        let count = self.merges.len() + UNMERGED;
        let size = u16::try_from(count).ok().filter(|size| i64::from(*size) == vocabulary);
        let size =
            size.ok_or_else(|| bad(format!("has a tokenizer of {count} tokens, the model knows {vocabulary}")))?;
        let numbered = self.merges.iter().enumerate().map(|(i, pair)| (pair.replace(' ', ""), UNMERGED - 2 + i));
        let fixed = [("!", 0), ("!</w>", 256), (START, count - 2), (END, count - 1)];
        let fixed = fixed.map(|(token, id)| (token.to_owned(), id));
        for (token, id) in fixed.into_iter().chain(numbered) {
            if self.ids.get(&token) != Some(&id) {
                return Err(bad(format!(
                    "numbers the token {token:?} otherwise than CLIP ({id}); this build reads CLIP's tokenizers"
                )));
            }
        }
        let text = format!("\n{}", self.merges.join("\n"));
        clip::Tokenizer::with_vocabulary(text.as_bytes(), size).map_err(|e| bad(format!("has unusable merges: {e}")))
    }

    /// The id that fills a text up, where the folder names one.
    fn pad(&self) -> Result<Option<i64>> {
        #[derive(Deserialize)]
        struct Config {
            pad_token: Option<Special>,
        }
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = self.folder.join(name);
            if path.exists()
                && let Some(Special::Name(token) | Special::Token { content: token }) =
                    read_json::<Config>(&path, FILE)?.pad_token
            {
                let id = self.ids.get(&token).and_then(|id| i64::try_from(*id).ok());
                return id.map(Some).ok_or_else(|| unusable(&path, format!("pads with {token:?}, which is no token")));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_wherever_they_stand() {
        assert_eq!(split_specials("a<|endoftext|><|startoftext|>b"), ["a", END, "", START, "b"]);
        assert_eq!(split_specials("<|EndOfText|>"), ["<|EndOfText|>"]);
    }

    #[test]
    fn letters_are_composed_and_lowered_one_by_one() {
        assert_eq!(normalise("E\u{301}ΟΔΟΣ İ"), "éοδοσ i\u{307}");
    }
}
