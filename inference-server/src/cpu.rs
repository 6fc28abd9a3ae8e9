//! How many CPUs this process may use: the cgroup's quota and the CPUs it is bound to, never the host's.
//!
//! The standard library rounds a quota of 1.5 CPUs down to one thread and hides the fraction; both matter here.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::thread::sched_getaffinity;
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup::{self, Version};

/// The CPUs that this process may use; at least a small part of one.
pub fn available() -> f64 {
    let bound = sched_getaffinity(None).map_or(1, |cpus| cpus.count().max(1));
    quota(Path::new("/")).unwrap_or(f64::INFINITY).min(f64::from(bound))
}

/// Threads for a number of CPUs: a started CPU counts.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 1 and 4096
pub fn threads(cpus: f64) -> usize {
    cpus.ceil().clamp(1.0, 4096.0) as usize
}

/// The CPU time that this process has used so far.
pub fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The smallest quota on the way from this process's cgroup to the root, in CPUs.
fn quota(root: &Path) -> Option<f64> {
    cgroup::values(root, "cpu", |version, folder| match version {
        Version::One => version_1(folder),
        Version::Two => version_2(folder),
    })
    .into_iter()
    .reduce(f64::min)
}

fn version_2(folder: &Path) -> Option<f64> {
    let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota.parse().ok()?, period.parse().ok()?)
}

fn version_1(folder: &Path) -> Option<f64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<f64>().ok();
    ratio(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn ratio(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::{Files, machine};

    #[test]
    fn the_quota_is_the_smallest_on_the_way_to_the_root() {
        let cases: [(Files, Option<f64>); 6] = [
            (&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "150000 100000\n")], Some(1.5)),
            (&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "max 100000\n")], None),
            (
                &[
                    ("proc/self/cgroup", "0::/kubepods/pod1\n"),
                    ("sys/fs/cgroup/kubepods/cpu.max", "50000 100000\n"),
                    ("sys/fs/cgroup/kubepods/pod1/cpu.max", "400000 100000\n"),
                ],
                Some(0.5),
            ),
            // The group's path is the host's; the container sees its own group as the root.
            (&[("proc/self/cgroup", "0::/host/only\n"), ("sys/fs/cgroup/cpu.max", "200000 100000\n")], Some(2.0)),
            (
                &[
                    ("proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/a\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "300000\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
                    ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
                ],
                Some(3.0),
            ),
            (&[], None),
        ];
        for (files, expected) in cases {
            assert_eq!(quota(machine(files).path()), expected, "{files:?}");
        }
    }

    #[test]
    fn a_started_cpu_is_a_thread() {
        for (cpus, expected) in [(0.1, 1), (1.0, 1), (1.5, 2), (4.0, 4), (f64::INFINITY, 4096)] {
            assert_eq!(threads(cpus), expected, "{cpus}");
        }
    }

    #[test]
    fn this_process_has_a_cpu_and_uses_it() {
        assert!(available() > 0.0);
        assert!(used() > Duration::ZERO);
    }
}
