//! What a router is told at its start, under the names that users of SGLang's router type.

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use pd_core::cost::LinkCost;
use pd_core::id::Epoch;
use pd_core::router::{self as core_router, Policy};

use crate::client::target::Target;

/// A router. Each key is the flag of `sglang_router.launch_router` with underscores, where the meaning is the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Prefill workers: `"http://host:port"`, or `"http://host:port 8998"` with the bootstrap port.
    pub prefill: Vec<String>,
    /// Decode workers.
    pub decode: Vec<String>,
    /// Workers that serve whole requests.
    pub worker_urls: Vec<String>,
    /// A TOML or JSON list of further workers; read again when it changes.
    pub discovery_file: Option<PathBuf>,
    /// Time between two looks at that file.
    pub discovery_interval_secs: f64,
    /// How workers are chosen: `random`, `round_robin`, `power_of_two`, `cache_aware`, `append_aware`.
    pub policy: Policy,
    /// The same for the worker that computes the prompt; `policy` if absent.
    pub prefill_policy: Option<Policy>,
    /// The same for the decode worker of a pair; `policy` if absent (`power_of_two` under `append_aware`).
    pub decode_policy: Option<Policy>,
    /// Share of the prompt below which a cached prefix does not decide.
    pub cache_threshold: f64,
    /// Requests by which the longest queue may exceed the shortest.
    pub balance_abs_threshold: u32,
    /// Ratio of the longest to the shortest queue beyond which the shortest is taken.
    pub balance_rel_threshold: f64,
    /// Most pages that the index of cached prefixes remembers, over all workers.
    pub max_tree_size: u32,
    /// Tokens per page of the prefix index; without a tokenizer four bytes of text count as a token.
    pub page_size: u32,
    /// Decode workers can serve a request alone (pd's can, SGLang's cannot): used when no prefill worker is left, and
    /// needed by `append_aware`.
    pub decode_serves_alone: bool,
    /// Longest time for one attempt at a request, its answer included.
    pub request_timeout_secs: f64,
    /// Longest time for a connection to a worker to be made.
    pub connect_timeout_secs: f64,
    /// Most bytes of a request's body.
    pub max_payload_size: usize,
    /// Most requests at once; one more gets 429.
    pub max_concurrent_requests: u32,
    /// Time between two looks at a worker that has not been healthy yet.
    pub worker_startup_check_interval_secs: f64,
    /// Time between two looks at a worker's health.
    pub health_check_interval_secs: f64,
    /// Longest time for an answer about health.
    pub health_check_timeout_secs: f64,
    /// Failed looks in a row after which a worker is down.
    pub health_failure_threshold: u32,
    /// Good looks in a row after which a worker is up again.
    pub health_success_threshold: u32,
    /// What is asked.
    pub health_check_endpoint: String,
    /// Attempts after the first one, all before the first byte of the answer.
    pub retry_max_retries: u32,
    /// First pause before a retry.
    pub retry_initial_backoff_ms: u64,
    /// Longest pause.
    pub retry_max_backoff_ms: u64,
    /// Growth of the pause.
    pub retry_backoff_multiplier: f64,
    /// Largest share by which a pause is lengthened or shortened.
    pub retry_jitter_factor: f64,
    /// Never tries again.
    pub disable_retries: bool,
    /// Failures that open a worker's circuit breaker.
    pub cb_failure_threshold: u32,
    /// Successes that close it again.
    pub cb_success_threshold: u32,
    /// How long it stays open.
    pub cb_timeout_duration_secs: f64,
    /// Time within which the failures must happen.
    pub cb_window_duration_secs: f64,
    /// Breakers never open.
    pub disable_circuit_breaker: bool,
    /// Time between two questions for a worker's load; 0 never asks.
    pub load_monitor_interval_secs: f64,
    /// The key that clients have to present, and that the router presents to workers.
    pub api_key: Option<String>,
    /// Headers whose value becomes the id of a request, first one first.
    pub request_id_headers: Vec<String>,
    /// Gives requests without `rid` one, so that they can be aborted by name at the worker.
    pub send_rid: bool,
    /// Time that running answers get to finish after the signal to stop.
    pub shutdown_grace_period_secs: f64,
    /// Seed of random choices.
    pub seed: u64,
    /// What was measured of its workers; a guess if absent.
    #[serde(skip)]
    pub measured: Option<Measured>,
    /// Which life of the router this is, below 2^23; drawn at the start if absent. Rooms of two lives never meet.
    pub epoch: Option<u32>,
}

/// A key that cannot be what it is.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{key} is {value}: {must}")]
pub struct RouterConfigError {
    /// The key to change.
    pub key: &'static str,
    /// What it is.
    pub value: String,
    /// What it must be.
    pub must: String,
}

/// What is known of the workers' hardware, beside what steps cost there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    /// Bytes of KV per token.
    pub token_bytes: u64,
    /// Cost of the link between workers.
    pub link: Option<LinkCost>,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            prefill: Vec::new(),
            decode: Vec::new(),
            worker_urls: Vec::new(),
            discovery_file: None,
            discovery_interval_secs: 1.0,
            policy: Policy::CacheAware,
            prefill_policy: None,
            decode_policy: None,
            cache_threshold: 0.3,
            balance_abs_threshold: 64,
            balance_rel_threshold: 1.5,
            max_tree_size: 4_000_000,
            page_size: 16,
            decode_serves_alone: false,
            request_timeout_secs: 1800.0,
            connect_timeout_secs: 5.0,
            max_payload_size: 512 << 20,
            max_concurrent_requests: 10_000,
            worker_startup_check_interval_secs: 1.0,
            health_check_interval_secs: 10.0,
            health_check_timeout_secs: 5.0,
            health_failure_threshold: 3,
            health_success_threshold: 2,
            health_check_endpoint: "/health".into(),
            retry_max_retries: 5,
            retry_initial_backoff_ms: 50,
            retry_max_backoff_ms: 30_000,
            retry_backoff_multiplier: 1.5,
            retry_jitter_factor: 0.2,
            disable_retries: false,
            cb_failure_threshold: 10,
            cb_success_threshold: 3,
            cb_timeout_duration_secs: 60.0,
            cb_window_duration_secs: 120.0,
            disable_circuit_breaker: false,
            load_monitor_interval_secs: 2.0,
            api_key: None,
            request_id_headers: vec!["x-request-id".into(), "x-correlation-id".into()],
            send_rid: true,
            shutdown_grace_period_secs: 180.0,
            seed: 0,
            measured: None,
            epoch: None,
        }
    }
}

impl RouterConfig {
    /// Checks what no single type can.
    ///
    /// # Errors
    /// The first key that is wrong, with what it must be.
    pub fn check(&self) -> Result<(), RouterConfigError> {
        self.workers()?;
        for (key, value, min, max) in [
            ("discovery_interval_secs", self.discovery_interval_secs, 0.001, 86_400.0),
            ("request_timeout_secs", self.request_timeout_secs, 0.001, 604_800.0),
            ("connect_timeout_secs", self.connect_timeout_secs, 0.001, 3_600.0),
            ("worker_startup_check_interval_secs", self.worker_startup_check_interval_secs, 0.001, 86_400.0),
            ("health_check_interval_secs", self.health_check_interval_secs, 0.001, 86_400.0),
            ("health_check_timeout_secs", self.health_check_timeout_secs, 0.001, 3_600.0),
            ("cb_timeout_duration_secs", self.cb_timeout_duration_secs, 0.0, 86_400.0),
            ("cb_window_duration_secs", self.cb_window_duration_secs, 0.0, 86_400.0),
            ("load_monitor_interval_secs", self.load_monitor_interval_secs, 0.0, 86_400.0),
            ("shutdown_grace_period_secs", self.shutdown_grace_period_secs, 0.0, 604_800.0),
            ("cache_threshold", self.cache_threshold, 0.0, 1.0),
            ("balance_rel_threshold", self.balance_rel_threshold, 1.0, 1000.0),
            ("retry_backoff_multiplier", self.retry_backoff_multiplier, 1.0, 10.0),
            ("retry_jitter_factor", self.retry_jitter_factor, 0.0, 1.0),
        ] {
            // A NaN is in no range.
            if !(min..=max).contains(&value) {
                return Err(wrong(key, value, format!("it must be from {min} to {max}")));
            }
        }
        for (key, value) in [
            ("health_failure_threshold", u64::from(self.health_failure_threshold)),
            ("health_success_threshold", u64::from(self.health_success_threshold)),
            ("max_payload_size", self.max_payload_size as u64),
            ("max_concurrent_requests", u64::from(self.max_concurrent_requests)),
            ("max_tree_size", u64::from(self.max_tree_size)),
            ("cb_failure_threshold", u64::from(self.cb_failure_threshold)),
            ("cb_success_threshold", u64::from(self.cb_success_threshold)),
        ] {
            if value == 0 {
                return Err(wrong(key, value, "it must be more than 0"));
            }
        }
        if !self.health_check_endpoint.starts_with('/') {
            return Err(wrong("health_check_endpoint", &self.health_check_endpoint, "it must start with /"));
        }
        if let Some(header) = self.request_id_headers.iter().find(|name| !is_header_name(name)) {
            return Err(wrong("request_id_headers", header, "it is not the name of a header"));
        }
        if let Some(key) = &self.api_key
            && (key.is_empty() || !key.bytes().all(|byte| (b'!'..=b'~').contains(&byte)))
        {
            // The key itself stays out of logs.
            return Err(wrong("api_key", "(hidden)", "it must be visible ASCII, and not empty"));
        }
        if self.first_policy() == Policy::AppendAware && !self.decode_serves_alone && !self.decode.is_empty() {
            return Err(wrong(
                "policy",
                self.first_policy().name(),
                "it sends whole requests to decode workers; set decode_serves_alone if yours can serve them",
            ));
        }
        self.machine().check().map_err(|error| {
            let text = error.to_string();
            wrong(error.key(), "out of range", text)
        })
    }

    /// The workers that the configuration names.
    pub(super) fn workers(&self) -> Result<Vec<Spec>, RouterConfigError> {
        use pd_core::config::Mode;
        let mut specs: Vec<Spec> = Vec::new();
        let lists = [
            ("prefill", &self.prefill, Mode::Prefill),
            ("decode", &self.decode, Mode::Decode),
            ("worker_urls", &self.worker_urls, Mode::Unified),
        ];
        for (key, list, mode) in lists {
            for text in list {
                let spec = Spec::parse(text, mode).map_err(|why| wrong(key, format!("{text:?}"), why))?;
                if specs.iter().any(|other| other.target == spec.target) {
                    return Err(wrong(key, format!("{text:?}"), "this address is listed twice"));
                }
                specs.push(spec);
            }
        }
        Ok(specs)
    }

    /// The same with a life, drawn if none was given: so that who records the machine knows it, too.
    #[must_use]
    pub fn with_life(mut self) -> Self {
        self.epoch.get_or_insert_with(|| (draw() % LIVES) as u32);
        self
    }

    /// What the machine is told; without [`with_life`](Self::with_life), or a life of its own, in life 0.
    #[must_use]
    pub fn machine(&self) -> core_router::RouterConfig {
        let epoch = Epoch(self.epoch.unwrap_or(0));
        let policy = self.first_policy();
        let decode = self.decode_policy.unwrap_or(match self.policy {
            Policy::AppendAware => Policy::PowerOfTwo,
            other @ (Policy::Random | Policy::RoundRobin | Policy::PowerOfTwo | Policy::CacheAware) => other,
        });
        let ms = Duration::from_millis;
        let guess = core_router::RouterConfig::default();
        core_router::RouterConfig {
            token_bytes: self.measured.as_ref().map_or(guess.token_bytes, |measured| measured.token_bytes),
            link: self.measured.as_ref().and_then(|measured| measured.link).unwrap_or(guess.link),
            epoch,
            seed: self.seed,
            policy,
            decode_policy: decode,
            page_size: self.page_size,
            cache_threshold_per_mille: per_mille(self.cache_threshold),
            balance_abs_threshold: self.balance_abs_threshold,
            balance_rel_threshold_per_mille: per_mille(self.balance_rel_threshold),
            live_requests_max: self.max_concurrent_requests,
            index_entries_max: self.max_tree_size,
            retries_max: if self.disable_retries { 0 } else { self.retry_max_retries },
            backoff_base: ms(self.retry_initial_backoff_ms),
            backoff_growth_per_mille: per_mille(self.retry_backoff_multiplier),
            backoff_max: ms(self.retry_max_backoff_ms),
            backoff_jitter_per_mille: per_mille(self.retry_jitter_factor),
            breaker_failures: if self.disable_circuit_breaker { u32::MAX } else { self.cb_failure_threshold },
            breaker_window: secs(self.cb_window_duration_secs),
            breaker_open: secs(self.cb_timeout_duration_secs),
            breaker_successes: self.cb_success_threshold,
            load_report_max_age: secs(self.load_monitor_interval_secs * 2.5),
            ..guess
        }
    }

    fn first_policy(&self) -> Policy {
        self.prefill_policy.unwrap_or(self.policy)
    }
}

/// A number of the operating system's: the standard library draws the keys of its hash maps from there.
pub(super) fn draw() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Lives of routers that rooms can tell apart.
pub(super) const LIVES: u64 = 1 << 23;

/// A worker as somebody names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Spec {
    pub(super) target: Target,
    pub(super) mode: pd_core::config::Mode,
    pub(super) bootstrap_port: Option<u16>,
}

impl Spec {
    /// Parses an address, which for a prefill worker may be followed by its bootstrap port.
    pub(super) fn parse(text: &str, mode: pd_core::config::Mode) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let target = Target::parse(words.next().unwrap_or("")).map_err(|error| error.why)?;
        let bootstrap_port = match words.next() {
            None | Some("none" | "None") => None,
            Some(_) if mode != pd_core::config::Mode::Prefill => {
                return Err("only prefill workers have a bootstrap port behind their address".into());
            }
            Some(word) => match word.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                Ok(_) | Err(_) => return Err(format!("bootstrap port {word:?} is not a number from 1 to 65535")),
            },
        };
        if let Some(word) = words.next() {
            return Err(format!("{word:?} is one word too many: an address and a bootstrap port are all"));
        }
        Ok(Self { target, mode, bootstrap_port })
    }
}

/// A span from a checked number of seconds.
pub(super) fn secs(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

fn per_mille(value: f64) -> u32 {
    // Saturates; what is out of range is found by the check.
    (value * 1000.0).round() as u32
}

fn is_header_name(name: &str) -> bool {
    hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

fn wrong(key: &'static str, value: impl ToString, must: impl Into<String>) -> RouterConfigError {
    RouterConfigError { key, value: value.to_string(), must: must.into() }
}
