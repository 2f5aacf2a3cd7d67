//! What a disk has to do: for those who look into a run.

use super::Disk;

/// Jobs of a disk that have not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskView {
    /// Reads that wait to be issued, and commands of reads under way.
    pub reads: (usize, usize),
    /// The same of writes.
    pub writes: (usize, usize),
    /// Fsyncs that wait for writes, and such that only wait for time.
    pub fsyncs: (usize, usize),
}

impl Disk {
    /// What it has to do.
    #[must_use]
    pub fn view(&self) -> DiskView {
        DiskView {
            reads: self.reads.lengths(),
            writes: self.writes.lengths(),
            fsyncs: (self.barriers.len(), self.flushes.len()),
        }
    }
}
