//! Text to token ids and back, over Hugging Face's tokenizers.
//!
//! The one module that names that crate. Knows nothing of files of text or of shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use crate::companions::{Companions, NamedToken, config_json, tokenizer_file};
use crate::{DataError, pieces};

/// The token that a vocabulary trained here has after each document.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Tokens that end a document, in the order in which they are looked for.
const ENDS_OF_TEXT: &[&str] = &[
    END_OF_TEXT,
    "</s>",
    "<|im_end|>",
    "<eos>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<end_of_turn>",
];

/// Bytes of text that are tokenised at once.
const PIECE: usize = 1 << 16;

/// Pairs that occur once are not worth a token: the text they were seen in is all they would
/// shorten.
const LEAST_FREQUENCY: u64 = 2;

/// A vocabulary and its rules.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    end_of_text: u32,
    /// Text that templates call the token before a text.
    begin_of_text: Option<String>,
    begin_of_document: Vec<u32>,
    special: BTreeMap<u32, String>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, given by its path or its directory, and what the files beside it say.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let path = tokenizer_file(path);
        Self::from_json(&fs::read(&path)?, &path, &Companions::beside(&path)?)
    }

    /// A tokenizer from the content of its file; `path` is for messages.
    pub(crate) fn from_json(
        json: &[u8],
        path: &Path,
        companions: &Companions,
    ) -> Result<Self, DataError> {
        let wrong = |reason: tokenizers::Error| DataError::Tokenizer {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(wrong)?;
        // Files saved after fine-tuning often carry these; a corpus must be neither cut nor padded.
        inner.with_truncation(None).map_err(wrong)?;
        inner.with_padding(None);
        // Text that spells a special token is text: no document can end another one.
        inner.set_encode_special_tokens(true);
        let end_of_text = end_of_text(&inner, path, companions)?;
        let begin_of_text = match &companions.begin_of_text {
            Some(NamedToken::Text(token)) => Some(token.clone()),
            Some(NamedToken::Id(id)) => inner.id_to_token(*id),
            None => None,
        };
        // What the post-processor puts before any text.
        let with = inner.encode("a", true).map_err(wrong)?;
        let added = with.get_special_tokens_mask().iter();
        let begins = added.take_while(|&&special| special == 1).count();
        let begin_of_document = with.get_ids()[..begins].to_vec();
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        // Not the number of tokens: ids may have gaps.
        let vocab_size = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);
        Ok(Self {
            inner,
            path: path.to_owned(),
            end_of_text,
            begin_of_text,
            begin_of_document,
            special,
            vocab_size,
        })
    }

    /// The same vocabulary, which reads special tokens where a text spells them.
    pub(crate) fn reading_special_tokens(&self) -> Self {
        let mut reading = self.clone();
        reading.inner.set_encode_special_tokens(false);
        reading
    }

    /// The ids of a text, without anything added before or after. What spells a special token is
    /// encoded as plain text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| self.failed(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, special tokens spelt out. With a byte-level vocabulary it is exactly the
    /// text that was encoded; bytes that are no UTF-8, as when ids stop inside a character, become
    /// U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner
            .decode(ids, false)
            .map_err(|error| self.failed(&error))
    }

    /// The id that stands after each document.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// The ids that stand before each document: those that the tokenizer's post-processor puts there,
    /// often none.
    pub fn begin_of_document(&self) -> &[u32] {
        &self.begin_of_document
    }

    /// The text of the id that stands after each document.
    pub(crate) fn end_of_text_token(&self) -> String {
        self.inner.id_to_token(self.end_of_text).unwrap_or_default()
    }

    /// The text of the token that templates put before a conversation.
    pub(crate) fn begin_of_text(&self) -> Option<String> {
        self.begin_of_text.clone()
    }

    /// Whether an id is special: a mark, not a part of a text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.contains_key(&id)
    }

    /// Whether a special token is written so.
    pub(crate) fn is_special_token(&self, token: &str) -> bool {
        self.special.values().any(|special| special == token)
    }

    /// A special token that a text spells.
    pub(crate) fn special_token_in(&self, text: &str) -> Option<&str> {
        let mut tokens = self.special.values().map(String::as_str);
        tokens.find(|token| text.contains(token))
    }

    /// A `tokenizer_config.json` for a copy of its file.
    pub(crate) fn config_json(&self, chat_template: Option<&str>) -> Vec<u8> {
        config_json(
            &self.end_of_text_token(),
            self.begin_of_text.as_deref(),
            chat_template,
        )
    }

    /// All ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The text in pieces whose ids, one after the other, are the ids of the text.
    pub(crate) fn pieces<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, DataError> {
        pieces::pieces(text, PIECE, |left, right| {
            let mut apart = self.encode(left)?;
            apart.extend(self.encode(right)?);
            Ok(apart == self.encode(&format!("{left}{right}"))?)
        })
    }

    /// Bytes of `text` that its first token stands for.
    pub(crate) fn first_token_bytes(&self, text: &str) -> Result<u64, DataError> {
        let start = &text[..text.floor_char_boundary(1024)];
        let encoding = self
            .inner
            .encode(start, false)
            .map_err(|error| self.failed(&error))?;
        Ok(encoding
            .get_offsets()
            .first()
            .map_or(0, |&(_, end)| end as u64))
    }

    fn failed(&self, error: &tokenizers::Error) -> DataError {
        DataError::Tokenizer {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

/// The token that ends a text: what the files beside the tokenizer say, else one whose name tells.
fn end_of_text(
    tokenizer: &tokenizers::Tokenizer,
    path: &Path,
    companions: &Companions,
) -> Result<u32, DataError> {
    let Some((token, file)) = &companions.end_of_text else {
        return ENDS_OF_TEXT
            .iter()
            .find_map(|token| tokenizer.token_to_id(token))
            .ok_or_else(|| DataError::NoEndOfText {
                path: path.to_owned(),
                looked_for: ENDS_OF_TEXT,
            });
    };
    let (found, said) = match token {
        NamedToken::Text(text) => (tokenizer.token_to_id(text), text.clone()),
        NamedToken::Id(id) => (tokenizer.id_to_token(*id).map(|_| *id), format!("id {id}")),
    };
    found.ok_or_else(|| DataError::Tokenizer {
        path: file.clone(),
        reason: format!(
            "it names {said} as the end of a text, which is not in the vocabulary of {}",
            path.display()
        ),
    })
}

/// Trains a byte-level BPE vocabulary of at most `vocab_size` ids on texts; gives the content of
/// its `tokenizer.json`.
///
/// The same texts give the same bytes: words are counted in any order, but merges are chosen by
/// count and then by ids.
pub(crate) fn train(
    vocab_size: usize,
    texts: impl Iterator<Item = String> + Send,
) -> Result<String, DataError> {
    let failed = |error: tokenizers::Error| DataError::TokenizerTraining(error.to_string());
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer
        .with_normalizer(None::<NormalizerWrapper>)
        .map_err(failed)?;
    tokenizer
        .with_pre_tokenizer(Some(PreTokenizerWrapper::from(byte_level)))
        .with_post_processor(None::<PostProcessorWrapper>)
        .with_decoder(Some(DecoderWrapper::from(byte_level)));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(LEAST_FREQUENCY)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts)
        .map_err(failed)?;
    tokenizer.to_string(true).map_err(failed)
}

/// The text in pieces that the pre-tokeniser of [`train`] takes as it takes the whole.
pub(crate) fn training_pieces(text: &str) -> Vec<&str> {
    let Ok(pieces) = pieces::pieces(text, PIECE, |_, _| Ok::<_, std::convert::Infallible>(true));
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "The quick brown fox, and the lazy dog. L'\u{e9}t\u{e9} dernier, na\u{ef}vement\u{a0}: \u{1F600}!\n\n";

    fn trained(vocab_size: usize) -> Tokenizer {
        let json = train(vocab_size, std::iter::repeat_n(TEXT.to_owned(), 3)).unwrap();
        Tokenizer::from_json(
            json.as_bytes(),
            Path::new("trained"),
            &Companions::default(),
        )
        .unwrap()
    }

    #[test]
    fn training_twice_gives_the_same_bytes() {
        // Many words with equal counts, in an order that threads race for.
        let texts: Vec<String> = (0..400u32)
            .map(|n| format!("w{} x{} y{} {TEXT}", n % 37, n % 41, n * 7919 % 97))
            .collect();
        let once = train(600, texts.clone().into_iter()).unwrap();
        for _ in 0..3 {
            assert_eq!(train(600, texts.clone().into_iter()).unwrap(), once);
        }
    }

    #[test]
    fn ids_are_lossless_and_special_tokens_are_not_read_from_text() {
        let tokenizer = trained(300);
        assert_eq!(tokenizer.vocab_size(), 300);
        for text in [
            TEXT,
            "",
            " ",
            "<|endoftext|>",
            "a<|endoftext|>b",
            "\u{0}\r\n\t",
        ] {
            let ids = tokenizer.encode(text).unwrap();
            assert!(!ids.contains(&tokenizer.end_of_text()), "{text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        assert_eq!(
            tokenizer.decode(&[tokenizer.end_of_text()]).unwrap(),
            END_OF_TEXT
        );
    }

    #[test]
    fn a_tokenizer_needs_an_end_of_text() {
        let json = train(260, std::iter::empty()).unwrap();
        let path = Path::new("some/tokenizer.json");
        let renamed = json.replace(END_OF_TEXT, "</s>");
        assert_eq!(
            Tokenizer::from_json(renamed.as_bytes(), path, &Companions::default())
                .unwrap()
                .end_of_text(),
            0
        );
        let without = json.replace(END_OF_TEXT, "[SEP]");
        let error = Tokenizer::from_json(without.as_bytes(), path, &Companions::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("some/tokenizer.json") && error.contains("<|im_end|>"),
            "{error}"
        );
        assert!(matches!(
            Tokenizer::from_json(b"{}", path, &Companions::default()),
            Err(DataError::Tokenizer { .. })
        ));
    }

    #[test]
    fn first_token_bytes_are_those_of_the_first_token() {
        let tokenizer = trained(300);
        let ids = tokenizer.encode(TEXT).unwrap();
        let first = tokenizer.decode(&ids[..1]).unwrap();
        assert_eq!(
            tokenizer.first_token_bytes(TEXT).unwrap(),
            first.len() as u64
        );
        assert_eq!(tokenizer.first_token_bytes("").unwrap(), 0);
    }

    static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| trained(290));

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let tokenizer = &*TRAINED;
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
        }

        #[test]
        fn pieces_give_the_ids_of_the_whole(text in "([a-c\u{e9}]{1,3}|[ ]{1,2}|[.'0-9\n]){1,60}", size in 1usize..20) {
            let tokenizer = &*TRAINED;
            let whole = tokenizer.encode(&text).unwrap();
            let cut = pieces::pieces(&text, size, |_, _| Ok::<_, ()>(true)).unwrap();
            let apart: Vec<u32> = cut.iter().flat_map(|piece| tokenizer.encode(piece).unwrap()).collect();
            prop_assert_eq!(apart, whole);
        }
    }
}
