//! The largest rate at which something still holds.
//!
//! Geometric: the bracket doubles or halves until one end holds and the other does not, then it is halved on a
//! logarithmic scale. What holds is taken as monotone; where noise makes it not so, the answer is one of the places
//! where it changes.

/// Where the search may go.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bounds {
    /// Below this the answer is that it never holds.
    pub min: f64,
    /// Above this the answer is this.
    pub max: f64,
    /// Width of the last bracket, as a share.
    pub precision: f64,
}

/// The largest rate that holds, found from `start` in steps of `stride` (a factor above 1); none if it does not hold
/// at the smallest one. `holds` is asked for the returned rate and, unless that is the largest one, for one at most
/// `precision` above it.
///
/// # Errors
/// That of `holds`.
///
/// # Panics
/// If the bounds make no sense: not 0 < min <= start <= max, a precision or stride that does not narrow or widen.
pub fn largest<E>(
    bounds: Bounds,
    start: f64,
    stride: f64,
    mut holds: impl FnMut(f64) -> Result<bool, E>,
) -> Result<Option<f64>, E> {
    let Bounds { min, max, precision } = bounds;
    assert!(0.0 < min && min <= start && start <= max, "start {start} lies between {min} and {max}");
    assert!(precision > 0.0 && stride > 1.0, "precision {precision}, stride {stride}");
    let (mut low, mut high);
    if holds(start)? {
        low = start;
        loop {
            if low >= max {
                return Ok(Some(low));
            }
            high = (low * stride).min(max);
            if !holds(high)? {
                break;
            }
            low = high;
        }
    } else {
        high = start;
        loop {
            if high <= min {
                return Ok(None);
            }
            low = (high / stride).max(min);
            if holds(low)? {
                break;
            }
            high = low;
        }
    }
    while high / low > 1.0 + precision {
        let middle = (low * high).sqrt();
        if holds(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(Some(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: 0.001, max: 1e6, precision: 0.01 };

    fn find(limit: f64, start: f64) -> (Option<f64>, u32) {
        let mut count = 0;
        let found = largest::<()>(BOUNDS, start, 2.0, |rate| {
            count += 1;
            Ok(rate <= limit)
        });
        (found.unwrap(), count)
    }

    #[test]
    fn the_limit_is_found_from_either_side_within_the_precision() {
        for limit in [0.002, 0.9, 1.0, 37.5, 4_000.0] {
            for start in [0.01, 1.0, 500.0] {
                let (found, count) = find(limit, start);
                let found = found.unwrap();
                assert!(found <= limit && limit < found * 1.01, "{limit} from {start}: {found}");
                assert!(count < 40, "{count} questions");
            }
        }
    }

    #[test]
    fn what_never_or_always_holds_is_told_apart() {
        assert_eq!(find(0.0, 1.0).0, None);
        assert_eq!(find(1e9, 1.0).0, Some(1e6));
    }

    #[test]
    fn errors_end_the_search() {
        assert_eq!(largest(BOUNDS, 1.0, 2.0, |_| Err("no")), Err("no"));
    }

    /// M/D/1: the mean wait is rho / (2 (1 - rho)) services, so the largest rho with a mean wait of at most w is
    /// 2 w / (1 + 2 w).
    #[test]
    fn the_goodput_of_a_formula_is_that_of_its_inverse() {
        for wait in [0.25, 1.0, 4.5] {
            let found = largest::<()>(BOUNDS, 0.1, 2.0, |rho| Ok(rho < 1.0 && rho / (2.0 * (1.0 - rho)) <= wait));
            let (found, exact) = (found.unwrap().unwrap(), 2.0 * wait / (1.0 + 2.0 * wait));
            assert!(found <= exact && exact < found * 1.01, "wait {wait}: {found}, {exact}");
        }
    }
}
