//! A local directory as the source.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use futures::TryStreamExt;
use object_store::{GetOptions, GetRange};
use ossvp::keys::SourceUrl;
use ossvp::store::{Class, Connection, Source, StoreError};

use crate::support::{bounded, chain, get, get_range, get_with, head, key, keys, listed, pattern};

fn open(path: &Path) -> Source {
    Source::open(&SourceUrl::Directory(path.to_owned()), &Connection::default()).unwrap()
}

fn write(root: &Path, name: &str, body: impl AsRef<[u8]>) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, body).unwrap();
}

#[tokio::test]
async fn files_come_in_key_order_under_their_own_names() {
    let root = tempfile::tempdir().unwrap();
    let mut names = [
        "a",
        "a-b",
        "a.d/x",
        "a0",
        "b/c/d",
        "b/c-d",
        "b!",
        "data#1",
        "100%",
        "a%20b",
        "a b+c",
        "line\nbreak",
        "tab\t",
        "\u{1}",
        "é",
        "e\u{301}",
        "😀",
        "back\\slash",
        "..a",
        "~",
        "[x]",
    ];
    for name in names {
        write(root.path(), name, name);
    }
    std::fs::create_dir(root.path().join("empty")).unwrap();
    let source = open(root.path());
    names.sort_unstable();
    assert_eq!(keys(&source).await, names);
    for name in names {
        assert_eq!(get(&source, name).await.unwrap(), name);
    }
    let listed = listed(&source).await.unwrap();
    assert_eq!(head(&source, names[3]).await.unwrap().meta.e_tag, listed[3].etag);
    for (index, after) in names.iter().enumerate() {
        let rest = source.list(Some(&key(after))).try_concat().await.unwrap();
        assert_eq!(rest, listed[index + 1..], "{after:?}");
    }
}

#[tokio::test]
async fn ranges_and_conditions() {
    let root = tempfile::tempdir().unwrap();
    let body = pattern(1_000_000);
    write(root.path(), "a", &body);
    let source = open(root.path());
    assert_eq!(get(&source, "a").await.unwrap(), body);
    let range = async |range| get_range(&source, "a", range).await.unwrap();
    assert_eq!(range(bounded(10, 500_000)).await, body.slice(10..500_000));
    assert_eq!(range(Some(GetRange::Suffix(7))).await, body.slice(999_993..));
    assert_eq!(range(Some(GetRange::Offset(999_999))).await, body.slice(999_999..));
    let if_match = listed(&source).await.unwrap()[0].etag.clone();
    let options = GetOptions { if_match, ..GetOptions::default() };
    assert_eq!(get_with(&source, "a", options.clone()).await.unwrap(), body);
    write(root.path(), "a", "shorter");
    let error = get_with(&source, "a", options).await.unwrap_err();
    assert_eq!(error.class(), Class::Changed, "{error:?}");
    let error = get_range(&source, "a", bounded(100, 200)).await.unwrap_err();
    assert_eq!(error.class(), Class::Changed, "{error:?}");
    std::fs::remove_file(root.path().join("a")).unwrap();
    let error = get(&source, "a").await.unwrap_err();
    assert_eq!(error.class(), Class::Changed, "{error:?}");
}

#[tokio::test]
async fn no_key_leads_out_of_the_directory() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "secret", "x");
    write(root.path(), "in/a", "x");
    let source = open(&root.path().join("in"));
    let absolute = root.path().join("secret");
    for name in ["../secret", absolute.to_str().unwrap(), "./a", "a/", "/a", "b/../a"] {
        let error = get(&source, name).await.unwrap_err();
        assert_eq!(error.class(), Class::Changed, "{name}: {error:?}");
    }
}

#[tokio::test]
async fn symlinks_are_followed_unless_they_lead_nowhere_or_back() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "d/a", "x");
    symlink("d", root.path().join("l")).unwrap();
    assert_eq!(keys(&open(root.path())).await, ["d/a", "l/a"]);
    symlink("..", root.path().join("d/up")).unwrap();
    let error = listed(&open(root.path())).await.unwrap_err();
    assert!(chain(&error).contains("leads back"), "{error:?}");
    std::fs::remove_file(root.path().join("d/up")).unwrap();
    symlink("nothing", root.path().join("d/b")).unwrap();
    let error = listed(&open(root.path())).await.unwrap_err();
    assert!(error.to_string().contains("d/b"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_a_source_is_refused() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "file", "x");
    for path in [root.path().join("missing"), root.path().join("file")] {
        let url = SourceUrl::Directory(path);
        let error = Source::open(&url, &Connection::default()).unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error:?}");
    }
    write(root.path(), "d/x", "x");
    std::fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"d/\xff")), "x").unwrap();
    let error = listed(&open(root.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::BadKey { .. }), "{error:?}");
}
