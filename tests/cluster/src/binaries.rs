//! The programs that `build` has built.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;

/// Builds what is missing and says where it is. What is built and how long it took goes to
/// standard error as it happens, since the first time takes minutes.
pub(crate) fn build(mode: &'static str) -> Result<PathBuf, Error> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build");
    let output = Command::new(&script)
        .arg(mode)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::Start { name: script.display().to_string(), source })?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().last() {
        Some(folder) if output.status.success() => Ok(folder.into()),
        _ => Err(Error::Build { mode, status: output.status }),
    }
}
