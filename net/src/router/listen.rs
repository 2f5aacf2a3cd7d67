//! What workers say of their caches (`GET /kv_events`, see [`crate::http::kv_events`]), told to the machine.
//!
//! Of use only where placement looks at prefixes, and only for prompts that come as token ids: their page keys can be made
//! here once a worker has said what its own are chained from. Other prompts are placed by what the router remembers of
//! its own placements, as without events. Workers that say nothing are left alone.
//!
//! 1. A life of a worker in the router begins with a reset: what was heard before counts for nothing.
//! 2. Keys are made like a worker's only while all workers that say something agree on what that is.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use pd_core::event::{KvChange, Tier};
use pd_core::id::PageKey;
use pd_core::key::{Namespace, page_keys};
use pd_core::router::{Policy, RouterInput};
use serde::Deserialize;

use super::App;
use super::keys::{Keyed, Keyer, PromptContent, PromptView};
use super::members::Member;
use crate::client::sse::SseParser;

/// An event of the stream; fields that are not known are ignored.
#[derive(Debug, Deserialize)]
struct Told {
    #[serde(default)]
    reset: bool,
    namespace: Option<Namespace>,
    #[serde(default)]
    events: Vec<Block>,
}

#[derive(Debug, Deserialize)]
struct Block {
    r#type: String,
    #[serde(default)]
    block_hashes: Vec<String>,
    parent_block_hash: Option<String>,
    medium: String,
}

impl App {
    /// Listens to a worker as long as it is a member.
    pub(super) async fn listen_to(&self, member: &Member) {
        let policies = [Some(self.config.policy), self.config.prefill_policy, self.config.decode_policy];
        let is_prefix = |policy: &Policy| matches!(policy, Policy::CacheAware | Policy::AppendAware);
        if !policies.iter().flatten().any(is_prefix) {
            return;
        }
        let mut refused = None;
        loop {
            let life = member.lives.load(Ordering::Relaxed);
            if member.is_up()
                && refused != Some(life)
                && let Err(why) = self.listen(member, life).await
            {
                // Not asked again before it has been down.
                tracing::info!(worker = %member.spec.target, "no KV events: {why}");
                refused = Some(life);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Listens as long as the connection lasts.
    ///
    /// # Errors
    /// What is said cannot be used, and will not be later.
    async fn listen(&self, member: &Member, life: u32) -> Result<(), String> {
        let envelope = self.question(Method::GET, "/kv_events", false);
        let Ok(response) = self.send(member, &envelope, Bytes::new()).await else { return Ok(()) };
        if !response.status().is_success() {
            return Err(format!("/kv_events answers {}", response.status()));
        }
        let (mut body, mut parser) = (response.into_body(), SseParser::default());
        // Something comes every 15 s, if only a comment.
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            let Ok(data) = frame.into_data() else { continue };
            let mut told: Vec<Result<Told, String>> = Vec::new();
            let parsed = parser.push(&data, |event| {
                told.push(serde_json::from_slice(event).map_err(|error| error.to_string()));
            });
            parsed.map_err(|error| error.to_string())?;
            if member.lives.load(Ordering::Relaxed) != life {
                // It was down for the machine, which has forgotten it: from the beginning.
                return Ok(());
            }
            for told in told {
                self.take_told(member, told?)?;
            }
        }
        Ok(())
    }

    fn take_told(&self, member: &Member, told: Told) -> Result<(), String> {
        let mut changes = Vec::new();
        if told.reset {
            changes.extend([Tier::Device, Tier::Host, Tier::Storage].map(|tier| KvChange::Cleared { tier }));
            let namespace = told.namespace.ok_or("a reset without a namespace")?;
            if namespace.page_size != self.config.page_size {
                let why = format!(
                    "its pages have {} tokens and the router's index {}: its KV events are of no use (set page_size)",
                    namespace.page_size, self.config.page_size
                );
                return Err(why);
            }
            member.set_root(namespace.root());
            let root = self.agreed_root();
            *self.root.write().unwrap_or_else(PoisonError::into_inner) = root;
        }
        for block in &told.events {
            read(block, &mut changes)?;
        }
        if !changes.is_empty() {
            self.brain.feed(RouterInput::Changes { worker: member.id, changes });
        }
        Ok(())
    }

    /// What the page keys of workers are chained from, if all that say so agree.
    pub(super) fn root(&self) -> Option<PageKey> {
        *self.root.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn agreed_root(&self) -> Option<PageKey> {
        let mut roots: Vec<PageKey> = self.members.all().iter().filter_map(|member| member.root()).collect();
        roots.dedup();
        match roots[..] {
            [root] => Some(root),
            _ => None,
        }
    }
}

/// Keys of workers where they can be made, and those of another keyer elsewhere.
#[derive(Debug)]
pub(super) struct WorkerKeyer<'a> {
    pub(super) root: Option<PageKey>,
    pub(super) other: &'a dyn Keyer,
}

impl Keyer for WorkerKeyer<'_> {
    fn keys(&self, page_size: u32, prompt: &PromptView<'_>) -> Keyed {
        match (self.root, prompt) {
            (Some(root), PromptView { salt: "", lora: "", content: PromptContent::Tokens(ids), .. }) => {
                let tokens: Vec<_> = ids.iter().map(|&id| pd_core::id::Token(id)).collect();
                let length = u32::try_from(tokens.len()).unwrap_or(u32::MAX).max(1);
                Keyed { keys: page_keys(root, page_size, &tokens), length }
            }
            _ => self.other.keys(page_size, prompt),
        }
    }
}

fn read(block: &Block, changes: &mut Vec<KvChange>) -> Result<(), String> {
    let tier = match block.medium.as_str() {
        "GPU" => Tier::Device,
        "CPU" => Tier::Host,
        "DISK" => Tier::Storage,
        // Of another kind of worker: nothing that placement knows.
        _ => return Ok(()),
    };
    let key = |hash: &String| {
        u128::from_str_radix(hash, 16).map(PageKey).map_err(|_| format!("{hash:?} is no hash of a page"))
    };
    match block.r#type.as_str() {
        "BlockStored" => {
            let mut parent = block.parent_block_hash.as_ref().map_or(Ok(PageKey(0)), key)?;
            for hash in &block.block_hashes {
                let key = key(hash)?;
                changes.push(KvChange::Stored { key, parent, tier });
                parent = key;
            }
        }
        "BlockRemoved" => {
            for hash in &block.block_hashes {
                changes.push(KvChange::Removed { key: key(hash)?, tier });
            }
        }
        "AllBlocksCleared" => changes.push(KvChange::Cleared { tier }),
        _ => {}
    }
    Ok(())
}

/// Longest time without a byte until a connection counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Time until a worker is asked again.
const PAUSE: Duration = Duration::from_millis(500);
