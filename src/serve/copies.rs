//! The copy lanes: pages between L1 and L2, one thread for each direction.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use pd_core::id::OpId;
use pd_core::op::{Command, Fault, LaneKind, Outcome};
use pd_gpu::cuda::CopyLane;
use pd_sync::{Arena, Busy};

use super::shell::{Mailbox, Told};

/// Both copy lanes.
pub(crate) struct Copies {
    into: Sender<(OpId, Command)>,
    out: Sender<(OpId, Command)>,
}

/// One lane's work.
struct Lane {
    device: Arc<Arena>,
    host: Arc<Arena>,
    /// What copies if L1 is a GPU's.
    gpu: Option<CopyLane>,
}

impl Copies {
    /// Starts the lanes. They end when this is dropped. If L1 is a GPU's, it has a lane for each direction.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn start(
        device: &Arc<Arena>,
        host: &Arc<Arena>,
        gpu: Option<[CopyLane; 2]>,
        inbox: &Mailbox,
    ) -> std::io::Result<Self> {
        let lane = |name: &str, gpu: Option<CopyLane>| {
            let (commands, queue) = channel::<(OpId, Command)>();
            let lane = Lane { device: Arc::clone(device), host: Arc::clone(host), gpu };
            let inbox = Arc::clone(inbox);
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                for (op, command) in queue {
                    let outcome = lane.copy(&command);
                    if inbox.send(Told::Done { op, outcome, samples: Vec::new() }).is_err() {
                        return;
                    }
                }
            });
            thread.map(|_| commands)
        };
        let (first, second) = gpu.map_or((None, None), |[first, second]| (Some(first), Some(second)));
        Ok(Self { into: lane("copy-in", first)?, out: lane("copy-out", second)? })
    }

    /// Takes a command of either lane.
    pub(crate) fn start_copy(&self, op: OpId, command: Command) {
        let lane = if command.lane() == LaneKind::CopyIn { &self.into } else { &self.out };
        // Only fails when the lane has ended, with the process.
        let _ = lane.send((op, command));
    }
}

impl Lane {
    fn copy(&self, command: &Command) -> Outcome {
        // Pages of L1 and of L2, and which way.
        let (pairs, is_back): (Vec<(u32, u32)>, bool) = match command {
            Command::LoadBack(pages) => (pages.iter().map(|(from, to)| (to.0, from.0)).collect(), true),
            Command::Backup(pages) => (pages.iter().map(|(from, to)| (from.0, to.0)).collect(), false),
            Command::Forward(_)
            | Command::Query(_)
            | Command::Prefetch(_)
            | Command::Persist(_)
            | Command::Discard(_)
            | Command::Scan { .. }
            | Command::Wipe
            | Command::Touch(_)
            | Command::Push(_) => return Outcome::Failed(Fault::Device),
        };
        let failed = match &self.gpu {
            Some(gpu) => self.by_gpu(gpu, &pairs, is_back),
            None => (0..)
                .zip(&pairs)
                .filter_map(|(at, pair)| self.by_cpu(*pair, is_back).err().map(|_| (at, Fault::Fenced)))
                .collect(),
        };
        if failed.is_empty() { Outcome::Moved } else { Outcome::Partly(failed) }
    }

    fn by_cpu(&self, (device, host): (u32, u32), is_back: bool) -> Result<(), Busy> {
        if is_back {
            let source = self.host.read(host)?;
            self.device.write(device)?.copy_from_slice(&source);
        } else {
            let source = self.device.read(device)?;
            self.host.write(host)?.copy_from_slice(&source);
        }
        Ok(())
    }

    /// Which pages failed, and why. All others are copied side by side.
    fn by_gpu(&self, gpu: &CopyLane, pairs: &[(u32, u32)], is_back: bool) -> Vec<(u32, Fault)> {
        let mut failed = Vec::new();
        let (mut held, mut sound, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (device, host)) in (0_u32..).zip(pairs) {
            match (self.device.hold(*device, is_back), self.host.hold(*host, !is_back)) {
                (Ok(device_page), Ok(host_page)) => {
                    held.push((device_page, host_page));
                    sound.push((*device, *host));
                    places.push(at);
                }
                (Err(_), _) | (_, Err(_)) => failed.push((at, Fault::Fenced)),
            }
        }
        if let Err(error) = gpu.copy(&sound, is_back) {
            tracing::error!("{} pages were not copied: {error}", sound.len());
            failed.extend(places.into_iter().map(|at| (at, Fault::Device)));
            failed.sort_unstable_by_key(|(at, _)| *at);
        }
        failed
    }
}
