//! Hand-made commands against closed formulas. One lane set per worker, layers = 4, pages of 1,000 bytes, links of
//! 1 GB/s (1 ns per byte), forwards of fixed time: all expected instants can be added up by hand.

use std::num::NonZeroU64;

use pd_core::batch::{Batch, Run};
use pd_core::id::{Generation, GpuPage, HostPage, RequestId, Room, WorkerId};
use pd_core::op::Push;

use super::*;
use crate::link::LinkId;
use crate::setup::{Answers, StepCost};

const LAYERS: u64 = 4;
const PAGE: u64 = 1_000;
const GPU: u64 = 8_000;
const CPU: u64 = 1_000;
const SETUP: u64 = 100;

pub(super) struct Bench {
    pub(super) fabric: Fabric,
    pub(super) lanes: Vec<Lanes>,
    pub(super) now: Instant,
    next: Vec<u64>,
    /// When and how each operation ended, by worker.
    pub(super) done: Vec<(u32, u64, Instant, Outcome)>,
}

pub(super) fn cost() -> LinkCost {
    LinkCost {
        request_ns: SETUP,
        descriptor_ps: 0,
        descriptors_ahead: 0,
        bytes_per_second: NonZeroU64::new(1_000_000_000).expect("a rate"),
        latency_ns: 0,
    }
}

impl Bench {
    pub(super) fn new(workers: u32) -> Self {
        let mut fabric = Fabric::new(Answers::Rule(|_, index| pd_core::id::Token(index)));
        let mut lanes = Vec::new();
        let pcie = fabric.links.add("pcie", 1_000_000_000);
        for node in 0..workers {
            let out = fabric.links.add(&format!("out{node}"), 1_000_000_000);
            let into = fabric.links.add(&format!("in{node}"), 1_000_000_000);
            let way =
                |link: LinkId, other: LinkId| Way { out: Path::new(&[link]), into: Path::new(&[other]), cost: cost() };
            fabric.wires.push(WireEnd { host: node, near: way(out, into), far: way(out, into) });
            fabric.lives.push(Some(Epoch(0)));
            let spec = LaneSpec {
                node,
                cost: Cost::fixed(0, 1, 1, 1_000),
                step: StepCost::Fixed { gpu_ns: GPU, cpu_ns: CPU },
                layers: LAYERS,
                page_bytes: PAGE,
                copy_in: (Path::new(&[pcie]), cost()),
                copy_out: (Path::new(&[pcie]), cost()),
                store: None,
                root: PageKey(7),
            };
            lanes.push(Lanes::new(spec, Epoch(0)));
        }
        let next = vec![0; workers as usize];
        Self { fabric, lanes, now: Instant::ZERO, next, done: Vec::new() }
    }

    pub(super) fn start(&mut self, node: u32, after: &[OpId], command: Command) -> OpId {
        let op = OpId { epoch: Epoch(0), seq: self.next[node as usize] };
        self.next[node as usize] += 1;
        self.lanes[node as usize].start(self.now, op, after, command, &mut self.fabric);
        op
    }

    /// Runs until nothing is left, or up to an instant.
    pub(super) fn run(&mut self, until: Instant) {
        self.collect();
        loop {
            let disks = self.fabric.depots.iter().filter_map(|depot| depot.disk.next()).min();
            let times = [self.fabric.links.next(), disks, self.fabric.heap.peek_time()];
            let Some(at) = times.into_iter().flatten().min().filter(|at| *at <= until) else { break };
            self.now = at;
            let mut flows = Vec::new();
            self.fabric.links.advance(at, &mut flows);
            for flow in flows {
                let Some(place) = self.fabric.flow_ended(flow) else { continue };
                self.lanes[place.node as usize].on_flow(at, place.seq, &mut self.fabric);
            }
            for depot in 0..self.fabric.depots.len() {
                let mut jobs = Vec::new();
                self.fabric.depots[depot].disk.advance(at, &mut jobs);
                for job in jobs {
                    let Some(place) = self.fabric.job_ended(depot, job) else { continue };
                    self.lanes[place.node as usize].on_job(at, place.seq, &mut self.fabric);
                }
            }
            while let Some((_, mark)) = self.fabric.heap.pop_until(at) {
                let (Mark::Timer(place) | Mark::Forward(place)) = mark else { panic!("lanes only set timers") };
                self.lanes[place.node as usize].on_timer(at, place.seq, &mut self.fabric);
            }
            self.collect();
        }
        self.now = if until == Instant::MAX { self.now } else { until };
    }

    fn collect(&mut self) {
        for (node, lanes) in (0..).zip(&mut self.lanes) {
            while let Some((op, outcome)) = lanes.finished() {
                assert!(self.done.iter().all(|(n, seq, ..)| (*n, *seq) != (node, op.seq)), "{op:?} ended twice");
                self.done.push((node, op.seq, self.now, outcome));
            }
        }
    }

    pub(super) fn all(&mut self) {
        self.run(Instant::MAX);
        for lanes in &self.lanes {
            assert_eq!(lanes.live_count(), 0, "everything that was started has ended");
        }
    }

    #[track_caller]
    pub(super) fn end(&self, node: u32, op: OpId) -> (u64, &Outcome) {
        let (_, _, at, outcome) =
            self.done.iter().find(|(n, seq, ..)| (*n, *seq) == (node, op.seq)).expect("the operation has ended");
        (at.0, outcome)
    }
}

fn forward() -> Command {
    let mut batch = Box::<Batch>::default();
    batch.push(Run::new(RequestId(0), 0, 4, true, 0), &[GpuPage(0)]);
    Command::Forward(batch)
}

fn load_back(pages: u32) -> Command {
    Command::LoadBack((0..pages).map(|page| (HostPage(page), GpuPage(page))).collect())
}

fn backup(pages: u32) -> Command {
    Command::Backup((0..pages).map(|page| (GpuPage(page), HostPage(page))).collect())
}

fn push(to: u32, pages: u32) -> Command {
    Command::Push(Box::new(Push {
        to: WorkerId(to),
        epoch: Epoch(0),
        room: Room(1),
        generation: Generation(0),
        pages: (0..pages).map(|page| (GpuPage(page), GpuPage(page))).collect(),
        pieces: 1,
    }))
}

#[test]
fn a_forward_on_an_idle_device_takes_host_then_device_time() {
    let mut bench = Bench::new(1);
    let op = bench.start(0, &[], forward());
    bench.all();
    assert_eq!(bench.end(0, op).0, CPU + GPU);
    assert!(matches!(bench.end(0, op).1, Outcome::Sampled(sampled) if sampled.tokens().len() == 1));
}

#[test]
fn a_forward_behind_a_running_one_hides_its_host_time() {
    let mut bench = Bench::new(1);
    let one = bench.start(0, &[], forward());
    let two = bench.start(0, &[], forward());
    bench.all();
    assert_eq!(bench.end(0, one).0, CPU + GPU);
    assert_eq!(bench.end(0, two).0, CPU + 2 * GPU);
}

#[test]
fn a_forward_started_after_the_previous_one_ended_pays_its_host_time() {
    let mut bench = Bench::new(1);
    bench.start(0, &[], forward());
    bench.run(Instant(CPU + GPU));
    let two = bench.start(0, &[], forward());
    bench.all();
    assert_eq!(bench.end(0, two).0, 2 * (CPU + GPU));
}

#[test]
fn a_forward_behind_a_short_load_starts_with_the_first_layer() {
    let mut bench = Bench::new(1);
    // 8 pages: first layer at 100 + 2,000, all at 8,100; the forward is computed from 2,100 and never catches up.
    let load = bench.start(0, &[], load_back(8));
    let op = bench.start(0, &[load], forward());
    bench.all();
    assert_eq!(bench.end(0, load).0, SETUP + 8 * PAGE);
    assert_eq!(bench.end(0, op).0, SETUP + 8 * PAGE / LAYERS + GPU);
}

#[test]
fn a_forward_behind_a_long_load_ends_a_layer_after_it() {
    let mut bench = Bench::new(1);
    let load = bench.start(0, &[], load_back(40));
    let op = bench.start(0, &[load], forward());
    bench.all();
    assert_eq!(bench.end(0, op).0, bench.end(0, load).0 + GPU / LAYERS);
}

#[test]
fn a_forward_behind_a_streaming_one_starts_when_that_has_ended() {
    let mut bench = Bench::new(1);
    let load = bench.start(0, &[], load_back(40));
    let one = bench.start(0, &[load], forward());
    let two = bench.start(0, &[], forward());
    bench.all();
    assert_eq!(bench.end(0, two).0, bench.end(0, one).0 + GPU);
}

#[test]
fn a_short_push_behind_a_forward_posts_and_moves_one_share_after_it() {
    let mut bench = Bench::new(2);
    let op = bench.start(0, &[], forward());
    let push = bench.start(0, &[op], push(1, 4));
    bench.all();
    assert_eq!(bench.end(0, push).0, bench.end(0, op).0 + SETUP + 4 * PAGE / LAYERS);
}

#[test]
fn a_long_push_behind_a_forward_starts_with_the_first_layer() {
    let mut bench = Bench::new(2);
    let op = bench.start(0, &[], forward());
    let push = bench.start(0, &[op], push(1, 40));
    bench.all();
    assert_eq!(bench.end(0, push).0, CPU + GPU / LAYERS + SETUP + 40 * PAGE);
    let transfer = bench.fabric.transfers[0];
    assert_eq!(
        (transfer.started.0, transfer.ended.0, transfer.bytes),
        (CPU + GPU / LAYERS, bench.end(0, push).0, 40 * PAGE)
    );
}

#[test]
fn a_push_behind_a_load_back_follows_its_layers() {
    let mut bench = Bench::new(2);
    let load = bench.start(0, &[], load_back(8));
    let push = bench.start(0, &[load], push(1, 8));
    bench.all();
    assert_eq!(bench.end(0, load).0, 8_100);
    // From the first layer on, at 2,100: 100 + 6,000 until 8,200, then the last layer.
    assert_eq!(bench.end(0, push).0, 2_100 + SETUP + 8 * PAGE);
}

#[test]
fn a_push_without_prerequisites_is_one_flow() {
    let mut bench = Bench::new(2);
    let push = bench.start(0, &[], push(1, 3));
    bench.all();
    assert_eq!(bench.end(0, push).0, SETUP + 3 * PAGE);
}

#[test]
fn a_backup_waits_for_the_whole_forward() {
    let mut bench = Bench::new(1);
    let op = bench.start(0, &[], forward());
    let copy = bench.start(0, &[op], backup(2));
    bench.all();
    assert_eq!(bench.end(0, copy).0, CPU + GPU + SETUP + 2 * PAGE);
}

#[test]
fn copies_of_a_lane_end_in_order_and_do_not_share() {
    let mut bench = Bench::new(1);
    let big = bench.start(0, &[], load_back(20));
    let small = bench.start(0, &[], load_back(1));
    bench.all();
    assert_eq!(bench.end(0, big).0, SETUP + 20 * PAGE);
    assert_eq!(bench.end(0, small).0, 2 * SETUP + 21 * PAGE);
}

#[test]
fn a_blocked_copy_holds_up_those_behind_it() {
    let mut bench = Bench::new(1);
    let op = bench.start(0, &[], forward());
    let blocked = bench.start(0, &[op], backup(1));
    let free = bench.start(0, &[], backup(1));
    bench.all();
    assert_eq!(bench.end(0, blocked).0, CPU + GPU + SETUP + PAGE);
    assert_eq!(bench.end(0, free).0, CPU + GPU + 2 * (SETUP + PAGE));
}

#[test]
fn workers_of_one_machine_share_its_links() {
    let mut bench = Bench::new(2);
    let one = bench.start(0, &[], load_back(4));
    let two = bench.start(1, &[], load_back(4));
    bench.all();
    assert_eq!(bench.end(0, one).0, SETUP + 8 * PAGE);
    assert_eq!(bench.end(1, two).0, SETUP + 8 * PAGE);
}

#[test]
fn a_push_overtakes_one_that_waits() {
    let mut bench = Bench::new(2);
    let op = bench.start(0, &[], forward());
    let waits = bench.start(0, &[op], push(1, 1));
    let free = bench.start(0, &[], push(1, 1));
    bench.all();
    assert!(bench.end(0, free).0 < bench.end(0, waits).0);
}

#[test]
fn a_push_to_a_peer_that_is_gone_or_lives_again_fails() {
    let mut bench = Bench::new(3);
    bench.fabric.lives[1] = None;
    bench.fabric.lives[2] = Some(Epoch(1));
    let gone = bench.start(0, &[], push(1, 1));
    let again = bench.start(0, &[], push(2, 1));
    bench.all();
    assert_eq!(bench.end(0, gone).1, &Outcome::Failed(Fault::Unreachable));
    assert_eq!(bench.end(0, again).1, &Outcome::Failed(Fault::Fenced));
}

#[test]
fn a_cut_ends_pushes_on_their_way_and_what_depends_on_them() {
    let mut bench = Bench::new(3);
    let lost = bench.start(0, &[], push(1, 50));
    let kept = bench.start(0, &[], push(2, 50));
    let after = bench.start(0, &[lost], backup(1));
    bench.run(Instant(5_000));
    let Bench { lanes, fabric, now, .. } = &mut bench;
    lanes[0].cut(*now, 1, fabric);
    bench.all();
    assert_eq!(bench.end(0, lost).1, &Outcome::Failed(Fault::Unreachable));
    assert_eq!(bench.end(0, after).1, &Outcome::Failed(Fault::Prerequisite));
    assert_eq!(bench.end(0, kept).1, &Outcome::Moved);
}

#[test]
fn failures_spread_to_dependants_in_the_order_of_their_lane() {
    let mut bench = Bench::new(2);
    bench.fabric.lives[1] = None;
    let running = bench.start(0, &[], forward());
    let lost = bench.start(0, &[], push(1, 1));
    let doomed = bench.start(0, &[lost], forward());
    let behind = bench.start(0, &[doomed], backup(1));
    let late = bench.start(0, &[lost], load_back(1));
    let free = bench.start(0, &[], forward());
    bench.all();
    let order: Vec<u64> = bench.done.iter().map(|(_, seq, ..)| *seq).collect();
    let place = |op: OpId| order.iter().position(|seq| *seq == op.seq).expect("ended");
    assert!(place(running) < place(doomed) && place(doomed) < place(free));
    for op in [doomed, behind, late] {
        assert_eq!(bench.end(0, op).1, &Outcome::Failed(Fault::Prerequisite));
    }
    assert_eq!(bench.end(0, free).0, CPU + 2 * GPU);
}

#[test]
fn an_operation_that_ended_long_ago_is_a_prerequisite_that_holds_or_has_failed() {
    let mut bench = Bench::new(2);
    bench.fabric.lives[1] = None;
    let good = bench.start(0, &[], forward());
    let bad = bench.start(0, &[], push(1, 1));
    bench.run(Instant(20_000));
    let fine = bench.start(0, &[good], backup(1));
    let doomed = bench.start(0, &[bad], backup(1));
    bench.all();
    assert_eq!(bench.end(0, fine).1, &Outcome::Moved);
    assert_eq!(bench.end(0, doomed).1, &Outcome::Failed(Fault::Prerequisite));
}

#[test]
fn nothing_completes_from_inside_the_call_that_starts_it_without_being_queued() {
    let mut bench = Bench::new(2);
    bench.fabric.lives[1] = None;
    bench.start(0, &[], push(1, 1));
    assert!(bench.done.is_empty());
    assert_eq!(bench.lanes[0].finished().map(|(op, _)| op.seq), Some(0));
}

#[test]
fn a_life_that_has_ended_leaves_no_flow_behind() {
    let mut bench = Bench::new(2);
    bench.start(0, &[], load_back(50));
    bench.start(0, &[], push(1, 50));
    bench.run(Instant(3_000));
    let Bench { lanes, fabric, now, .. } = &mut bench;
    lanes[0].stop(*now, fabric);
    assert_eq!(fabric.links.flows_count(), 0);
}
