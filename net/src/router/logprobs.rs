//! The prompt's log-probabilities are the prefill worker's, the answer's are the decode worker's: both belong into one
//! `meta_info`. Everything else of the decode worker's JSON keeps its bytes.

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    meta_info: Option<Meta<'a>>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow)]
    input_token_logprobs: Option<&'a RawValue>,
    #[serde(borrow)]
    input_top_logprobs: Option<&'a RawValue>,
}

/// What a prefill worker's answer holds for each prompt of a request: the inside of its two lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PromptLogprobs(Vec<[String; 2]>);

impl PromptLogprobs {
    /// Reads an answer of a prefill worker, streamed or not; nothing if there is nothing in it.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut parser = crate::client::sse::SseParser::default();
        if body.starts_with(b"data:") {
            let mut last = Self::default();
            // Events too large to parse leave the answer without the prompt's part.
            let _ = parser.push(body, |data| {
                let read = Self::read_json(data);
                if read.0.iter().any(|lists| lists.iter().any(|list| !list.is_empty())) {
                    last = read;
                }
            });
            return last;
        }
        Self::read_json(body)
    }

    fn read_json(body: &[u8]) -> Self {
        Self(items(body).iter().map(|item| item.as_ref().map_or_else(Default::default, inside)).collect())
    }

    /// The decode worker's answer (or one event of it) with the prompt's part in front; `None` if nothing is to be
    /// changed.
    pub(super) fn merge(&self, body: &[u8]) -> Option<Vec<u8>> {
        let items = items(body);
        if items.len() != self.0.len() {
            return None;
        }
        let mut merged = Vec::with_capacity(body.len() + 256);
        let mut done = 0;
        for (item, lists) in items.iter().zip(&self.0) {
            let Some(Item { meta_info: Some(meta) }) = item else { continue };
            let mut raws: Vec<(&RawValue, &String)> = [meta.input_token_logprobs, meta.input_top_logprobs]
                .into_iter()
                .zip(lists)
                .filter_map(|(raw, list)| Some((raw?, list)))
                .collect();
            raws.sort_by_key(|(raw, _)| raw.get().as_ptr() as usize);
            for (raw, list) in raws {
                let text = raw.get();
                if list.is_empty() || !(text.starts_with('[') || text == "null") {
                    continue;
                }
                // The raw value is a part of `body`: this is where.
                let start = (text.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
                let own = between_brackets(text);
                merged.extend_from_slice(body.get(done..start)?);
                let comma = if own.is_empty() { "" } else { ", " };
                merged.extend_from_slice(format!("[{list}{comma}{own}]").as_bytes());
                done = start + text.len();
            }
        }
        if done == 0 {
            return None;
        }
        merged.extend_from_slice(body.get(done..)?);
        Some(merged)
    }
}

/// The objects of a body: one, or a list of them.
fn items(body: &[u8]) -> Vec<Option<Item<'_>>> {
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(raw) if raw.get().starts_with('[') => {
            let parts: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
            parts.into_iter().map(|part| serde_json::from_str(part.get()).ok()).collect()
        }
        Ok(raw) => vec![serde_json::from_str(raw.get()).ok()],
        Err(_) => Vec::new(),
    }
}

fn inside(item: &Item<'_>) -> [String; 2] {
    let Some(meta) = &item.meta_info else { return Default::default() };
    [meta.input_token_logprobs, meta.input_top_logprobs]
        .map(|raw| raw.map_or_else(String::new, |raw| between_brackets(raw.get()).to_owned()))
}

fn between_brackets(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or("").trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(prefill: &str, decode: &str) -> Option<String> {
        PromptLogprobs::read(prefill.as_bytes())
            .merge(decode.as_bytes())
            .map(|merged| String::from_utf8(merged).expect("text"))
    }

    #[test]
    fn the_prompt_comes_first_and_all_else_keeps_its_bytes() {
        let prefill = r#"{"text":"","meta_info":{"input_token_logprobs":[[null,1,null],[-0.5,2,null]]}}"#;
        let decode = r#"{"text": "é", "meta_info": {"id":"x", "input_token_logprobs" : [], "x": 0.10}}"#;
        let merged = r#"{"text": "é", "meta_info": {"id":"x", "input_token_logprobs" : [[null,1,null],[-0.5,2,null]], "x": 0.10}}"#;
        assert_eq!(merge(prefill, decode).as_deref(), Some(merged));
        let own = r#"{"meta_info":{"input_token_logprobs":[[-1,3,null]]}}"#;
        assert_eq!(
            merge(prefill, own).as_deref(),
            Some(r#"{"meta_info":{"input_token_logprobs":[[null,1,null],[-0.5,2,null], [-1,3,null]]}}"#)
        );
    }

    #[test]
    fn lists_are_merged_one_by_one_and_streams_by_their_event() {
        let prefill = r#"[{"meta_info":{"input_token_logprobs":[1]}},{"meta_info":{"input_token_logprobs":[2]}}]"#;
        let decode = r#"[{"meta_info":{"input_token_logprobs":[]}}, {"meta_info":{"input_token_logprobs":[3]}}]"#;
        assert_eq!(
            merge(prefill, decode).as_deref(),
            Some(r#"[{"meta_info":{"input_token_logprobs":[1]}}, {"meta_info":{"input_token_logprobs":[2, 3]}}]"#)
        );
        let stream = "data: {\"meta_info\":{\"input_token_logprobs\":[7]}}\n\ndata: [DONE]\n\n";
        assert_eq!(
            merge(stream, r#"{"meta_info":{"input_token_logprobs":[]}}"#).as_deref(),
            Some(r#"{"meta_info":{"input_token_logprobs":[7]}}"#)
        );
    }

    #[test]
    fn what_cannot_be_merged_is_left_alone() {
        let prefill = r#"{"meta_info":{"input_token_logprobs":[1]}}"#;
        for decode in
            ["", "[DONE]", "{", "[]", "{}", r#"{"meta_info":null}"#, r#"{"meta_info":{"input_token_logprobs":3}}"#]
        {
            assert_eq!(merge(prefill, decode), None, "{decode}");
        }
        for prefill in ["", "not json", "[1,2]", "{}"] {
            assert_eq!(merge(prefill, r#"{"meta_info":{"input_token_logprobs":[]}}"#), None, "{prefill}");
        }
    }
}
