//! Credentials: where they come from, and that they are renewed in time.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use chrono::TimeDelta;
use futures::future::join_all;
use oss_server::{Builder, Fault, Operation, OssServer};
use ossvp::store::{Class, Source, StoreError};

use crate::support::{BUCKET, SECRET, Setup, chain, get, listed, server, start, until};

const ROLE: &str = "acs:ram::1:role/reader";
const PROVIDER: &str = "acs:ram::1:oidc-provider/ack";
const TOKEN: &str = "ey.token+of/pod=";

fn rrsa_server(builder: Builder) -> OssServer {
    let server = start(builder.oidc(ROLE, PROVIDER, TOKEN));
    server.put(BUCKET, "a", "x");
    server
}

/// As a Pod with RRSA sees the world.
fn rrsa(server: &OssServer, home: &Path) -> Setup {
    let token = home.join("token");
    if !token.exists() {
        std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    }
    Setup::of("oss", server)
        .env("ALIBABA_CLOUD_ROLE_ARN", ROLE)
        .env("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER)
        .env("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token.to_str().unwrap())
        .env("ALIBABA_CLOUD_STS_ENDPOINT", &server.endpoint())
}

async fn many_gets(source: &Source) {
    for body in join_all((0..40).map(|_| get(source, "a"))).await {
        assert_eq!(body.unwrap(), "x");
    }
}

/// The access key of the last GET.
fn last_key(server: &OssServer) -> String {
    let log = server.log();
    let get = log.iter().rfind(|l| l.operation == Operation::GetObject && l.status == 200);
    get.unwrap().access_key_id.clone().unwrap()
}

#[tokio::test]
async fn rrsa_asks_once_for_all_and_keeps_its_token_out_of_urls() {
    let (server, home) = (rrsa_server(server()), tempfile::tempdir().unwrap());
    let source = rrsa(&server, home.path()).open();
    many_gets(&source).await;
    assert_eq!(server.issued(), 1);
    assert_eq!(source.meter().credentials.load(Relaxed), 1);
    assert!(last_key(&server).starts_with("STS."));
    assert!(server.log().iter().all(|l| !l.target.contains("ey.token")));
    assert!(!format!("{source:?}").contains("CAIS"), "{source:?}");
}

#[tokio::test]
async fn credentials_that_expire_mid_run_are_renewed_with_the_token_of_the_day() {
    let (server, home) = (rrsa_server(server()), tempfile::tempdir().unwrap());
    let source = rrsa(&server, home.path()).open();
    many_gets(&source).await;
    server.set_oidc_token("ey.new");
    std::fs::write(home.path().join("token"), "ey.new").unwrap();
    server.expire(&last_key(&server));
    many_gets(&source).await;
    assert_eq!(server.issued(), 2, "all requests that were refused wait for the same renewal");
    assert_eq!(listed(&source).await.unwrap().len(), 1);
}

#[tokio::test]
async fn credentials_are_renewed_ahead_of_their_expiry() {
    let (server, home) = (rrsa_server(server()), tempfile::tempdir().unwrap());
    server.set_lifetime(TimeDelta::seconds(200));
    let source = rrsa(&server, home.path()).open();
    get(&source, "a").await.unwrap();
    let first = last_key(&server);
    server.set_lifetime(TimeDelta::seconds(3600));
    get(&source, "a").await.unwrap();
    until("the renewal", || server.issued() == 2).await;
    let renewed = async || {
        get(&source, "a").await.unwrap();
        last_key(&server) != first
    };
    while !renewed().await {}
    many_gets(&source).await;
    assert_eq!(server.issued(), 2);
}

#[tokio::test]
async fn the_old_credentials_serve_while_renewing_fails() {
    let (server, home) = (rrsa_server(server()), tempfile::tempdir().unwrap());
    server.set_lifetime(TimeDelta::seconds(200));
    let source = rrsa(&server, home.path()).open();
    get(&source, "a").await.unwrap();
    server.fault(Fault::on(Operation::AssumeRole).status(503, "ServiceUnavailable"));
    many_gets(&source).await;
    assert_eq!(server.issued(), 1);
}

#[tokio::test]
async fn an_sts_that_cannot_answer_now_is_asked_again() {
    let (server, home) = (rrsa_server(server()), tempfile::tempdir().unwrap());
    server.fault(Fault::on(Operation::AssumeRole).times(2).status(503, "ServiceUnavailable"));
    server.fault(Fault::on(Operation::AssumeRole).nth(3).reset_before_headers());
    let source = rrsa(&server, home.path()).open();
    assert_eq!(get(&source, "a").await.unwrap(), "x");
    server.fault(Fault::on(Operation::AssumeRole).status(503, "ServiceUnavailable"));
    let error = get(&rrsa(&server, home.path()).open(), "a").await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error:?}");
}

#[tokio::test]
async fn what_sts_refuses_is_said_once_and_without_the_token() {
    let (server, home) = (rrsa_server(server()), tempfile::tempdir().unwrap());
    for (name, value, code) in [
        ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/other", "EntityNotExist.Role"),
        ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:other", "EntityNotExist.OIDCProvider"),
    ] {
        let before = server.stats().requests;
        let source = rrsa(&server, home.path()).env(name, value).open();
        let error = get(&source, "a").await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error:?}");
        let line = chain(&error);
        assert!(
            line.contains(code) && line.contains("request id") && line.contains("RRSA"),
            "{line}"
        );
        assert!(!line.contains("ey.token"), "{line}");
        assert_eq!(server.stats().requests, before + 1);
    }
    let source = rrsa(&server, home.path()).env("ALIBABA_CLOUD_OIDC_TOKEN_FILE", "/nothing").open();
    let error = get(&source, "a").await.unwrap_err();
    assert!(error.to_string().contains("/nothing"), "{error}");
    assert_eq!(error.class(), Class::Refused);
}

#[tokio::test]
async fn an_instance_has_a_role() {
    let hardened = server().instance_role("reader").instance_token_required();
    for server in [start(server().instance_role("reader")), start(hardened)] {
        server.put(BUCKET, "a", "x");
        let setup = || {
            let endpoint = server.endpoint();
            Setup::of("oss", &server).env("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", &endpoint)
        };
        let source = setup().open();
        many_gets(&source).await;
        server.expire(&last_key(&server));
        many_gets(&source).await;
        assert_eq!(server.issued(), 2);
        let source = setup().env("ALIBABA_CLOUD_ECS_METADATA", "reader").open();
        many_gets(&source).await;
    }
}

#[tokio::test]
async fn a_token_from_the_environment_is_sent_in_both_dialects() {
    let server = start(server().session("sts", SECRET, "session-token", None));
    server.put(BUCKET, "a", "x");
    let oss = || {
        Setup::oss(&server)
            .env("OSS_ACCESS_KEY_ID", "sts")
            .env("OSS_SESSION_TOKEN", "session-token")
    };
    let s3 = || {
        Setup::s3(&server).env("AWS_ACCESS_KEY_ID", "sts").env("AWS_SESSION_TOKEN", "session-token")
    };
    for setup in [oss(), s3()] {
        let source = setup.open();
        assert_eq!(get(&source, "a").await.unwrap(), "x");
        let shown = format!("{source:?}");
        assert!(!shown.contains(SECRET) && !shown.contains("session-token"), "{shown}");
    }
    server.expire("sts");
    for setup in [oss(), s3()] {
        let before = server.stats().requests;
        let error = get(&setup.open(), "a").await.unwrap_err();
        assert!(matches!(error, StoreError::AccessKey { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Refused);
        assert!(!chain(&error).contains("session-token"), "{error}");
        // the environment has no others
        assert_eq!(server.stats().requests, before + 1);
    }
}

#[tokio::test]
async fn no_credentials_at_all() {
    let server = start(server());
    let nobody = "http://127.0.0.1:1";
    let setup =
        Setup::of("oss", &server).env("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", nobody);
    let error = listed(&setup.open()).await.unwrap_err();
    assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Refused);
    assert!(error.to_string().contains("OSS_ACCESS_KEY_ID"), "{error}");
    assert_eq!(server.stats().requests, 0);
}
