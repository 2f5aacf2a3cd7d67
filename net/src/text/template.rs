//! Chat templates: a conversation becomes the text that a model was trained on.
//!
//! Templates are written for Python's jinja2 as transformers sets it up, so the engine is set up the same way: blocks
//! trimmed, `tojson` as `json.dumps`, `raise_exception`, `strftime_now`, Python's methods on strings and maps, `none`
//! not iterable. A template is code of whoever made the model: it runs with a budget of steps.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use thiserror::Error;

use super::json::Style;
use super::strftime::{strftime, unix_seconds};

/// Steps of the template engine for one conversation; a thousand long messages need less than a hundredth of it.
const FUEL: u64 = 20_000_000;

/// The chat templates of a model.
pub struct Templates {
    environment: Environment<'static>,
    /// Sources by name; a template that does not compile is kept, with why.
    names: BTreeMap<String, Known>,
    tokens: Vec<(&'static str, String)>,
}

struct Known {
    problem: Option<String>,
    /// It walks over the parts of a message's content itself.
    is_of_parts: bool,
}

/// A conversation to be put into words.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    /// The messages: a list of maps with `role` and `content`.
    pub messages: Value,
    /// Descriptions of tools; `none` or undefined for none.
    pub tools: Value,
    /// More variables of the template (`enable_thinking`), by name.
    pub variables: BTreeMap<String, Value>,
    /// Which of the model's templates; by default `tool_use` where there are tools and such a template, else `default`.
    pub template: Option<String>,
    /// Ends with the start of the assistant's turn.
    pub is_prompted: bool,
    /// Leaves the last message open, so that the model goes on with it.
    pub is_continued: bool,
}

/// Why a conversation has no prompt.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TemplateError {
    /// The model has no template.
    #[error(
        "the model has no chat template (chat_template.jinja, chat_template.json or chat_template in \
         tokenizer_config.json); send a plain prompt to /v1/completions"
    )]
    Missing,
    /// The request names a template that the model does not have.
    #[error("the model has no chat template named {name:?}; it has {known}")]
    Unknown {
        /// As the request names it.
        name: String,
        /// Those there are.
        known: String,
    },
    /// The template refused the conversation, in its own words.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the chat template failed: {0}")]
    Failed(String),
    /// A message is not what messages are.
    #[error("messages[{index}]{problem}")]
    Message {
        /// Which message.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// `messages` is not a list, or empty.
    #[error("messages must be a list of at least one message")]
    NoMessages,
}

/// What a template said through `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Templates").field("names", &self.names.keys()).finish_non_exhaustive()
    }
}

impl Templates {
    /// Takes `chat_template` as models write it: a text, or a list of `{"name", "template"}`.
    pub(super) fn new(template: &serde_json::Value, tokens: &[(&'static str, String)]) -> Self {
        let mut templates = Self { environment: environment(None), names: BTreeMap::new(), tokens: tokens.to_vec() };
        if let Some(source) = template.as_str() {
            templates.add("default", source);
        }
        for entry in template.as_array().into_iter().flatten() {
            if let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str()) {
                templates.add(name, source);
            }
        }
        templates
    }

    fn add(&mut self, name: &str, source: &str) {
        let source = without_training_marks(source);
        let is_of_parts = walks_parts(&source);
        let added = self.environment.add_template_owned(name.to_owned(), source);
        let problem = added.err().map(|error| error.to_string());
        self.names.insert(name.to_owned(), Known { problem, is_of_parts });
    }

    pub(super) fn fix_date(&mut self, seconds: u64) {
        add_clock(&mut self.environment, Some(seconds));
    }

    /// The text of a conversation.
    pub(super) fn render(&self, chat: &Chat) -> Result<String, TemplateError> {
        let has_tools = chat.tools.kind() == ValueKind::Seq && chat.tools.len() != Some(0);
        let name = match &chat.template {
            Some(name) => name.as_str(),
            None if has_tools && self.names.contains_key("tool_use") => "tool_use",
            None => "default",
        };
        let known = match (self.names.get(name), &chat.template) {
            (Some(known), _) => known,
            (None, Some(name)) if !self.names.is_empty() => {
                let known = self.names.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(TemplateError::Unknown { name: name.clone(), known });
            }
            (None, _) => return Err(TemplateError::Missing),
        };
        if let Some(problem) = &known.problem {
            return Err(TemplateError::Failed(problem.clone()));
        }
        let messages = messages(&chat.messages, known.is_of_parts)?;
        let last = messages.last().cloned().unwrap_or_default();
        let mut variables = chat.variables.clone();
        for (name, text) in &self.tokens {
            variables.entry((*name).to_owned()).or_insert_with(|| Value::from(text.as_str()));
        }
        variables.insert("messages".into(), Value::from(messages));
        variables.insert("tools".into(), if has_tools { chat.tools.clone() } else { Value::from(()) });
        variables.entry("documents".into()).or_insert_with(|| Value::from(()));
        variables.insert("add_generation_prompt".into(), Value::from(chat.is_prompted && !chat.is_continued));
        let template = self.environment.get_template(name).map_err(|error| failed(&error))?;
        let text = template.render(Value::from(variables)).map_err(|error| failed(&error))?;
        if chat.is_continued { left_open(text, &last) } else { Ok(text) }
    }
}

/// The prompt up to the end of the last message's content.
fn left_open(mut text: String, last: &Value) -> Result<String, TemplateError> {
    let content = last.get_attr("content").unwrap_or_default();
    let content = content.as_str().unwrap_or_default().trim();
    let Some(at) = text.rfind(content) else {
        return Err(TemplateError::Failed(
            "continue_final_message: the last message's content does not appear in the prompt".into(),
        ));
    };
    text.truncate(at + content.len());
    Ok(text)
}

fn failed(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(at) = cause {
        if let Some(Raised(said)) = at.downcast_ref() {
            return TemplateError::Refused(said.clone());
        }
        cause = at.source();
    }
    TemplateError::Failed(if error.kind() == ErrorKind::OutOfFuel {
        format!("it takes more than {FUEL} steps")
    } else {
        error.to_string()
    })
}

/// The engine, set up as transformers sets up jinja2.
fn environment(date: Option<u64>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(64);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| {
        if value.kind() == ValueKind::Bool {
            out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from)
        } else if value.is_none() {
            out.write_str("None").map_err(Error::from)
        } else {
            minijinja::escape_formatter(out, state, value)
        }
    });
    environment.add_filter("tojson", |value: Value, indent: Option<usize>, arguments: Kwargs| {
        let named: Option<usize> = arguments.get("indent")?;
        let mut style = Style::new(indent.or(named));
        style.is_ascii = arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
        style.is_sorted = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
        if let Some(separators) = arguments.get::<Option<Vec<String>>>("separators")?
            && let [item, key] = separators.as_slice()
        {
            (style.item, style.key) = (item.clone(), key.clone());
        }
        arguments.assert_all_used()?;
        style.dump(&value)
    });
    environment.add_test("iterable", |value: Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Undefined) && value.try_iter().is_ok()
    });
    environment.add_function("raise_exception", |said: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(said)))
    });
    add_clock(&mut environment, date);
    environment
}

fn add_clock(environment: &mut Environment<'static>, date: Option<u64>) {
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, date.unwrap_or_else(unix_seconds)).map_err(|unknown| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now: %{unknown} is not known"))
        })
    });
}

/// The `{% generation %}` marks, which tell training where an answer stands, as blocks that do nothing.
fn without_training_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        // Behind the opening: in `{%}` its percent sign closes nothing.
        let Some(length) = rest[at + 2..].find("%}") else { break };
        let inside = &rest[at + 2..at + 2 + length];
        out.push_str(&rest[..at]);
        match inside.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&format!("{{%{}%}}", inside.replace("generation", "if true"))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", inside.replace("endgeneration", "endif"))),
            _ => out.push_str(&rest[at..at + length + 4]),
        }
        rest = &rest[at + length + 4..];
    }
    out.push_str(rest);
    out
}

/// True if a template loops over the parts of a content and knows no other kind of content.
fn walks_parts(source: &str) -> bool {
    let loops = ["in message.content", "in message['content']", "in message[\"content\"]", "in msg.content"];
    loops.iter().any(|walk| source.contains(walk)) && !source.contains("is string")
}

/// The messages as the template expects them: content as text or as parts, arguments of tool calls as maps.
fn messages(given: &Value, is_of_parts: bool) -> Result<Vec<Value>, TemplateError> {
    if given.kind() != ValueKind::Seq || given.len() == Some(0) {
        return Err(TemplateError::NoMessages);
    }
    let items = given.try_iter().map_err(|_| TemplateError::NoMessages)?;
    items.enumerate().map(|(index, message)| self::message(index, &message, is_of_parts)).collect()
}

fn message(index: usize, message: &Value, is_of_parts: bool) -> Result<Value, TemplateError> {
    let wrong = |problem: &str| TemplateError::Message { index, problem: problem.to_owned() };
    if message.kind() != ValueKind::Map {
        return Err(wrong(" must be an object with role and content"));
    }
    let attribute = |name: &str| message.get_attr(name).unwrap_or_default();
    if attribute("role").as_str().is_none_or(str::is_empty) {
        return Err(wrong(".role must be a text: system, user, assistant or tool"));
    }
    let content = attribute("content");
    let content = if content.kind() == ValueKind::String && is_of_parts {
        let part = [("type", Value::from("text")), ("text", content)];
        Value::from(vec![Value::from_iter(part)])
    } else if content.kind() == ValueKind::String {
        content
    } else if content.is_none() || content.is_undefined() {
        // Assistants that only called tools have no content; templates ask for it all the same.
        Value::from("")
    } else if content.kind() == ValueKind::Seq {
        parts(index, &content, is_of_parts)?
    } else {
        return Err(wrong(".content must be a text or a list of parts"));
    };
    let mut fields: Vec<(String, Value)> = Vec::new();
    for key in message.try_iter().map_err(|_| wrong(" must be an object"))? {
        let name = key.to_string();
        match name.as_str() {
            "content" => {}
            "tool_calls" => fields.push((name, tool_calls(&attribute("tool_calls")))),
            _ => fields.push((name, message.get_item(&key).unwrap_or_default())),
        }
    }
    fields.push(("content".into(), content));
    Ok(Value::from_iter(fields))
}

fn parts(index: usize, content: &Value, is_of_parts: bool) -> Result<Value, TemplateError> {
    let mut texts = Vec::new();
    for (at, part) in content.try_iter().into_iter().flatten().enumerate() {
        let wrong = |problem: String| TemplateError::Message { index, problem: format!(".content[{at}]{problem}") };
        if part.kind() == ValueKind::String {
            texts.push(part.to_string());
            continue;
        }
        let kind = part.get_attr("type").unwrap_or_default();
        match kind.as_str() {
            Some("text" | "input_text" | "output_text") => {}
            Some(other) => {
                return Err(wrong(format!(
                    " has the type {other:?}; this model reads text only, send parts of type text"
                )));
            }
            None => return Err(wrong(".type must be a text".into())),
        }
        let text = part.get_attr("text").unwrap_or_default();
        texts.push(text.as_str().ok_or_else(|| wrong(".text must be a text".into()))?.to_owned());
    }
    if is_of_parts {
        let part = |text: String| Value::from_iter([("type", Value::from("text")), ("text", Value::from(text))]);
        return Ok(Value::from(texts.into_iter().map(part).collect::<Vec<_>>()));
    }
    Ok(Value::from(texts.join("\n")))
}

/// Clients send the arguments of a call as JSON in a text; templates print them as a map.
fn tool_calls(calls: &Value) -> Value {
    if calls.kind() != ValueKind::Seq {
        return calls.clone();
    }
    let parsed = |name: &str, value: Value| match (name, value.as_str()) {
        ("arguments", Some(text)) => match serde_json::from_str::<Value>(text) {
            Ok(arguments) if arguments.kind() == ValueKind::Map => arguments,
            Ok(_) | Err(_) => value,
        },
        _ => value,
    };
    let rebuilt = |value: &Value, each: &dyn Fn(&str, Value) -> Value| -> Value {
        let Ok(keys) = value.try_iter() else { return value.clone() };
        Value::from_iter(keys.map(|key| {
            let name = key.to_string();
            let item = each(&name, value.get_item(&key).unwrap_or_default());
            (name, item)
        }))
    };
    let call = |call: Value| {
        if call.kind() != ValueKind::Map {
            return call;
        }
        rebuilt(&call, &|name, value| match (name, value.kind()) {
            ("function", ValueKind::Map) => rebuilt(&value, &parsed),
            _ => parsed(name, value),
        })
    };
    Value::from(calls.try_iter().into_iter().flatten().map(call).collect::<Vec<_>>())
}

/// Templates are shared between requests.
const _: fn() = || {
    const fn shared<T: Send + Sync>() {}
    shared::<Arc<Templates>>();
};
