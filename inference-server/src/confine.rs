//! Keeps the server from what it never does, by Landlock and seccomp, so that a fault in the runtime that a hostile model or request
//! could use leads no further.
//!
//! The checks of [`engine`](crate::engine) come first: nothing that a model may name leads out of its folder. This is for what they
//! do not know. The whole process writes below one folder only, starts no program, and reaches neither other processes nor what of
//! the kernel no server needs. The threads that load a model and run its batches can besides open no other file
//! than the model's, write to none, and reach nobody over TCP. Those that answer clients need their certificates and keys, and run quick
//! batches, too: for them it is what holds for the whole.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tracing::info;

/// The newest kernel interface that is asked for; an older one gives what it has.
const NEWEST: ABI = ABI::V6;
/// What the C library and the runtime look at for the number of processors.
const SYSTEM: [&str; 2] = ["/proc", "/sys"];
/// What the server never calls: starting programs, looking into other processes, changing what is mounted where, and parts of the
/// kernel whose faults others were broken out of containers by.
const CALLS: [i64; 22] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
];

/// How far the kernel confines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// As far as was asked for.
    Full,
    /// In part: the kernel is older.
    Partial,
    /// Not at all: the kernel, or the container's engine, does not have it.
    Absent,
}

impl From<Result<RestrictionStatus, RulesetError>> for Confinement {
    fn from(outcome: Result<RestrictionStatus, RulesetError>) -> Self {
        match outcome.map(|status| status.ruleset) {
            Ok(RulesetStatus::FullyEnforced) => Self::Full,
            Ok(RulesetStatus::PartiallyEnforced) => Self::Partial,
            Ok(RulesetStatus::NotEnforced) | Err(_) => Self::Absent,
        }
    }
}

/// Confines the calling thread, and those that it starts, to what the server does: writing only below `folder`, which is made
/// if it is not there, and calling none of [`CALLS`]. To be called while there is no other thread.
pub fn process(folder: &Path) -> [Confinement; 2] {
    // Whoever needs the folder says why it cannot be made.
    let _ = fs::create_dir_all(folder);
    let files = Confinement::from(write_only_below(folder));
    if files == Confinement::Absent {
        info!("the server is not kept from writing outside its cache: the kernel here does not offer Landlock");
    }
    let calls = forbidden_calls().and_then(|filter| seccompiler::apply_filter(&filter));
    let calls = calls.map_or(Confinement::Absent, |()| Confinement::Full);
    if calls == Confinement::Absent {
        info!("the server is not kept from starting programs: the kernel here does not offer seccomp");
    }
    [files, calls]
}

/// Confines the calling thread, and those that it starts, to reading `places`: files, and what is in folders. A link is the file that
/// it leads to.
pub fn model(places: &[&Path]) -> Confinement {
    let confinement = Confinement::from(read_only(places));
    if confinement == Confinement::Absent {
        info!("the model's threads are not kept to its files: the kernel here does not offer Landlock");
    }
    confinement
}

fn write_only_below(folder: &Path) -> Result<RestrictionStatus, RulesetError> {
    let writing = AccessFs::from_write(NEWEST);
    Ruleset::default()
        // A kernel that does not know this right lets nobody move a file from one folder to another.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(writing | AccessFs::Execute)?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        // Where there is no such folder, nothing is written.
        .add_rules(path_beneath_rules([folder], writing))?
        .restrict_self()
}

fn read_only(places: &[&Path]) -> Result<RestrictionStatus, RulesetError> {
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, reading))?
        .add_rules(path_beneath_rules(places, reading))?
        .restrict_self()
}

/// What answers each of [`CALLS`] with "not permitted".
fn forbidden_calls() -> seccompiler::Result<BpfProgram> {
    let rules: BTreeMap<_, _> = CALLS.map(|call| (call, Vec::new())).into();
    let not_permitted = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, not_permitted, TargetArch::try_from(ARCH)?)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, ErrorKind};
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    struct Place {
        folder: TempDir,
        elsewhere: TempDir,
        listener: TcpListener,
    }

    impl Place {
        fn new() -> Self {
            let [folder, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            for folder in [&folder, &elsewhere] {
                fs::write(folder.path().join("file"), "x").unwrap();
            }
            Self { folder, elsewhere, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
        }

        fn connect(&self) -> io::Result<TcpStream> {
            TcpStream::connect(self.listener.local_addr().unwrap())
        }

        /// Confines a thread, and looks from it and from one that it starts; then that this thread is as free as before.
        fn look(&self, confine: impl FnOnce() + Send, look: impl Fn() + Send + Sync) {
            thread::scope(|threads| {
                threads.spawn(|| {
                    confine();
                    look();
                    thread::scope(|threads| threads.spawn(&look).join().unwrap());
                });
            });
            File::options().write(true).open(self.elsewhere.path().join("file")).unwrap();
            self.connect().unwrap();
            Command::new("true").status().unwrap();
        }
    }

    fn is_denied<T>(outcome: io::Result<T>) -> bool {
        outcome.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn a_models_threads_reach_its_folder_and_nothing_else() {
        let place = Place::new();
        let [inside, outside] = [&place.folder, &place.elsewhere].map(|folder| folder.path().join("file"));
        let confine = || {
            assert_eq!(
                model(&[place.folder.path()]),
                Confinement::Full,
                "the machines that run these tests have Landlock"
            );
        };
        place.look(confine, || {
            assert_eq!(fs::read_to_string(&inside).unwrap(), "x");
            fs::read_to_string("/proc/self/status").unwrap();
            assert!(is_denied(File::open(&outside)));
            assert!(is_denied(File::options().write(true).open(&inside)));
            assert!(is_denied(File::create(inside.with_file_name("new"))));
            assert!(is_denied(place.connect()));
        });
    }

    #[test]
    fn the_process_writes_to_one_folder_and_starts_no_program() {
        let place = Place::new();
        let [cache, outside] = [place.folder.path().join("new/cache"), place.elsewhere.path().join("file")];
        let confine = || {
            assert_eq!(
                process(&cache),
                [Confinement::Full; 2],
                "the machines that run these tests have Landlock and seccomp"
            );
        };
        place.look(confine, || {
            let part = tempfile::tempdir_in(&cache).unwrap();
            fs::write(part.path().join("model"), "x").unwrap();
            fs::rename(part.path().join("model"), cache.join("model")).unwrap();
            assert_eq!(fs::read_to_string(&outside).unwrap(), "x");
            place.connect().unwrap();
            assert!(is_denied(File::options().write(true).open(&outside)));
            assert!(is_denied(fs::remove_file(&outside)));
            assert!(is_denied(File::create(cache.with_file_name("beside"))));
            // Landlock denies it, too, with another number.
            assert_eq!(Command::new("true").spawn().unwrap_err().raw_os_error(), Some(libc::EPERM));
        });
    }
}
