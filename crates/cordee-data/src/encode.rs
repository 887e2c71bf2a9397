//! Examples as tokens, and which of those are learned.

use std::ops::Range;

use crate::Tokenizer;
use crate::chat::{CHATML, CHATML_TOKENS, ChatTemplate, Rendered};
use crate::companions::Companions;
use crate::example::Example;

/// An example as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// For each token whether it is learned.
    pub(crate) learned: Vec<bool>,
}

/// Makes tokens of examples.
pub(crate) struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    /// For conversations; why there can be none if there is none.
    chat: Result<Chat, String>,
}

struct Chat {
    template: ChatTemplate,
    /// Reads special tokens where the text spells them, as the template's does.
    tokenizer: Tokenizer,
}

impl Encoded {
    /// Appends tokens.
    fn push(&mut self, ids: &[u32], learned: bool) {
        self.ids.extend(ids);
        self.learned.resize(self.ids.len(), learned);
    }

    /// Leaves out what comes after the last token that is learned: it has no effect.
    fn trim(&mut self) {
        let used = self.learned.iter().rposition(|&learned| learned);
        self.truncate(used.map_or(0, |last| last + 1));
    }

    /// Keeps the first tokens.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.learned.truncate(length);
    }

    /// Whether any token is learned: the first never is, since nothing comes before it.
    pub(crate) fn is_learned(&self) -> bool {
        self.learned.iter().skip(1).any(|&learned| learned)
    }
}

impl<'t> Encoder<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, companions: &Companions) -> Self {
        Self {
            tokenizer,
            chat: Chat::new(tokenizer, companions),
        }
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer
    }

    /// The tokens of an example; why it has none.
    ///
    /// A prompt and its completion are tokenised apart, as they are when the model is used: what
    /// follows a prompt must not change the prompt's last token.
    pub(crate) fn encode(&self, example: &Example) -> Result<Encoded, String> {
        let mut encoded = match example {
            Example::Pair { prompt, completion } => self.pair(prompt, completion)?,
            Example::Conversation(messages) => self.conversation(messages)?,
        };
        encoded.trim();
        Ok(encoded)
    }

    fn pair(&self, prompt: &str, completion: &str) -> Result<Encoded, String> {
        let mut encoded = Encoded::default();
        encoded.push(self.tokenizer.begin_of_document(), false);
        encoded.push(&ids(self.tokenizer, prompt)?, false);
        encoded.push(&ids(self.tokenizer, completion)?, true);
        encoded.push(&[self.tokenizer.end_of_text()], true);
        Ok(encoded)
    }

    fn conversation(&self, messages: &[serde_json::Value]) -> Result<Encoded, String> {
        let chat = self.chat.as_ref().map_err(Clone::clone)?;
        for (index, message) in messages.iter().enumerate() {
            let content = message["content"].as_str().unwrap_or_default();
            if let Some(token) = self.tokenizer.special_token_in(content) {
                return Err(format!(
                    "message {} spells {token}, a special token of the tokenizer, which would be read as that token: change it, or remove the line",
                    index + 1
                ));
            }
        }
        let rendered = chat.template.conversation(messages)?;
        let (ids, turns) = chat.align(&rendered)?;
        let mut learned = vec![false; ids.len()];
        for turn in turns {
            // Line breaks after the token that ends a turn are the template's, not an answer's.
            let special = |id: &u32| self.tokenizer.is_special(*id);
            let length = match ids[turn.clone()].iter().rposition(&special) {
                Some(last) => last + 1,
                None => turn.len(),
            };
            learned[turn.start..turn.start + length].fill(true);
        }
        Ok(Encoded { ids, learned })
    }
}

impl Chat {
    fn new(tokenizer: &Tokenizer, companions: &Companions) -> Result<Self, String> {
        let chatml = CHATML_TOKENS
            .iter()
            .all(|token| tokenizer.is_special_token(token));
        let template = match &companions.chat_template {
            Some(template) => template,
            None if chatml => CHATML,
            None => {
                return Err(format!(
                    "messages need a chat template, and the tokenizer has none: name one with data.tokenizer that has chat_template.jinja beside it or the special tokens {} of ChatML, or give prompts and completions",
                    CHATML_TOKENS.join(" and ")
                ));
            }
        };
        let template = ChatTemplate::new(
            template,
            tokenizer.begin_of_text().unwrap_or_default(),
            tokenizer.end_of_text_token(),
        )
        .map_err(|reason| format!("the chat template is not understood: {reason}"))?;
        Ok(Self {
            template,
            tokenizer: tokenizer.reading_special_tokens(),
        })
    }

    /// The tokens of a conversation, and which of them are the turns that are learned.
    ///
    /// They are those of the whole text, if the turns begin and end between tokens. Where a token
    /// would reach across, as from the line break before an answer into one that begins with line
    /// breaks, the parts are tokenised apart: a model that answers sees no other.
    fn align(&self, rendered: &Rendered) -> Result<(Vec<u32>, Vec<Range<usize>>), String> {
        let text = &rendered.text;
        let whole = ids(&self.tokenizer, text)?;
        let mut apart = Vec::new();
        let mut turns = Vec::new();
        let mut from = 0;
        for turn in &rendered.learned {
            apart.extend(ids(&self.tokenizer, &text[from..turn.start])?);
            let start = apart.len();
            apart.extend(ids(&self.tokenizer, &text[turn.clone()])?);
            turns.push(start..apart.len());
            from = turn.end;
        }
        apart.extend(ids(&self.tokenizer, &text[from..])?);
        if apart == whole {
            return Ok((whole, turns));
        }
        // Some tokenizers mark the start of what they are given, so that parts differ though no token
        // reaches across: then what leads up to a place gives the first tokens of the whole.
        let place = |end: usize| -> Result<Option<usize>, String> {
            let before = ids(&self.tokenizer, &text[..end])?;
            Ok(whole.starts_with(&before).then_some(before.len()))
        };
        let mut in_whole = Vec::new();
        for turn in &rendered.learned {
            match (place(turn.start)?, place(turn.end)?) {
                (Some(start), Some(end)) => in_whole.push(start..end),
                _ => return Ok((apart, turns)),
            }
        }
        Ok((whole, in_whole))
    }
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    tokenizer.encode(text).map_err(|error| error.to_string())
}
