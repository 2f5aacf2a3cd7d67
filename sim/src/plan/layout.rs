//! Deployments of a number of GPUs: who prefills, who decodes, in groups of how many, over which link, with which
//! tiers.

use std::fmt;

use pd_core::config::{Mode, StorageMode};
use pd_core::router::Policy;

use crate::scenario::schema::{File, Router, Storage, Worker};
use crate::units::{Bytes, bytes};

/// One deployment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Who does what.
    pub layout: Layout,
    /// What connects the workers; that of the scenario if none.
    pub link: Option<String>,
    /// What is below the GPUs; that of the scenario if none.
    pub tier: Option<Tier>,
}

/// Who does what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Each worker does both.
    Unified {
        /// Workers.
        count: u32,
        /// GPUs of each.
        tp: u32,
    },
    /// Some prefill, some decode.
    Split {
        /// Prefill workers.
        prefills: u32,
        /// GPUs of each.
        prefill_tp: u32,
        /// Decode workers.
        decodes: u32,
        /// GPUs of each.
        decode_tp: u32,
    },
}

/// What is below a GPU: `none`, `64GB`, `64GB+nvme_gen5`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tier {
    /// Host memory of each GPU for KV.
    pub host_bytes: u64,
    /// Disk of each worker.
    pub disk: Option<String>,
}

impl Tier {
    /// Reads `none`, `64GB` or `64GB+DISK`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "none" {
            return Ok(Self { host_bytes: 0, disk: None });
        }
        let (host, disk) = text.split_once('+').map_or((text, None), |(host, disk)| (host, Some(disk.to_owned())));
        let host_bytes = bytes(host).map_err(|error| {
            format!("tier \"{text}\": {error}; write none, 64GB (host memory of each GPU) or 64GB+nvme_gen5")
        })?;
        Ok(Self { host_bytes, disk })
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host_bytes, &self.disk) {
            (0, None) => f.write_str("none"),
            (host, None) => write!(f, "{} GB", host / 1_000_000_000),
            (host, Some(disk)) => write!(f, "{} GB + {disk}", host / 1_000_000_000),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tp = |tp: u32| if tp == 1 { String::new() } else { format!("tp{tp}") };
        match *self {
            Self::Unified { count, tp: each } => write!(f, "{count}U{}", tp(each)),
            Self::Split { prefills, prefill_tp, decodes, decode_tp } => {
                write!(f, "{prefills}P{}+{decodes}D{}", tp(prefill_tp), tp(decode_tp))
            }
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.layout)?;
        if let Some(link) = &self.link {
            write!(f, ", {link}")?;
        }
        if let Some(tier) = &self.tier {
            write!(f, ", {tier}")?;
        }
        Ok(())
    }
}

impl Layout {
    /// GPUs in all.
    #[must_use]
    pub const fn gpus(&self) -> u32 {
        match *self {
            Self::Unified { count, tp } => count * tp,
            Self::Split { prefills, prefill_tp, decodes, decode_tp } => prefills * prefill_tp + decodes * decode_tp,
        }
    }

    /// True if prefill and decode are apart.
    #[must_use]
    pub const fn is_split(&self) -> bool {
        matches!(self, Self::Split { .. })
    }

    /// All layouts of so many GPUs in groups of these sizes.
    #[must_use]
    pub fn all(gpus: u32, tps: &[u32]) -> Vec<Self> {
        let mut layouts = Vec::new();
        for &tp in tps.iter().filter(|tp| gpus.is_multiple_of(**tp)) {
            layouts.push(Self::Unified { count: gpus / tp, tp });
        }
        for &prefill_tp in tps {
            for &decode_tp in tps {
                for prefills in 1..=gpus / prefill_tp {
                    let left = gpus - prefills * prefill_tp;
                    if left > 0 && left.is_multiple_of(decode_tp) {
                        layouts.push(Self::Split { prefills, prefill_tp, decodes: left / decode_tp, decode_tp });
                    }
                }
            }
        }
        layouts
    }
}

impl Candidate {
    /// The scenario with this deployment instead of its own. Its worker groups are the patterns: the first one that
    /// prefills for prefill workers, the first one that decodes for the others.
    #[must_use]
    pub fn deploy(&self, file: &File) -> File {
        let mut file = file.clone();
        let pattern = |modes: [Mode; 2]| {
            let of = |mode| file.worker.iter().find(|worker| worker.mode == mode);
            modes.into_iter().find_map(of).unwrap_or(&file.worker[0]).clone()
        };
        let group = |pattern: Worker, mode, count, tp: u32| {
            let mut worker = Worker { mode, count, tp, per_machine: 1, machine: None, ..pattern };
            if let Some(tier) = &self.tier {
                worker.hicache_ratio = 0.0;
                worker.hicache_size = Some(Bytes(tier.host_bytes * u64::from(tp)));
                worker.hicache_storage = tier.disk.clone().map(|disk| Storage {
                    disk,
                    mode: StorageMode::Private,
                    max_tokens: None,
                    capacity: None,
                });
            }
            worker
        };
        file.worker = match self.layout {
            Layout::Unified { count, tp } => {
                vec![group(pattern([Mode::Unified, Mode::Prefill]), Mode::Unified, count, tp)]
            }
            Layout::Split { prefills, prefill_tp, decodes, decode_tp } => vec![
                group(pattern([Mode::Prefill, Mode::Unified]), Mode::Prefill, prefills, prefill_tp),
                group(pattern([Mode::Decode, Mode::Unified]), Mode::Decode, decodes, decode_tp),
            ],
        };
        if let Some(link) = &self.link {
            file.network.near.clone_from(link);
            file.network.far.clone_from(link);
        }
        if !matches!(self.layout, Layout::Unified { count: 1, .. }) {
            file.router.get_or_insert(Router {
                policy: Policy::CacheAware,
                decode_policy: Policy::PowerOfTwo,
                kv_events: false,
                cache_threshold: None,
                load_weight: None,
                load_report: None,
                w_tpot: None,
                append_ratio_min: None,
                w_ttft: None,
                retries: None,
                max_live_requests: None,
            });
        }
        file.event.clear();
        file.check = false;
        file
    }
}
