//! Examples of what is to be learned, as lines of JSON.
//!
//! Knows nothing of tokens. What is wrong with a line is told without its place, which the caller
//! knows.

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use crate::chat::ASSISTANT;

/// The keys under which a source's examples stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExampleKeys {
    /// Of prompts; `prompt` when `None`.
    pub prompt: Option<String>,
    /// Of completions; `completion` when `None`.
    pub completion: Option<String>,
    /// Of messages; `messages` when `None`.
    pub messages: Option<String>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Example {
    /// A prompt and what should follow it.
    Pair { prompt: String, completion: String },
    /// Objects with a `role` and a `content`, at least one of the assistant.
    Conversation(Vec<Value>),
}

impl ExampleKeys {
    pub(crate) fn prompt(&self) -> &str {
        self.prompt.as_deref().unwrap_or("prompt")
    }

    pub(crate) fn completion(&self) -> &str {
        self.completion.as_deref().unwrap_or("completion")
    }

    pub(crate) fn messages(&self) -> &str {
        self.messages.as_deref().unwrap_or("messages")
    }

    /// Reads a line; what is wrong with it if it is no example.
    pub(crate) fn read(&self, line: &str) -> Result<Example, String> {
        let value: Value = serde_json::from_str(line).map_err(|error| not_json(line, &error))?;
        let Value::Object(mut line) = value else {
            return Err(format!(
                "expected a JSON object with {}, found {}",
                self.expected(),
                described(&value)
            ));
        };
        let has = |key| line.contains_key(key);
        // Where the config names the keys, others are no examples.
        let pair = self.messages.is_none() && (has(self.prompt()) || has(self.completion()));
        let named_pair = self.prompt.is_some() || self.completion.is_some();
        let conversation = !named_pair && has(self.messages());
        match (pair, conversation) {
            (true, false) => self.pair(&line),
            (false, true) => conversation_of(self.messages(), line.remove(self.messages())),
            (true, true) => Err(format!(
                "it has both {:?} and {:?}: set messages_key, or prompt_key and completion_key, to say which to learn",
                self.messages(),
                if has(self.prompt()) {
                    self.prompt()
                } else {
                    self.completion()
                },
            )),
            (false, false) => Err(format!(
                "expected {}, found {}: name the keys of your data with prompt_key and completion_key, or with messages_key",
                self.expected(),
                keys(&line)
            )),
        }
    }

    fn expected(&self) -> String {
        let pair = format!("{:?} and {:?}", self.prompt(), self.completion());
        let messages = format!("{:?}", self.messages());
        match (
            &self.messages,
            self.prompt.is_some() || self.completion.is_some(),
        ) {
            (Some(_), _) => messages,
            (None, true) => pair,
            (None, false) => format!("{pair}, or {messages}"),
        }
    }

    fn pair(&self, line: &Map<String, Value>) -> Result<Example, String> {
        let prompt = string(line, self.prompt())?;
        let completion = string(line, self.completion())?;
        if completion.trim().is_empty() {
            return Err(format!(
                "{:?} is blank, so that there is nothing to learn: give it text, or remove the line",
                self.completion()
            ));
        }
        Ok(Example::Pair {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
        })
    }
}

impl Example {
    /// The same for all examples with the same prompt, whatever is to follow it. Of a conversation
    /// the prompt is what stands before the first answer.
    pub(crate) fn prompt_hash(&self) -> u64 {
        match self {
            Self::Pair { prompt, completion } if prompt.trim().is_empty() => {
                xxh3_64(completion.as_bytes())
            }
            Self::Pair { prompt, .. } => xxh3_64(prompt.as_bytes()),
            Self::Conversation(messages) => {
                let answer = messages
                    .iter()
                    .position(|message| message["role"] == ASSISTANT)
                    .unwrap_or(messages.len());
                let asks = |message: &Value| message["role"] != "system";
                let prompt = match &messages[..answer] {
                    prompt if prompt.iter().any(asks) => prompt,
                    // Nobody asks: system turns alone are often the same for all.
                    _ => messages,
                };
                xxh3_64(Value::from(prompt).to_string().as_bytes())
            }
        }
    }

    /// Its texts, in order.
    pub(crate) fn texts(&self) -> Vec<&str> {
        match self {
            Self::Pair { prompt, completion } => vec![prompt, completion],
            Self::Conversation(messages) => messages
                .iter()
                .filter_map(|message| message["content"].as_str())
                .collect(),
        }
    }
}

fn conversation_of(key: &str, messages: Option<Value>) -> Result<Example, String> {
    let messages = match messages {
        Some(Value::Array(messages)) => messages,
        other => {
            let found = other.unwrap_or_default();
            return Err(format!(
                "{key:?} must be an array of messages, found {}",
                described(&found)
            ));
        }
    };
    for (index, message) in messages.iter().enumerate() {
        let place = |reason: String| format!("message {} of {key:?}: {reason}", index + 1);
        let Value::Object(message) = message else {
            return Err(place(format!(
                "expected an object with \"role\" and \"content\", found {}",
                described(message)
            )));
        };
        string(message, "role").map_err(place)?;
        string(message, "content").map_err(place)?;
    }
    let learned = |message: &Value| {
        message["role"] == ASSISTANT
            && message["content"]
                .as_str()
                .is_some_and(|text| !text.trim().is_empty())
    };
    if !messages.iter().any(learned) {
        return Err(format!(
            "no message of {key:?} has the role \"{ASSISTANT}\" and text, so that there is nothing to learn: add one, or remove the line"
        ));
    }
    Ok(Example::Conversation(messages))
}

fn string<'m>(object: &'m Map<String, Value>, key: &str) -> Result<&'m str, String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!(
            "{key:?} must be a string, found {}",
            described(other)
        )),
        None => Err(format!("{key:?} is missing, found {}", keys(object))),
    }
}

fn keys(object: &Map<String, Value>) -> String {
    let names: Vec<String> = object.keys().map(|key| format!("{key:?}")).collect();
    match names.as_slice() {
        [] => "an object without keys".to_owned(),
        names => format!("the keys {}", names.join(", ")),
    }
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(elements) => format!("an array of {}", elements.len()),
        Value::Object(object) => format!("an object with {}", keys(object)),
    }
}

/// The parser counts lines from the start of what it is given, which is one line.
fn not_json(line: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.split(" at line ").next().unwrap_or(&message);
    let array = if line.trim_start().starts_with('[') {
        " (the file may be one JSON array: write its elements a line each)"
    } else {
        ""
    };
    format!(
        "it is not JSON: {what} at column {}; each line must be one JSON object{array}",
        error.column()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(prompt: &str, completion: &str) -> ExampleKeys {
        ExampleKeys {
            prompt: Some(prompt.to_owned()),
            completion: Some(completion.to_owned()),
            messages: None,
        }
    }

    #[test]
    fn both_forms_are_read_and_other_keys_passed_over() {
        let pair = r#"{"id": 3, "prompt": "p", "completion": "c"}"#;
        let expected = Example::Pair {
            prompt: "p".to_owned(),
            completion: "c".to_owned(),
        };
        assert_eq!(ExampleKeys::default().read(pair).as_ref(), Ok(&expected));
        let renamed = r#"{"question": "p", "answer": "c", "messages": 0}"#;
        assert_eq!(keys("question", "answer").read(renamed), Ok(expected));
        let chat = r#"{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c", "name": "n"}]}"#;
        let Ok(Example::Conversation(messages)) = ExampleKeys::default().read(chat) else {
            panic!("it is a conversation");
        };
        assert_eq!(messages[1]["name"], "n");
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let refused = |keys: &ExampleKeys, lines: &[&str]| -> String {
            let said = lines.iter().map(|line| keys.read(line).unwrap_err());
            said.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(refused(&ExampleKeys::default(), &[
            r#"{"prompt": "p", "completion": "c""#,
            r#"{"prompt": "p" "completion": "c"}"#,
            "[",
            r#"["p", "c"]"#,
            "17",
            "{}",
            r#"{"question": "p", "answer": "c"}"#,
            r#"{"prompt": "p"}"#,
            r#"{"prompt": ["p"], "completion": "c"}"#,
            r#"{"prompt": "p", "completion": null}"#,
            r#"{"prompt": "p", "completion": " \n"}"#,
            r#"{"prompt": "p", "completion": "c", "messages": []}"#,
            r#"{"messages": "hello"}"#,
            r#"{"messages": []}"#,
            r#"{"messages": ["hello"]}"#,
            r#"{"messages": [{"from": "gpt", "value": "x"}]}"#,
            r#"{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": {"text": "c"}}]}"#,
            r#"{"messages": [{"role": "user", "content": "p"}]}"#,
            r#"{"messages": [{"role": "assistant", "content": ""}]}"#,
        ]), @r#"
        it is not JSON: EOF while parsing an object at column 33; each line must be one JSON object
        it is not JSON: expected `,` or `}` at column 16; each line must be one JSON object
        it is not JSON: EOF while parsing a list at column 1; each line must be one JSON object (the file may be one JSON array: write its elements a line each)
        expected a JSON object with "prompt" and "completion", or "messages", found an array of 2
        expected a JSON object with "prompt" and "completion", or "messages", found 17
        expected "prompt" and "completion", or "messages", found an object without keys: name the keys of your data with prompt_key and completion_key, or with messages_key
        expected "prompt" and "completion", or "messages", found the keys "answer", "question": name the keys of your data with prompt_key and completion_key, or with messages_key
        "completion" is missing, found the keys "prompt"
        "prompt" must be a string, found an array of 1
        "completion" must be a string, found null
        "completion" is blank, so that there is nothing to learn: give it text, or remove the line
        it has both "messages" and "prompt": set messages_key, or prompt_key and completion_key, to say which to learn
        "messages" must be an array of messages, found a string
        no message of "messages" has the role "assistant" and text, so that there is nothing to learn: add one, or remove the line
        message 1 of "messages": expected an object with "role" and "content", found a string
        message 1 of "messages": "role" is missing, found the keys "from", "value"
        message 2 of "messages": "content" must be a string, found an object with the keys "text"
        no message of "messages" has the role "assistant" and text, so that there is nothing to learn: add one, or remove the line
        no message of "messages" has the role "assistant" and text, so that there is nothing to learn: add one, or remove the line
        "#);
        insta::assert_snapshot!(refused(&keys("question", "answer"), &[
            r#"{"prompt": "p", "completion": "c"}"#,
            r#"{"question": "p", "solution": "c"}"#,
        ]), @r#"
        expected "question" and "answer", found the keys "completion", "prompt": name the keys of your data with prompt_key and completion_key, or with messages_key
        "answer" is missing, found the keys "question", "solution"
        "#);
        let messages = ExampleKeys {
            messages: Some("turns".to_owned()),
            ..ExampleKeys::default()
        };
        insta::assert_snapshot!(refused(&messages, &[r#"{"messages": [], "prompt": "p"}"#]), @r#"expected "turns", found the keys "messages", "prompt": name the keys of your data with prompt_key and completion_key, or with messages_key"#);
    }

    #[test]
    fn the_hash_is_that_of_the_prompt() {
        let hash = |line: &str| ExampleKeys::default().read(line).unwrap().prompt_hash();
        let pair = |prompt: &str, completion: &str| {
            hash(&serde_json::json!({"prompt": prompt, "completion": completion}).to_string())
        };
        assert_eq!(pair("p", "a"), pair("p", "b"));
        assert_ne!(pair("p", "a"), pair("q", "a"));
        assert_ne!(pair("", "a"), pair("", "b"));
        let chat = |turns: &[(&str, &str)]| {
            let messages: Vec<Value> = turns
                .iter()
                .map(|(role, content)| serde_json::json!({"role": role, "content": content}))
                .collect();
            hash(&serde_json::json!({ "messages": messages }).to_string())
        };
        let asked = |answer| chat(&[("system", "s"), ("user", "u"), ("assistant", answer)]);
        assert_eq!(asked("a"), asked("b"));
        let unasked = |answer| chat(&[("system", "s"), ("assistant", answer)]);
        assert_ne!(unasked("a"), unasked("b"));
    }
}
