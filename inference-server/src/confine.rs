//! Keeps the threads that load and run a model to the model's own files, by Landlock.
//!
//! The checks of [`engine`](crate::engine) come first: nothing that a model may name leads out of its folder. This is for what they
//! do not know, a fault in the runtime that a hostile model could use. From here on the calling thread, and all that it
//! starts, can open no other file, write to none, and reach nobody over TCP. Threads that run already are not touched: those that
//! answer clients need their certificates and keys. They run quick batches, too; loading is where a model's file is read.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, path_beneath_rules,
};
use tracing::info;

/// The newest kernel interface that is asked for; an older one gives what it has.
const NEWEST: ABI = ABI::V5;
/// What the C library and the runtime look at for the number of processors.
const SYSTEM: [&str; 2] = ["/proc", "/sys"];

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

/// Confines the calling thread, and those that it starts, to reading `places`: files, and what is in folders. A link is the file that
/// it leads to.
pub fn to(places: &[&Path]) -> Confinement {
    let confinement = match restrict(places) {
        Ok(RulesetStatus::FullyEnforced) => Confinement::Full,
        Ok(RulesetStatus::PartiallyEnforced) => Confinement::Partial,
        Ok(RulesetStatus::NotEnforced) | Err(_) => Confinement::Absent,
    };
    if confinement == Confinement::Absent {
        info!("the model's threads are not kept to its files: the kernel here does not offer Landlock");
    }
    confinement
}

fn restrict(places: &[&Path]) -> Result<RulesetStatus, RulesetError> {
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, reading))?
        .add_rules(path_beneath_rules(places, reading))?
        .restrict_self()?;
    Ok(status.ruleset)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{self, ErrorKind};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    #[test]
    fn a_confined_thread_and_those_that_it_starts_reach_the_models_folder_and_nothing_else() {
        let [folder, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [inside, outside] = [&folder, &elsewhere].map(|place| place.path().join("file"));
        for file in [&inside, &outside] {
            fs::write(file, "x").unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let look = || {
            let denied =
                |error: Option<io::Error>| error.map(|error| error.kind()) == Some(ErrorKind::PermissionDenied);
            assert_eq!(fs::read_to_string(&inside).unwrap(), "x");
            fs::read_to_string("/proc/self/status").unwrap();
            assert!(denied(File::open(&outside).err()));
            assert!(denied(File::options().write(true).open(&inside).err()));
            assert!(denied(File::create(inside.with_file_name("new")).err()));
            assert!(denied(TcpStream::connect(address).err()));
        };
        thread::scope(|threads| {
            threads.spawn(|| {
                assert_eq!(to(&[folder.path()]), Confinement::Full, "the machines that run these tests have Landlock");
                look();
                thread::scope(|threads| threads.spawn(look).join().unwrap());
            });
        });
        File::open(&outside).unwrap();
        TcpStream::connect(address).unwrap();
    }
}
