//! Tells the program its version: the package's and, of what is built to be used, the commit.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=OSSVP_COMMIT");
    let given = std::env::var("OSSVP_COMMIT").ok().filter(|commit| !commit.is_empty());
    // a commit that is told is built anew: not while one works on it, with each commit
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if release { head() } else { None });
    let package = env!("CARGO_PKG_VERSION");
    let version = match commit {
        Some(commit) => format!("{package} ({commit})"),
        None => package.to_owned(),
    };
    println!("cargo::rustc-env=OSSVP_VERSION={version}");
}

/// The commit of this checkout, if it is one of its own and not a folder of another.
fn head() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // a line is added to it whenever HEAD is another commit; a path that is not there would have
    // this run each time
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}
