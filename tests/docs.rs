//! What the documents name is what the code has.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The program's text, without its tests.
fn sources(folder: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with("tests.rs") || path.ends_with("model.rs") => {}
                false => text += &read(path),
            }
        }
    }
    text
}

/// The words of letters, digits and underscores that begin with `start` and go on.
fn words(text: &str, start: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.strip_prefix(start).is_some_and(|rest| !rest.is_empty()))
        .map(str::to_owned)
        .collect()
}

/// What stands in double quotes and is nothing but a word that begins with `start`.
fn quoted(text: &str, start: &str) -> BTreeSet<String> {
    let parts: BTreeSet<String> = text.split('"').map(str::to_owned).collect();
    words(text, start).intersection(&parts).cloned().collect()
}

#[test]
fn every_event_is_explained_and_none_that_there_is_not() {
    let code = quoted(&sources("src/controller"), "Populator");
    assert!(code.len() > 20, "{code:?}");
    assert_eq!(words(&read("docs/controller.md"), "Populator"), code);
    let operations = words(&read("docs/operations.md"), "Populator");
    assert!(operations.is_subset(&code), "{operations:?}");
}

#[test]
fn every_metric_is_explained_and_none_that_there_is_not() {
    let code = quoted(&read("src/controller/metrics.rs"), "ossvp_");
    // as Prometheus names them: a counter's total, a histogram's unit and count
    let bare = |name: &String| {
        let name = name.strip_suffix("_total").or(name.strip_suffix("_count")).unwrap_or(name);
        name.strip_suffix("_seconds").unwrap_or(name).to_owned()
    };
    let docs: BTreeSet<String> =
        words(&read("docs/operations.md"), "ossvp_").iter().map(bare).collect();
    assert!(code.len() > 5, "{code:?}");
    assert_eq!(docs, code);
}

#[test]
fn every_message_that_is_explained_can_be_said() {
    let (code, docs) = (sources("src"), read("docs/operations.md"));
    let section = docs.split("## Troubleshooting by message").nth(1).unwrap();
    let table = section.split("\n## ").next().unwrap().lines();
    let rows: Vec<&str> = table.filter_map(|line| line.strip_prefix("| `")).collect();
    assert!(rows.len() > 20, "{rows:?}");
    for row in rows {
        let message = row.split(" |").next().unwrap();
        for part in message.split('`').filter(|part| part.trim().contains(' ')) {
            assert!(code.contains(part), "{part:?} is nowhere in the code");
        }
    }
}
