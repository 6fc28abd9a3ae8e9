//! The control groups that this process is in, of version 1 and 2: where its limits stand.

use std::fs;
use std::path::{Path, PathBuf};

/// The version of a control group: its files have other names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// What `read` finds in the folders of the groups on the way from this process's own to the root, for one controller.
pub(crate) fn values<T>(root: &Path, controller: &str, read: impl Fn(Version, &Path) -> Option<T>) -> Vec<T> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let hierarchies = root.join("sys/fs/cgroup");
    let found = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.is_empty() {
            Some(folders(&hierarchies, group).into_iter().filter_map(|folder| read(Version::Two, &folder)).collect())
        } else if controllers.split(',').any(|name| name == controller) {
            let mount = [controllers, controller].map(|name| hierarchies.join(name));
            let mount = mount.iter().find(|mount| mount.is_dir())?;
            Some(folders(mount, group).into_iter().filter_map(|folder| read(Version::One, &folder)).collect::<Vec<_>>())
        } else {
            None
        }
    });
    found.flatten().collect()
}

/// In a container the group's path is often the host's, and only the mount's root is there: both are looked at.
fn folders(mount: &Path, group: &str) -> Vec<PathBuf> {
    let own = mount.join(group.trim_start_matches('/'));
    own.ancestors().take_while(|folder| folder.starts_with(mount)).map(Path::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Paths and contents.
    pub(crate) type Files = &'static [(&'static str, &'static str)];

    /// A root folder with these files.
    pub(crate) fn machine(files: Files) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }
}
