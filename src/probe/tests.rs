//! The tiny model on the CPU, measured over a small grid.

use std::sync::Arc;
use std::time::Duration;

use pd_core::cost::Cost;
use pd_gpu::{CpuEngine, Options, Weights};
use pd_sim::calibrate::Measured;
use pd_sync::Arena;

use super::copies;
use super::shape;
use super::steps::{Limits, grid, held_out};
use crate::serve::engine::{Loaded, Ready};
use crate::serve::tiny;

/// The tiny model with pages for so many tokens.
fn ready(weights: &Weights, tokens: u32) -> Ready {
    let engine = CpuEngine::new(weights, Options::default()).expect("a sound model");
    let engine = Loaded::cpu(engine).expect("a CPU that computes").engine().expect("an engine");
    let geometry = engine.geometry().clone();
    let pages = tokens / geometry.page_size;
    let arena = || {
        let arena = Arena::new(geometry.page_bytes(geometry.page_size), pages);
        Ok(Arc::new(arena.expect("memory")))
    };
    engine.with_pages(pages, None, arena).expect("pages")
}

/// Goal: what is measured is enough for a file of the hardware, and the file says about what was measured. The bound is
/// wide: tests run beside others.
#[test]
fn a_small_grid_makes_a_hardware() {
    let weights = Weights::open(&tiny::source()).expect("the tiny model");
    let mut ready = ready(&weights, 4_096);
    let limits = Limits { sequences: 4, chunk: 64, step: Duration::from_millis(500) };
    let mut trial = ready.trial();
    let context_max = trial.geometry().context;
    let found = grid(&mut trial, limits, &|_| ()).expect("steps");
    let steps = held_out(&mut trial, limits, &found, &|_| ()).expect("steps");
    let kv = trial.geometry().kv;
    assert!(found.decodes.iter().all(|point| point.ns > 0 && point.context < context_max), "{found:?}");
    assert!(
        found.decodes.iter().all(|point| point.sequences * point.context <= 4_096),
        "more than there are pages for"
    );
    assert!(found.prefills.iter().any(|point| point.cached > 0), "no prefix was measured: {found:?}");
    assert!(found.prefills.iter().all(|point| point.new <= 64), "{found:?}");
    assert_eq!(found.heads.iter().map(|point| point[0]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(steps.len(), 32);
    let measured = Measured {
        name: "here".into(),
        model: shape("tiny", weights.config(), kv),
        hbm_bytes: 1 << 34,
        reserved_bytes: 0,
        graph_batches: ready.graph_batches(4),
        decodes: found.decodes.clone(),
        prefills: found.prefills,
        heads: found.heads,
        hosts: found.hosts,
    };
    let hardware = measured.hardware().expect("enough was measured");
    let cost = Cost::new(&hardware, &measured.model, 1).expect("a possible hardware");
    let point = found.decodes[0];
    let ns = cost.decode_step_ns(u64::from(point.sequences), u64::from(point.context));
    assert!(ns > point.ns / 4 && ns < point.ns * 4, "{ns} ns for a step of {}", point.ns);
    assert!(steps.iter().all(|step| step.error(&cost).is_finite()));
}

#[test]
fn copies_between_tiers_are_measured_both_ways() {
    let weights = Weights::open(&tiny::source()).expect("the tiny model");
    let ready = ready(&weights, 1_024);
    for series in copies::host(&ready).expect("copies") {
        let counts: Vec<u64> = series.points.iter().map(|point| point[0]).collect();
        assert_eq!(counts, [1, 4, 16, 64], "{series:?}");
        assert!(series.best_bytes_per_second() > 0.0 && series.link("link").bytes_per_second.get() > 1, "{series:?}");
    }
}
