//! What `--help` says is what `docs/cli.md`, the manual and the shells say.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fmt::Write;
use std::process::Stdio;

use support::{Run, ossvp};

const COMMANDS: [&str; 6] = ["populate", "verify", "controller", "manifests", "completions", "man"];

/// The reference, made of what the program says of itself.
fn reference() -> String {
    let mut text = "# The command line\n\n\
        Made of `--help`; after a change: `OSSVP_BLESS=1 cargo test --test cli`.\n"
        .to_owned();
    for command in std::iter::once("").chain(COMMANDS) {
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

/// The long flags that `--help` lists.
fn flags(command: &str) -> Vec<String> {
    let help = ossvp().args([command, "--help"]).run().ended(0).stdout;
    // `      --flag <VALUE>` or `  -f, --flag`; what they mean is indented further
    let flag = |line: &str| {
        let flag = line.get(6..).filter(|flag| flag.starts_with("--"))?;
        flag.split([' ', '.']).next().map(str::to_owned)
    };
    help.lines().filter_map(flag).collect()
}

#[test]
fn every_command_has_a_page_of_the_manual_with_all_its_flags() {
    let all = ossvp().arg("man").run().ended(0).stdout;
    for command in COMMANDS {
        assert!(all.contains(&format!("ossvp\\-{command}(1)")), "{command}: {all}");
        let page = ossvp().args(["man", command]).run().ended(0).stdout;
        assert!(page.contains(&format!("\n.TH ossvp-{command} 1 ")), "{page}");
        for flag in flags(command) {
            let escaped = format!("\\fB{}\\fR", flag.replace('-', "\\-"));
            assert!(page.contains(&escaped), "{command} {flag}: {page}");
        }
    }
    assert_eq!(ossvp().args(["man", "help"]).run().code, 2);
}

#[test]
fn shells_complete_commands_and_flags() {
    let wanted = flags("populate");
    assert!(wanted.len() > 20, "{wanted:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ossvp().args(["completions", shell]).run().ended(0).stdout;
        for flag in &wanted {
            // fish has them without dashes
            let name = flag.trim_start_matches('-');
            assert!(script.contains(name), "{shell}: {flag}");
        }
    }
    let place = support::Place::new();
    let script = ossvp().args(["completions", "bash"]).run().ended(0).stdout;
    std::fs::write(place.file("ossvp.bash"), script).unwrap();
    // as bash asks after Tab
    let ask = "source ossvp.bash; COMP_WORDS=(ossvp populate --dr); COMP_CWORD=2; \
               _ossvp ossvp --dr populate; echo \"${COMPREPLY[@]}\"";
    let output = std::process::Command::new("bash")
        .args(["-c", ask])
        .current_dir(place.file("ossvp.bash").parent().unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--dry-run", "{output:?}");
}

#[test]
fn the_version_is_the_packages_and_of_what_is_released_the_commits() {
    let said = ossvp().arg("--version").run().ended(0).stdout;
    let (package, commit) = (env!("CARGO_PKG_VERSION"), option_env!("OSSVP_COMMIT"));
    let expected = match commit {
        Some(commit) => format!("ossvp {package} ({commit})\n"),
        None => format!("ossvp {package}\n"),
    };
    // a release names the commit of its checkout, which a test of it cannot know
    if cfg!(debug_assertions) || commit.is_some() {
        assert_eq!(said, expected);
    } else {
        assert!(said.starts_with(&format!("ossvp {package} (")), "{said}");
    }
}
