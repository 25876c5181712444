//! The control groups below which all containers of a node are.

use std::io;
use std::path::{Path, PathBuf};

use crate::Error;

const ROOT: &str = "/sys/fs/cgroup";

/// Removes all groups of a name, from the leaves up, as soon as the last process has left them.
/// Its argument is the name.
pub(crate) const DOWN: &str = r#"
    for _ in $(seq 100); do
        left=0
        for group in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
            [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + || left=1
        done
        [ "$left" = 1 ] || break
        sleep 0.05
    done
"#;

/// Makes the group in every hierarchy.
pub(crate) fn make(name: &str) -> Result<(), Error> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(name);
        std::fs::create_dir(&group).map_err(Error::file("create", &group))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let from = hierarchy.join(file);
            // version 1: a group without processors takes no process, and does not inherit them
            if hierarchy != Path::new(ROOT) && from.exists() {
                let to = group.join(file);
                std::fs::read(&from)
                    .and_then(|value| std::fs::write(&to, value))
                    .map_err(Error::file("set", &to))?;
            }
        }
    }
    if version_2() {
        let root = Path::new(ROOT);
        for group in [root.to_owned(), root.join(name)] {
            let to = group.join("cgroup.subtree_control");
            std::fs::write(&to, "+cpuset +cpu +io +memory +pids")
                .map_err(Error::file("set", &to))?;
        }
    }
    Ok(())
}

/// Why groups cannot be made here.
pub(crate) fn unsupported() -> Option<String> {
    let memory = if version_2() {
        let controllers = Path::new(ROOT).join("cgroup.controllers");
        std::fs::read_to_string(controllers).is_ok_and(|text| text.contains("memory"))
    } else {
        Path::new(ROOT).join("memory").join("cgroup.procs").exists()
    };
    if !memory {
        return Some(format!("{ROOT} has no controller of memory"));
    }
    let probe = hierarchies().first()?.join(format!("ossvp-probe-{}", std::process::id()));
    let made = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
    made.err().map(|error: io::Error| format!("no group can be made in {ROOT}: {error}"))
}

fn version_2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn hierarchies() -> Vec<PathBuf> {
    if version_2() {
        return vec![ROOT.into()];
    }
    let folders = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
    folders
        // a link is another name of a hierarchy that is there under its own
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}
