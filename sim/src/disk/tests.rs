//! Disks: bandwidth, operations, latency, queue depth and barriers.

use proptest::prelude::*;

use super::*;

/// A Gen 4 NVMe behind few outstanding requests.
const NVME: DiskSpec = DiskSpec {
    read_bytes_per_second: 7_000_000_000,
    write_bytes_per_second: 5_000_000_000,
    read_iops: 1_000_000,
    write_iops: 250_000,
    read_latency_ns: 92_000,
    write_latency_ns: 21_000,
    queue_depth: 4,
    fsync_ns: 40_000,
};

#[test]
fn one_object_takes_the_latency_and_the_longer_of_transfer_and_command() {
    for (bytes, ns) in [(0, 1_000), (4_096, 1_000), (7_000, 1_000), (16_384, 2_341), (700_000_000, 100_000_000)] {
        let mut disk = Disk::new(NVME);
        disk.read(Instant(5), bytes, 1);
        assert_eq!(run(&mut disk), [(0, 5 + 92_000 + ns)], "{bytes} bytes");
    }
    let mut disk = Disk::new(NVME);
    disk.write(Instant(5), 4_096, 1);
    assert_eq!(run(&mut disk), [(0, 5 + 21_000 + 4_000)]);
}

/// dynamo#12750: 3.5 M reads of 16.1 kB against 62 k of 768 kB, about 10 times the throughput.
#[test]
fn small_objects_cost_ten_times_the_bandwidth() {
    let bytes = 768_000 * 1_000;
    let small = read_alone(NVME, bytes, (bytes / 16_100) as u32);
    let large = read_alone(NVME, bytes, 1_000);
    let ratio = small * 10 / large;
    assert!((95..=110).contains(&ratio), "{ratio} tenths");
}

#[test]
fn large_sequential_reads_reach_the_bandwidth() {
    let ns = read_alone(NVME, 7_000_000_000, 7);
    assert_eq!(ns, 1_000_000_000 + NVME.read_latency_ns);
}

#[test]
fn deep_queues_reach_the_iops_and_shallow_ones_the_latency() {
    let deep = DiskSpec { queue_depth: 256, ..NVME };
    assert_eq!(read_alone(deep, 4_096 * 100_000, 100_000), 100_000 * 1_000 + 92_000);
    let single = DiskSpec { queue_depth: 1, ..NVME };
    assert_eq!(read_alone(single, 4_096 * 100, 100), 100 * 93_000);
}

#[test]
fn a_small_read_overtakes_a_long_one() {
    let mut disk = Disk::new(NVME);
    disk.read(Instant(0), 7_000_000_000, 1);
    disk.read(Instant(0), 16_384, 1);
    let ends = run(&mut disk);
    assert_eq!(ends[0].0, 1);
    assert!(ends[0].1 < 1_000_000, "{ends:?}");
    assert_eq!(ends[1].1, 1_000_000_000 + 92_000 + 2_341);
}

#[test]
fn equal_jobs_share_the_bandwidth() {
    let mut disk = Disk::new(NVME);
    for _ in 0..4 {
        disk.read(Instant(0), 700_000_000, 700);
    }
    let ends = run(&mut disk);
    assert!(ends.iter().all(|(_, end)| (397_000_000..401_000_000).contains(end)), "{ends:?}");
}

#[test]
fn reads_and_writes_do_not_wait_for_each_other() {
    let mut disk = Disk::new(NVME);
    disk.read(Instant(0), 7_000_000, 7);
    disk.write(Instant(0), 5_000_000, 5);
    assert_eq!(run(&mut disk), [(1, 1_021_000), (0, 1_092_000)]);
    let used = disk.disk_use();
    assert_eq!(used.read, QueueUse { bytes: 7_000_000, commands: 7, busy_ns: 1_000_000 });
    assert_eq!(used.write, QueueUse { bytes: 5_000_000, commands: 5, busy_ns: 1_000_000 });
}

#[test]
fn an_fsync_waits_for_the_writes_before_it_and_no_others() {
    let mut disk = Disk::new(NVME);
    let idle = disk.fsync(Instant(0));
    let short = disk.write(Instant(0), 5_000, 1);
    let first = disk.fsync(Instant(0));
    let long = disk.write(Instant(0), 5_000_000_000, 5_000);
    let second = disk.fsync_drawn(Instant(0), 7);
    let ends = run(&mut disk);
    let end = |job: JobId| ends.iter().find(|end| end.0 == job.0).expect("ended").1;
    assert_eq!(end(idle), 40_000);
    assert_eq!(end(first), end(short) + 40_000);
    assert_eq!(end(second), end(long) + 7);
    assert!(end(first) < end(long));
    assert_eq!(disk.disk_use().fsyncs, 3);
}

#[test]
fn after_a_power_failure_nothing_ends() {
    let mut disk = Disk::new(NVME);
    disk.write(Instant(0), 5_000_000, 5);
    disk.fsync(Instant(0));
    disk.clear(Instant(500_000));
    assert!(disk.is_idle());
    disk.read(Instant(500_000), 0, 1);
    assert_eq!(run(&mut disk), [(2, 593_000)]);
    assert_eq!(disk.disk_use().write.commands, 2, "what had ended counts");
}

#[test]
fn a_slower_spec_holds_for_commands_to_come() {
    let mut disk = Disk::new(DiskSpec { queue_depth: 1, ..NVME });
    disk.read(Instant(0), 14_000, 2);
    disk.set_spec(Instant(10), DiskSpec { queue_depth: 1, read_latency_ns: 1_000_000, ..NVME });
    assert_eq!(run(&mut disk), [(0, 93_000 + 1_001_000)]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The model issues command after command with floats: each starts when those that have not ended leave a slot free.
    #[test]
    fn a_job_alone_follows_the_recursion_of_its_slots(
        bytes in 0_u64..300_000_000, ops in 1_u32..400, depth in 1_u32..40, rate in 1_000_000_u64..20_000_000_000,
    ) {
        let spec = DiskSpec { queue_depth: depth, read_bytes_per_second: rate, ..NVME };
        let mut ends: Vec<f64> = Vec::new();
        let mut slots: Vec<u64> = Vec::new();
        let mib = 1 << 20;
        let most = (bytes / u64::from(ops)).div_ceil(8).clamp(mib, u64::from(depth / 8).max(1) * mib);
        for object in 0..u64::from(ops) {
            let mut left = bytes / u64::from(ops) + u64::from(object < bytes % u64::from(ops));
            loop {
                let size = left.min(most);
                let mut taken = 0;
                let last = (0..ends.len()).rev().find(|index| {
                    taken += slots[*index];
                    taken >= u64::from(depth)
                });
                let start = last.map_or(0.0, |index| ends[index]);
                slots.push(size.div_ceil(mib).max(1));
                let pipe = ends.last().copied().unwrap_or(0.0);
                let transfer = (size as f64 * 1e9 / rate as f64).max(1e9 / NVME.read_iops as f64);
                ends.push((start + NVME.read_latency_ns as f64).max(pipe) + transfer);
                left -= size;
                if left == 0 {
                    break;
                }
            }
        }
        let expected = *ends.last().expect("at least one");
        let end = read_alone(spec, bytes, ops) as f64;
        // A command's share of the IOPS is rounded up to a byte, a wait to a nanosecond.
        let slack = ends.len() as f64 * (1.0 + 1e9 / rate as f64);
        prop_assert!((end - expected).abs() <= slack, "{end} instead of {expected}");
    }

    #[test]
    fn all_jobs_end_in_order_and_a_late_driver_sees_the_same(
        jobs in prop::collection::vec((0_u64..1_000_000, 0_u8..3, 0_u64..5_000_000, 1_u32..50), 1..40),
    ) {
        let mut jobs = jobs;
        jobs.sort_by_key(|job| job.0);
        let start = |disk: &mut Disk, (at, kind, bytes, ops): (u64, u8, u64, u32)| match kind {
            0 => disk.read(Instant(at), bytes, ops),
            1 => disk.write(Instant(at), bytes, ops),
            _ => disk.fsync(Instant(at)),
        };
        let mut prompt = Disk::new(NVME);
        let mut late = Disk::new(NVME);
        let (mut ends, mut late_ends) = (Vec::new(), Vec::new());
        for job in &jobs {
            while let Some(at) = prompt.next() && at.0 < job.0 {
                prompt.advance(at, &mut ends);
            }
            late.advance(Instant(job.0.saturating_sub(1)), &mut late_ends);
            prop_assert_eq!(start(&mut prompt, *job), start(&mut late, *job));
        }
        ends.extend(run(&mut prompt).into_iter().map(|(job, _)| JobId(job)));
        late.advance(Instant(u64::MAX), &mut late_ends);
        prop_assert_eq!(&ends, &late_ends);
        prop_assert_eq!(ends.len(), jobs.len());
        let used = prompt.disk_use();
        let bytes: u64 = jobs.iter().filter(|job| job.1 < 2).map(|job| job.2).sum();
        prop_assert_eq!(used.read.bytes + used.write.bytes, bytes);
    }
}

fn read_alone(spec: DiskSpec, bytes: u64, ops: u32) -> u64 {
    let mut disk = Disk::new(spec);
    disk.read(Instant(0), bytes, ops);
    run(&mut disk)[0].1
}

/// Runs to the end: (job, ns) of each end.
fn run(disk: &mut Disk) -> Vec<(u64, u64)> {
    let mut ends = Vec::new();
    let mut done = Vec::new();
    while let Some(at) = disk.next() {
        disk.advance(at, &mut done);
        ends.extend(done.drain(..).map(|job| (job.0, at.0)));
    }
    ends
}
