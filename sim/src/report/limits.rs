//! What limits a run: the busiest device, link, disk or pool, in words.

use super::{busy_percent, served_ns};
use crate::record::Outcome;

/// How busy the busiest thing of each kind was, busiest first: (share in percent, what).
#[must_use]
pub fn what_limits(outcome: &Outcome) -> Vec<(f64, String)> {
    let total = served_ns(outcome);
    let mut busiest: Vec<(f64, String)> = Vec::new();
    let gpu = outcome
        .workers
        .iter()
        .enumerate()
        .map(|(index, worker)| {
            ((100.0 * worker.lanes.forward_busy_ns as f64 / total).min(100.0), format!("GPU of worker {index}"))
        })
        .max_by(|a, b| a.0.total_cmp(&b.0));
    busiest.extend(gpu);
    for kind in ["h2d", "d2h", "nvlink", "nic", "fabric"] {
        let link = outcome
            .links
            .iter()
            .filter(|(name, _)| name.contains(kind))
            .map(|(name, used)| (busy_percent(outcome, total, used), format!("link {name}")))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        busiest.extend(link);
    }
    let disk = outcome
        .stores
        .iter()
        .map(|store| {
            let busy = store.disk.read.busy_ns.max(store.disk.write.busy_ns);
            ((100.0 * busy as f64 / total).min(100.0), format!("disk of {}", store.name))
        })
        .max_by(|a, b| a.0.total_cmp(&b.0));
    busiest.extend(disk);
    busiest.retain(|(busy, _)| *busy >= 0.05);
    busiest.sort_by(|a, b| b.0.total_cmp(&a.0));
    busiest
}
