//! Lives of workers and the script: starts and ends, and the time of each line.

use pd_core::config::Mode;
use pd_core::id::Epoch;
use pd_core::op::Input;
use pd_core::router::{Member, RouterInput};
use pd_core::time::Instant;

use super::WorldOf;
use crate::lane::Mark;
use crate::node::Serve;
use crate::observe::Launch;
use crate::setup::Action;

impl<M: Serve> WorldOf<M> {
    /// A worker begins a life; its peers and the router hear of it, and it of them.
    pub(super) fn start(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.start();
        if let Some(checks) = &mut self.checks {
            checks.on_life(self.now, index, Some(&node.config));
        }
        for observer in &mut self.observers {
            observer.on_launch(self.now, Launch::Worker { worker: index, config: &node.config, cost: &node.cost });
            observer.on_life(self.now, index, Some(node.config.epoch));
        }
        let (epoch, latency_ns) = (node.config.epoch, node.latency_ns);
        let kv = &node.config.kv;
        if let Some(memory) = &mut self.fabric.memory {
            memory.boot(index, kv.page_size, kv.gpu_pages, kv.host_pages);
        }
        self.fabric.lives[index as usize] = Some(epoch);
        for other in self.peers(index) {
            self.introduce(index, other);
        }
        self.register_later(index, epoch, latency_ns);
        self.report_worker(index);
        self.feed(index, Input::Tick);
        for request in self.clients.unpark() {
            self.submit_whole(request);
        }
    }

    /// The life of a worker ends: nothing that it had under way happens any more. False if there was none.
    pub(crate) fn stop(&mut self, index: u32) -> bool {
        self.land(index);
        let node = &mut self.nodes[index as usize];
        if !node.stop() {
            return false;
        }
        if let Some(checks) = &mut self.checks {
            checks.on_life(self.now, index, None);
        }
        for observer in &mut self.observers {
            observer.on_life(self.now, index, None);
        }
        node.lanes.stop(self.now, &mut self.fabric);
        node.tick_at = None;
        let (id, latency_ns) = (node.config.worker, node.latency_ns);
        self.tell_activities();
        self.tell_links();
        self.fabric.lives[index as usize] = None;
        self.clients.lose(index);
        for other in self.peers(index) {
            let Some(life) = self.fabric.lives[other as usize] else { continue };
            if !self.faults.wires.is_up(index, other) {
                continue;
            }
            self.land(other);
            self.nodes[other as usize].lanes.cut(self.now, index, &mut self.fabric);
            self.post_to(other, life, latency_ns, Input::Peer { id, up: None });
            self.drain(other);
        }
        self.faults.wires.forget(index);
        self.note(RouterInput::Worker { id, up: None });
        true
    }

    /// A worker comes back later, with the next epoch, unless something else happens to it before.
    pub(crate) fn start_later(&mut self, index: u32, down_ns: u64) {
        let node = &mut self.nodes[index as usize];
        node.config.epoch = Epoch(node.config.epoch.0 + 1);
        let epoch = node.config.epoch;
        self.fabric.heap.push(self.now.after_ns(down_ns), Mark::Start { node: index, epoch });
    }

    /// Tells the router of a worker that it can reach, if it is up.
    pub(crate) fn report_worker(&mut self, index: u32) {
        let node = &self.nodes[index as usize];
        if node.pump.is_some() {
            let (id, kv) = (node.config.worker, &node.config.kv);
            let pages = kv.gpu_pages.saturating_add(kv.host_pages);
            let member = Member { epoch: node.config.epoch, mode: node.config.mode, pages };
            self.note(RouterInput::Worker { id, up: Some(member) });
        }
    }

    /// Carries out a line of the script.
    pub(super) fn act(&mut self, line: u32) {
        let (_, action) = self.script[line as usize].clone();
        for observer in &mut self.observers {
            observer.on_action(self.now, &action);
        }
        if let Some(lasts) = action.lasts() {
            self.fabric.heap.push(self.now + lasts, Mark::Over { line });
        }
        action.begin(self, line);
    }

    /// The workers say how busy they are, as long as there is anything to do.
    pub(super) fn report_loads(&mut self) {
        for index in 0..self.nodes.len() {
            self.land(index as u32);
            let node = &self.nodes[index];
            let Some(pump) = &node.pump else { continue };
            let note = RouterInput::Load { worker: node.config.worker, load: pump.machine.load() };
            self.note(note);
        }
        // Reports alone move nothing: a run that is stuck ends, and says so.
        let is_stuck =
            self.fabric.heap.peek_time().is_none() && self.fabric.links.next().is_none() && self.disks_next.is_none();
        if !self.clients.is_idle() && !is_stuck {
            self.fabric.heap.push(self.now.after_ns(self.report_ns), Mark::Report);
        }
    }

    /// Sets the end if nothing is left to do for clients.
    pub(super) fn end_if_idle(&mut self) {
        let over = |(at, action): &(Instant, Action)| *at + action.lasts().unwrap_or_default();
        let script_end = self.script.iter().map(over).max().unwrap_or_default();
        if self.clients.is_idle() {
            let end = self.now.after_ns(self.linger_ns).max(script_end);
            self.fabric.heap.push(end, Mark::Stop);
        }
    }

    /// Those that a worker exchanges KV with.
    pub(crate) fn peers(&self, index: u32) -> Vec<u32> {
        let mode = self.nodes[index as usize].config.mode;
        let is_pair =
            |other: Mode| matches!((mode, other), (Mode::Prefill, Mode::Decode) | (Mode::Decode, Mode::Prefill));
        (0..self.nodes.len() as u32).filter(|other| is_pair(self.nodes[*other as usize].config.mode)).collect()
    }
}
