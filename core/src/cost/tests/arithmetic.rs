//! Goal: the integer arithmetic below the model is as good as floating point and never falls.

use alloc::string::ToString;
use alloc::vec;
use core::num::{NonZeroU32, NonZeroU64};

use proptest::prelude::*;

use crate::cost::fixed::{exp2, exp2_minus, log2, power_mean};
use crate::cost::table::{Curve, ps_of_points};
use crate::cost::{Disk, Grid, LinkCost};

#[test]
fn logarithms_and_powers_agree_with_floating_point() {
    for value in (1..10_000).chain((0..63).map(|bit| (1 << bit) + 12_345)).chain([u64::MAX]) {
        let error = log2(value) as f64 / TWO_32 - (value as f64).log2();
        assert!(error.abs() < 3e-6, "log2({value}) is off by {error}");
    }
    for step in 0..=10_000 {
        let power = f64::from(step) / 10_000.0;
        let up = exp2((power * TWO_32) as u64) as f64 / TWO_32;
        assert!((up / power.exp2() - 1.0).abs() < 2e-6, "exp2({power}) = {up}");
        let down = exp2_minus((power * 9.0 * TWO_32) as u64) as f64 / TWO_32;
        assert!((down / (-9.0 * power).exp2() - 1.0).abs() < 3e-6, "exp2({}) = {down}", -9.0 * power);
    }
}

#[test]
fn a_power_mean_of_one_bound_is_that_bound_and_saturates() {
    assert_eq!(power_mean(0, 7, 3_330), 7);
    assert_eq!(power_mean(7, 0, 3_330), 7);
    assert_eq!(power_mean(7, 5, 1_000), 12);
    assert_eq!(power_mean(u64::MAX, u64::MAX, 1_000), u64::MAX);
    assert_eq!(power_mean(u64::MAX, u64::MAX, 1_700), u64::MAX);
    assert_eq!(power_mean(u64::MAX, 1, 64_000), u64::MAX);
}

#[test]
fn tables_interpolate_and_go_on_straight() {
    let points = [[10, 100], [20, 300], [40, 400]];
    for (count, ns) in [(0, 100), (10, 100), (15, 200), (20, 300), (30, 350), (40, 400), (80, 600)] {
        assert_eq!(ps_of_points(&points, count), ns * 1_000, "at {count}");
    }
    let grid = Grid { rows: vec![1, 3], columns: vec![10, 20], ns: vec![vec![100, 200], vec![300, 600]] };
    for (row, column, ns) in [
        (1, 10, 100),
        (1, 15, 150),
        (2, 10, 200),
        (2, 15, 300),
        (3, 20, 600),
        (5, 20, 1_000),
        (0, 0, 100),
        (3, 30, 900),
    ] {
        assert_eq!(grid.ps(row * Grid::STEPS, column * Grid::STEPS), ns * 1_000, "at {row}, {column}");
    }
}

#[test]
fn a_curve_follows_its_function_and_never_falls() {
    let square = Curve::new(|count| count * count);
    let mut before = 0;
    for count in (0..5_000).chain((5_000..4_000_000).step_by(997)) {
        let ps = square.ps(count);
        assert!(ps >= before);
        assert!(ps - count * count <= count * count / 10_000, "{count}: {ps}");
        before = ps;
    }
    let falling = Curve::new(|count| 1_000_000_u64.saturating_sub(count));
    assert_eq!(falling.ps(3_000), 1_000_000);
}

#[test]
fn a_link_adds_request_descriptors_bytes_and_latency() {
    let bytes_per_second = NonZeroU64::new(50_000_000_000).expect("not zero");
    let link = LinkCost {
        request_ns: 395_000,
        descriptor_ps: 2_500,
        descriptors_ahead: 0,
        bytes_per_second,
        latency_ns: 5_000,
    };
    assert_eq!(link.time_ns(0, 0), 400_000);
    assert_eq!(link.time_ns(5_000_000_000, 1_000), 100_000_000 + 2_500 + 400_000);
    assert_eq!(link.time_ns(1, 1), 400_000 + 2 + 1);
    assert_eq!(link.time_ns(u64::MAX, u64::MAX), u64::MAX);
}

#[test]
fn descriptors_beyond_those_posted_ahead_hide_behind_bytes_until_they_are_slower() {
    let bytes_per_second = NonZeroU64::new(1_000_000_000).expect("not zero");
    let link =
        LinkCost { request_ns: 100, descriptor_ps: 1_000_000, descriptors_ahead: 10, bytes_per_second, latency_ns: 5 };
    assert_eq!(link.time_ns(50_000, 10), 105 + 10_000 + 50_000, "all of them ahead");
    assert_eq!(link.time_ns(50_000, 60), 105 + 10_000 + 50_000, "fifty hidden behind 50 us of bytes");
    assert_eq!(link.rate(50_000, 60), 1_000_000_000);
    assert_eq!(link.time_ns(50_000, 110), 105 + 10_000 + 100_000, "a hundred are slower than the bytes");
    assert_eq!(link.rate(50_000, 110), 500_000_000);
    assert_eq!(link.setup_ns(110), 10_105);
}

#[test]
fn a_disk_is_bound_by_bandwidth_or_by_operations() {
    let rate = |value| NonZeroU64::new(value).expect("not zero");
    let disk = Disk {
        name: "disk".to_string(),
        read_bytes_per_second: rate(1_000_000_000),
        write_bytes_per_second: rate(500_000_000),
        read_operations_per_second: rate(100_000),
        write_operations_per_second: rate(50_000),
        read_latency_ns: 70_000,
        write_latency_ns: 10_000,
        queue_depth: NonZeroU32::MIN,
        fsync_ns: 20_000,
    };
    assert_eq!(disk.read_ns(4_096), 10_000 + 70_000);
    assert_eq!(disk.read_ns(1_000_000), 1_000_000 + 70_000);
    assert_eq!(disk.write_ns(4_096), 20_000 + 10_000);
    assert_eq!(disk.write_service_ns(1_000_000), 2_000_000);
    assert_eq!(disk.read_ns(u64::MAX), u64::MAX);
}

proptest! {
    #[test]
    fn the_power_mean_agrees_with_floating_point(a in 1..u64::MAX >> 8, b in 1..u64::MAX >> 8, shift in 0..30_u32, q in 1_000..20_000_u32) {
        let b = (b >> shift).max(1);
        let (x, y, power) = (a as f64, b as f64, f64::from(q) / 1_000.0);
        let high = x.max(y);
        let real = high * ((x / high).powf(power) + (y / high).powf(power)).powf(1.0 / power);
        let error = power_mean(a, b, q) as f64 / real - 1.0;
        prop_assert!(error.abs() < 1e-5, "({a}, {b}) at {q} is off by {error}");
        prop_assert_eq!(power_mean(a, b, q), power_mean(b, a, q));
    }

    #[test]
    fn the_power_mean_rises_with_its_bounds(a in 1_000_000..1_u64 << 45, b in 1_000_000..1_u64 << 45, more in 1..1_000_u64, q in 1_000..20_000_u32) {
        // A thousandth more at most; a rise below the resolution of 2^-32 may be lost, hence at least 10^-6 of it.
        let risen = a + a / 1_000_000 * more;
        prop_assert!(power_mean(risen, b, q) >= power_mean(a, b, q));
    }
}

const TWO_32: f64 = 4_294_967_296.0;
