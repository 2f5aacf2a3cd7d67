//! A trace of a run for <https://ui.perfetto.dev> (or `trace_processor`), in Perfetto's protobuf format.
//!
//! Written as the run goes: memory stays bounded however long it is. What overlaps is laid over several tracks of one
//! name, which Perfetto shows as one.
//!
//! ```text
//!   worker 0 (prefill)   scheduler | GPU | copy in | copy out | storage | wire | pages and queue as counters
//!   worker 1 (decode)    ...       arrows from a push to "receive" at the worker that decodes
//!   links                bytes per second of each
//!   requests             request 17 [ queue | prefetch | prefill | hand-off | decode ]
//!   script               faults and restarts
//! ```
//!
//! 1. Slices of a track nest and never overlap; times of a track never go back.
//! 2. Counters are exact up to as many changes as a series holds, means over short times beyond that.

mod proto;
#[cfg(test)]
mod tests;
mod tracks;

use std::fmt;
use std::io::{self, Write};

use pd_core::event::{Event, Served};
use pd_core::id::RequestId;
use pd_core::op::LaneKind;
use pd_core::time::Instant;

use self::proto::{Proto, event, interned, packet, trace};
use self::tracks::{Group, Track, TrackId, Tracks};
use crate::observe::Ending;
use crate::record::{Outcome, Record};
use crate::report::collect::{Collector, Deed, Incident, Journey, Plan, What, ending_name};
use crate::report::series::{Level, Series};

/// Writes the trace of a run.
pub struct Perfetto {
    out: Box<dyn Write>,
    /// The first failure; nothing is written after it.
    error: Option<io::Error>,
    tracks: Tracks,
    event_names: Vec<&'static str>,
    annotation_names: Vec<&'static str>,
}

/// A value beside a slice.
enum Note<'a> {
    Count(&'static str, u64),
    Text(&'static str, &'a str),
}

use Note::{Count, Text};

/// What a slice is called.
enum Name<'a> {
    /// One of few names.
    Common(&'static str),
    Own(&'a str),
}

/// Which end of an arrow a slice is.
#[derive(Clone, Copy)]
enum Arrow {
    None,
    From(u64),
    To(u64),
}

impl Perfetto {
    /// Writes to `out`, which should be buffered.
    #[must_use]
    pub fn new(out: Box<dyn Write>, plan: &Plan) -> Self {
        let mut this =
            Self { out, error: None, tracks: Tracks::new(plan), event_names: Vec::new(), annotation_names: Vec::new() };
        this.packet(&Proto::new().int(packet::SEQUENCE, SEQUENCE_ID).int(packet::FLAGS, packet::CLEARED));
        this
    }

    /// A command has ended on its device.
    pub(super) fn deed(&mut self, deed: &Deed) {
        let group = Group::Worker(deed.worker);
        let name = match deed.what.lane() {
            LaneKind::Compute => "GPU",
            LaneKind::CopyIn => "copy in",
            LaneKind::CopyOut => "copy out",
            LaneKind::Storage => "storage",
            LaneKind::Wire => "wire",
        };
        let (began, ended) = (deed.began.unwrap_or(deed.ended), deed.ended);
        let track = self.slices(group, name, began, ended);
        let mut notes = Vec::new();
        match deed.what {
            What::Forward { sequences, chunks, prefill_tokens, decode_tokens } => {
                notes.push(Count("tokens", u64::from(prefill_tokens + decode_tokens)));
                notes.push(Count("prompt tokens", u64::from(prefill_tokens)));
                notes.push(Count("sequences", u64::from(sequences)));
                notes.push(Count("chunks", u64::from(chunks)));
            }
            What::Push { to, pages } => {
                notes.push(Count("to worker", u64::from(to)));
                notes.push(Count("pages", u64::from(pages)));
            }
            What::LoadBack { pages }
            | What::Backup { pages }
            | What::Query { pages }
            | What::Prefetch { pages }
            | What::Persist { pages }
            | What::Discard { pages }
            | What::Touch { pages } => notes.push(Count("pages", u64::from(pages))),
            What::Scan | What::Wipe => {}
        }
        if deed.what.is_move() {
            notes.push(Count("bytes", deed.bytes));
        }
        notes.extend(deed.request.map(|request| Count("request", request.0)));
        if began > deed.issued {
            notes.push(Count("waited ns", began.ns_since(deed.issued)));
        }
        if deed.ending != Ending::Done {
            notes.push(Text("ending", ending_name(deed.ending)));
        }
        let arrow = match (deed.what, deed.request) {
            (What::Push { .. }, Some(request)) => Arrow::From(request.0 + 1),
            _ => Arrow::None,
        };
        self.begin(track, began, &Name::Common(deed.what.name()), &notes, arrow);
        self.end(track, ended);
    }

    /// A worker has said something of a request.
    pub(super) fn said(&mut self, now: Instant, worker: u32, request: RequestId, event: &Event) {
        let mut notes = vec![Count("request", request.0)];
        let served = |served: &Served| {
            let missed = served.misses.iter().map(|miss| u64::from(miss.tokens)).sum();
            [
                Count("prompt tokens", u64::from(served.prompt)),
                Count("L1 tokens", u64::from(served.device)),
                Count("L2 tokens", u64::from(served.host)),
                Count("L3 tokens", u64::from(served.storage)),
                Count("computed tokens", missed),
            ]
        };
        let text;
        let name = match event {
            Event::Token(_) => return,
            Event::Admitted(parts) => {
                notes.extend(served(parts));
                "admitted"
            }
            Event::Received(parts) => {
                notes.extend(served(parts));
                "received"
            }
            Event::HandedOver => "handed over",
            Event::Finished { reason, .. } => {
                text = format!("{reason:?}");
                notes.push(Text("reason", &text));
                "finished"
            }
            Event::Refused(refusal) => {
                text = format!("{refusal:?}");
                notes.push(Text("reason", &text));
                "refused"
            }
            Event::Retracted => "retracted",
        };
        let track = self.track(Track { group: Group::Worker(worker), name: "scheduler".into(), slot: 0, unit: None });
        self.event(track, now, event::INSTANT, &Name::Common(name), &notes, Arrow::None);
    }

    /// A request has ended, or the run has.
    pub(super) fn request(&mut self, request: RequestId, record: &Record, journey: &Journey, now: Instant) {
        let track = self.slices(Group::Requests, "requests", record.arrival, now);
        let mut notes = vec![
            Count("prompt tokens", u64::from(record.prompt_tokens)),
            Count("answer tokens", u64::from(record.tokens)),
            Count("retries", u64::from(record.retries)),
            Count("retractions", u64::from(record.retractions)),
        ];
        notes.extend(record.ttft_ns().map(|ns| Count("TTFT us", ns / 1000)));
        notes.extend(record.tpot_ns().map(|ns| Count("TPOT us", ns / 1000)));
        let end = format!("{:?}", record.end);
        if !record.is_complete() {
            notes.push(Text("end", &end));
        }
        self.begin(track, record.arrival, &Name::Own(&format!("request {request}")), &notes, Arrow::None);
        for (phase, from, to) in journey.phases(record, now) {
            self.begin(track, from, &Name::Common(phase.name()), &[], Arrow::None);
            self.end(track, to);
        }
        self.end(track, now);
        if let (Some((_, landed)), Some(decode), Some(first_token)) =
            (journey.pushed, record.decode, record.first_token)
        {
            let until = first_token.max(landed);
            let track = self.slices(Group::Worker(decode), "receive", landed, until);
            let arrow = Arrow::To(request.0 + 1);
            self.begin(track, landed, &Name::Common("receive"), &[Count("request", request.0)], arrow);
            self.end(track, until);
        }
    }

    /// Something happened to the deployment.
    pub(super) fn incident(&mut self, incident: &Incident) {
        let name = if incident.is_scripted { "script" } else { "workers" };
        let track = self.track(Track { group: Group::Script, name: name.into(), slot: 0, unit: None });
        self.event(track, incident.at, event::INSTANT, &Name::Own(&incident.label), &[], Arrow::None);
    }

    /// Writes the counters and what has not ended.
    pub(super) fn finish(&mut self, collector: &Collector, outcome: &Outcome) -> io::Result<()> {
        for (index, record) in outcome.requests.iter().enumerate() {
            if record.end.is_none() {
                let journey = collector.journey(index);
                self.request(RequestId(index as u64), record, &journey, outcome.ended);
            }
        }
        for (worker, levels) in (0..).zip(&collector.workers) {
            for (name, unit, level) in levels.series() {
                self.counter(Group::Worker(worker), name, unit, level, outcome.ended);
            }
        }
        for (link, level) in &collector.links {
            let name = outcome.links.get(*link as usize).map_or("link", |(name, _)| name);
            self.counter(Group::Links, name, "B/s", &level.rate, outcome.ended);
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => self.out.flush(),
        }
    }

    fn counter(&mut self, group: Group, name: &str, unit: &'static str, level: &Level, end: Instant) {
        if level.max() == 0 {
            return;
        }
        let track = self.track(Track { group, name: name.to_owned(), slot: 0, unit: Some(unit) });
        let Series { width_ns, samples } = level.series(end, usize::MAX);
        let is_exact = width_ns == 1;
        let mut put = |at: Instant, value: u64| {
            let body = Proto::new()
                .int(event::TYPE, event::COUNTER)
                .int(event::TRACK, track.0)
                .int(event::COUNTER_VALUE, value);
            self.packet(&stamped(at).message(packet::TRACK_EVENT, &body));
        };
        for (sample, next) in samples.iter().zip(samples[1..].iter().map(Some).chain([None])) {
            if is_exact {
                put(sample.at, sample.last);
                continue;
            }
            put(sample.at, sample.mean.round() as u64);
            let after = sample.at.after_ns(sample.span_ns);
            if next.is_none_or(|next| next.at > after) {
                put(after, sample.last);
            }
        }
    }

    fn begin(&mut self, track: TrackId, at: Instant, name: &Name<'_>, notes: &[Note<'_>], arrow: Arrow) {
        self.event(track, at, event::BEGIN, name, notes, arrow);
    }

    fn end(&mut self, track: TrackId, at: Instant) {
        let body = Proto::new().int(event::TYPE, event::END).int(event::TRACK, track.0);
        self.packet(&stamped(at).message(packet::TRACK_EVENT, &body));
    }

    fn event(&mut self, track: TrackId, at: Instant, kind: u64, name: &Name<'_>, notes: &[Note<'_>], arrow: Arrow) {
        let mut fresh = Proto::new();
        let mut body = Proto::new().int(event::TYPE, kind).int(event::TRACK, track.0);
        body = match name {
            Name::Common(name) => {
                body.int(event::NAME_ID, intern(&mut self.event_names, name, interned::EVENT_NAME, &mut fresh))
            }
            Name::Own(name) => body.text(event::NAME, name),
        };
        for note in notes {
            let (Count(name, _) | Text(name, _)) = note;
            let id = intern(&mut self.annotation_names, name, interned::ANNOTATION_NAME, &mut fresh);
            let annotation = Proto::new().int(event::ANNOTATION_NAME_ID, id);
            let annotation = match note {
                Count(_, count) => annotation.int(event::ANNOTATION_UINT, *count),
                Text(_, text) => annotation.text(event::ANNOTATION_TEXT, text),
            };
            body = body.message(event::ANNOTATION, &annotation);
        }
        body = match arrow {
            Arrow::None => body,
            Arrow::From(id) => body.fixed(event::FLOW, id),
            Arrow::To(id) => body.fixed(event::FLOW_END, id),
        };
        let mut packet = stamped(at);
        if !fresh.bytes().is_empty() {
            packet = packet.message(packet::INTERNED, &fresh);
        }
        self.packet(&packet.message(packet::TRACK_EVENT, &body));
    }

    /// A track of this name that is free from `from` on.
    fn slices(&mut self, group: Group, name: &'static str, from: Instant, to: Instant) -> TrackId {
        let slot = self.tracks.slot(group, name, from, to);
        self.track(Track { group, name: name.into(), slot, unit: None })
    }

    /// The track, announced if it is new.
    fn track(&mut self, track: Track) -> TrackId {
        let (id, news) = self.tracks.find(track);
        for descriptor in news {
            self.packet(&Proto::new().int(packet::SEQUENCE, SEQUENCE_ID).message(packet::TRACK, &descriptor));
        }
        id
    }

    fn packet(&mut self, packet: &Proto) {
        if self.error.is_none() {
            let framed = Proto::new().message(trace::PACKET, packet);
            self.error = self.out.write_all(framed.bytes()).err();
        }
    }
}

impl fmt::Debug for Perfetto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Perfetto").field("error", &self.error).field("tracks", &self.tracks).finish_non_exhaustive()
    }
}

/// A packet with a time.
fn stamped(at: Instant) -> Proto {
    Proto::new().int(packet::TIMESTAMP, at.0).int(packet::SEQUENCE, SEQUENCE_ID).int(packet::FLAGS, packet::NEEDS_STATE)
}

/// The number of a name; a new one is added to `fresh`.
fn intern(known: &mut Vec<&'static str>, name: &'static str, field: u32, fresh: &mut Proto) -> u64 {
    if let Some(index) = known.iter().position(|other| *other == name) {
        return index as u64 + 1;
    }
    known.push(name);
    let id = known.len() as u64;
    let entry = Proto::new().int(interned::ENTRY_ID, id).text(interned::ENTRY_NAME, name);
    *fresh = std::mem::take(fresh).message(field, &entry);
    id
}

const SEQUENCE_ID: u64 = 1;
