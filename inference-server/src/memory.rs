//! How much memory this process may use, and how much it uses.

use std::fs;
use std::path::Path;

use crate::cgroup::{self, Version};

/// What batches may take where memory has no limit.
const ROOM_WITHOUT_LIMIT: u64 = 1 << 30;
/// Version 1 writes "no limit" as the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 60;

/// The limit of this process's control groups in bytes, if there is one.
pub fn limit() -> Option<u64> {
    smallest_limit(Path::new("/"))
}

/// What this process uses in bytes and the kernel cannot take back: files that it could read again do not count.
pub fn used() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|status| bytes(&status, "RssAnon:")).unwrap_or_default()
}

/// What batches may take together, in bytes: half of what the limit leaves. The rest is for requests, answers, and what nobody foresees.
pub fn room() -> u64 {
    room_within(limit(), resident().map_or_else(used, |resident| resident.now))
}

fn room_within(limit: Option<u64>, resident: u64) -> u64 {
    limit.map_or(ROOM_WITHOUT_LIMIT, |limit| limit.saturating_sub(resident) / 2)
}

/// What this process has in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Bytes now, files that the kernel could read again among them.
    pub now: u64,
    /// Bytes at most so far.
    pub peak: u64,
}

/// What this process has in memory, where the kernel says it.
pub fn resident() -> Option<Resident> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(Resident { now: bytes(&status, "VmRSS:")?, peak: bytes(&status, "VmHWM:")? })
}

fn smallest_limit(root: &Path) -> Option<u64> {
    let limits = cgroup::values(root, "memory", |version, folder| {
        let file = match version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok().filter(|limit| *limit < NO_LIMIT)
    });
    limits.into_iter().min()
}

/// A field of `/proc/self/status` that is a number of bytes.
fn bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::{Files, machine};

    #[test]
    fn the_limit_is_the_smallest_on_the_way_to_the_root() {
        let cases: [(Files, Option<u64>); 4] = [
            (&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "134217728\n")], Some(128 << 20)),
            (&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")], None),
            (
                &[
                    ("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/a/b\n"),
                    ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "67108864\n"),
                ],
                Some(64 << 20),
            ),
            (&[], None),
        ];
        for (files, expected) in cases {
            assert_eq!(smallest_limit(machine(files).path()), expected, "{files:?}");
        }
    }

    #[test]
    fn batches_get_half_of_what_the_limit_leaves() {
        assert_eq!(
            [(Some(100), 40), (Some(100), 200), (None, 40)].map(|(limit, resident)| room_within(limit, resident)),
            [30, 0, 1 << 30]
        );
        assert!(room() > 0);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(used() > 1 << 16);
        let resident = resident().unwrap();
        assert!(resident.now >= used() / 2 && resident.peak >= resident.now, "{resident:?}");
        let status = "VmRSS:\t   9 kB\nRssAnon:\t     152 kB\n";
        assert_eq!(
            ["RssAnon:", "VmRSS:", "VmHWM:"].map(|field| bytes(status, field)),
            [Some(152 << 10), Some(9 << 10), None]
        );
    }
}
