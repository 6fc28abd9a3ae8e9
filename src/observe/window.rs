//! The difference between two looks at a server's counters.

use std::collections::BTreeMap;

use ortolan_protocol::stats::{BatchCell, Stats};

use crate::scale::PodWindow;

/// What a server did between two looks that lie `seconds` apart; `None` when it restarted in between or tells what
/// cannot be: a number that is not finite, negative or smaller than before.
pub fn between(earlier: &Stats, later: &Stats, seconds: f64) -> Option<PodWindow> {
    let plausible =
        [later.cpus, later.cpu_seconds, later.latency.sum].iter().all(|number| number.is_finite() && *number >= 0.0)
            && later.batches.iter().all(|cell| cell.seconds.is_finite() && cell.seconds >= 0.0);
    if earlier.instance != later.instance || !plausible || seconds <= 0.0 {
        return None;
    }
    Some(PodWindow {
        seconds,
        requests_arrived: later.requests.arrived.checked_sub(earlier.requests.arrived)?,
        rows_arrived: later.rows_arrived.checked_sub(earlier.rows_arrived)?,
        queued_rows: later.queued_rows,
        max_batch_rows: later.max_batch_rows,
        latency: later.latency.since(&earlier.latency)?,
        batches: executed(&earlier.batches, &later.batches)?,
        cpu_seconds: (later.cpu_seconds - earlier.cpu_seconds).max(0.0),
        cpus: later.cpus,
    })
}

/// Batches that were executed in between. Cells are the same batches from look to look when their order is; a cell is
/// found again by where its mean size lies, in steps of a quarter of a doubling, as the server forms them.
fn executed(earlier: &[BatchCell], later: &[BatchCell]) -> Option<Vec<BatchCell>> {
    let by_size = |cells: &[BatchCell]| -> BTreeMap<u64, BatchCell> {
        cells.iter().filter(|cell| cell.count > 0).map(|cell| (size_class(cell), *cell)).collect()
    };
    let before = by_size(earlier);
    by_size(later)
        .into_iter()
        .filter_map(|(class, now)| {
            let then = before.get(&class).copied().unwrap_or_default();
            let difference = || {
                Some(BatchCell {
                    count: now.count.checked_sub(then.count)?,
                    rows: now.rows.checked_sub(then.rows)?,
                    seconds: (now.seconds - then.seconds).max(0.0),
                })
            };
            match difference() {
                Some(cell) if cell.count == 0 => None,
                other => Some(other),
            }
        })
        .collect()
}

/// The class of a cell's mean size.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a small positive number
fn size_class(cell: &BatchCell) -> u64 {
    ((cell.rows as f64 / cell.count as f64).max(1.0).log2() * 4.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(arrived: u64, cells: &[(u64, u64, f64)]) -> Stats {
        let mut stats = Stats { instance: "one".into(), cpus: 1.0, ..Stats::default() };
        stats.requests.arrived = arrived;
        stats.rows_arrived = arrived;
        stats.batches = cells
            .iter()
            .map(|(count, rows, seconds)| BatchCell { count: *count, rows: *rows, seconds: *seconds })
            .collect();
        stats
    }

    #[test]
    fn counters_become_differences() {
        let window = between(&stats(10, &[(10, 10, 0.1)]), &stats(30, &[(20, 20, 0.3), (2, 16, 0.1)]), 1.0).unwrap();
        assert_eq!((window.requests_arrived, window.rows_arrived), (20, 20));
        assert_eq!(window.batches.len(), 2);
        assert_eq!((window.batches[0].count, window.batches[1].rows), (10, 16));
    }

    #[test]
    fn a_restart_is_not_a_difference() {
        let later = Stats { instance: "two".into(), ..stats(30, &[]) };
        assert_eq!(between(&stats(10, &[]), &later, 1.0), None);
        assert_eq!(between(&stats(30, &[]), &stats(10, &[]), 1.0), None);
    }

    #[test]
    fn numbers_that_cannot_be_are_no_observation() {
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert_eq!(between(&stats(1, &[]), &Stats { cpu_seconds: bad, ..stats(2, &[]) }, 1.0), None);
            assert_eq!(between(&stats(1, &[]), &stats(2, &[(1, 1, bad)]), 1.0), None);
        }
    }
}
