//! A request from its arrival to the first byte of its answer.
//!
//! ```text
//! client ──> body, keys ──Submit──> machine ──Route──┬──> prefill leg ── drained ──┐ (its failure fails the attempt
//!                 ^                                  │                             │  until the first byte is there)
//!                 └── Failed, pause, Route again <───┴──> decode leg ── first byte ┴──> head, tail ──> client
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use tokio::sync::{mpsc, oneshot};

use pd_core::config::Mode;
use pd_core::router::{Ask, Route, RouteFault, RouteRefusal};

use super::body::{Bootstrap, Inbound, Kind, fingerprint};
use super::brain::{Names, Order, Ticket};
use super::errors::{Refusal, pass_on};
use super::leg::{Begun, Envelope, Fault, Said, X_REQUEST_ID, forwarded, strip};
use super::listen::WorkerKeyer;
use super::logprobs::PromptLogprobs;
use super::members::{Member, mode_name};
use super::tail::{AbortOnDrop, Tail};
use super::{App, Stage};
use crate::client::reason;

/// How an attempt went, as far as the first byte.
enum Attempt {
    Answer(Box<Response>),
    Failed(Fault),
    /// The machine has decided otherwise meanwhile.
    Overtaken(Option<Order>),
}

/// Serves a request for text.
pub(super) async fn generate(State(app): State<Arc<App>>, request: Request) -> Response {
    let started = tokio::time::Instant::now();
    let path = request.uri().path().to_owned();
    let kind = match path.as_str() {
        "/v1/chat/completions" => Kind::Chat,
        "/v1/completions" => Kind::Completion,
        "/v1/responses" => Kind::Responses,
        "/v1/messages" => Kind::Messages,
        _ => Kind::Generate,
    };
    let id = app.request_id(request.headers(), kind);
    let mut response = match app.accept(kind, request, &id).await {
        Ok(response) => response,
        Err(refusal) => {
            app.metrics.count("smg_router_request_errors_total", &[("error_type", refusal.code)]);
            refusal.response()
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    let labels = [("endpoint", path.as_str())];
    app.metrics.observe("smg_router_request_duration_seconds", &labels, started.elapsed());
    response
}

impl App {
    async fn accept(self: &Arc<Self>, kind: Kind, request: Request, id: &str) -> Result<Response, Refusal> {
        if *self.stage.borrow() != Stage::Serving {
            return Err(Refusal::unavailable("draining", "this router is shutting down; ask another one"));
        }
        let (head, body) = request.into_parts();
        let body = self.read_body(body).await?;
        let keyer = WorkerKeyer { root: self.root(), other: &*self.keyer };
        let mut inbound = Inbound::parse(kind, &body, self.config.page_size, &keyer)
            .map_err(|why| Refusal::bad("invalid_request", why))?;
        drop(body);
        inbound.session = inbound.session.or_else(|| {
            SESSION_HEADERS.iter().find_map(|&name| head.headers.get(name)?.to_str().ok()).map(fingerprint)
        });
        let streaming = if inbound.is_stream { "true" } else { "false" };
        self.metrics.count(
            "smg_router_requests_total",
            &[("endpoint", head.uri.path()), ("model", &inbound.model), ("streaming", streaming)],
        );
        let envelope = Envelope {
            method: head.method,
            path_and_query: head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            headers: forwarded(&head.headers, self.config.api_key.as_deref(), id),
        };
        let names = match &inbound.rid {
            Some(rid) => Names::Client(serde_json::from_str(rid).unwrap_or_else(|_| id.to_owned())),
            None => Names::Attempts(id.to_owned()),
        };
        let mut stage = self.stage.subscribe();
        tokio::select! {
            answer = self.drive(inbound, envelope, names) => answer,
            _ = stage.wait_for(|stage| *stage == Stage::Cut) => {
                Err(Refusal::unavailable("draining", "this router has shut down; ask another one"))
            }
        }
    }

    /// Follows the machine's orders until there is an answer.
    async fn drive(
        self: &Arc<Self>,
        mut inbound: Inbound,
        envelope: Envelope,
        names: Names,
    ) -> Result<Response, Refusal> {
        let keyed = std::mem::replace(&mut inbound.keyed, super::Keyed { keys: Vec::new(), length: 1 });
        let ask = Ask {
            keys: keyed.keys,
            length: keyed.length,
            limit: ANSWER_TOKENS,
            session: inbound.session,
            ..Ask::default()
        };
        let (ticket, mut orders) = self.brain.submit(ask, names.clone());
        let mut ticket = Some(ticket);
        let mut last: Option<Fault> = None;
        let mut next: Option<Order> = None;
        loop {
            let order = match next.take() {
                Some(order) => order,
                None => match orders.recv().await {
                    Some(order) => order,
                    None => return Err(Refusal::unavailable("no_decision", "the request was lost; send it again")),
                },
            };
            match order {
                // Of an attempt that is over here, too.
                Order::Stop => {}
                Order::Refuse(refusal) => {
                    if let Some(ticket) = ticket.take() {
                        ticket.refused();
                    }
                    return self.refuse(refusal, last);
                }
                Order::Route(route) => {
                    if route.attempt > 0 {
                        self.metrics.count("smg_worker_retries_total", &[]);
                    }
                    let name = names.of(route.attempt);
                    match self.attempt(&inbound, &envelope, &name, &route, &mut ticket, &mut orders).await? {
                        Attempt::Answer(response) => return Ok(*response),
                        Attempt::Overtaken(order) => next = order,
                        Attempt::Failed(fault) => {
                            let error = [("error_type", fault_name(fault.fault))];
                            self.metrics.count("smg_router_request_errors_total", &error);
                            tracing::info!(request = %name, attempt = route.attempt, ?fault, "an attempt failed");
                            if let Some(ticket) = &ticket {
                                ticket.fail(route.attempt, fault.worker, fault.fault);
                            }
                            last = Some(fault);
                        }
                    }
                }
            }
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        inbound: &Inbound,
        envelope: &Envelope,
        name: &str,
        route: &Route,
        ticket: &mut Option<Ticket>,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Result<Attempt, Refusal> {
        let Some(decode) = self.members.find(route.decode) else {
            return Ok(Attempt::Failed(gone(route.decode)));
        };
        if route.prefill.is_none() && decode.spec.mode == Mode::Decode && !self.config.decode_serves_alone {
            return Err(Refusal::unavailable("no_prefill_worker", "no prefill worker is up"));
        }
        let rid = self.config.send_rid.then_some(name);
        self.selected(&decode);
        let mut prefill = None;
        let body = match route.prefill {
            None => inbound.leg_body(rid, None),
            Some(id) => {
                let Some(member) = self.members.find(id) else { return Ok(Attempt::Failed(gone(id))) };
                self.selected(&member);
                let rooms = self.brain.rooms(route.room.0, inbound.batch.unwrap_or(1));
                let target = &member.spec;
                let bootstrap = Bootstrap { host: target.target.host(), port: target.bootstrap_port, rooms: &rooms };
                let body = inbound.leg_body(rid, Some(bootstrap));
                prefill = Some(self.start_prefill(&member, envelope, body.clone(), inbound.wants_prompt_logprobs));
                body
            }
        };
        let merges = inbound.wants_prompt_logprobs && prefill.is_some();
        let (mut task, mut ended) = prefill.map_or((None, None), |(task, ended)| (Some(task), Some(ended)));
        let is_paired = task.is_some();

        let limit = tokio::time::sleep(super::config::secs(self.config.request_timeout_secs));
        tokio::pin!(limit);
        let mut begun: Option<Begun> = None;
        let mut logprobs: Option<PromptLogprobs> = None;
        {
            let leg = self.begin(&decode, envelope, body);
            tokio::pin!(leg);
            while begun.is_none() || (merges && logprobs.is_none()) {
                tokio::select! {
                    order = orders.recv() => return Ok(Attempt::Overtaken(order)),
                    () = &mut limit => {
                        let why = format!("{}: no answer within request_timeout_secs", decode.spec.target);
                        let said = Said::Nothing(why);
                        return Ok(Attempt::Failed(Fault { worker: decode.id, fault: RouteFault::Timeout, said }));
                    }
                    result = &mut leg, if begun.is_none() => match result {
                        Ok(one) => begun = Some(one),
                        Err(fault) => return Ok(Attempt::Failed(self.blame(fault, ended).await)),
                    },
                    result = wait(&mut ended), if ended.is_some() => {
                        ended = None;
                        match result {
                            Some(Ok(body)) => logprobs = Some(PromptLogprobs::read(&body)),
                            Some(Err(fault)) => return Ok(Attempt::Failed(fault)),
                            None => return Ok(Attempt::Failed(gone(route.prefill.unwrap_or(route.decode)))),
                        }
                    }
                }
            }
        }
        let Some(begun) = begun else { return Ok(Attempt::Failed(gone(route.decode))) };
        let is_events = is_events(&begun.head.headers);
        let mut response = if merges && !is_events {
            // The whole answer is read before the first byte goes out, so that it may still be tried again.
            let (head, body) = tokio::select! {
                order = orders.recv() => return Ok(Attempt::Overtaken(order)),
                () = &mut limit => return Ok(Attempt::Failed(gone(route.decode))),
                read = self.rest_of(decode.id, begun) => match read {
                    Ok(read) => read,
                    Err(fault) => return Ok(Attempt::Failed(fault)),
                },
            };
            let merged = logprobs.unwrap_or_default().merge(&body).map_or(body, Bytes::from);
            if let Some(ticket) = ticket.take() {
                ticket.commit(route.attempt);
                ticket.finish(1);
            }
            let mut response = Response::new(Body::from(merged));
            *response.status_mut() = head.status;
            *response.headers_mut() = head.headers;
            response
        } else {
            let Some(ticket) = ticket.take() else { return Ok(Attempt::Failed(gone(route.decode))) };
            ticket.commit(route.attempt);
            let (status, headers) = (begun.head.status, begun.head.headers.clone());
            let merge = logprobs.filter(|_| merges);
            let kind = (inbound.kind, is_events);
            let tail = Tail::new(Arc::clone(self), kind, ticket, (route.attempt, decode.id), begun, task.take(), merge);
            let mut response = Response::new(Body::new(tail));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        };
        let headers = response.headers_mut();
        strip(headers);
        let mut put = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        put("x-pd-decode", decode.spec.target.to_string());
        if let Some(member) = route.prefill.and_then(|id| self.members.find(id)).filter(|_| is_paired) {
            put("x-pd-prefill", member.spec.target.to_string());
            put("x-pd-room", route.room.to_string());
        }
        if route.attempt > 0 {
            put("x-pd-attempt", route.attempt.to_string());
        }
        Ok(Attempt::Answer(Box::new(response)))
    }

    /// The prefill leg runs beside the decode leg, and on after the first byte: what is left of it is read, so that the
    /// worker does not take the end of the connection for the end of the request.
    fn start_prefill(
        self: &Arc<Self>,
        member: &Arc<Member>,
        envelope: &Envelope,
        body: Bytes,
        keeps: bool,
    ) -> (AbortOnDrop, oneshot::Receiver<Result<Bytes, Fault>>) {
        let (app, member, envelope) = (Arc::clone(self), Arc::clone(member), envelope.clone());
        let (tell, told) = oneshot::channel();
        let task = tokio::spawn(async move {
            let result = match app.begin(&member, &envelope, body).await {
                Err(fault) => Err(fault),
                Ok(begun) if keeps => app.rest_of(member.id, begun).await.map(|(_, body)| body),
                Ok(mut begun) => loop {
                    match begun.rest.frame().await {
                        None => break Ok(Bytes::new()),
                        Some(Ok(_)) => {}
                        Some(Err(error)) => {
                            let why = format!("{}: {}", member.spec.target, reason(&error));
                            let said = Said::Nothing(why);
                            break Err(Fault { worker: member.id, fault: RouteFault::Connection, said });
                        }
                    }
                },
            };
            // Nobody listens after the first byte.
            let _ = tell.send(result);
        });
        (AbortOnDrop(task), told)
    }

    /// A decode leg that fails because its prefill did is not to blame. The prefill's own end may come a moment later.
    async fn blame(&self, fault: Fault, ended: Option<oneshot::Receiver<Result<Bytes, Fault>>>) -> Fault {
        let is_server_side = matches!(fault.fault, RouteFault::Aborted | RouteFault::Timeout);
        match ended {
            Some(ended) if is_server_side => match tokio::time::timeout(BLAME_TIME, ended).await {
                Ok(Ok(Err(prefill))) => prefill,
                Ok(Ok(Ok(_)) | Err(_)) | Err(_) => fault,
            },
            Some(_) | None => fault,
        }
    }

    fn selected(&self, member: &Member) {
        let labels = [("worker_type", mode_name(member.spec.mode)), ("connection_mode", "http")];
        self.metrics.count("smg_worker_selection_total", &labels);
    }

    /// The machine's refusal in the client's words; the last worker's own, if there is one.
    fn refuse(&self, refusal: RouteRefusal, last: Option<Fault>) -> Result<Response, Refusal> {
        match (refusal, last) {
            (
                RouteRefusal::RetriesExhausted { .. } | RouteRefusal::BadRequest,
                Some(Fault { said: Said::Answer { status, headers, body }, .. }),
            ) => Ok(pass_on(status, &headers, body)),
            (RouteRefusal::RetriesExhausted { attempts, fault }, last) => {
                let why = match last {
                    Some(Fault { said: Said::Nothing(why), .. }) => why,
                    Some(_) | None => fault_name(fault).to_owned(),
                };
                let status =
                    if fault == RouteFault::Timeout { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
                Err(Refusal::new(status, "worker_error", format!("{attempts} attempts failed; the last one: {why}")))
            }
            (RouteRefusal::NoWorkers, _) => {
                let missing = self.members.missing().unwrap_or_else(|| "no worker takes requests".into());
                Err(Refusal::unavailable("server_selection_failed", missing))
            }
            (RouteRefusal::Overloaded { max }, _) => Err(Refusal {
                retry_after: Some(1),
                ..Refusal::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "overloaded",
                    format!("{max} requests are under way; that is all this router takes"),
                )
            }),
            (RouteRefusal::BadRequest | RouteRefusal::Malformed, _) => {
                Err(Refusal::bad("invalid_request", "the request makes no sense to the router"))
            }
            (RouteRefusal::DuplicateRequest, _) => {
                Err(Refusal::new(StatusCode::CONFLICT, "duplicate_request", "a request of this name is under way"))
            }
        }
    }

    pub(super) async fn read_body(&self, body: Body) -> Result<Bytes, Refusal> {
        let max = self.config.max_payload_size;
        match Limited::new(body, max).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                format!("the body has more than {max} bytes (max_payload_size)"),
            )),
            Err(error) => Err(Refusal::bad("body_cut", format!("the body did not arrive: {error}"))),
        }
    }

    /// The client's id of a request, if it fits into a header; else one of our own.
    fn request_id(&self, headers: &HeaderMap, kind: Kind) -> String {
        let given = self.config.request_id_headers.iter().find_map(|name| headers.get(name)?.to_str().ok());
        if let Some(id) = given.filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX) {
            return id.to_owned();
        }
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
            Kind::Generate => "gnt",
            Kind::Responses => "resp",
            Kind::Messages => "msg",
        };
        format!("{prefix}-{}", self.next_id())
    }
}

async fn wait(ended: &mut Option<oneshot::Receiver<Result<Bytes, Fault>>>) -> Option<Result<Bytes, Fault>> {
    ended.as_mut()?.await.ok()
}

fn gone(worker: pd_core::id::WorkerId) -> Fault {
    let said = Said::Nothing("the worker was removed, or did not finish in time".into());
    Fault { worker, fault: RouteFault::Connection, said }
}

fn is_events(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

const fn fault_name(fault: RouteFault) -> &'static str {
    match fault {
        RouteFault::Connection => "connection",
        RouteFault::Refused => "refused",
        RouteFault::Aborted => "aborted",
        RouteFault::Timeout => "timeout",
        RouteFault::Peer => "peer",
        RouteFault::BadRequest => "bad_request",
    }
}

/// The machine wants to know how long an answer may get; routing does not depend on it.
const ANSWER_TOKENS: u32 = 1024;
const ID_BYTES_MAX: usize = 128;
const BLAME_TIME: Duration = Duration::from_millis(20);
const SESSION_HEADERS: [&str; 3] = ["x-session-id", "x-session-affinity", "x-smg-routing-key"];
