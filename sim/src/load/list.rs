//! Requests that a scenario spells out one by one, with contents known by name.

use std::collections::BTreeMap;

use pd_core::key::Namespace;
use pd_core::time::Instant;

use super::config::{ListConfig, ListRequest};
use super::content::{Chain, Source};
use super::{Arrival, Context, LoadError};

/// The arrivals of a list, in order of time and, at the same time, of the list.
#[derive(Debug)]
pub(super) struct List {
    arrivals: std::vec::IntoIter<(Instant, Arrival)>,
}

/// What a content begins with before its own tape: pieces of other tapes. Empty for most.
type Beginning = Vec<(Source, u32)>;

impl List {
    pub(super) fn new(config: &ListConfig, cx: &Context<'_>) -> Result<Self, LoadError> {
        let mut contents: BTreeMap<&str, Beginning> = BTreeMap::new();
        let mut arrivals = Vec::new();
        cx.count("requests", config.requests.len() as u64)?;
        for (count, request) in (0..).zip(&config.requests) {
            let at = Instant(config.start.ns()).after_ns(request.at.ns());
            let prompt_tokens = cx.length("requests", request.prompt_tokens.0)?;
            let output_tokens = cx.length("requests", request.output_tokens.0)?;
            let (beginning, own) = parts(request, count, &mut contents, cx)?;
            // Equal tokens in another namespace are other pages.
            let namespace =
                Namespace { lora: request.lora.clone(), salt: request.salt.clone(), ..cx.namespace.clone() };
            let mut chain = Chain::new(namespace.root(), namespace.page_size);
            chain.reserve(prompt_tokens);
            append(&mut chain, &beginning, own, prompt_tokens);
            let ordinal = cx.ordinal(count);
            let arrival = Arrival {
                ordinal,
                session: ordinal,
                turn: 0,
                counted_tokens: prompt_tokens,
                output_tokens,
                answer: chain.answer(),
                prompt: chain.into_prompt(),
                priority: request.priority.unwrap_or(config.priority),
            };
            arrivals.push((at, arrival));
        }
        arrivals.sort_by_key(|(at, _)| *at);
        Ok(Self { arrivals: arrivals.into_iter() })
    }

    pub(super) fn next_arrival(&mut self) -> Option<(Instant, Arrival)> {
        self.arrivals.next()
    }
}

/// What the request's prompt begins with, and the tape it goes on with.
fn parts<'a>(
    request: &'a ListRequest,
    count: u32,
    contents: &mut BTreeMap<&'a str, Beginning>,
    cx: &Context<'_>,
) -> Result<(Beginning, Source), LoadError> {
    let beginning = match &request.prefix {
        None => None,
        Some(prefix) => {
            let tokens = cx.length("prefix", prefix.tokens.0)?;
            // Named here first, it is a content without a prefix for good; so there are no cycles.
            let other = contents.entry(&prefix.of).or_default();
            let mut left = tokens;
            let mut pieces: Beginning = Vec::new();
            for &(source, piece_tokens) in other.iter().chain([&(Source::named(&prefix.of), u32::MAX)]) {
                let taken = piece_tokens.min(left);
                left -= taken;
                if taken > 0 {
                    pieces.push((source, taken));
                }
            }
            Some(pieces)
        }
    };
    let Some(name) = &request.content else {
        return Ok((beginning.unwrap_or_default(), Source::unique(cx.index, u64::from(count))));
    };
    let known = contents.get(name.as_str());
    let beginning = match (beginning, known) {
        (None, known) => known.cloned().unwrap_or_default(),
        (Some(pieces), Some(known)) if *known != pieces => {
            let problem =
                format!("content \"{name}\" began otherwise in an earlier request; the same name is the same tokens");
            return Err(cx.error("prefix", problem));
        }
        (Some(pieces), Some(_) | None) => pieces,
    };
    contents.insert(name, beginning.clone());
    Ok((beginning, Source::named(name)))
}

fn append(chain: &mut Chain, beginning: &[(Source, u32)], own: Source, tokens: u32) {
    let mut left = tokens;
    for (source, piece_tokens) in beginning {
        let taken = left.min(*piece_tokens);
        chain.append(*source, taken);
        left -= taken;
    }
    chain.append(own, left);
}
