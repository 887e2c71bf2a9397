//! Conversations as text, by the template that came with a tokenizer, and where in that text the
//! assistant speaks.
//!
//! Templates are Jinja as Hugging Face's transformers runs it. Knows nothing of tokens.

use std::ops::Range;

use minijinja::{
    Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Rest, value::Serde,
};

/// The role whose turns are learned.
pub(crate) const ASSISTANT: &str = "assistant";

/// What is used for a vocabulary with these tokens and no template: `ChatML`, without a system turn of
/// its own.
pub(crate) const CHATML_TOKENS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
pub(crate) const CHATML: &str = "\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat template";

/// A template that is ready to use.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    begin_of_text: String,
    end_of_text: String,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// Bytes of what the assistant says, with what ends its turns, in order.
    pub(crate) learned: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Reads a template; the reason if it is none. The tokens are what it may call `bos_token` and
    /// `eos_token`.
    pub(crate) fn new(
        template: &str,
        begin_of_text: String,
        end_of_text: String,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| reason(&error))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |rest: Rest<String>| {
            Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, rest.concat()))
        });
        environment
            .add_template_owned(NAME, without_generation_tags(template))
            .map_err(|error| reason(&error))?;
        Ok(Self {
            environment,
            begin_of_text,
            end_of_text,
        })
    }

    /// A conversation as text, and where the assistant speaks in it; the reason if that cannot be
    /// told. `messages` are objects with a `role` and a `content`.
    ///
    /// The text up to a turn is what the conversation before it renders to, with the prompt for an
    /// answer; the text with the turn is what it renders to with that turn. Both must begin the text
    /// of the whole, or else the place of the turn in it is not known.
    pub(crate) fn conversation(&self, messages: &[serde_json::Value]) -> Result<Rendered, String> {
        let text = self.render(messages, false)?;
        let mut learned: Vec<Range<usize>> = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message["role"] != ASSISTANT {
                continue;
            }
            let before = self.render(&messages[..index], true)?;
            let with = self.render(&messages[..=index], false)?;
            let follows = learned.last().is_none_or(|last| last.end <= before.len());
            if !(with.starts_with(&before) && text.starts_with(&with) && follows) {
                return Err(format!(
                    "the chat template writes message {} (of the assistant) in another way when \
                     others follow it, so what is to be learned cannot be told from the rest: split \
                     the conversation into one example per answer, or use a template that only \
                     appends",
                    index + 1
                ));
            }
            learned.push(before.len()..with.len());
        }
        Ok(Rendered { text, learned })
    }

    fn render(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            template.render(context! {
                messages => Serde(messages),
                add_generation_prompt,
                bos_token => &self.begin_of_text,
                eos_token => &self.end_of_text,
                tools => Value::from(()),
                documents => Value::from(()),
            })
        });
        rendered.map_err(|error| format!("the chat template refuses it: {}", reason(&error)))
    }
}

fn reason(error: &Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

/// A template without the marks of what is generated, which are an extension of transformers: each
/// becomes a condition that holds.
fn without_generation_tags(template: &str) -> String {
    let mut plain = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else {
            break;
        };
        let tag = &rest[open..open + length];
        let word = tag[2..].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        plain.push_str(&rest[..open]);
        match word {
            "generation" => plain.push_str(&tag.replace(word, "if true")),
            "endgeneration" => plain.push_str(&tag.replace(word, "endif")),
            _ => plain.push_str(tag),
        }
        rest = &rest[open + length..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(template: &str) -> ChatTemplate {
        ChatTemplate::new(template, "<s>".to_owned(), "</s>".to_owned()).unwrap()
    }

    /// The template that SmolLM2 comes with.
    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn messages() -> Vec<serde_json::Value> {
        let turns = [
            ("user", "Hi"),
            ("assistant", "Hello!"),
            ("user", "Bye"),
            ("assistant", "See you."),
        ];
        turns
            .map(|(role, content)| json!({"role": role, "content": content}))
            .to_vec()
    }

    fn learned(rendered: &Rendered) -> Vec<&str> {
        let ranges = rendered.learned.iter();
        ranges.map(|range| &rendered.text[range.clone()]).collect()
    }

    #[test]
    fn the_assistant_is_found_in_chatml() {
        for source in [CHATML, SMOLLM2] {
            let rendered = template(source).conversation(&messages()).unwrap();
            assert!(rendered.text.ends_with(
                "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you.<|im_end|>\n"
            ));
            assert_eq!(
                learned(&rendered),
                ["Hello!<|im_end|>\n", "See you.<|im_end|>\n"]
            );
            assert_eq!(
                rendered.text.starts_with("<|im_start|>system\nYou are"),
                source == SMOLLM2
            );
        }
    }

    /// In the manner of Llama 2: methods of Python's strings, tokens by name, no prompt for an answer.
    const INSTRUCT: &str = "\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'].strip() + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{- ' ' + message['content'].strip() + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported, not ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
";

    #[test]
    fn python_s_methods_named_tokens_and_generation_tags_are_understood() {
        let rendered = template(INSTRUCT).conversation(&messages()).unwrap();
        assert_eq!(
            rendered.text,
            "<s>[INST] Hi [/INST] Hello!</s>[INST] Bye [/INST] See you.</s>"
        );
        assert_eq!(learned(&rendered), [" Hello!</s>", " See you.</s>"]);
    }

    #[test]
    fn a_template_that_rewrites_what_came_before_is_refused() {
        // As templates of models that think do: all but the last answer are shortened.
        let source =
            "{% for m in messages %}{{ m.content if loop.last else m.content[:3] }}|{% endfor %}";
        let error = template(source).conversation(&messages()).unwrap_err();
        insta::assert_snapshot!(error, @"the chat template writes message 2 (of the assistant) in another way when others follow it, so what is to be learned cannot be told from the rest: split the conversation into one example per answer, or use a template that only appends");
    }

    #[test]
    fn what_a_template_says_of_a_conversation_is_passed_on() {
        let odd = [json!({"role": "tool", "content": "x"})];
        let error = template(INSTRUCT).conversation(&odd).unwrap_err();
        insta::assert_snapshot!(error, @"the chat template refuses it: Only user and assistant roles are supported, not tool (line 8 of the template)");
        let broken = ChatTemplate::new("{% for %}", String::new(), String::new());
        insta::assert_snapshot!(broken.unwrap_err(), @"unexpected end of block, expected in (line 1 of the template)");
        let unknown = template("{{ messages | tojson }}").conversation(&odd);
        insta::assert_snapshot!(unknown.unwrap_err(), @"the chat template refuses it: filter tojson is unknown (line 1 of the template)");
    }
}
