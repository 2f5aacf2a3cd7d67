//! The scheduler with a real cache and a toy device.

mod door;
mod forwards;
mod handoff;
mod random;
mod shortage;
mod tail;
mod toy;

use std::vec::Vec;

use crate::config::WorkerConfig;
use crate::cx::Cx;
use crate::transfer::{Transfer, TransferEvent};

use toy::Toy;

/// A small worker: pages of four tokens, chunks of 16.
fn config(pages: u32) -> WorkerConfig {
    let mut config = WorkerConfig {
        worker: crate::id::WorkerId(1),
        epoch: crate::id::Epoch(0),
        mode: crate::config::Mode::Unified,
        seed: 1,
        kv: crate::config::KvConfig {
            page_size: 4,
            gpu_pages: pages,
            root: toy::ROOT,
            load_back_threshold: 1,
            ..Default::default()
        },
        sched: crate::config::SchedConfig { chunked_prefill_size: 16, reserve_steps: 4, ..Default::default() },
        transfer: crate::config::TransferConfig::default(),
    };
    config.sched.in_batch_share_tokens = 8;
    config.sched.in_batch_check_tokens = 8;
    config.transfer.layout.page_size = 4;
    config
}

fn toy(pages: u32, change: impl Fn(&mut WorkerConfig)) -> Toy {
    let mut config = config(pages);
    change(&mut config);
    Toy::new(config)
}

fn transfer(config: &WorkerConfig) -> Transfer {
    Transfer::new(config.transfer.clone(), config.mode, config.epoch, config.kv.root)
}

fn settle_transfer(transfer: &mut Transfer, cx: &mut Cx<'_>) -> Vec<TransferEvent> {
    transfer.settle(cx)
}

/// `count` tokens that belong to `of` alone.
fn words(of: u32, count: u32) -> Vec<u32> {
    (0..count).map(|index| of * 1000 + index).collect()
}
