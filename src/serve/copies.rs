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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use pd_core::id::PageKey;
    use pd_core::testkit::lanes::{COPIES, PAGES, Place, Rig, content, content_of};
    use pd_sync::{Inbox, Received};

    use super::*;

    struct Real {
        copies: Copies,
        device: Arc<Arena>,
        host: Arc<Arena>,
        told: Mailbox,
    }

    impl Real {
        fn new() -> Self {
            let arena = || Arc::new(Arena::new(BYTES, PAGES).expect("memory"));
            let (device, host) = (arena(), arena());
            let told: Mailbox = Arc::new(Inbox::new(64));
            let copies = Copies::start(&device, &host, None, &told).expect("threads");
            Self { copies, device, host, told }
        }

        fn page(&self, place: Place) -> (&Arena, u32) {
            match place {
                Place::Device(page) => (&self.device, page),
                Place::Host(page) => (&self.host, page),
                Place::Peer(_) => unreachable!("copies stay in the machine"),
            }
        }
    }

    impl Rig for Real {
        fn start(&mut self, _: u32, op: OpId, command: Command) {
            self.copies.start_copy(op, command);
        }

        fn answers(&mut self, count: usize) -> Vec<(OpId, Outcome)> {
            let deadline = Instant::now() + Duration::from_secs(60);
            let answer = |_| match self.told.recv_until(Some(deadline)) {
                Received::Item(Told::Done { op, outcome, .. }) => (op, outcome),
                Received::Item(_) | Received::Timeout | Received::Closed => panic!("an answer"),
            };
            let answers = (0..count).map(answer).collect();
            assert!(self.told.try_recv().is_none(), "an answer to nothing");
            answers
        }

        fn fill(&mut self, place: Place, page: PageKey) {
            let (arena, at) = self.page(place);
            arena.write(at).expect("free").copy_from_slice(&content(page, BYTES));
        }

        fn held(&mut self, place: Place) -> Option<PageKey> {
            let (arena, at) = self.page(place);
            content_of(&arena.read(at).expect("free"))
        }
    }

    #[test]
    fn the_copy_lanes_keep_the_rules() {
        COPIES.iter().for_each(|rule| rule(&mut Real::new()));
    }

    const BYTES: usize = 4096;
}
