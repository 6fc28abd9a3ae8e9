//! That the running program is confined; what that means is tested where it is done.

use std::fs;
use std::path::Path;

use crate::program::Program;

/// How many filters of system calls a thread has.
fn filters(thread: &Path) -> usize {
    let status = fs::read_to_string(thread.join("status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn every_thread_of_a_server_is_kept_from_calls_that_none_needs() {
    let before = filters(Path::new("/proc/self"));
    let program = Program::serving(&[]).await;
    let threads: Vec<_> = fs::read_dir(format!("/proc/{}/task", program.id())).unwrap().collect();
    assert!(threads.len() > 1, "{threads:?}");
    for thread in threads {
        assert_eq!(filters(&thread.unwrap().path()), before + 1);
    }
}
