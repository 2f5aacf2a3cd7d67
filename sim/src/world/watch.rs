//! Those who watch, and what lanes and links have to tell them. Without observers nothing is gathered.

use super::WorldOf;
use crate::node::Serve;
use crate::observe::{LinkRate, Observer};

impl<M: Serve> WorldOf<M> {
    /// Adds an observer. Those that are added before the run begins see all of it.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.fabric.activities.get_or_insert_default();
        self.fabric.links.watch();
        self.observers.push(observer);
    }

    /// Tells which commands have ended on their devices since this was last called.
    #[inline]
    pub(super) fn tell_activities(&mut self) {
        let Some(activities) = &mut self.fabric.activities else { return };
        for activity in activities.drain(..) {
            for observer in &mut self.observers {
                observer.on_activity(&activity);
            }
        }
    }

    /// Tells which links became faster or slower since this was last called.
    pub(super) fn tell_links(&mut self) {
        let Self { fabric, observers, now, .. } = self;
        fabric.links.take_changes(|link, bytes_per_second, capacity| {
            let rate = LinkRate { link: link.0, bytes_per_second, capacity };
            for observer in observers.iter_mut() {
                observer.on_link(*now, rate);
            }
        });
    }
}
