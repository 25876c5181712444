//! Who cleans up when the test can no longer do it.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process that kills the components and removes their folder as soon as this is dropped or its
/// owner is dead. `PR_SET_PDEATHSIG` would not do: it means the thread that started a component,
/// and a test that shares a cluster ends its threads before the cluster.
#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    /// Keeps `folder`. `down` is a program with arguments that takes down what else there is.
    pub(crate) fn new(folder: &Path, down: &[&str]) -> io::Result<Self> {
        Command::new("bash")
            .args(["-c", include_str!("keeper.sh"), "keeper"])
            .arg(folder)
            .args(down)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map(Self)
    }

    /// The process group of all that is to be killed.
    pub(crate) fn group(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // nothing here may panic, and nothing that fails could be mended
        drop(self.0.stdin.take());
        let _ = self.0.wait();
        if let Some(mut stdout) = self.0.stdout.take() {
            // it is closed when the last of the work is done
            let _ = stdout.read_to_end(&mut Vec::new());
        }
    }
}
