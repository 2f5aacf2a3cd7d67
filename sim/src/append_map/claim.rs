//! What must hold on a map.

use serde::{Deserialize, Serialize};

use super::Map;

/// Who computes the append.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The prefill worker, which hands over.
    Pair,
    /// The decode worker.
    Append,
}

/// By which measure.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Time to first token of the append.
    Ttft,
    /// Time per token of the answers under way.
    Tpot,
    /// Both: relative TTFT against this many times relative TPOT.
    Weighted(f64),
}

/// Something that must hold.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Claim {
    /// One side wins in all cells of a region.
    Wins {
        /// Which side.
        side: Side,
        /// By which measure.
        by: By,
        /// Only cells from this reuse on.
        #[serde(default)]
        reuse_min: Option<f64>,
        /// Only cells up to this reuse.
        #[serde(default)]
        reuse_max: Option<f64>,
        /// Only cells with at least so many answers under way.
        #[serde(default)]
        decodes_min: Option<u32>,
        /// Only cells with at most so many.
        #[serde(default)]
        decodes_max: Option<u32>,
        /// Only cells with prompts at least so long.
        #[serde(default)]
        tokens_min: Option<u64>,
    },
    /// From each link to the next slower one the crossover goes down or stays, and goes down at least once in each
    /// column of decodes.
    MovesDown {
        /// By which measure.
        by: By,
    },
    /// The router does what is better in at least this many percent of the cells.
    RouterAgrees {
        /// By which measure.
        by: By,
        /// Percent of cells.
        percent_min: f64,
    },
}

impl Claim {
    /// Holds the claim against a map.
    ///
    /// # Errors
    /// What was found instead.
    pub(super) fn check(&self, map: &Map) -> Result<(), String> {
        match *self {
            Self::Wins { side, by, reuse_min, reuse_max, decodes_min, decodes_max, tokens_min } => {
                let is_in = |cell: &&super::Found| {
                    reuse_min.is_none_or(|min| cell.reuse >= min)
                        && reuse_max.is_none_or(|max| cell.reuse <= max)
                        && decodes_min.is_none_or(|min| cell.decodes >= min)
                        && decodes_max.is_none_or(|max| cell.decodes <= max)
                        && tokens_min.is_none_or(|min| cell.tokens >= min)
                };
                let cells: Vec<_> = map.cells.iter().filter(is_in).collect();
                if cells.is_empty() {
                    return Err(format!("{self:?}: no cell is in this region"));
                }
                let lost: Vec<_> = cells.iter().filter(|cell| cell.winner(by) != side).collect();
                match lost.first() {
                    None => Ok(()),
                    Some(cell) => Err(format!(
                        "{side:?} wins {by:?} in {} of {} cells; not with {} tokens, reuse {}, {} decodes, {}: \
                         TTFT {:.2} over the pair, {:.2} ms appended; TPOT {:.3}, {:.3} ms",
                        cells.len() - lost.len(),
                        cells.len(),
                        cell.tokens,
                        cell.reuse,
                        cell.decodes,
                        cell.link,
                        cell.pair.ttft_ns / 1e6,
                        cell.append.ttft_ns / 1e6,
                        cell.pair.tpot_ns / 1e6,
                        cell.append.tpot_ns / 1e6,
                    )),
                }
            }
            Self::MovesDown { by } => moves_down(map, by),
            Self::RouterAgrees { by, percent_min } => {
                let (agree, count) = map.agreement(by);
                let percent = 100.0 * agree as f64 / count as f64;
                if percent >= percent_min {
                    return Ok(());
                }
                Err(format!("the router agrees by {by:?} in {percent:.1} % of cells, less than {percent_min} %"))
            }
        }
    }
}

fn moves_down(map: &Map, by: By) -> Result<(), String> {
    for &decodes in &map.config.decodes {
        let mut has_moved = false;
        for tokens in &map.config.tokens {
            // Never appending is beyond all reuse.
            let at = |link: &String| Map::crossover(map.row(link, decodes, tokens.0), by).unwrap_or(1.0);
            for pair in map.config.links.windows(2) {
                let (faster, slower) = (at(&pair[0]), at(&pair[1]));
                has_moved |= slower < faster;
                if slower > faster + 1e-9 {
                    return Err(format!(
                        "by {by:?}, {} tokens, {decodes} decodes: the crossover goes up from {faster:.3} over {} to \
                         {slower:.3} over {}",
                        tokens.0, pair[0], pair[1],
                    ));
                }
            }
        }
        if !has_moved {
            return Err(format!("by {by:?}, {decodes} decodes: the crossover is the same over all links"));
        }
    }
    Ok(())
}
