//! The difference between two looks at a server's counters.

use std::collections::BTreeMap;

use ortolan_protocol::stats::{BatchCell, Stats};

use crate::scale::PodWindow;

/// Differences of a server's clock beyond these seconds are no look-to-look differences.
const PLAUSIBLE_SECONDS: std::ops::RangeInclusive<f64> = 0.05..=600.0;

/// What a server did between two looks, on its own clock; `None` when it restarted in between or tells what cannot be: a
/// number that is not finite, negative or smaller than before.
pub fn between(earlier: &Stats, later: &Stats) -> Option<PodWindow> {
    let seconds = later.uptime_seconds - earlier.uptime_seconds;
    let plausible =
        [later.cpus, later.cpu_seconds, later.latency.sum].iter().all(|number| number.is_finite() && *number >= 0.0)
            && later.batches.iter().all(|cell| cell.seconds.is_finite() && cell.seconds >= 0.0);
    if earlier.instance != later.instance || !plausible || !PLAUSIBLE_SECONDS.contains(&seconds) {
        return None;
    }
    Some(PodWindow {
        seconds,
        requests_admitted: later.requests.admitted.checked_sub(earlier.requests.admitted)?,
        rows_arrived: later.rows_arrived.checked_sub(earlier.rows_arrived)?,
        queued_rows: later.queued_rows,
        max_batch_rows: later.max_batch_rows,
        instances: later.instances,
        latency: later.latency.since(&earlier.latency)?,
        batches: executed(&earlier.batches, &later.batches)?,
        cpu_seconds: (later.cpu_seconds - earlier.cpu_seconds).max(0.0),
        cpus: later.cpus,
    })
}

/// Batches that were executed in between; a cell is known by its limit.
fn executed(earlier: &[BatchCell], later: &[BatchCell]) -> Option<Vec<BatchCell>> {
    let before: BTreeMap<u64, &BatchCell> = earlier.iter().map(|cell| (cell.limit, cell)).collect();
    let difference = |now: &BatchCell| {
        let Some(then) = before.get(&now.limit) else { return Some(*now) };
        Some(BatchCell {
            limit: now.limit,
            count: now.count.checked_sub(then.count)?,
            rows: now.rows.checked_sub(then.rows)?,
            seconds: (now.seconds - then.seconds).max(0.0),
        })
    };
    let cells: Option<Vec<_>> = later.iter().map(difference).collect();
    Some(cells?.into_iter().filter(|cell| cell.count > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells as `(limit, count, rows, seconds)`.
    fn stats(arrived: u64, cells: &[(u64, u64, u64, f64)]) -> Stats {
        let mut stats = Stats { instance: "one".into(), cpus: 1.0, uptime_seconds: arrived as f64, ..Stats::default() };
        stats.requests.admitted = arrived;
        stats.rows_arrived = arrived;
        let cell = |&(limit, count, rows, seconds): &(u64, u64, u64, f64)| BatchCell { limit, count, rows, seconds };
        stats.batches = cells.iter().map(cell).collect();
        stats
    }

    #[test]
    fn counters_become_differences() {
        let window =
            between(&stats(10, &[(1, 10, 10, 0.1)]), &stats(30, &[(1, 20, 20, 0.3), (8, 2, 16, 0.1)])).unwrap();
        assert_eq!((window.requests_admitted, window.rows_arrived), (20, 20));
        assert!((window.seconds - 20.0).abs() < 1e-9, "on the server's own clock");
        assert_eq!(window.batches.len(), 2);
        assert_eq!((window.batches[0].count, window.batches[1].rows), (10, 16));
    }

    #[test]
    fn a_mean_that_drifts_inside_a_cell_is_still_the_same_cell() {
        let window = between(&stats(1, &[(8, 1000, 7300, 1.0)]), &stats(2, &[(8, 1100, 8100, 1.1)])).unwrap();
        assert_eq!((window.batches[0].count, window.batches[0].rows), (100, 800));
    }

    #[test]
    fn a_restart_is_not_a_difference() {
        let later = Stats { instance: "two".into(), ..stats(30, &[]) };
        assert_eq!(between(&stats(10, &[]), &later), None);
        assert_eq!(between(&stats(30, &[]), &stats(10, &[])), None);
    }

    #[test]
    fn numbers_that_cannot_be_are_no_observation() {
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert_eq!(between(&stats(1, &[]), &Stats { cpu_seconds: bad, ..stats(2, &[]) }), None);
            assert_eq!(between(&stats(1, &[]), &Stats { uptime_seconds: bad, ..stats(2, &[]) }), None);
            assert_eq!(between(&stats(1, &[]), &stats(2, &[(1, 1, 1, bad)])), None);
        }
    }
}
