//! Where two names are one file.

use faulty::directory::{Folding, Options};
use oss_server::PutOptions;

use crate::common::{Bad, FLAGS, PART, SOURCE, put_some};
use crate::support::cases::shown;
use crate::support::{BUCKET, Run, bytes, files, ossvp, populate, server};

/// Which names are one name, and two spellings of one.
const FOLDINGS: [(Folding, &str, [&str; 2]); 2] = [
    (Folding::Case, "Name", ["Name", "name"]),
    // in the order of bytes: parted, composed
    (Folding::Forms, "Nam\u{e9}", ["Name\u{301}", "Nam\u{e9}"]),
];

fn folding(folding: Folding) -> Option<Bad> {
    Bad::new(Options::default().folding(folding))
}

#[test]
fn where_names_are_folded_single_keys_are_filled_resumed_and_verified() {
    for (fold, name, _) in FOLDINGS {
        let server = server();
        let mut expected = put_some(&server);
        for n in 0..40u64 {
            let path = format!("{name}/{n}-{name}");
            server.put(BUCKET, &format!("data/{path}"), bytes(n, 500));
            expected.insert(path, bytes(n, 500));
        }
        let Some(bad) = folding(fold) else { return };
        let run = || populate(&server, SOURCE, &bad.volume()).args(FLAGS).run();
        run().ended(0);
        assert_eq!(files(&bad.volume()), expected);
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
        std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
        let figures = run().ended(0).report().figures;
        assert_eq!((figures.objects_kept, figures.requests_get), (45, 0), "{fold:?}");
        // lines that were lost: taken for what they are by their checksum
        std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
        let manifest = bad.volume().join(".ossvp/manifest");
        let text = std::fs::read_to_string(&manifest).unwrap();
        let kept: String = text.lines().take(3).flat_map(|line| [line, "\n"]).collect();
        std::fs::write(&manifest, kept).unwrap();
        let figures = run().ended(0).report().figures;
        assert_eq!((figures.objects_kept, figures.requests_get), (45, 0), "{fold:?}");
        assert_eq!(files(&bad.volume()), expected);
    }
    shown(
        PART,
        "the file system folds case or Unicode forms (SMB, ext4 casefold), and each name has one key",
        "is filled, resumed and verified as any other",
        0,
    );
}

#[test]
fn where_names_are_folded_two_keys_of_one_file_are_an_error_in_every_mode() {
    for (fold, _, [first, second]) in FOLDINGS {
        // what the two keys are: files, or a file and a directory, above or below
        let below = |name: &str| format!("{name}/x");
        let slash = |name: &str| format!("{name}/");
        let pairs = [
            [first.to_owned(), second.to_owned()],
            [format!("d/{first}"), format!("d/{second}")],
            [below(first), second.to_owned()],
            [first.to_owned(), below(second)],
            [slash(first), second.to_owned()],
            [first.to_owned(), slash(second)],
            [below(first), below(second)],
        ];
        for keys in pairs {
            for mode in ["fail", "skip", "escape"] {
                let server = server();
                for key in &keys {
                    let body = if key.ends_with('/') { "" } else { key.as_str() };
                    server.put(BUCKET, &format!("data/{key}"), body.to_owned());
                }
                let Some(bad) = folding(fold) else { return };
                let run = |more: &[&str]| {
                    let mut command = populate(&server, SOURCE, &bad.volume());
                    command.args(["--unmappable", mode]).args(more).run()
                };
                let ran = run(&[]);
                let why = format!("{fold:?} {mode} {keys:?}: {}", ran.stderr);
                assert_eq!(ran.code, 8, "{why}");
                assert!(ran.stderr.contains("are one file on this file system"), "{why}");
                assert!(!bad.place.is_marked(), "{why}");
                for (path, body) in files(&bad.volume()) {
                    assert_eq!(path.as_bytes(), body, "{why}");
                }
                // and again: nothing has been overwritten
                run(&[]).ended(8);
                for (path, body) in files(&bad.volume()) {
                    assert_eq!(path.as_bytes(), body, "{why}");
                }
                server.delete(BUCKET, &format!("data/{}", keys[1]));
                run(&[]).ended(0);
                ossvp().arg("verify").arg(bad.volume()).run().ended(0);
            }
        }
    }
    shown(
        PART,
        "two keys would be one file there, or a file and a directory",
        "names both, in every mode of --unmappable, and overwrites neither",
        8,
    );
}

#[test]
fn where_names_are_folded_directories_of_two_spellings_are_one() {
    for (fold, _, [first, second]) in FOLDINGS {
        let server = server();
        for key in
            [format!("{first}/"), format!("{first}/a"), format!("{second}/"), format!("{second}/b")]
        {
            let body = if key.ends_with('/') { "" } else { "content" };
            server.put(BUCKET, &format!("data/{key}"), body);
        }
        let Some(bad) = folding(fold) else { return };
        let run = || populate(&server, SOURCE, &bad.volume()).run();
        run().ended(0);
        for path in [format!("{first}/a"), format!("{second}/b")] {
            assert_eq!(std::fs::read(bad.volume().join(path)).unwrap(), b"content");
        }
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
        // one of the spellings goes
        std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
        for key in [format!("{first}/"), format!("{first}/a")] {
            server.delete(BUCKET, &format!("data/{key}"));
        }
        run().ended(0);
        assert_eq!(files(&bad.volume()).len(), 1);
        assert_eq!(std::fs::read(bad.volume().join(second).join("b")).unwrap(), b"content");
        ossvp().arg("verify").arg(bad.volume()).run().ended(0);
    }
    shown(
        PART,
        "two keys put different files into directories that are one there",
        "the directories become one, and each path leads to its bytes",
        0,
    );
}

#[test]
fn where_names_are_folded_a_key_may_change_its_spelling() {
    for (fold, _, [first, second]) in FOLDINGS {
        // both ways: the new spelling comes before the old one in the listing, or after it
        for (old, new) in [(first, second), (second, first)] {
            for (old, new, same_time) in [
                (old.to_owned(), new.to_owned(), true),
                (old.to_owned(), new.to_owned(), false),
                (format!("{old}/x"), format!("{new}/x"), true),
                (old.to_owned(), format!("{new}/x"), false),
                (format!("{old}/x"), new.to_owned(), false),
            ] {
                let server = server();
                let at = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
                let put = |key: &str, body: &str| {
                    let options = PutOptions::new();
                    let options = if same_time { options.modified(at) } else { options };
                    server.put_with(BUCKET, &format!("data/{key}"), body.to_owned(), options);
                };
                // enough between the two for the one to be long done when the other comes
                for n in 0..300 {
                    server.put(BUCKET, &format!("data/Namf/{n:03}"), "between");
                }
                put(&old, "content");
                let Some(bad) = folding(fold) else { return };
                let run = || {
                    let mut command = populate(&server, SOURCE, &bad.volume());
                    command.args(["--concurrency", "4"]).run()
                };
                run().ended(0);
                std::fs::remove_file(bad.volume().join(".ossvp/complete.json")).unwrap();
                server.delete(BUCKET, &format!("data/{old}"));
                put(&new, "content");
                let why = format!("{fold:?}, {old} becomes {new}, same time: {same_time}");
                let ran = run();
                assert_eq!(ran.code, 0, "{why}: {}", ran.stderr);
                let found = std::fs::read(bad.volume().join(&new));
                assert_eq!(found.ok().as_deref(), Some(&b"content"[..]), "{why}");
                assert_eq!(files(&bad.volume()).len(), 301, "{why}");
                ossvp().arg("verify").arg(bad.volume()).run().ended(0);
            }
        }
    }
    shown(
        PART,
        "a key gets another spelling at the source, and the old one is no longer listed",
        "the old file goes before the new one comes, and nothing is lost",
        0,
    );
}

#[test]
fn where_names_are_folded_several_workers_are_refused_and_one_is_not() {
    for (fold, _, _) in FOLDINGS {
        let server = server();
        let expected = put_some(&server);
        let Some(bad) = folding(fold) else { return };
        let run =
            |more: &[&str]| populate(&server, SOURCE, &bad.volume()).args(FLAGS).args(more).run();
        for shard in ["0/2", "1/2", "0/3"] {
            let said = "names that differ only in case are one file on this file system: fill it by one worker";
            let ran = run(&["--shard", shard]).ended(8).says(said);
            assert!(files(&bad.volume()).is_empty(), "{}", ran.stderr);
        }
        // as the message says
        run(&[]).ended(0);
        assert_eq!(files(&bad.volume()), expected);
    }
    shown(
        PART,
        "several workers (--shard) are started where names are folded",
        "are refused before anything is fetched; one worker fills the volume",
        8,
    );
}

#[test]
fn where_names_are_folded_ossvps_own_directory_has_no_second_name() {
    let Some(bad) = folding(Folding::Case) else { return };
    // U+017F is an s to those who fold by Unicode's table
    for key in
        [".o\u{17f}svp/complete.json", ".o\u{17f}svp/", ".o\u{17f}svp", ".OSSVP/manifest", ".Ossvp"]
    {
        bad.empty();
        let server = server();
        server.put(BUCKET, "data/a", "content");
        server.put(BUCKET, &format!("data/{key}"), "");
        let ran = populate(&server, SOURCE, &bad.volume()).run();
        assert_eq!(ran.code, 8, "{key}: {}", ran.stderr);
        assert!(!bad.place.is_marked(), "{key}");
        server.delete(BUCKET, &format!("data/{key}"));
        populate(&server, SOURCE, &bad.volume()).run().ended(0);
    }
    shown(PART, "a key is another spelling of .ossvp there", "is refused, and named", 8);
}
