//! What must hold between two steps.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::Sched;
use super::seq::State;

impl Sched {
    /// Panics on a broken invariant. Costs time in proportion to the requests.
    pub fn check(&self) {
        assert_eq!(self.slots.len(), self.by_request.len(), "one name for each sequence");
        for (request, &slot) in &self.by_request {
            assert_eq!(self.slots.at(slot).request, *request, "a name leads to its sequence");
        }
        self.check_lists();
        self.check_again();
        let (mut admitted, mut tokens) = (0, 0);
        let mut deadlines = BTreeSet::new();
        for (slot, sequence) in self.slots.iter() {
            let rows = self.flights.iter().flat_map(|flight| &flight.rows).filter(|row| row.slot == slot).count();
            assert_eq!(rows as u32, sequence.flights, "{} counts its forwards", sequence.request);
            admitted += u32::from(sequence.lease.is_some());
            deadlines.extend(sequence.deadline.map(|deadline| (deadline, slot)));
            assert!(sequence.produced <= sequence.limit, "the limit holds");
            let waits = matches!(sequence.state, State::Offered | State::Waiting);
            if waits {
                tokens += u64::from(sequence.prompt.length);
                assert!(sequence.lease.is_none(), "who waits has no pages");
                assert_eq!(sequence.flights, 0, "who waits is in no forward");
            }
            if sequence.state != State::Leaving {
                assert_eq!(sequence.lease.is_some(), !waits, "who is admitted has pages");
            }
            if let Some(lease) = &sequence.lease {
                let room = lease.table().len() as u32 * self.page_size;
                assert!(sequence.computed <= room, "what is computed has room");
                assert!(sequence.committed <= sequence.computed, "what is committed was computed");
                assert_eq!(lease.request(), sequence.request, "the pages are its own");
            }
            if matches!(sequence.state, State::Leaving) {
                assert!(sequence.flights > 0 || sequence.has_room, "pages are kept only while something names them");
            }
            if matches!(sequence.state, State::Retracting) {
                assert!(sequence.flights > 0, "pages are kept only while something names them");
            }
        }
        assert_eq!(admitted, self.admitted, "leases");
        assert_eq!(tokens, self.waiting_tokens, "tokens that wait");
        assert_eq!(deadlines, self.deadlines, "deadlines");
        for (first, &leader) in &self.leaders {
            let sequence = self.slots.at(leader);
            assert_eq!(sequence.prompt.keys.first(), Some(first), "a leader leads its own prefix");
            assert!(
                matches!(sequence.state, State::Prefilling | State::Running | State::HandingOver),
                "a leader computes"
            );
        }
    }

    fn check_lists(&self) {
        let line = |sinks: bool| {
            let queue = if sinks { &self.sinks } else { &self.queue };
            queue.iter().map(|pick| pick.slot).chain(queue.front_iter())
        };
        let waiting = line(false).chain(line(true)).map(|slot| (slot, State::Waiting));
        let list = |slots: &'_ [u32], state| slots.iter().map(move |&slot| (slot, state)).collect::<Vec<_>>();
        let mut listed: BTreeSet<(u32, u8)> = BTreeSet::new();
        let mut count = 0;
        for (slot, state) in waiting
            .chain(list(&self.prefilling, State::Prefilling))
            .chain(list(&self.running, State::Running))
            .chain(list(&self.receiving, State::Receiving))
        {
            count += 1;
            listed.insert((slot, state as u8));
        }
        let lists = self.queue.len() + self.queue.front_len() + self.sinks.len() + self.sinks.front_len();
        assert_eq!(count, listed.len(), "a sequence is in one list, once");
        assert_eq!(
            count,
            lists + self.prefilling.len() + self.running.len() + self.receiving.len(),
            "no list repeats a sequence"
        );
        let offered = self.slots.iter().filter(|(_, sequence)| sequence.state == State::Offered).count();
        assert_eq!(offered as u32, self.offered, "offers without a sink");
        for (slot, sequence) in self.slots.iter() {
            let is_listed = listed.contains(&(slot, sequence.state as u8));
            let has_list =
                matches!(sequence.state, State::Waiting | State::Prefilling | State::Running | State::Receiving);
            assert_eq!(is_listed, has_list, "{} is in the list of its state", sequence.request);
        }
    }
}
