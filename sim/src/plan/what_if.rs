//! What a deployment would do with more of something: finite differences by running again.

use std::num::NonZeroU64;

use pd_core::cost::LinkCost;

use super::layout::Layout;
use crate::setup::{LinkSetup, Setup};

/// More of one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhatIf {
    /// One worker more that prefills.
    Prefill,
    /// One worker more that decodes.
    Decode,
    /// One worker more that does both.
    Unified,
    /// Twice the GPU memory for KV.
    KvMemory,
    /// Links between workers twice as fast.
    Link,
    /// Twice the host memory for KV; if there is none, as much as the GPUs have.
    HostMemory,
    /// Copies between GPU and host twice as fast.
    HostCopy,
    /// Disks twice as fast.
    Disk,
}

impl WhatIf {
    /// What makes sense for a deployment.
    #[must_use]
    pub fn all(layout: Layout, setup: &Setup) -> Vec<Self> {
        let mut all = if layout.is_split() { vec![Self::Prefill, Self::Decode] } else { vec![Self::Unified] };
        all.push(Self::KvMemory);
        if layout.is_split() {
            all.push(Self::Link);
        }
        all.push(Self::HostMemory);
        if setup.workers.iter().any(|worker| worker.config.kv.host_pages > 0) {
            all.push(Self::HostCopy);
        }
        if !setup.stores.is_empty() {
            all.push(Self::Disk);
        }
        all
    }

    /// What limits if this buys the most.
    #[must_use]
    pub const fn limit(self) -> &'static str {
        match self {
            Self::Prefill => "GPU prefill",
            Self::Decode => "GPU decode",
            Self::Unified => "GPU",
            Self::KvMemory => "KV memory",
            Self::Link => "link",
            Self::HostMemory => "host memory",
            Self::HostCopy => "host copy",
            Self::Disk => "disk",
        }
    }

    /// What it is, for a reader.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Prefill => "one more prefill worker",
            Self::Decode => "one more decode worker",
            Self::Unified => "one more worker",
            Self::KvMemory => "twice the GPU memory for KV",
            Self::Link => "links twice as fast",
            Self::HostMemory => "twice the host memory (or as much as L1)",
            Self::HostCopy => "host copies twice as fast",
            Self::Disk => "disks twice as fast",
        }
    }

    /// The layout with it, and by what factor there is more of it.
    #[must_use]
    pub fn layout(self, layout: Layout) -> (Layout, f64) {
        let grown = |count: u32| f64::from(count + 1) / f64::from(count);
        match (self, layout) {
            (Self::Prefill, Layout::Split { prefills, prefill_tp, decodes, decode_tp }) => {
                (Layout::Split { prefills: prefills + 1, prefill_tp, decodes, decode_tp }, grown(prefills))
            }
            (Self::Decode, Layout::Split { prefills, prefill_tp, decodes, decode_tp }) => {
                (Layout::Split { prefills, prefill_tp, decodes: decodes + 1, decode_tp }, grown(decodes))
            }
            (Self::Unified, Layout::Unified { count, tp }) => (Layout::Unified { count: count + 1, tp }, grown(count)),
            (
                Self::Prefill
                | Self::Decode
                | Self::Unified
                | Self::KvMemory
                | Self::Link
                | Self::HostMemory
                | Self::HostCopy
                | Self::Disk,
                layout,
            ) => (layout, 2.0),
        }
    }

    /// Gives a world more of it, where it is no matter of the layout.
    pub fn apply(self, setup: &mut Setup) {
        let fast = |cost: &mut LinkCost| {
            cost.bytes_per_second = cost.bytes_per_second.saturating_mul(NonZeroU64::new(2).expect("not 0"));
        };
        let wide = |links: &mut Vec<LinkSetup>| {
            for link in links {
                link.bytes_per_second = link.bytes_per_second.saturating_mul(2);
            }
        };
        match self {
            Self::Prefill | Self::Decode | Self::Unified => {}
            Self::KvMemory => {
                for worker in &mut setup.workers {
                    worker.config.kv.gpu_pages = worker.config.kv.gpu_pages.saturating_mul(2);
                }
            }
            Self::Link => {
                for wire in setup.workers.iter_mut().flat_map(|worker| [&mut worker.near, &mut worker.far]) {
                    fast(&mut wire.cost);
                    wide(&mut wire.out);
                    wide(&mut wire.into);
                }
                if let Some((router, _)) = &mut setup.router {
                    fast(&mut router.link);
                }
            }
            Self::HostMemory => {
                for worker in &mut setup.workers {
                    let kv = &mut worker.config.kv;
                    kv.host_pages = if kv.host_pages == 0 { kv.gpu_pages } else { kv.host_pages.saturating_mul(2) };
                }
            }
            Self::HostCopy => {
                for worker in &mut setup.workers {
                    fast(&mut worker.config.kv.host_link);
                    for path in [&mut worker.copy_in, &mut worker.copy_out] {
                        fast(&mut path.cost);
                        wide(&mut path.links);
                    }
                }
            }
            Self::Disk => {
                for store in &mut setup.stores {
                    let disk = &mut store.disk;
                    for rate in [
                        &mut disk.read_bytes_per_second,
                        &mut disk.write_bytes_per_second,
                        &mut disk.read_iops,
                        &mut disk.write_iops,
                    ] {
                        *rate = rate.saturating_mul(2);
                    }
                }
                for worker in &mut setup.workers {
                    fast(&mut worker.config.kv.storage_link);
                }
            }
        }
    }
}
