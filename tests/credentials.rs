//! Who asks, and by which way: credentials from every place that may hold them, public buckets,
//! TLS, addressing, proxies.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::TimeDelta;
use oss_server::{Builder, Fault, OssServer};
use support::{BUCKET, ID, Place, Ran, Run, SECRET, files, ossvp, wait_until};

const SOURCE: &str = "oss://bucket/data/";
const ROLE: &str = "acs:ram::1234567890123456:role/worker";
const PROVIDER: &str = "acs:ram::1234567890123456:oidc-provider/ack-rrsa";

fn builder() -> Builder {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET)
}

fn start(builder: Builder) -> OssServer {
    let server = builder.start_blocking().unwrap();
    server.put(BUCKET, "data/a", "content");
    server
}

/// `ossvp populate` without any credentials.
fn bare(server: &OssServer, source: &str, place: &Place) -> Command {
    let mut command = ossvp();
    command.args(["populate", source]).arg(place.volume());
    command.args(["--endpoint", &server.endpoint(), "--region", server.region()]);
    command.args(["--report", "-", "-vv"]);
    command
}

/// With the key pair that the server knows.
fn signed(server: &OssServer, source: &str, place: &Place) -> Command {
    let mut command = bare(server, source, place);
    command.envs([("OSS_ACCESS_KEY_ID", ID), ("OSS_ACCESS_KEY_SECRET", SECRET)]);
    command.envs([("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
    command
}

#[track_caller]
fn works(command: &mut Command, place: &Place) -> Ran {
    let ran = command.run().ended(0);
    assert_eq!(files(&place.volume())["a"], b"content");
    ran
}

/// The access keys that requests were signed with.
fn signers(server: &OssServer) -> BTreeSet<String> {
    server.log().into_iter().filter_map(|logged| logged.access_key_id).collect()
}

fn hosts(server: &OssServer) -> BTreeSet<String> {
    server.log().into_iter().map(|logged| logged.host).collect()
}

#[test]
fn a_key_pair_comes_from_the_environment() {
    for (source, id, secret) in [
        (SOURCE, "OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET"),
        (SOURCE, "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
        ("s3://bucket/data/", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ] {
        let (server, place) = (start(builder()), Place::new());
        works(bare(&server, source, &place).env(id, ID).env(secret, SECRET), &place);
        assert_eq!(signers(&server), BTreeSet::from([ID.to_owned()]));

        // a Secret that was made from a file ends in a newline
        let place = Place::new();
        let mut command = bare(&server, source, &place);
        command.env(id, format!("{ID}\n")).env(secret, format!("{SECRET}\n"));
        works(&mut command, &place);
    }
}

#[test]
fn a_session_token_goes_with_every_request() {
    for (source, [id, secret, token]) in [
        (SOURCE, ["OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"]),
        (
            SOURCE,
            [
                "ALIBABA_CLOUD_ACCESS_KEY_ID",
                "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
                "ALIBABA_CLOUD_SECURITY_TOKEN",
            ],
        ),
        ("s3://bucket/data/", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]),
    ] {
        let server = start(builder().session("STS.session", "secret", "a+token/with==", None));
        let place = Place::new();
        let mut command = bare(&server, source, &place);
        command.env(id, "STS.session").env(secret, "secret");
        command.run().ended(3).says("access key was not accepted");
        let ran = works(command.env(token, "a+token/with=="), &place);
        assert!(!ran.stderr.contains("a+token/with=="), "{}", ran.stderr);
    }
}

#[test]
fn half_a_key_pair_is_an_error_that_names_the_other_half() {
    let server = start(builder());
    for (source, set, missing) in [
        (SOURCE, "OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET"),
        (SOURCE, "OSS_ACCESS_KEY_SECRET", "OSS_ACCESS_KEY_ID"),
        (SOURCE, "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
        (SOURCE, "ALIBABA_CLOUD_OIDC_TOKEN_FILE", "ALIBABA_CLOUD_ROLE_ARN"),
        ("s3://bucket/data/", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ] {
        let place = Place::new();
        let ran = bare(&server, source, &place).env(set, "half-a-secret").run().ended(3);
        let ran = ran.says(&format!("{set} is set but {missing} is not"));
        assert!(!ran.stderr.contains("half-a-secret"), "{}", ran.stderr);
    }
    assert_eq!(server.stats().requests, 0);
}

#[test]
fn a_key_pair_comes_from_a_file_of_the_official_tools() {
    let ini = format!(
        "[default]\ntype = access_key\naccess_key_id = {ID}\naccess_key_secret = {SECRET}\n"
    );
    let json = format!(
        "{{\"current\": \"p\", \"profiles\": [{{\"name\": \"p\", \"mode\": \"AK\", \
         \"access_key_id\": \"{ID}\", \"access_key_secret\": \"{SECRET}\"}}]}}"
    );
    for (source, path, text) in [
        (
            SOURCE,
            ".ossutilconfig",
            format!("[Credentials]\nlanguage=EN\naccessKeyID={ID}\naccessKeySecret={SECRET}\n"),
        ),
        (
            SOURCE,
            ".ossutilconfig",
            format!("[default]\naccessKeyId = {ID}\naccessKeySecret = {SECRET}\n"),
        ),
        (SOURCE, ".alibabacloud/credentials", ini),
        (SOURCE, ".aliyun/config.json", json),
        (
            "s3://bucket/data/",
            ".aws/credentials",
            format!("[default]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n"),
        ),
    ] {
        let (server, place) = (start(builder()), Place::new());
        let file = place.file("home").join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        let ran = works(bare(&server, source, &place).env("HOME", place.file("home")), &place);
        assert!(!ran.stderr.contains(SECRET), "{path}: {}", ran.stderr);
    }
}

/// What a Pod with RRSA has in its environment.
fn rrsa(server: &OssServer, place: &Place, token_file: &Path) -> Command {
    let mut command = bare(server, SOURCE, place);
    command
        .env("ALIBABA_CLOUD_ROLE_ARN", ROLE)
        .env("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER)
        .env("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token_file)
        .env("ALIBABA_CLOUD_STS_ENDPOINT", server.endpoint());
    command
}

#[test]
fn a_service_account_token_becomes_credentials() {
    let server = start(builder().oidc(ROLE, PROVIDER, "token-1"));
    let place = Place::new();
    let token_file = place.file("token");
    std::fs::write(&token_file, "token-1\n").unwrap();
    let ran = works(&mut rrsa(&server, &place, &token_file), &place);
    assert_eq!(server.issued(), 1);
    assert!(signers(&server).iter().all(|id| id.starts_with("STS.")));
    assert!(!ran.stderr.contains("token-1"), "{}", ran.stderr);
    assert!(server.log().iter().all(|logged| !logged.target.contains("token-1")));

    // what STS says is passed on, the token is not
    std::fs::write(&token_file, "token-0").unwrap();
    let place = Place::new();
    let ran = rrsa(&server, &place, &token_file).run().ended(3).says("credentials from RRSA");
    assert!(ran.stderr.contains("AuthenticationFail.OIDCToken.Invalid"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("token-0"), "{}", ran.stderr);
    let ran = rrsa(&server, &place, &place.file("no-token")).run().ended(3);
    assert!(ran.stderr.contains("no-token"), "{}", ran.stderr);
}

#[test]
fn the_service_account_token_is_read_again_when_credentials_expire() {
    let server = start(builder().oidc(ROLE, PROVIDER, "token-1"));
    server.put(BUCKET, "data/0", "stalls");
    let place = Place::new();
    let token_file = place.file("token");
    std::fs::write(&token_file, "token-1").unwrap();
    server.fault(Fault::get("data/0").stall_after(1, Duration::from_secs(1)));
    let child = rrsa(&server, &place, &token_file)
        .args(["--concurrency", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the first object", || server.gets(BUCKET, "data/0") == 1);
    // the kubelet has put another token there, and the credentials of the first one are used up
    std::fs::write(&token_file, "token-2").unwrap();
    server.set_oidc_token("token-2");
    for id in signers(&server) {
        server.expire(&id);
    }
    let ran: Ran = child.wait_with_output().unwrap().into();
    let ran = ran.ended(0);
    assert_eq!(ran.marker().objects, 2);
    assert_eq!(server.issued(), 2);
    assert_eq!(signers(&server).len(), 2);
    assert!(!ran.stderr.contains("token-"), "{}", ran.stderr);
}

#[test]
fn credentials_that_live_shorter_than_the_run_are_refreshed() {
    // shorter than the five minutes of reserve, and than the run
    let server = start(builder().oidc(ROLE, PROVIDER, "token").lifetime(TimeDelta::seconds(2)));
    let place = Place::new();
    std::fs::write(place.file("token"), "token").unwrap();
    for n in 0..4 {
        let key = format!("data/{n}");
        server.put(BUCKET, &key, "stalls");
        server.fault(Fault::get(&key).stall_after(1, Duration::from_secs(1)));
    }
    let mut command = rrsa(&server, &place, &place.file("token"));
    let ran = works(command.args(["--concurrency", "1"]), &place);
    assert_eq!(ran.marker().objects, 5);
    assert!(server.issued() >= 2, "{}", server.issued());
}

#[test]
fn an_instance_has_the_credentials_of_its_role() {
    for builder in [
        builder().instance_role("worker"),
        builder().instance_role("worker").instance_token_required(),
    ] {
        let (server, place) = (start(builder), Place::new());
        let mut command = bare(&server, SOURCE, &place);
        command.env_remove("ALIBABA_CLOUD_ECS_METADATA_DISABLED");
        command.env("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", server.endpoint());
        works(&mut command, &place);
        assert_eq!(server.issued(), 1);
    }
}

#[test]
fn the_places_are_asked_in_order() {
    let server = start(
        builder()
            .credentials("from-alibaba", SECRET)
            .credentials("from-file", SECRET)
            .oidc(ROLE, PROVIDER, "token")
            .instance_role("worker"),
    );
    let home = Place::new();
    std::fs::write(home.file("token"), "token").unwrap();
    let ossutil = format!("[Credentials]\naccessKeyID=from-file\naccessKeySecret={SECRET}\n");
    std::fs::write(home.file(".ossutilconfig"), ossutil).unwrap();
    let volume = Place::new();
    let mut command = rrsa(&server, &volume, &home.file("token"));
    command.env("HOME", home.file(""));
    command.env_remove("ALIBABA_CLOUD_ECS_METADATA_DISABLED");
    command.env("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", server.endpoint());
    command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
    command.env("ALIBABA_CLOUD_ACCESS_KEY_ID", "from-alibaba");
    command.env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET).arg("--force");

    let signer = |command: &mut Command| {
        server.reset_stats();
        command.run().ended(0);
        signers(&server).pop_first().unwrap()
    };
    assert_eq!(signer(&mut command), ID);
    command.env_remove("OSS_ACCESS_KEY_ID").env_remove("OSS_ACCESS_KEY_SECRET");
    assert_eq!(signer(&mut command), "from-alibaba");
    command.env_remove("ALIBABA_CLOUD_ACCESS_KEY_ID");
    command.env_remove("ALIBABA_CLOUD_ACCESS_KEY_SECRET");
    assert_eq!(signer(&mut command), "from-file");
    std::fs::remove_file(home.file(".ossutilconfig")).unwrap();
    assert!(signer(&mut command).starts_with("STS.1"));
    command.env_remove("ALIBABA_CLOUD_OIDC_TOKEN_FILE");
    assert!(signer(&mut command).starts_with("STS.2"));
}

#[test]
fn a_public_bucket_needs_no_credentials() {
    let server = start(builder().public_bucket(BUCKET));
    for source in [SOURCE, "s3://bucket/data/"] {
        let place = Place::new();
        works(bare(&server, source, &place).arg("--anonymous"), &place);
    }
    // nor does what happens to be set get used
    let place = Place::new();
    works(signed(&server, SOURCE, &place).arg("--anonymous"), &place);
    assert_eq!(signers(&server), BTreeSet::new());
}

#[test]
fn tls_is_trusted_by_the_bundle_and_by_nothing_else() {
    let server = start(builder().tls());
    let place = Place::new();
    let ca = place.file("ca.pem");
    std::fs::write(&ca, server.ca_pem().unwrap()).unwrap();
    let run = || signed(&server, SOURCE, &place);
    let ran = run().run().ended(3).says("certificate of 127.0.0.1:");
    assert!(ran.stderr.contains("--ca-bundle"), "{}", ran.stderr);
    assert_eq!(server.stats().requests, 0);
    works(run().arg("--ca-bundle").arg(&ca), &place);
    works(run().env("SSL_CERT_FILE", &ca).arg("--force"), &place);
    works(run().env("OSSVP_CA_BUNDLE", &ca).arg("--force"), &place);
}

/// Names that no DNS knows: the server itself is the proxy for plain HTTP, and takes whole URLs.
fn by_name(server: &OssServer, source: &str, place: &Place, endpoint: &str) -> Command {
    let mut command = ossvp();
    command.args(["populate", source]).arg(place.volume());
    command.args(["--endpoint", endpoint, "--region", server.region()]);
    command.env("HTTP_PROXY", server.endpoint());
    command.envs([("OSS_ACCESS_KEY_ID", ID), ("OSS_ACCESS_KEY_SECRET", SECRET)]);
    command.envs([("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
    command
}

#[test]
fn the_bucket_stands_in_the_host_in_the_path_or_is_the_host() {
    let cases = [
        ("auto", "http://oss.test", "bucket.oss.test"),
        ("virtual", "http://oss.test", "bucket.oss.test"),
        ("virtual", "http://localhost", "bucket.localhost"),
        ("path", "http://oss.test", "oss.test"),
        ("cname", "http://data.example.com", "data.example.com"),
    ];
    for (addressing, endpoint, host) in cases {
        for source in [SOURCE, "s3://bucket/data/"] {
            let server = builder().endpoint_host("oss.test").cname("data.example.com", BUCKET);
            let (server, place) = (start(server), Place::new());
            let mut command = by_name(&server, source, &place, endpoint);
            works(command.args(["--addressing", addressing]), &place);
            assert_eq!(hosts(&server), BTreeSet::from([host.to_owned()]), "{addressing}");
            let in_path = server.log().iter().all(|logged| logged.target.contains("/bucket/"));
            assert_eq!(in_path, addressing == "path", "{:?}", server.log());
        }
    }
    let (server, place) = (start(builder()), Place::new());
    let address = ["--addressing", "virtual"];
    let said = "an IP address takes no bucket in front";
    signed(&server, SOURCE, &place).args(address).run().ended(2).says(said);
}

#[test]
fn a_proxy_is_passed_by_for_what_no_proxy_names() {
    let (server, place) = (start(builder()), Place::new());
    let nobody = "http://127.0.0.1:1";
    let mut command = signed(&server, SOURCE, &place);
    command.env("HTTP_PROXY", nobody).env("NO_PROXY", "127.0.0.1");
    works(&mut command, &place);
    let wrong = &mut signed(&server, SOURCE, &place);
    let ran = wrong.env("HTTPS_PROXY", "ftp://user:password@host").run().ended(2);
    assert!(!ran.says("from the environment").stderr.contains("password"));
}
