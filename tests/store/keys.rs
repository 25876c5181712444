//! Keys come out exact, whatever they hold.

use object_store::{GetOptions, GetRange};
use ossvp::keys::Dialect;
use ossvp::store::{Class, Stated, location};

use oss_server::PutOptions;

use crate::support::{
    BUCKET, Setup, answer, bounded, get, get_range, head, key, keys, listed, pattern, server, start,
};

fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "dir/",
        "dir/a",
        "a//b",
        "a/./b",
        "a/../b",
        "../a",
        ".",
        "..",
        "a/",
        "a//",
        "%2F",
        "%",
        "%25",
        "a+b",
        "a b",
        " a ",
        "a\nb",
        "a\rb",
        "a\tb",
        "a\\b",
        "a\"b'c",
        "a<b>&c",
        "a?b#c",
        "a=b;c,d",
        "[a]{b}|^`",
        "~a",
        "a*b",
        "é",
        "e\u{301}",
        "😀/😀",
        "\u{7f}",
        "\u{1}",
        "中文/文件",
        "a:b@c!$()",
        "\u{feff}",
        "\u{10ffff}",
    ]
    .map(str::to_owned)
    .to_vec();
    keys.push("x".repeat(1023));
    keys.push("é".repeat(511));
    keys.sort();
    keys
}

#[tokio::test]
async fn odd_keys_are_listed_and_read_in_both_dialects() {
    let server = start(server());
    for name in odd_keys() {
        server.put(BUCKET, &name, name.clone());
    }
    for source in [Setup::oss(&server).open(), Setup::s3(&server).open()] {
        assert_eq!(keys(&source).await, odd_keys(), "{:?}", source.dialect());
        for name in odd_keys() {
            assert_eq!(get(&source, &name).await.unwrap(), name, "{name:?}");
            assert_eq!(head(&source, &name).await.unwrap().meta.size, name.len() as u64);
        }
    }
}

#[tokio::test]
async fn s3_keys_may_begin_with_a_slash() {
    let server = start(server());
    server.put(BUCKET, "/a", "1");
    server.put(BUCKET, "//", "2");
    let source = Setup::s3(&server).open();
    assert_eq!(keys(&source).await, ["//", "/a"]);
    assert_eq!(get(&source, "/a").await.unwrap(), "1");
    assert_eq!(get(&source, "//").await.unwrap(), "2");
}

#[tokio::test]
async fn a_prefix_is_a_string_and_no_directory() {
    let server = start(server());
    for name in ["data/", "data/a", "data/a b/c", "database", "dat"] {
        server.put(BUCKET, name, "x");
    }
    let of = |prefix: &str| Setup::oss(&server).prefix(prefix).open();
    assert_eq!(keys(&of("data/")).await, ["data/", "data/a", "data/a b/c"]);
    assert_eq!(keys(&of("data")).await, ["data/", "data/a", "data/a b/c", "database"]);
    assert_eq!(keys(&of("data/a b/")).await, ["data/a b/c"]);
    assert_eq!(keys(&of("nothing/")).await, [""; 0]);
}

#[tokio::test]
async fn a_listing_says_what_the_server_says() {
    let server = start(server());
    server.put(BUCKET, "a", "hello");
    server.put_symlink(BUCKET, "link", "a");
    server.put_with(BUCKET, "frozen", "x", PutOptions::new().storage_class("ColdArchive"));
    server.put_with(BUCKET, "thawed", "x", PutOptions::new().storage_class("Archive").restored());
    server.put_with(BUCKET, "thawing", "x", PutOptions::new().storage_class("Archive").restoring());
    let listed = listed(&Setup::oss(&server).open()).await.unwrap();
    let [a, frozen, link, thawed, thawing] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((a.size, a.etag.clone()), (5, server.etag(BUCKET, "a")));
    assert!(!a.symlink && !a.archived);
    assert!(link.symlink);
    assert!(frozen.archived && !thawed.archived && thawing.archived);
}

#[tokio::test]
async fn an_answer_states_checksums() {
    let server = start(server());
    server.put_with(
        BUCKET,
        "a",
        "hello",
        PutOptions::new().content_md5().metadata("sha256", &"0f".repeat(32)),
    );
    let source = Setup::oss(&server).open();
    let whole = answer(&source, "a", GetOptions::default()).await.unwrap();
    let stated = whole.extensions.get::<Stated>().unwrap().clone();
    assert_eq!(stated.crc64, server.crc64(BUCKET, "a"));
    assert_eq!(stated.etag, server.etag(BUCKET, "a"));
    assert_eq!(whole.meta.e_tag, stated.etag);
    assert_eq!(stated.user_sha256, Some([0x0f; 32]));
    assert!(stated.md5.is_some());
    assert_eq!(whole.meta.location, location(&key("a")));

    let options = GetOptions { range: bounded(1, 3), ..GetOptions::default() };
    let part = answer(&source, "a", options).await.unwrap();
    assert_eq!((part.range.clone(), part.meta.size), (1..3, 5));
    let stated = part.extensions.get::<Stated>().unwrap();
    assert_eq!(stated.crc64, server.crc64(BUCKET, "a"));

    let top = head(&source, "a").await.unwrap();
    assert_eq!(top.extensions.get::<Stated>().unwrap().crc64, server.crc64(BUCKET, "a"));
}

#[tokio::test]
async fn s3_states_its_checksums_of_whole_objects() {
    let server = start(server());
    server.put_with(
        BUCKET,
        "a",
        "x",
        PutOptions::new().checksum("crc32c", "AAAAAg==", "FULL_OBJECT"),
    );
    server.put_with(
        BUCKET,
        "b",
        "x",
        PutOptions::new().checksum("crc32c", "AAAAAg==", "COMPOSITE"),
    );
    let source = Setup::s3(&server).open();
    assert_eq!(source.dialect(), Dialect::S3);
    for (name, expected) in [("a", Some(2)), ("b", None)] {
        for options in [false, true].map(|head| GetOptions { head, ..GetOptions::default() }) {
            let result = answer(&source, name, options).await.unwrap();
            assert_eq!(result.extensions.get::<Stated>().unwrap().crc32c, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn ranges_of_every_kind() {
    let server = start(server());
    let body = pattern(100_000);
    server.put(BUCKET, "a", body.clone());
    server.put(BUCKET, "empty", "");
    for source in [Setup::oss(&server).open(), Setup::s3(&server).open()] {
        let get = async |range| get_range(&source, "a", range).await.unwrap();
        assert_eq!(get(bounded(0, 1)).await, body.slice(0..1));
        assert_eq!(get(bounded(10, 99_999)).await, body.slice(10..99_999));
        assert_eq!(get(bounded(99_999, 200_000)).await, body.slice(99_999..));
        assert_eq!(get(Some(GetRange::Offset(5))).await, body.slice(5..));
        assert_eq!(get(Some(GetRange::Suffix(5))).await, body.slice(99_995..));
        assert_eq!(crate::support::get(&source, "empty").await.unwrap(), "");
        for (name, range) in
            [("a", bounded(100_000, 100_001)), ("a", bounded(5, 5)), ("empty", bounded(0, 1))]
        {
            let error = get_range(&source, name, range).await.unwrap_err();
            assert_eq!(error.class(), Class::Changed, "{error}");
        }
    }
}

#[tokio::test]
async fn pieces_are_no_larger_than_asked() {
    let server = start(server());
    let body = pattern(3_000_000);
    server.put(BUCKET, "a", body.clone());
    for bound in [1000, 64 * 1024] {
        let source = Setup::oss(&server).connection(|c| c.read_buffer = Some(bound)).open();
        let mut pieces = answer(&source, "a", GetOptions::default()).await.unwrap().into_stream();
        let mut read = Vec::new();
        while let Some(piece) = futures::TryStreamExt::try_next(&mut pieces).await.unwrap() {
            assert!(piece.len() <= bound, "{}", piece.len());
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, body);
        let bytes = source.meter().bytes.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(bytes, body.len() as u64);
    }
}
