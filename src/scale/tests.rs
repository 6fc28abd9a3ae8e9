//! Tables: what is decided in which situation.

use std::time::Duration;

use super::*;

fn config() -> Config {
    Config { min: 1, max: 10, quantile: 0.99, target: Duration::from_millis(100), batch_delay: Duration::ZERO }
}

/// A pod with S(b) = 10 ms + 5 ms·b that was asked `rows` times in the last second.
fn busy(rows: u64, latency: f64) -> PodWindow {
    let mut histogram = Histogram::default();
    (0..rows).for_each(|_| histogram.record(latency));
    PodWindow {
        seconds: 1.0,
        requests_admitted: rows,
        rows_arrived: rows,
        max_batch_rows: 32,
        latency: histogram,
        batches: vec![
            BatchCell { limit: 1, count: 2 * rows / 10, rows: 2 * rows / 10, seconds: 0.015 * (2 * rows / 10) as f64 },
            BatchCell { limit: 8, count: rows / 10, rows: 8 * (rows / 10), seconds: 0.05 * (rows / 10) as f64 },
        ],
        cpu_seconds: 0.1,
        cpus: 1.0,
        ..PodWindow::default()
    }
}

fn seen(pods: Vec<PodWindow>) -> Observation {
    Observation { pods, ..Observation::default() }
}

/// Shows the same observation once a second from `from` on; the last decision and the memory.
fn repeat(config: &Config, look: &Observation, mut memory: Memory, from: u32, times: u32) -> (Decision, Memory) {
    let mut last = None;
    for second in from..from + times {
        let (decision, next) = decide(config, look, memory, f64::from(second));
        memory = next;
        last = Some(decision);
    }
    (last.unwrap(), memory)
}

#[test]
fn a_load_above_the_capacity_scales_up_at_once() {
    let (decision, _) = repeat(&config(), &seen(vec![busy(200, 0.3)]), Memory::seeded(1, 0.0), 1, 1);
    assert_eq!(decision.cause, Cause::Load);
    assert!((3..=5).contains(&decision.replicas), "{decision:?}");
    assert!(decision.reason.contains("rows/s expected"), "{}", decision.reason);
}

#[test]
fn servers_that_start_are_counted_so_that_no_more_are_asked_for() {
    let (first, memory) = repeat(&config(), &seen(vec![busy(200, 0.3)]), Memory::seeded(1, 0.0), 1, 1);
    let look = Observation { starting: first.replicas - 1, ..seen(vec![busy(200, 0.5)]) };
    let (later, _) = repeat(&config(), &look, memory, 2, 10);
    assert!(later.replicas <= first.replicas + 1, "{} then {}", first.replicas, later.replicas);
}

#[test]
fn more_than_the_most_is_said_and_not_done() {
    let config = Config { max: 2, ..config() };
    let (decision, _) = repeat(&config, &seen(vec![busy(900, 1.0)]), Memory::seeded(1, 0.0), 1, 2);
    assert_eq!(decision.replicas, 2);
    assert!(matches!(decision.limited, Some(Limit::MaxReplicas { wanted }) if wanted > 2), "{decision:?}");
    assert!(decision.reason.contains("maxReplicas is 2"), "{}", decision.reason);
}

#[test]
fn silence_holds_and_is_never_read_as_zero() {
    let (_, memory) = repeat(&config(), &seen(vec![busy(100, 0.05), busy(100, 0.05)]), Memory::seeded(4, 0.0), 1, 5);
    let silent = Observation { silent: 4, ..Observation::default() };
    let (decision, _) = repeat(&config(), &silent, memory, 6, 500);
    assert_eq!((decision.replicas, decision.cause), (4, Cause::Silent));
}

#[test]
fn one_silent_server_forbids_scaling_in() {
    let look = Observation { silent: 1, ..seen(vec![busy(10, 0.02)]) };
    let (decision, _) = repeat(&config(), &look, Memory::seeded(4, 0.0), 1, 300);
    assert_eq!((decision.replicas, decision.cause), (4, Cause::Silent));
}

#[test]
fn a_silent_server_is_assumed_to_be_as_busy_as_the_others() {
    let all = seen(vec![busy(80, 0.05); 4]);
    let some = Observation { silent: 2, ..seen(vec![busy(80, 0.05); 2]) };
    let memory = || Memory::seeded(4, 0.0);
    let (of_all, _) = repeat(&config(), &all, memory(), 1, 1);
    let (of_some, _) = repeat(&config(), &some, memory(), 1, 1);
    assert!(of_some.replicas.abs_diff(of_all.replicas) <= 1, "{of_all:?} {of_some:?}");
}

#[test]
fn load_gone_scales_in_slowly_to_the_fewest() {
    let (_, memory) = repeat(&config(), &seen(vec![busy(50, 0.05); 8]), Memory::seeded(8, 0.0), 1, 5);
    let idle = seen(vec![PodWindow { seconds: 1.0, max_batch_rows: 32, cpus: 1.0, ..PodWindow::default() }; 8]);
    let (early, memory) = repeat(&config(), &idle, memory, 6, 50);
    assert_eq!(early.replicas, 8, "not before the window is over");
    let (first, memory) = repeat(&config(), &idle, memory, 56, 18);
    assert!((5..8).contains(&first.replicas), "at most a quarter a step: {first:?}");
    let (last, _) = repeat(&config(), &idle, memory, 74, 120);
    assert_eq!(last.replicas, 1);
}

#[test]
fn a_rollout_freezes_scale_in() {
    let (_, memory) = repeat(&config(), &seen(vec![busy(20, 0.02); 4]), Memory::seeded(4, 0.0), 1, 5);
    let look = Observation { rolling_out: true, ..seen(vec![busy(1, 0.02); 4]) };
    let (decision, _) = repeat(&config(), &look, memory, 6, 400);
    assert_eq!(decision.replicas, 4);
}

#[test]
fn a_restarted_operator_does_not_scale_in_for_a_window() {
    let look = seen(vec![busy(10, 0.02); 6]);
    let (decision, memory) = repeat(&config(), &look, Memory::seeded(6, 1000.0), 1001, 55);
    assert_eq!(decision.replicas, 6);
    let (decision, _) = repeat(&config(), &look, memory, 1056, 60);
    assert!(decision.replicas < 6);
}

#[test]
fn latency_that_stays_above_the_target_asks_for_one_more() {
    // Few rows, cheap batches, and yet slow: something that the model of the server does not see.
    let (decision, _) = repeat(&config(), &seen(vec![busy(30, 0.4); 2]), Memory::seeded(2, 0.0), 1, 10);
    assert_eq!((decision.replicas, decision.cause), (3, Cause::Latency));
    assert!(decision.reason.contains("stays above 100ms"), "{}", decision.reason);
}

#[test]
fn servers_that_do_not_help_are_not_added_without_end() {
    let (decision, _) = repeat(&config(), &seen(vec![busy(30, 0.4); 2]), Memory::seeded(2, 0.0), 1, 600);
    assert!(decision.replicas <= 4, "{decision:?}");
}

#[test]
fn a_batch_delay_beyond_the_target_is_said_and_adds_no_servers() {
    let config = Config { batch_delay: Duration::from_millis(200), ..config() };
    let (decision, _) = repeat(&config, &seen(vec![busy(30, 0.2)]), Memory::seeded(1, 0.0), 1, 200);
    assert!(matches!(decision.limited, Some(Limit::TargetOutOfReach { .. })), "{decision:?}");
    assert!(decision.replicas <= 3, "{decision:?}");
}

#[test]
fn a_server_that_misses_a_look_does_not_change_the_load() {
    let both = seen(vec![busy(60, 0.03); 2]);
    let one = Observation { unheard: 1, ..seen(vec![busy(60, 0.03)]) };
    let (decision, memory) = repeat(&config(), &both, Memory::seeded(2, 0.0), 1, 10);
    let before = decision.replicas;
    let (decision, memory) = repeat(&config(), &one, memory, 11, 5);
    let (after, _) = repeat(&config(), &both, memory, 16, 10);
    assert_eq!((decision.replicas, after.replicas), (before, before));
}

#[test]
fn a_target_below_one_execution_is_said() {
    let config = Config { target: Duration::from_millis(5), ..config() };
    let (decision, _) = repeat(&config, &seen(vec![busy(10, 0.02)]), Memory::seeded(1, 0.0), 1, 2);
    assert!(matches!(decision.limited, Some(Limit::TargetOutOfReach { .. })), "{decision:?}");
    assert!(decision.reason.contains("one execution alone takes"), "{}", decision.reason);
}

#[test]
fn nothing_executed_yet_holds() {
    let look = seen(vec![PodWindow { seconds: 1.0, ..PodWindow::default() }]);
    let (decision, _) = repeat(&config(), &look, Memory::seeded(3, 0.0), 1, 200);
    assert_eq!((decision.replicas, decision.cause), (3, Cause::Unknown));
}

#[test]
fn changed_bounds_are_obeyed_at_once() {
    let (decision, _) =
        repeat(&Config { min: 3, ..config() }, &seen(vec![busy(10, 0.02)]), Memory::seeded(1, 0.0), 1, 1);
    assert_eq!(decision.replicas, 3);
    let look = Observation { silent: 1, ..Observation::default() };
    let (decision, _) = repeat(&Config { max: 2, ..config() }, &look, Memory::seeded(5, 0.0), 1, 1);
    assert_eq!(decision.replicas, 2);
}

#[test]
fn a_steady_load_is_not_followed_up_and_down() {
    let mut memory = Memory::seeded(2, 0.0);
    let mut replicas = Vec::new();
    for second in 1..400 {
        let jitter = u64::from(second % 7_u32);
        let look = seen(vec![busy(40 + jitter, 0.03), busy(46 - jitter, 0.03)]);
        let (decision, next) = decide(&config(), &look, memory, f64::from(second));
        memory = next;
        replicas.push(decision.replicas);
    }
    replicas.dedup();
    assert!(replicas.len() <= 2, "{replicas:?}");
}
