//! How the workers are: one task for each asks for its health and its load, and tells the machine.
//!
//! ```text
//!            good look                    failures in a row
//! joining ──────────────> up ───────────────────────────────> down
//!    ^ keeps asking        ^        good looks in a row         │
//!                          └──────────── (a new life) ──────────┘
//! ```
//! A worker that comes back lives a new life: what the machine believed of its cache is forgotten. At the beginning of a
//! life the worker is asked who it is; none of the answers is needed, and an old worker that lacks the question serves.
//! Only one thing keeps a healthy worker out: that it says to be a prefill worker in the list of decode workers, or the
//! other way round.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{ACCEPT, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use pd_core::config::Mode;
use pd_core::id::Epoch;
use pd_core::router::{LoadReport, Member as Life, RouterInput};

use super::App;
use super::config::{Spec, secs};
use super::leg::{Envelope, Said};
use super::members::{Duplicate, Health, Member, Origin, mode_name};

impl App {
    /// Adds a worker and begins to look after it.
    pub(super) fn add_worker(self: &Arc<Self>, spec: Spec, origin: Origin) -> Result<Arc<Member>, Duplicate> {
        let member = self.members.add(spec, origin)?;
        let (app, watched) = (Arc::clone(self), Arc::clone(&member));
        let task = self.spawn(async move {
            tokio::join!(app.look_after(&watched), app.ask_for_load(&watched), app.listen_to(&watched));
        });
        member.set_task(task);
        tracing::info!(worker = %member.spec.target, mode = mode_name(member.spec.mode), "a worker was added");
        Ok(member)
    }

    /// Gives a worker no new requests, and forgets it when those that it has are over.
    pub(super) fn remove_worker(self: &Arc<Self>, member: &Arc<Member>) {
        if !member.set_health(Health::Leaving, None) {
            return;
        }
        member.stop_task();
        self.brain.feed(RouterInput::Drain { worker: member.id });
        let (app, member) = (Arc::clone(self), Arc::clone(member));
        self.spawn(async move {
            let grace = tokio::time::sleep(secs(app.config.request_timeout_secs));
            tokio::pin!(grace);
            while member.active.load(Ordering::Relaxed) > 0 {
                tokio::select! {
                    () = &mut grace => break,
                    () = tokio::time::sleep(DRAIN_LOOK) => {}
                }
            }
            app.brain.feed(RouterInput::Worker { id: member.id, up: None });
            app.members.forget(member.id);
            tracing::info!(worker = %member.spec.target, "a worker was removed");
        });
    }

    /// Brings the workers of the discovery file in line with it.
    pub(super) fn take_list(self: &Arc<Self>, specs: Vec<Spec>) {
        for member in self.members.all() {
            if member.origin == Origin::File && !specs.contains(&member.spec) {
                self.remove_worker(&member);
            }
        }
        for spec in specs {
            // One that is there already, by whatever way, stays as it is.
            let _ = self.add_worker(spec, Origin::File);
        }
    }

    async fn look_after(self: &Arc<Self>, member: &Arc<Member>) {
        let (mut failures, mut successes, mut life) = (0_u32, 0_u32, 0_u32);
        loop {
            let health = member.health();
            match self.check(member).await {
                Ok(()) => {
                    member.checks_ok.fetch_add(1, Ordering::Relaxed);
                    (failures, successes) = (0, successes.saturating_add(1));
                    let wanted = if health == Health::Down { self.config.health_success_threshold } else { 1 };
                    if health != Health::Up && successes >= wanted {
                        life += 1;
                        self.welcome(member, Epoch(life)).await;
                    }
                }
                Err(why) => {
                    member.checks_bad.fetch_add(1, Ordering::Relaxed);
                    (failures, successes) = (failures.saturating_add(1), 0);
                    if health == Health::Up && failures >= self.config.health_failure_threshold {
                        if member.set_health(Health::Down, Some(why.clone())) {
                            tracing::warn!(worker = %member.spec.target, "a worker is down: {why}");
                            self.brain.feed(RouterInput::Worker { id: member.id, up: None });
                        }
                    } else if health != Health::Up {
                        member.set_health(health, Some(why));
                    }
                }
            }
            let pause = match member.health() {
                Health::Joining => self.config.worker_startup_check_interval_secs,
                Health::Up | Health::Down => self.config.health_check_interval_secs,
                Health::Leaving => return,
            };
            tokio::time::sleep(secs(pause)).await;
        }
    }

    async fn check(&self, member: &Member) -> Result<(), String> {
        match self.ask(member, Method::GET, &self.config.health_check_endpoint, Bytes::new()).await {
            Ok((status, _)) if status.is_success() => Ok(()),
            Ok((status, _)) => Err(format!("{} answers {status}", self.config.health_check_endpoint)),
            Err(why) => Err(why),
        }
    }

    /// Asks a healthy worker who it is, and tells the machine.
    async fn welcome(&self, member: &Member, epoch: Epoch) {
        let (server, model, cards, load) = tokio::join!(
            self.ask_either(member, ["/server_info", "/get_server_info"]),
            self.ask_either(member, ["/model_info", "/get_model_info"]),
            self.ask_json(member, "/v1/models"),
            self.load_of(member),
        );
        let lacks: Vec<&str> = [
            ("/server_info", server.is_none()),
            ("/model_info", model.is_none()),
            ("/v1/models", cards.is_none()),
            ("/v1/loads", load.is_none()),
        ]
        .into_iter()
        .filter_map(|(path, is_lacking)| is_lacking.then_some(path))
        .collect();
        let warning = (!lacks.is_empty()).then(|| {
            let lacks = lacks.join(", ");
            tracing::warn!(worker = %member.spec.target, "a worker does not answer {lacks}: it serves, and less is known of it");
            format!("it does not answer {lacks}: it serves, and less is known of it")
        });
        let mut metadata = Map::new();
        for (from, names) in [(&server, &SERVER_FACTS[..]), (&model, &MODEL_FACTS[..])] {
            for name in names {
                if let Some(value) = from.as_ref().and_then(|from| from.get(*name)) {
                    metadata.insert((*name).to_owned(), value.clone());
                }
            }
        }
        let mut models = cards.and_then(|cards| cards.get("data")?.as_array().cloned()).unwrap_or_default();
        if models.is_empty()
            && let Some(name) = metadata.get("served_model_name").or_else(|| metadata.get("model_path"))
        {
            models.push(json!({"id": name, "object": "model", "created": 1, "owned_by": "pd"}));
        }
        let said = metadata.get("disaggregation_mode").and_then(Value::as_str).unwrap_or("");
        let contradiction = matches!(
            (member.spec.mode, said),
            (Mode::Decode | Mode::Unified, "prefill") | (Mode::Prefill | Mode::Unified, "decode")
        );
        let tokens = metadata.get("max_total_num_tokens").and_then(Value::as_u64).unwrap_or(0);
        let why = format!("it says to be a {said} worker, and is listed as {}", mode_name(member.spec.mode));
        member.describe(models, metadata, warning);
        if contradiction {
            if member.set_health(Health::Down, Some(why.clone())) {
                tracing::error!(worker = %member.spec.target, "{why}; move it to the other list");
            }
            return;
        }
        if member.set_health(Health::Up, None) {
            let pages = u32::try_from(tokens / u64::from(self.config.page_size)).unwrap_or(u32::MAX);
            let life = Life { epoch, mode: member.spec.mode, pages };
            member.lives.fetch_add(1, Ordering::Relaxed);
            self.brain.feed(RouterInput::Worker { id: member.id, up: Some(life) });
            tracing::info!(worker = %member.spec.target, mode = mode_name(member.spec.mode), "a worker is up");
        }
    }

    async fn ask_for_load(&self, member: &Member) {
        if self.config.load_monitor_interval_secs == 0.0 {
            return;
        }
        loop {
            tokio::time::sleep(secs(self.config.load_monitor_interval_secs)).await;
            if !member.is_up() {
                continue;
            }
            if let Some(load) = self.load_of(member).await {
                self.brain.feed(RouterInput::Load { worker: member.id, load });
            }
        }
    }

    async fn load_of(&self, member: &Member) -> Option<LoadReport> {
        match self.ask_json(member, "/v1/loads?include=core").await.as_ref().and_then(read_loads) {
            Some(load) => Some(load),
            None => self.ask_json(member, "/get_load").await.as_ref().and_then(read_loads),
        }
    }

    async fn ask_either(&self, member: &Member, paths: [&str; 2]) -> Option<Value> {
        match self.ask_json(member, paths[0]).await {
            Some(value) => Some(value),
            None => self.ask_json(member, paths[1]).await,
        }
    }

    pub(super) async fn ask_json(&self, member: &Member, path: &str) -> Option<Value> {
        let (status, body) = self.ask(member, Method::GET, path, Bytes::new()).await.ok()?;
        status.is_success().then(|| serde_json::from_slice(&body).ok())?
    }

    /// A question of the router's own.
    pub(super) fn question(&self, method: Method, path: &str, has_body: bool) -> Envelope {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if has_body {
            headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(key) = &self.config.api_key
            && let Ok(value) = HeaderValue::from_str(&format!("Bearer {key}"))
        {
            headers.insert(hyper::header::AUTHORIZATION, value);
        }
        Envelope { method, path_and_query: path.to_owned(), headers }
    }

    /// A short question to a worker.
    pub(super) async fn ask(
        &self,
        member: &Member,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let envelope = self.question(method, path, !body.is_empty());
        let limit = secs(self.config.health_check_timeout_secs);
        let answer = async {
            let response = self.send(member, &envelope, body).await.map_err(|fault| match fault.said {
                Said::Nothing(why) => why,
                Said::Answer { status, .. } => status.to_string(),
            })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            body.map(|body| (status, body.to_bytes())).map_err(|error| error.to_string())
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{path}: no answer within {} s", limit.as_secs_f64())),
        }
    }
}

/// Sums up SGLang's `/v1/loads` (`{"loads": [...]}`) or `/get_load` (a list), one entry per data-parallel rank.
fn read_loads(value: &Value) -> Option<LoadReport> {
    let list = value.get("loads").unwrap_or(value).as_array()?;
    let mut report = LoadReport::default();
    for one in list {
        let number = |names: &[&str]| names.iter().find_map(|name| one.get(*name)?.as_u64()).unwrap_or(0);
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let waiting = number(&["num_waiting_reqs"]);
        let running = match one.get("num_running_reqs").and_then(Value::as_u64) {
            Some(running) => running,
            None => number(&["num_reqs"]).saturating_sub(waiting),
        };
        report.running = report.running.saturating_add(small(running));
        report.waiting = report.waiting.saturating_add(small(waiting));
        report.waiting_tokens = report.waiting_tokens.saturating_add(number(&["num_waiting_uncached_tokens"]));
        report.running_tokens = report.running_tokens.saturating_add(number(&["num_used_tokens", "num_tokens"]));
    }
    Some(report)
}

const SERVER_FACTS: [&str; 8] = [
    "served_model_name",
    "model_path",
    "tp_size",
    "dp_size",
    "load_balance_method",
    "disaggregation_mode",
    "max_total_num_tokens",
    "version",
];
const MODEL_FACTS: [&str; 3] = ["model_type", "architectures", "tokenizer_path"];
const DRAIN_LOOK: Duration = Duration::from_millis(20);
const ANSWER_BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_of_both_dialects_are_summed_over_ranks() {
        let newer = json!({"loads": [
            {"num_running_reqs": 2, "num_waiting_reqs": 3, "num_waiting_uncached_tokens": 40, "num_used_tokens": 500},
            {"num_running_reqs": 1, "num_waiting_reqs": 0, "num_used_tokens": 7},
        ]});
        let report = LoadReport { running: 3, waiting: 3, waiting_tokens: 40, running_tokens: 507 };
        assert_eq!(read_loads(&newer), Some(report));
        let older = json!([{"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 9}]);
        let report = LoadReport { running: 3, waiting: 2, waiting_tokens: 0, running_tokens: 9 };
        assert_eq!(read_loads(&older), Some(report));
        for nonsense in [json!(null), json!({}), json!({"loads": 3}), json!("x")] {
            assert_eq!(read_loads(&nonsense), None, "{nonsense}");
        }
        let odd = json!([{"num_reqs": -1, "num_waiting_reqs": "x"}, 7]);
        assert_eq!(read_loads(&odd), Some(LoadReport::default()));
    }
}
