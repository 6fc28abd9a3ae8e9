//! This process, under the names that exporters of all languages use: `process_cpu_seconds_total` and so on.
//!
//! Read from `/proc` when the text is made. A system without it shows zeros.

use std::{fs, sync::atomic::AtomicU64};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{of, set_counter};

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Default)]
pub(super) struct ProcessMetrics {
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    virtual_memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    start: Seconds,
}

impl ProcessMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { cpu, resident, virtual_memory, open_fds, max_fds, threads, start } = metrics.clone();
        registry.register_with_unit("process_cpu", "CPU time used", Unit::Seconds, cpu);
        registry.register_with_unit("process_resident_memory", "Memory in use", Unit::Bytes, resident);
        registry.register_with_unit("process_virtual_memory", "Memory mapped", Unit::Bytes, virtual_memory);
        registry.register("process_open_fds", "Open file descriptors", open_fds);
        registry.register("process_max_fds", "File descriptors that may be open", max_fds);
        registry.register("process_threads", "Threads", threads);
        let help = "When the process started, since the epoch";
        registry.register_with_unit("process_start_time", help, Unit::Seconds, start);
        metrics
    }

    pub(super) fn refresh(&self) {
        if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text)) {
            let ticks = rustix::param::clock_ticks_per_second() as f64;
            set_counter(&self.cpu, stat.cpu_ticks as f64 / ticks);
            self.threads.set(stat.threads);
            self.virtual_memory.set(stat.virtual_bytes);
            let page = of(rustix::param::page_size());
            self.resident.set(stat.resident_pages.saturating_mul(page));
            self.start.set(boot_time().unwrap_or_default() + stat.start_ticks as f64 / ticks);
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // Without the one that this look opened.
            self.open_fds.set(of(open.count().saturating_sub(1)));
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        self.max_fds.set(max_open_files(&limits).unwrap_or_default());
    }
}

/// What is used of `/proc/self/stat`, see `man 5 proc`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: i64,
    threads: i64,
    start_ticks: i64,
    virtual_bytes: i64,
    resident_pages: i64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name before may hold blanks and brackets.
        let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // The first of them is field 3 of the manual.
        let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine started, in seconds since the epoch.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn max_open_files(limits: &str) -> Option<i64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let text =
            "7 (a ) (b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 1000000 321 18446744073709551615";
        let expected =
            Stat { cpu_ticks: 300, threads: 9, start_ticks: 12_345, virtual_bytes: 1_000_000, resident_pages: 321 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_measured() {
        let metrics = ProcessMetrics::default();
        metrics.refresh();
        assert!(metrics.resident.get() > 1_000_000 && metrics.open_fds.get() >= 3 && metrics.threads.get() >= 1);
        assert!(metrics.max_fds.get() > metrics.open_fds.get());
        assert!(metrics.start.get() > 1_600_000_000.0);
    }

    #[test]
    fn no_limit_of_files_is_no_number() {
        assert_eq!(
            max_open_files("Max open files            1024                 4096                 files"),
            Some(1024)
        );
        assert_eq!(max_open_files("Max open files            unlimited  unlimited  files"), None);
    }
}
