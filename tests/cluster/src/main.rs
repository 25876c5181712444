//! `cluster`: starts a cluster with a node, runs a command beside it, and takes it down.
//!
//!     cargo run -p cluster -- bash
//!
//! The command finds `KUBECONFIG`, kubectl on its `PATH`, the image `cluster.test/busybox:1`, and in
//! `CLUSTER_IMPORT` a program that imports the archive of an image. Ends as the command does.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use cluster::{ControlPlane, Node};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: cluster COMMAND [ARGUMENTS]");
        return ExitCode::from(2);
    };
    match run(program, words.collect()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(program: OsString, arguments: Vec<OsString>) -> Result<u8, Box<dyn std::error::Error>> {
    // Ctrl-C is for the command: it ends, and the cluster after it
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build()?;
    runtime.spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });

    let control_plane = ControlPlane::start()?;
    let node = Node::start(&control_plane)?;
    node.import_busybox()?;
    let folder = control_plane.bin().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)))?;
    let mut command = Command::new(program);
    // what `cargo run` says of this program would have a build that the command starts begin anew
    for (name, _) in std::env::vars_os() {
        let said = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if name.to_str().is_some_and(|name| said.iter().any(|said| name.starts_with(said))) {
            command.env_remove(name);
        }
    }
    let status = command
        .args(arguments)
        .env("KUBECONFIG", control_plane.kubeconfig())
        .env("PATH", path)
        .env("CLUSTER_IMPORT", node.importer()?)
        .status()?;
    // a signal has no code
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
