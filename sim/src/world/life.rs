//! Lives of workers and the script: starts, restarts, crashes, and what happens to stores, links and operators' orders.

use pd_core::config::Mode;
use pd_core::event::Control;
use pd_core::id::{Epoch, PageKey, WorkerId};
use pd_core::op::Input;
use pd_core::router::{Member, RouterInput};
use pd_core::time::nanos;

use super::WorldOf;
use crate::lane::Mark;
use crate::link::LinkId;
use crate::node::Serve;
use crate::observe::Launch;
use crate::setup::{Action, Change, PagesOf};

impl<M: Serve> WorldOf<M> {
    /// A worker begins a life; its peers and the router hear of it, and it of them.
    pub(super) fn start(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.start(self.is_checking);
        for observer in &mut self.observers {
            observer.on_launch(self.now, Launch::Worker { worker: index, config: &node.config, cost: &node.cost });
            observer.on_life(self.now, index, Some(node.config.epoch));
        }
        let (epoch, id, latency_ns) = (node.config.epoch, node.config.worker, node.latency_ns);
        let kv = &node.config.kv;
        let member = Member { epoch, mode: node.config.mode, pages: kv.gpu_pages.saturating_add(kv.host_pages) };
        if let Some(memory) = &mut self.fabric.memory {
            memory.boot(index, kv.page_size, kv.gpu_pages, kv.host_pages);
        }
        self.fabric.lives[index as usize] = Some(epoch);
        for other in self.peers(index) {
            let Some(life) = self.fabric.lives[other as usize] else { continue };
            let other_latency_ns = self.nodes[other as usize].latency_ns;
            self.post_to(other, life, latency_ns, Input::Peer { id, up: Some(epoch) });
            self.post_to(index, epoch, other_latency_ns, Input::Peer { id: WorkerId(other), up: Some(life) });
        }
        self.note(RouterInput::Worker { id, up: Some(member) });
        self.feed(index, Input::Tick);
        for request in self.clients.unpark() {
            self.submit_whole(request);
        }
    }

    /// The life of a worker ends: nothing that it had under way happens any more.
    fn stop(&mut self, index: u32) {
        self.land(index);
        let node = &mut self.nodes[index as usize];
        if !node.stop() {
            return;
        }
        for observer in &mut self.observers {
            observer.on_life(self.now, index, None);
        }
        node.lanes.stop(self.now, &mut self.fabric);
        node.tick_at = None;
        let (id, latency_ns) = (node.config.worker, node.latency_ns);
        self.fabric.lives[index as usize] = None;
        self.clients.lose(index);
        for other in self.peers(index) {
            let Some(life) = self.fabric.lives[other as usize] else { continue };
            self.land(other);
            self.nodes[other as usize].lanes.cut(self.now, index, &mut self.fabric);
            self.post_to(other, life, latency_ns, Input::Peer { id, up: None });
            self.drain(other);
        }
        self.note(RouterInput::Worker { id, up: None });
    }

    /// Carries out a line of the script.
    pub(super) fn act(&mut self, index: usize) {
        let (_, action) = self.script[index].clone();
        for observer in &mut self.observers {
            observer.on_action(self.now, &action);
        }
        match action {
            Action::Restart { worker, down_for, change } => {
                self.stop(worker);
                let node = &mut self.nodes[worker as usize];
                node.config.epoch = Epoch(node.config.epoch.0 + 1);
                if let Some(change) = change {
                    node.change(*change);
                }
                let epoch = node.config.epoch;
                self.fabric.heap.push(self.now.after_ns(nanos(down_for)), Mark::Start { node: worker, epoch });
            }
            Action::Crash { worker } => {
                self.stop(worker);
                if let Some(store) = self.nodes[worker as usize].spec.store {
                    self.fabric.depots[store as usize].store.crash(&mut self.rng);
                }
            }
            Action::StoreRemove { store, pages } => {
                for key in self.pages(store, &pages) {
                    self.fabric.depots[store as usize].store.remove(key);
                }
            }
            Action::StoreTear { store, pages } => {
                for key in self.pages(store, &pages) {
                    self.fabric.depots[store as usize].store.tear(key);
                }
            }
            Action::StoreWipe { store } => {
                self.fabric.depots[store as usize].store.wipe();
            }
            Action::Cancel { request } => self.cancel(request),
            Action::Control { worker, control } => {
                if control == Control::Drain {
                    // As a router learns of it from a worker's readiness: no new requests are sent there.
                    let worker = self.nodes[worker as usize].config.worker;
                    self.feed_router(RouterInput::Drain { worker });
                }
                self.post(worker, 0, Input::Control(control));
            }
            Action::SetLink { name, bytes_per_second } => {
                let link = self.link_names.iter().position(|known| *known == name);
                let link = link.expect("the script names a link that there is");
                self.fabric.links.set_rate(self.now, LinkId(link as u32), bytes_per_second);
            }
        }
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
        if !self.clients.is_idle() {
            self.fabric.heap.push(self.now.after_ns(self.report_ns), Mark::Report);
        }
    }

    /// Sets the end if nothing is left to do for clients.
    pub(super) fn end_if_idle(&mut self) {
        let script_end = self.script.iter().map(|(at, _)| *at).max().unwrap_or_default();
        if self.clients.is_idle() {
            let end = self.now.after_ns(self.linger_ns).max(script_end);
            self.fabric.heap.push(end, Mark::Stop);
        }
    }

    /// Those that a worker exchanges KV with.
    fn peers(&self, index: u32) -> Vec<u32> {
        let mode = self.nodes[index as usize].config.mode;
        let is_pair =
            |other: Mode| matches!((mode, other), (Mode::Prefill, Mode::Decode) | (Mode::Decode, Mode::Prefill));
        (0..self.nodes.len() as u32).filter(|other| is_pair(self.nodes[*other as usize].config.mode)).collect()
    }

    fn pages(&self, store: u32, pages: &PagesOf) -> Vec<PageKey> {
        match *pages {
            PagesOf::Prompt { request, from, to } => {
                let keys = self.clients.keys(request);
                keys.get(from as usize..keys.len().min(to as usize)).unwrap_or_default().to_vec()
            }
            PagesOf::Every { every } => {
                let store = &self.fabric.depots[store as usize].store;
                store.iter().map(|(key, _)| key).step_by(every.max(1) as usize).collect()
            }
        }
    }
}

impl<M: Serve> crate::node::Node<M> {
    fn change(&mut self, change: Change) {
        let (worker, epoch) = (self.config.worker, self.config.epoch);
        if let Some(config) = change.config {
            self.config = *config;
            self.config.worker = worker;
            self.config.epoch = epoch;
        }
        if let Some(root) = change.root {
            self.config.kv.root = root;
        }
        self.spec.root = self.config.kv.root;
        self.spec.page_bytes = self.config.kv.page_bytes;
    }
}
