//! What workers ask a bootstrap server for.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use pd_core::config::Mode;
use pd_core::id::WorkerId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{Announcement, Lease, Name};
use crate::client::{Pool, pool, reason};
use crate::ctrl::address;

/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Most idle connections per server: questions are seldom.
const IDLE_MAX: usize = 4;

/// Why a question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AskError {
    /// Nobody answers, or not in time.
    #[error("no bootstrap server answers at {address}: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What happened.
        reason: String,
    },
    /// It answers, and refuses.
    #[error("the bootstrap server at {address} answers {status}: {reason}")]
    Refused {
        /// Host and port.
        address: String,
        /// As HTTP says it.
        status: u16,
        /// In its words.
        reason: String,
    },
    /// Something else answers.
    #[error("what answers at {address} is no bootstrap server of pd: {reason}")]
    Nonsense {
        /// Host and port.
        address: String,
        /// What does not fit.
        reason: String,
    },
}

impl AskError {
    /// True if the same question may get another answer later: the server may be starting, or not be complete.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status == 404 || *status >= 500,
            Self::Nonsense { .. } => false,
        }
    }
}

/// A client of bootstrap servers.
#[derive(Clone, Debug)]
pub struct Client {
    http: Pool,
    token: Option<String>,
    timeout: Duration,
}

impl Client {
    /// `timeout` bounds each question.
    #[must_use]
    pub fn new(token: Option<String>, timeout: Duration) -> Self {
        Self { http: pool(timeout, IDLE_MAX), token, timeout }
    }

    /// The prefill worker that a request means by `bootstrap_host` and `bootstrap_port`.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Announcement, AskError> {
        self.ask(&address(host, port), Method::GET, "/pd/self", &()).await
    }

    /// A worker by its id.
    ///
    /// # Errors
    /// [`AskError`]; refused with 404 if it is not registered.
    pub async fn find(&self, server: &str, worker: WorkerId) -> Result<Announcement, AskError> {
        self.ask(server, Method::GET, &format!("/pd/workers/{worker}"), &()).await
    }

    /// The workers of a mode.
    ///
    /// # Errors
    /// [`AskError`]; refused with 503 until all that are expected are there.
    pub async fn workers(&self, server: &str, mode: Mode) -> Result<Vec<Announcement>, AskError> {
        let mode = match mode {
            Mode::Unified => "unified",
            Mode::Prefill => "prefill",
            Mode::Decode => "decode",
        };
        self.ask(server, Method::GET, &format!("/pd/workers?mode={mode}"), &()).await
    }

    /// Registers a worker, once.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn register(&self, server: &str, it: &Announcement) -> Result<Lease, AskError> {
        self.ask(server, Method::POST, "/pd/register", it).await
    }

    /// Registers a worker and keeps its lease, through restarts of the server, until this is dropped. `told` hears of each
    /// failure and of the first success behind it.
    ///
    /// # Errors
    /// Only what no retry can mend: the KV does not fit, the token is wrong, or a later life is registered.
    pub async fn keep(
        &self,
        server: &str,
        it: &Announcement,
        mut told: impl FnMut(Result<Lease, &AskError>),
    ) -> Result<std::convert::Infallible, AskError> {
        const PAUSE: Duration = Duration::from_millis(50);
        const PAUSE_MAX: Duration = Duration::from_secs(5);
        let name = Name { worker: it.worker, epoch: it.epoch };
        let (mut is_registered, mut pause) = (false, PAUSE);
        loop {
            let asked = if is_registered {
                self.ask(server, Method::POST, "/pd/renew", &name).await
            } else {
                self.register(server, it).await
            };
            match asked {
                Ok(lease) => {
                    if !is_registered {
                        told(Ok(lease));
                    }
                    (is_registered, pause) = (true, PAUSE);
                    // Two renewals may fail before the lease ends.
                    tokio::time::sleep(Duration::from_millis((lease.lease_ms / 3).max(10))).await;
                }
                // The server has forgotten: it was restarted, or we were late.
                Err(AskError::Refused { status: 404, .. }) if is_registered => is_registered = false,
                Err(error) => {
                    told(Err(&error));
                    if matches!(error, AskError::Refused { status: 400 | 401 | 409, .. }) {
                        return Err(error);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn leave(&self, server: &str, name: Name) -> Result<(), AskError> {
        self.ask::<serde_json::Value>(server, Method::POST, "/pd/leave", &name).await.map(|_| ())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        server: &str,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        let unreachable = |reason: String| AskError::Unreachable { address: server.into(), reason };
        let nonsense = |reason: String| AskError::Nonsense { address: server.into(), reason };
        let body = serde_json::to_vec(body).map_err(|error| nonsense(error.to_string()))?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{server}{path}"))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::from(body)).map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let answer = self.http.request(request).await.map_err(|error| unreachable(reason(&error)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| nonsense(error.to_string()))?.to_bytes()))
        };
        let exchanged = tokio::time::timeout(self.timeout, exchange).await;
        let (status, bytes) = exchanged.map_err(|_| unreachable(format!("no answer in {:?}", self.timeout)))??;
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1000)]).into_owned();
            return Err(AskError::Refused { address: server.into(), status: status.as_u16(), reason: text });
        }
        serde_json::from_slice(&bytes).map_err(|error| nonsense(error.to_string()))
    }
}
