//! A request's body: read as little of it as routing needs, change as few bytes as the contract asks for.
//!
//! Fields that the router does not know, the order of fields and the text of numbers all reach the worker as the client
//! wrote them. What is added stands at the end:
//!
//! ```text
//! client  {"model":"m","messages":[...],"max_tokens":4}
//! worker  {"model":"m","messages":[...],"max_tokens":4,"rid":"...","bootstrap_host":"10.0.0.1","bootstrap_port":8998,
//!          "bootstrap_room":4300738690377810857}
//! ```
//! A bootstrap field that the client sent is taken out: it would be about another hand-off. Requests of several prompts
//! (or `n` of a chat) get lists, one entry each; a completion with `n` gets scalars, as SGLang's router does it.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::keys::{Keyed, Keyer, PromptContent, PromptView};

/// What kind of request a path is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Chat,
    Completion,
    Generate,
    Responses,
    Messages,
}

/// A request, as far as the router has to understand it.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) kind: Kind,
    pub(super) is_stream: bool,
    /// The prefill worker's log-probabilities of the prompt belong into the answer.
    pub(super) wants_prompt_logprobs: bool,
    /// Prompts of a request whose bootstrap fields are lists.
    pub(super) batch: Option<usize>,
    /// The client has named the request itself.
    pub(super) rid: Option<String>,
    pub(super) model: String,
    pub(super) session: Option<u64>,
    pub(super) keyed: Keyed,
    /// The object up to its closing brace, without bootstrap fields.
    open: Bytes,
    is_empty: bool,
}

/// How a leg's body ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bootstrap<'a> {
    pub(super) host: &'a str,
    pub(super) port: Option<u16>,
    pub(super) rooms: &'a [u64],
}

struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

impl Fields<'_> {
    /// The raw text of a field; the last one counts if there are several, and null counts as absent.
    fn raw(&self, name: &str) -> Option<&str> {
        let raw = self.0.iter().rev().find(|(key, _)| key == name)?.1.get();
        (raw != "null").then_some(raw)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.raw(name).and_then(|raw| serde_json::from_str(raw).ok())
    }

    fn is_true(&self, name: &str) -> Result<bool, String> {
        match self.raw(name) {
            None => Ok(false),
            Some(raw) => {
                serde_json::from_str(raw).map_err(|_| format!("{name} must be true or false, it is {}", cut(raw)))
            }
        }
    }
}

impl Inbound {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, for the client to read.
    pub(super) fn parse(kind: Kind, body: &Bytes, page_size: u32, keyer: &dyn Keyer) -> Result<Self, String> {
        let fields: Fields<'_> =
            serde_json::from_slice(body).map_err(|error| format!("the body is not a JSON object: {error}"))?;
        let is_stream = fields.is_true("stream")?;
        let prompt_field = match kind {
            Kind::Chat | Kind::Messages => "messages",
            Kind::Completion => "prompt",
            Kind::Generate if fields.raw("input_ids").is_some() => "input_ids",
            Kind::Generate => "text",
            Kind::Responses => "input",
        };
        let prompt = fields.raw(prompt_field).unwrap_or("");
        let ids: Vec<u32>;
        let list = if prompt.starts_with('[') && matches!(kind, Kind::Completion | Kind::Generate) {
            let parts: Vec<&RawValue> =
                serde_json::from_str(prompt).map_err(|error| format!("{prompt_field} is not a list: {error}"))?;
            Some(parts)
        } else {
            None
        };
        // A list of numbers is one prompt; a list of anything else is as many as it has entries.
        let is_ids = |raw: &str| raw.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        let (first, batch) = match &list {
            Some(parts) => match parts.first() {
                None => return Err(format!("{prompt_field} is an empty list")),
                Some(part) if is_ids(part.get()) => (prompt, None),
                Some(part) => (part.get(), Some(parts.len())),
            },
            None => (prompt, None),
        };
        let batch = match kind {
            Kind::Chat => match fields.raw("n").map(serde_json::from_str::<usize>) {
                None => None,
                Some(Ok(n)) => (n > 1).then_some(n),
                Some(Err(_)) => return Err("n must be a number of answers".into()),
            },
            Kind::Completion | Kind::Generate | Kind::Responses | Kind::Messages => batch,
        };
        if let Some(count) = batch.filter(|&count| count > BATCH_MAX) {
            return Err(format!("{count} prompts or answers in one request; at most {BATCH_MAX}"));
        }
        let head = match kind {
            Kind::Chat => fields.raw("tools"),
            Kind::Messages => fields.raw("system"),
            Kind::Responses => fields.raw("instructions"),
            Kind::Completion | Kind::Generate => None,
        };
        let content = match kind {
            Kind::Chat | Kind::Messages | Kind::Responses => {
                PromptContent::Chat { head: head.unwrap_or(""), messages: first }
            }
            Kind::Completion | Kind::Generate if first.starts_with('[') => {
                ids = serde_json::from_str(first)
                    .map_err(|error| format!("{prompt_field} must hold token ids, numbers from 0 on: {error}"))?;
                PromptContent::Tokens(&ids)
            }
            Kind::Completion | Kind::Generate => PromptContent::Text(first),
        };
        let model = fields.text("model").unwrap_or_default();
        let salt = ["cache_salt", "extra_key"].map(|name| fields.raw(name).unwrap_or("")).concat();
        let lora = fields.raw("lora_path").unwrap_or("");
        let keyed = keyer.keys(page_size, &PromptView { model: &model, salt: &salt, lora, content });
        let session = ["session_id", "conversation_id"].iter().find_map(|name| fields.raw(name)).map(fingerprint);
        let wants_prompt_logprobs = kind == Kind::Generate
            && fields.raw("return_logprob").is_some_and(|raw| raw == "true" || raw.contains("true"));
        let (open, is_empty) = open_object(body, &fields);
        Ok(Self {
            kind,
            is_stream,
            wants_prompt_logprobs,
            batch,
            rid: fields.raw("rid").map(str::to_owned),
            model,
            session,
            keyed,
            open,
            is_empty,
        })
    }

    /// The body that a leg gets.
    pub(super) fn leg_body(&self, rid: Option<&str>, bootstrap: Option<Bootstrap<'_>>) -> Bytes {
        let mut body = Vec::with_capacity(self.open.len() + 256);
        body.extend_from_slice(&self.open);
        let mut is_first = self.is_empty;
        let mut field = |name: &str, value: &str| {
            if !std::mem::take(&mut is_first) {
                body.push(b',');
            }
            body.push(b'"');
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(b"\":");
            body.extend_from_slice(value.as_bytes());
        };
        // A list of prompts would need a list of names; those are made by the worker.
        if let (Some(rid), None, None) = (rid, &self.rid, self.batch) {
            field("rid", &quote(rid));
        }
        if let Some(Bootstrap { host, port, rooms }) = bootstrap {
            let host = quote(host);
            let port = port.map_or_else(|| "null".to_owned(), |port| port.to_string());
            let room = |index: usize| rooms.get(index).copied().unwrap_or_default().to_string();
            match self.batch {
                None => {
                    field("bootstrap_host", &host);
                    field("bootstrap_port", &port);
                    field("bootstrap_room", &room(0));
                }
                Some(count) => {
                    let list = |item: &dyn Fn(usize) -> String| {
                        format!("[{}]", (0..count).map(item).collect::<Vec<_>>().join(","))
                    };
                    field("bootstrap_host", &list(&|_| host.clone()));
                    field("bootstrap_port", &list(&|_| port.clone()));
                    field("bootstrap_room", &list(&room));
                }
            }
        }
        body.push(b'}');
        body.into()
    }
}

/// The object without its closing brace and without bootstrap fields; true if no field is left.
fn open_object(body: &Bytes, fields: &Fields<'_>) -> (Bytes, bool) {
    let is_ours = |name: &str| BOOTSTRAP_FIELDS.contains(&name);
    if fields.0.iter().any(|(name, _)| is_ours(name)) {
        let kept: Vec<_> = fields.0.iter().filter(|(name, _)| !is_ours(name)).collect();
        let text: Vec<String> = kept.iter().map(|(name, raw)| format!("{}:{}", quote(name), raw.get())).collect();
        return (format!("{{{}", text.join(",")).into(), kept.is_empty());
    }
    // The parser has found one object: its last brace closes it.
    let end = body.iter().rposition(|&byte| byte == b'}').unwrap_or(body.len());
    (body.slice(..end), fields.0.is_empty())
}

/// A string as JSON.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A number for a name.
pub(super) fn fingerprint(text: &str) -> u64 {
    let mut digest = pd_core::digest::Digest::new();
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        digest.word(u64::from_le_bytes(word));
    }
    digest.word(text.len() as u64);
    digest.finish()
}

/// What of a client's text fits into a message.
pub(super) fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// Most prompts (or answers) of one request.
const BATCH_MAX: usize = 4096;
const BOOTSTRAP_FIELDS: [&str; 4] = ["bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"];
