//! What `--help` says is what `docs/cli.md` says.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fmt::Write;
use std::process::Stdio;

use support::{Run, ossvp};

/// The reference, made of what the program says of itself.
fn reference() -> String {
    let mut text = "# The command line\n\n\
        Made of `--help`; after a change: `OSSVP_BLESS=1 cargo test --test cli`.\n"
        .to_owned();
    for command in ["", "populate", "verify", "controller", "manifests"] {
        let mut ossvp = ossvp();
        // a fixed width, and no terminal to ask for another
        ossvp.env("COLUMNS", "100").stdin(Stdio::null());
        ossvp.args([command, "--help"].into_iter().filter(|arg| !arg.is_empty()));
        let said = ossvp.run().ended(0).stdout;
        let said: Vec<_> = said.lines().map(str::trim_end).collect();
        let title = format!("ossvp {command}");
        let title = title.trim_end();
        write!(text, "\n## {title}\n\n```text\n{}\n```\n", said.join("\n").trim_end()).unwrap();
    }
    text
}

#[test]
fn the_reference_is_what_help_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    let reference = reference();
    if std::env::var_os("OSSVP_BLESS").is_some() {
        std::fs::write(path, &reference).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        checked_in == reference,
        "docs/cli.md is not what --help says; OSSVP_BLESS=1 cargo test --test cli writes it anew:\n{reference}"
    );
}
