//! The copy lanes: pages between L1 and L2, one thread for each direction.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use pd_core::id::OpId;
use pd_core::op::{Command, Fault, LaneKind, Outcome};
use pd_sync::{Arena, Busy};

use super::shell::Told;

/// Both copy lanes.
pub(crate) struct Copies {
    into: Sender<(OpId, Command)>,
    out: Sender<(OpId, Command)>,
}

impl Copies {
    /// Starts the lanes. They end when this is dropped.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn start(
        device: &Arc<Arena>,
        host: &Arc<Arena>,
        inbox: &Sender<Told>,
    ) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let lane = |name: &str| {
            let (commands, queue) = channel::<(OpId, Command)>();
            let (device, host, inbox) = (Arc::clone(device), Arc::clone(host), inbox.clone());
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                for (op, command) in queue {
                    let outcome = copy(&device, &host, &command);
                    if inbox.send(Told::Done { op, outcome, samples: Vec::new() }).is_err() {
                        return;
                    }
                }
            });
            thread.map(|thread| (commands, thread))
        };
        let (into, first) = lane("copy-in")?;
        let (out, second) = lane("copy-out")?;
        Ok((Self { into, out }, vec![first, second]))
    }

    /// Takes a command of either lane.
    pub(crate) fn start_copy(&self, op: OpId, command: Command) {
        let lane = if command.lane() == LaneKind::CopyIn { &self.into } else { &self.out };
        // Only fails when the lane has ended, with the process.
        let _ = lane.send((op, command));
    }
}

fn copy(device: &Arena, host: &Arena, command: &Command) -> Outcome {
    let one = |from: (&Arena, u32), to: (&Arena, u32)| -> Result<(), Busy> {
        let source = from.0.read(from.1)?;
        to.0.write(to.1)?.copy_from_slice(&source);
        Ok(())
    };
    let copied: Vec<Result<(), Busy>> = match command {
        Command::LoadBack(pages) => pages.iter().map(|(from, to)| one((host, from.0), (device, to.0))).collect(),
        Command::Backup(pages) => pages.iter().map(|(from, to)| one((device, from.0), (host, to.0))).collect(),
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
    let failed: Vec<(u32, Fault)> =
        (0..).zip(copied).filter_map(|(at, copied)| copied.err().map(|_| (at, Fault::Fenced))).collect();
    if failed.is_empty() { Outcome::Moved } else { Outcome::Partly(failed) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;
    use std::time::Duration;

    use pd_core::id::PageKey;
    use pd_core::testkit::lanes::{COPIES, PAGES, Place, Rig, content, content_of};

    use super::*;

    struct Real {
        copies: Copies,
        device: Arc<Arena>,
        host: Arc<Arena>,
        told: Receiver<Told>,
    }

    impl Real {
        fn new() -> Self {
            let arena = || Arc::new(Arena::new(BYTES, PAGES).expect("memory"));
            let (device, host) = (arena(), arena());
            let (inbox, told) = channel();
            let (copies, _) = Copies::start(&device, &host, &inbox).expect("threads");
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
            let answer = |_| match self.told.recv_timeout(Duration::from_secs(60)) {
                Ok(Told::Done { op, outcome, .. }) => (op, outcome),
                Ok(_) | Err(_) => panic!("an answer"),
            };
            let answers = (0..count).map(answer).collect();
            assert!(self.told.try_recv().is_err(), "an answer to nothing");
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
