//! What a scenario tells its router.

use std::time::Duration;

use pd_core::config::Mode;
use pd_core::cost::{Cost, Model};
use pd_core::router::{Policy, RouterConfig};

use super::build::{Problem, Wires, per_mille, scaled};
use super::schema::File;
use crate::setup::WorkerSetup;

/// How often workers tell the router how busy they are: it cannot weigh appends without the lengths of answers, which
/// only they know.
pub(super) fn load_report(file: &File) -> Duration {
    match &file.router {
        Some(router) => match router.load_report {
            Some(every) => every.0,
            None if router.policy == Policy::AppendAware => Duration::from_secs(1),
            None => Duration::ZERO,
        },
        None => Duration::ZERO,
    }
}

/// The configuration of the router, and what it believes that things cost.
pub(super) fn router(
    file: &File,
    workers: &[WorkerSetup],
    model: &Model,
    wires: &Wires,
) -> Result<Option<(RouterConfig, Cost)>, Problem> {
    let Some(table) = &file.router else {
        return match workers.len() {
            1 => Ok(None),
            count => Err(Problem {
                message: format!("{count} workers need a [router], for instance: [router] policy = \"cache_aware\""),
                key: None,
            }),
        };
    };
    let first = &workers[0];
    // Where appends would be computed.
    let appender = workers.iter().find(|worker| worker.config.mode != Mode::Prefill).unwrap_or(first);
    let is_near = workers.iter().all(|worker| worker.host == first.host);
    let link = if is_near { wires.near } else { wires.far };
    // Each rank has a link of its own; who has fewer is the slower end.
    let tp = file.worker.iter().map(|worker| worker.tp).min().unwrap_or(1);
    let default = RouterConfig::default();
    let share = |key, value: Option<f64>, max, or: u32| {
        value.map_or(Ok(or), |value| per_mille(key, value, max).map(|share| share as u32))
    };
    let config = RouterConfig {
        cache_threshold_per_mille: share(
            "cache_threshold",
            table.cache_threshold,
            1.0,
            default.cache_threshold_per_mille,
        )?,
        load_weight_per_mille: share("load_weight", table.load_weight, 1_000.0, default.load_weight_per_mille)?,
        w_ttft_per_mille: share("w_ttft", table.w_ttft, 1_000.0, default.w_ttft_per_mille)?,
        append_ratio_min_per_mille: share(
            "append_ratio_min",
            table.append_ratio_min,
            1.0,
            default.append_ratio_min_per_mille,
        )?,
        w_tpot_per_mille: share("w_tpot", table.w_tpot, 1_000.0, default.w_tpot_per_mille)?,
        seed: file.seed,
        policy: table.policy,
        decode_policy: table.decode_policy,
        page_size: first.config.kv.page_size,
        token_bytes: model.kv_bytes_per_token(),
        link: scaled(link, tp),
        chunk_tokens: first.config.sched.chunked_prefill_size.min(first.config.sched.max_prefill_tokens),
        mixed_chunk: appender.config.sched.mixed_chunk,
        overlap: appender.config.sched.overlap,
        layerwise: first.config.transfer.layerwise,
        retries_max: table.retries.unwrap_or(default.retries_max),
        live_requests_max: table.max_live_requests.unwrap_or(default.live_requests_max),
        ..default
    };
    config.check()?;
    Ok(Some((config, first.cost.clone())))
}
