//! What stands beside a `tokenizer.json`: which token ends a text, and how conversations are written.
//!
//! Models are handed on as directories, in which several files may say so. The first that does is
//! believed: `tokenizer_config.json`, `special_tokens_map.json`, then the ids in `config.json`.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::{Value, json};

use crate::DataError;
use crate::manifest::{TOKENIZER, TOKENIZER_CONFIG};

const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// A token as a file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamedToken {
    /// By its text.
    Text(String),
    /// By its number.
    Id(u32),
}

/// What the files beside a tokenizer say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Companions {
    /// The token that ends a text, and the file that says so.
    pub(crate) end_of_text: Option<(NamedToken, PathBuf)>,
    /// The token that begins one, as templates call it.
    pub(crate) begin_of_text: Option<NamedToken>,
    /// The Jinja template of conversations.
    pub(crate) chat_template: Option<String>,
}

/// The file of a tokenizer that is given by its file or its directory.
pub(crate) fn tokenizer_file(path: &Path) -> PathBuf {
    if path.is_dir() {
        path.join(TOKENIZER)
    } else {
        path.to_owned()
    }
}

impl Companions {
    /// Reads what stands beside the file of a tokenizer; files that are not there say nothing.
    pub(crate) fn beside(tokenizer: &Path) -> Result<Self, DataError> {
        let dir = tokenizer.parent().unwrap_or(Path::new(""));
        let mut found = Self::default();
        for (file, suffix) in [
            (TOKENIZER_CONFIG, ""),
            ("special_tokens_map.json", ""),
            ("config.json", "_id"),
        ] {
            let path = dir.join(file);
            let Some(json) = read_json(&path)? else {
                continue;
            };
            if found.end_of_text.is_none() {
                let key = format!("eos_token{suffix}");
                found.end_of_text = named_token(&json[key]).map(|token| (token, path));
            }
            if found.begin_of_text.is_none() {
                found.begin_of_text = named_token(&json[format!("bos_token{suffix}")]);
            }
            if file == TOKENIZER_CONFIG {
                found.chat_template = template(&json["chat_template"]);
            }
        }
        let path = dir.join(CHAT_TEMPLATE);
        if path.try_exists()? {
            found.chat_template = Some(fs::read_to_string(path)?);
        }
        Ok(found)
    }
}

/// A `tokenizer_config.json` that says what is known of a tokenizer, for a copy of it.
pub(crate) fn config_json(
    end_of_text: &str,
    begin_of_text: Option<&str>,
    chat_template: Option<&str>,
) -> Vec<u8> {
    let mut config = json!({ "eos_token": end_of_text });
    if let Some(token) = begin_of_text {
        config["bos_token"] = json!(token);
    }
    if let Some(template) = chat_template {
        config["chat_template"] = json!(template);
    }
    format!("{config:#}\n").into_bytes()
}

fn read_json(path: &Path) -> Result<Option<Value>, DataError> {
    if !path.try_exists()? {
        return Ok(None);
    }
    let json = serde_json::from_slice(&fs::read(path)?).map_err(|error| DataError::Tokenizer {
        path: path.to_owned(),
        reason: format!("it is not JSON: {error}"),
    })?;
    Ok(Some(json))
}

/// A token is named by its text, by an object that has it, by its id, or by a list of ids of which
/// the first counts.
fn named_token(value: &Value) -> Option<NamedToken> {
    match value {
        Value::String(text) => Some(NamedToken::Text(text.clone())),
        Value::Object(token) => named_token(token.get("content")?),
        Value::Number(id) => Some(NamedToken::Id(u32::try_from(id.as_u64()?).ok()?)),
        Value::Array(ids) => named_token(ids.first()?),
        Value::Null | Value::Bool(_) => None,
    }
}

/// The template, or of several the one called `default`.
fn template(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => named
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|default| default["template"].as_str())
            .map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(files: &[(&str, &str)]) -> Result<Companions, DataError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        Companions::beside(&dir.path().join(TOKENIZER))
    }

    fn end_of_text(files: &[(&str, &str)]) -> Option<NamedToken> {
        let found = beside(files).unwrap().end_of_text;
        found.map(|(token, _)| token)
    }

    #[test]
    fn the_first_file_that_names_the_end_is_believed() {
        let text = |token: &str| Some(NamedToken::Text(token.to_owned()));
        let config = ("config.json", r#"{"eos_token_id": 2}"#);
        let map = ("special_tokens_map.json", r#"{"eos_token": "</m>"}"#);
        let own = (
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "</t>"}}"#,
        );
        assert_eq!(end_of_text(&[]), None);
        assert_eq!(end_of_text(&[config]), Some(NamedToken::Id(2)));
        assert_eq!(end_of_text(&[config, map]), text("</m>"));
        assert_eq!(end_of_text(&[config, map, own]), text("</t>"));
        let nothing = ("tokenizer_config.json", r#"{"eos_token": null}"#);
        let several = ("config.json", r#"{"eos_token_id": [7, 8]}"#);
        assert_eq!(end_of_text(&[nothing, several]), Some(NamedToken::Id(7)));
    }

    #[test]
    fn a_template_of_its_own_file_comes_first() {
        let list = (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]}"#,
        );
        let template = |files: &[(&str, &str)]| beside(files).unwrap().chat_template;
        assert_eq!(template(&[list]).as_deref(), Some("D"));
        assert_eq!(
            template(&[list, ("chat_template.jinja", "J")]).as_deref(),
            Some("J")
        );
        assert_eq!(template(&[("tokenizer_config.json", "{}")]), None);
    }

    #[test]
    fn what_is_written_reads_back() {
        let json = config_json("</s>", Some("<s>"), Some("{{ messages }}"));
        let found = beside(&[("tokenizer_config.json", std::str::from_utf8(&json).unwrap())]);
        let found = found.unwrap();
        assert_eq!(
            found.end_of_text.unwrap().0,
            NamedToken::Text("</s>".to_owned())
        );
        assert_eq!(
            found.begin_of_text,
            Some(NamedToken::Text("<s>".to_owned()))
        );
        assert_eq!(found.chat_template.as_deref(), Some("{{ messages }}"));
    }

    #[test]
    fn a_broken_file_is_named() {
        let error = beside(&[("config.json", "{")]).unwrap_err().to_string();
        assert!(error.contains("config.json: it is not JSON"), "{error}");
    }
}
