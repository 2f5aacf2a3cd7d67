//! The answer as JSON: the same facts and sentences; times in nanoseconds.

use pd_core::time::Instant;
use serde_json::{Value, json};

use super::path::Sum;
use super::story::{Decision, Move, MoveKind, Visit};
use super::{Explanation, text, why};
use crate::record::End;

/// One object.
pub(super) fn object(e: &Explanation) -> Value {
    let record = &e.story.record;
    let end = match record.end {
        None => Value::Null,
        Some(End::Finished(finish)) => json!(format!("{finish:?}")),
        Some(End::Refused(refusal)) => json!(format!("{refusal:?}")),
        Some(End::NotRouted(refusal)) => json!(format!("{refusal:?}")),
        Some(End::RouterLost) => json!("RouterLost"),
    };
    let findings: Vec<Value> =
        e.findings().into_iter().map(|finding| json!({ "text": finding.text, "advice": finding.advice })).collect();
    let log: Vec<Value> = text::log(e).into_iter().map(|(at, line)| json!({ "at_ns": at.0, "text": line })).collect();
    json!({
        "request": e.story.request.0,
        "arrival_ns": record.arrival.0,
        "prompt_tokens": record.prompt_tokens,
        "tokens": record.tokens,
        "limit": record.limit,
        "end": end,
        "ttft_ns": record.ttft_ns(),
        "e2e_ns": record.e2e_ns(),
        "to_first_token": sum(&e.ttft),
        "to_end": e.rest.as_ref().map(sum),
        "findings": findings,
        "served": why::served(e).map(|served| json!({
            "prompt": served.prompt,
            "device": served.device,
            "host": served.host,
            "storage": served.storage,
            "misses": served.misses.iter().map(|miss| json!({
                "reason": miss.reason.name(),
                "tokens": miss.tokens,
            })).collect::<Vec<_>>(),
        })),
        "kin": e.kin.iter().map(|kin| json!({
            "request": kin.request.0,
            "at_ns": kin.at.0,
            "shared_pages": kin.pages,
            "worker": kin.worker,
        })).collect::<Vec<_>>(),
        "routing": e.story.decisions.iter().map(decision).collect::<Vec<_>>(),
        "visits": e.story.visits.iter().map(visit).collect::<Vec<_>>(),
        "moves": e.story.moves.iter().map(moved).collect::<Vec<_>>(),
        "chunks": e.story.chunks.iter().map(|chunk| json!({
            "worker": chunk.worker,
            "at_ns": chunk.at.0,
            "done_ns": at(chunk.done),
            "start": chunk.start,
            "count": chunk.count,
            "other_sequences": chunk.others.0,
            "other_tokens": chunk.others.1,
        })).collect::<Vec<_>>(),
        "log": log,
    })
}

fn at(at: Option<Instant>) -> Option<u64> {
    at.map(|at| at.0)
}

fn sum(sum: &Sum) -> Value {
    let part = |(part, ns): &(super::Part, u64)| json!({ "cause": part.cause.name(), "worker": part.worker, "ns": ns });
    json!({ "total_ns": sum.total_ns, "parts": sum.parts.iter().map(part).collect::<Vec<_>>() })
}

fn decision(decision: &Decision) -> Value {
    let result = match &decision.result {
        Ok(route) => json!({
            "attempt": route.attempt,
            "prefill": route.prefill.map(|worker| worker.0),
            "decode": route.decode.0,
            "cause": route.reason.cause.name(),
            "cached": route.reason.cached,
            "ready_ns": route.reason.ready_ns,
            "last_resort": route.reason.last_resort,
        }),
        Err(refusal) => json!({ "refusal": format!("{refusal:?}") }),
    };
    let alternatives: Vec<Value> = decision
        .alternatives
        .iter()
        .map(|one| {
            json!({
                "worker": one.worker.0,
                "mode": format!("{:?}", one.mode).to_lowercase(),
                "rank": format!("{:?}", one.rank),
                "cached": one.cached,
                "requests": one.legs,
                "queue_ns": one.queue_ns,
                "prefill_ns": one.prefill_ns,
                "transfer_ns": one.transfer_ns,
            })
        })
        .collect();
    json!({ "at_ns": decision.at.0, "result": result, "alternatives": alternatives })
}

fn visit(visit: &Visit) -> Value {
    let weighed = visit.plan.and_then(|plan| plan.weighed);
    json!({
        "worker": visit.worker,
        "life": visit.life,
        "role": visit.role.name(),
        "at_ns": visit.at.0,
        "admitted_ns": at(visit.admitted),
        "left_ns": visit.left.as_ref().map(|(at, _)| at.0),
        "left": visit.left.as_ref().map(|(_, how)| how),
        "running": visit.load.0,
        "waiting": visit.load.1,
        "ahead": visit.ahead,
        "held_by": visit.first.and_then(|first| first.hold).map(|hold| format!("{hold:?}")),
        "fetch_estimate_ns": weighed.map(|weighed| weighed.fetch_ns),
        "compute_estimate_ns": weighed.map(|weighed| weighed.compute_ns),
        "both_estimate_ns": weighed.and_then(|weighed| weighed.both_ns),
    })
}

fn moved(one: &Move) -> Value {
    let kind = match one.kind {
        MoveKind::Prefetch => "prefetch",
        MoveKind::LoadBack => "load_back",
        MoveKind::Push => "push",
        MoveKind::Query => "query",
    };
    json!({
        "kind": kind,
        "worker": one.worker,
        "to": one.to,
        "at_ns": one.at.0,
        "done_ns": at(one.done),
        "pages": one.pages,
        "bytes": one.bytes,
        "failed_pages": one.failed.len(),
        "shared_with": one.shared_with.iter().map(|request| request.0).collect::<Vec<_>>(),
    })
}
