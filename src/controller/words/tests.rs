use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;

use super::*;
use crate::cli::Cli;
use crate::controller::observed::WorkerPod;
use crate::handoff::Progress;

/// Flags that the controller never gives, so that no complaint about their value can come.
const NOT_GIVEN: [&str; 1] = ["--timeout"];

/// Every flag in a string of the worker's source code, tests and comments aside.
fn named(folder: &Path, flags: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            named(&path, flags);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let mut rest = line;
            while let Some((_, behind)) = rest.split_once("--") {
                let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                let end = behind.find(|c| !word(c)).unwrap_or(behind.len());
                if end > 1 {
                    flags.insert(format!("--{}", &behind[..end]));
                }
                rest = &behind[end..];
            }
        }
    }
}

#[test]
fn every_flag_that_a_worker_names_is_told_as_a_field_of_the_resource() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut flags = BTreeSet::new();
    for folder in ["worker", "store", "handoff"] {
        named(&source.join(folder), &mut flags);
    }
    assert!(flags.contains("--exclude") && flags.contains("--plan-first"), "{flags:?}");
    for flag in flags.iter().filter(|flag| !NOT_GIVEN.contains(&flag.as_str())) {
        let told = in_resource_terms(&format!("use {flag}, or not"));
        assert!(!told.contains(flag.as_str()), "{flag}: has no words in FIELDS");
    }
}

#[test]
fn the_flags_that_have_words_exist_and_none_is_the_beginning_of_another() {
    let cli = Cli::command();
    let populate = cli.find_subcommand("populate").unwrap();
    let flags: Vec<String> =
        populate.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect();
    for (flag, field) in FIELDS {
        assert!(flags.iter().any(|it| it == flag), "{flag}");
        let longer = flags.iter().filter(|it| *it != flag && it.starts_with(flag));
        assert_eq!(longer.count(), 0, "{flag} would be replaced in another flag");
        assert!(!field.contains("--") || field.starts_with("the controller's"), "{field}");
    }
    // what only the controller decides: no message of a worker in a Pod is about it
    let own = [
        "dry-run",
        "outcome",
        "report",
        "progress",
        "direct",
        "timeout",
        "retry-for",
        "request-rate",
    ];
    for flag in flags {
        let mapped = FIELDS.iter().any(|(known, _)| *known == flag);
        assert!(mapped || own.contains(&&flag[2..]), "{flag}: add it to FIELDS, or here");
    }
}

#[test]
fn a_fields_words_are_fields() {
    use kube::CustomResourceExt;
    let crd = serde_json::to_value(crate::controller::crd::OSSVolumePopulator::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for (_, field) in FIELDS.iter().filter(|(_, field)| field.starts_with("generic.")) {
        let name = field.trim_start_matches("generic.");
        assert!(schema["properties"]["generic"]["properties"][name].is_object(), "{field}");
    }
}

#[test]
fn long_messages_are_cut_at_a_character() {
    let told = in_resource_terms(&"\u{9810}".repeat(5000));
    assert_eq!(told.chars().count(), LONGEST + 1);
    assert!(told.ends_with('…'));
    let exact = "x".repeat(LONGEST);
    assert_eq!(in_resource_terms(&exact), exact);
}

#[test]
fn progress_is_told_in_percent_once_all_is_listed() {
    let at = |bytes, bytes_total, listing_done| Worker {
        progress: Some(Progress {
            ossvp: "progress".to_owned(),
            v: 1,
            objects: 3,
            bytes,
            bytes_total,
            listing_done,
            bytes_per_s: 2_000_000,
            eta_s: None,
        }),
        ..Worker::default()
    };
    let started = WorkerPod { running: true, ..WorkerPod::default() };
    for (worker, part, told) in [
        (Worker::default(), None, "waiting for the worker to start"),
        (Worker { pod: Some(started), ..Worker::default() }, None, "the worker has started"),
        (
            at(1_000_000, 5_000_000, false),
            None,
            "1.00 MB of at least 5.00 MB, 3 objects, 2.00 MB/s, still listing",
        ),
        (at(2_999_999, 5_000_000, true), Some(59), "59%: 3.00 MB of 5.00 MB, 3 objects, 2.00 MB/s"),
        (at(0, 0, true), Some(100), "100%: 0 B of 0 B, 3 objects, 2.00 MB/s"),
        (
            at(u64::MAX, u64::MAX, true),
            Some(100),
            "100%: 18.45 EB of 18.45 EB, 3 objects, 2.00 MB/s",
        ),
        (at(7, 5, true), Some(100), "100%: 7 B of 5 B, 3 objects, 2.00 MB/s"),
    ] {
        assert_eq!((percent(&worker), progress(&worker).as_str()), (part, told));
    }
}
