//! Faults of a disk that tests ask for; outside of tests there are none, and this is empty.

use std::io;

/// What the next reads, writes and syncs of a store's files meet.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    #[cfg(test)]
    asked: Option<std::sync::Arc<Asked>>,
}

/// Error numbers that calls fail with while they are not 0.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) read: std::sync::atomic::AtomicI32,
    pub(super) write: std::sync::atomic::AtomicI32,
    pub(super) sync: std::sync::atomic::AtomicI32,
    /// Syncs begun.
    pub(super) syncs: std::sync::atomic::AtomicI32,
    /// No sync ends while somebody holds this.
    pub(super) gate: std::sync::Mutex<()>,
}

#[cfg(test)]
impl Faults {
    pub(super) fn asked(asked: std::sync::Arc<Asked>) -> Self {
        Self { asked: Some(asked) }
    }

    fn meet(&self, which: impl Fn(&Asked) -> &std::sync::atomic::AtomicI32) -> io::Result<()> {
        match self.asked.as_ref().map_or(0, |asked| which(asked).load(std::sync::atomic::Ordering::Relaxed)) {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }

    pub(super) fn on_read(&self) -> io::Result<()> {
        self.meet(|asked| &asked.read)
    }

    pub(super) fn on_write(&self) -> io::Result<()> {
        self.meet(|asked| &asked.write)
    }

    pub(super) fn on_sync(&self) -> io::Result<()> {
        if let Some(asked) = &self.asked {
            asked.syncs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            drop(super::lock(&asked.gate));
        }
        self.meet(|asked| &asked.sync)
    }
}

#[cfg(not(test))]
#[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the shape of what tests have")]
impl Faults {
    pub(super) fn on_read(&self) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn on_write(&self) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn on_sync(&self) -> io::Result<()> {
        Ok(())
    }
}
