//! Refusals: what they are, what class, and what the message says.

use object_store::{GetOptions, ObjectStore, PutOptions, PutPayload};
use oss_server::{Fault, OssServer};
use ossvp::store::{Class, Source, StoreError, explain, location};

use crate::support::{
    BUCKET, SECRET, Setup, chain, get, get_with, head, key, listed, server, start,
};

fn both(server: &OssServer) -> [Source; 2] {
    [Setup::oss(server).open(), Setup::s3(server).open()]
}

/// One line that names all of `names` and no secret.
fn says(error: &StoreError, names: &[&str]) {
    let line = chain(error);
    for name in names {
        assert!(line.contains(name), "{line:?} does not name {name:?}");
    }
    for secret in [SECRET, "Signature=", "OSS4-HMAC", "AWS4-HMAC"] {
        assert!(!line.contains(secret), "{line:?} holds {secret:?}");
        assert!(!format!("{error:?}").contains(secret), "{error:?} holds {secret:?}");
    }
    assert!(!line.contains('\n'), "{line:?}");
}

#[tokio::test]
async fn no_such_bucket() {
    let server = start(server());
    let source = Setup { url: "oss://nothing/x/".to_owned(), ..Setup::oss(&server) }.open();
    for error in [listed(&source).await.unwrap_err(), get(&source, "x/a").await.unwrap_err()] {
        assert!(matches!(error, StoreError::NoSuchBucket { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Refused);
        says(&error, &["nothing", "127.0.0.1", "request id 0000", "EC 0015"]);
    }
}

#[tokio::test]
async fn access_denied() {
    let server = start(server().powerless("weak", SECRET));
    let source = Setup::oss(&server).env("OSS_ACCESS_KEY_ID", "weak").open();
    let error = listed(&source).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    says(&error, &["403", "AccessDenied", "request id", "EC 0003", "oss:ListObjects"]);
    let error = get(&source, "a\nb").await.unwrap_err();
    says(&error, &[r#""a\nb""#, BUCKET, "oss:GetObject"]);
    let error = head(&source, "a").await.unwrap_err();
    says(&error, &["AccessDenied", "EC 0003", "oss:GetObject"]);
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_key() {
    let server = start(server());
    let source = Setup::oss(&server).env("OSS_ACCESS_KEY_SECRET", "hush-hush!").open();
    let error = listed(&source).await.unwrap_err();
    assert!(matches!(error, StoreError::Signature { .. }), "{error:?}");
    says(&error, &["does not match"]);
    let source = Setup::s3(&server).env("AWS_ACCESS_KEY_ID", "nobody").open();
    let error = get(&source, "a").await.unwrap_err();
    assert!(matches!(error, StoreError::AccessKey { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Refused);
    // it would not be accepted a second time
    assert_eq!(server.stats().requests, 2);
}

#[tokio::test]
async fn an_object_that_is_gone_or_another() {
    let server = start(server());
    server.put(BUCKET, "a", "new");
    for source in both(&server) {
        for error in [get(&source, "b").await.unwrap_err(), head(&source, "b").await.unwrap_err()] {
            assert!(matches!(error, StoreError::Gone { .. }), "{error:?}");
            assert_eq!(error.class(), Class::Changed);
        }
        let if_match = Some("\"old\"".to_owned());
        let options = GetOptions { if_match, ..GetOptions::default() };
        let error = get_with(&source, "a", options).await.unwrap_err();
        assert!(matches!(error, StoreError::Changed { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Changed);
        let options = GetOptions { if_match: server.etag(BUCKET, "a"), ..GetOptions::default() };
        assert_eq!(get_with(&source, "a", options).await.unwrap(), "new");
        let options =
            GetOptions { if_none_match: server.etag(BUCKET, "a"), ..GetOptions::default() };
        let error = get_with(&source, "a", options).await.unwrap_err();
        assert!(matches!(error, StoreError::NotModified { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn archived_objects_and_symlinks_without_target() {
    let server = start(server());
    server.put(BUCKET, "a", "target");
    server.put_symlink(BUCKET, "link", "a");
    server.put_symlink(BUCKET, "dangling", "b");
    server.put_symlink(BUCKET, "twice", "link");
    server.put_with(BUCKET, "frozen", "x", oss_server::PutOptions::new().storage_class("Archive"));
    let source = Setup::oss(&server).open();
    assert_eq!(get(&source, "link").await.unwrap(), "target");
    let error = get(&source, "frozen").await.unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    says(&error, &["frozen", "restore", "InvalidObjectState"]);
    for name in ["dangling", "twice"] {
        let error = get(&source, name).await.unwrap_err();
        assert!(matches!(error, StoreError::Dangling { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Refused);
        says(&error, &[name, "symlink"]);
    }
}

#[tokio::test]
async fn another_endpoint_is_named_and_not_followed() {
    let server = start(server().foreign_bucket("models-bj", "cn-beijing"));
    let source = Setup { url: "oss://models-bj/".to_owned(), ..Setup::oss(&server) }.open();
    let error = listed(&source).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongEndpoint { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Refused);
    says(&error, &["models-bj", "use endpoint oss-cn-beijing.aliyuncs.com"]);

    server.fault(Fault::any().redirect_loop());
    let source = Setup::oss(&server).open();
    let before = server.stats().requests;
    let error = get(&source, "a").await.unwrap_err();
    assert!(matches!(error, StoreError::WrongEndpoint { .. }), "{error:?}");
    assert_eq!(server.stats().requests, before + 1);
}

#[tokio::test]
async fn a_wrong_region_is_named() {
    let server = start(server());
    let source = Setup::oss(&server).connection(|c| c.region = Some("cn-beijing".into())).open();
    let error = listed(&source).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongRegion { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Refused);
    says(&error, &["cn-beijing", "region"]);
}

#[tokio::test]
async fn a_source_is_only_read() {
    let server = start(server());
    let objects = Setup::oss(&server).open().objects();
    let put =
        objects.put_opts(&location(&key("a")), PutPayload::new(), PutOptions::default()).await;
    let error = explain(put.unwrap_err());
    assert!(matches!(error, StoreError::Unsupported(_)), "{error:?}");
    assert!(explain(objects.list_with_delimiter(None).await.unwrap_err()).class() == Class::Usage);
    assert_eq!(server.stats().requests, 0);
}
