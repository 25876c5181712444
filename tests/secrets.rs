//! What is secret stays with the process: no secret, token or signature is in any output, at any log
//! level, however a run ends and whatever the source quotes back.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use oss_server::{Action, Fault, Matcher, Operation, OssServer};
use support::cases::{Part, measured, shown};
use support::{BUCKET, ID, Place, Ran, SECRET, bytes, ossvp};

const ROLE: &str = "acs:ram::1234567890123456:role/worker";
const PROVIDER: &str = "acs:ram::1234567890123456:oidc-provider/ack-rrsa";
const OIDC: &str = "eyJhbGciOiJSUzI1NiJ9.service-account.token";
const TOKEN: &str = "CAIS+session/token==";
const PROXY_PASSWORD: &str = "proxy-pass-word";

fn server() -> OssServer {
    let server = OssServer::builder()
        .bucket(BUCKET)
        .credentials(ID, SECRET)
        .session("STS.session-id", "session-secret", TOKEN, None)
        .oidc(ROLE, PROVIDER, OIDC)
        .instance_role("worker")
        .threads(1)
        .start_blocking()
        .unwrap();
    for n in 0..4 {
        server.put(BUCKET, &format!("data/{n}"), bytes(n, 5000));
    }
    server.put(BUCKET, "data/large", bytes(9, 200_000));
    server
}

/// Where credentials come from.
#[derive(Debug, Clone, Copy)]
enum From {
    Environment,
    Session,
    S3Session,
    Rrsa,
    Instance,
    /// A file below the home directory, and what is in it.
    File(&'static str, &'static str),
    /// `Environment`, through a proxy that asks for a password.
    Proxy,
}

const FROM: [From; 11] = [
    From::Environment,
    From::Session,
    From::S3Session,
    From::Rrsa,
    From::Instance,
    From::File(".ossutilconfig", "[Credentials]\naccessKeyID=ID\naccessKeySecret=SECRET\n"),
    From::File(".oss/credentials", "[default]\naccess_key_id = ID\naccess_key_secret = SECRET\n"),
    From::File(
        ".alibabacloud/credentials",
        "[default]\ntype = access_key\naccess_key_id = ID\naccess_key_secret = SECRET\n",
    ),
    From::File(
        ".aliyun/config.json",
        "{\"current\": \"p\", \"profiles\": [{\"name\": \"p\", \"mode\": \"AK\", \
         \"access_key_id\": \"ID\", \"access_key_secret\": \"SECRET\"}]}",
    ),
    From::File(
        ".aws/credentials",
        "[default]\naws_access_key_id = ID\naws_secret_access_key = SECRET\n",
    ),
    From::Proxy,
];

fn populate(from: From, server: &OssServer, place: &Place) -> Command {
    let mut command = ossvp();
    let source = match from {
        From::S3Session | From::File(".aws/credentials", _) => "s3://bucket/data/",
        _ => "oss://bucket/data/",
    };
    command.args(["populate", source]).arg(place.volume());
    command.args(["--endpoint", &server.endpoint(), "--region", server.region()]);
    command.args(["--part-size", "64KiB", "--retry-for", "0s", "--timeout", "10s"]);
    match from {
        From::Environment | From::Proxy => {
            command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
            if let From::Proxy = from {
                // the server is its own proxy
                let proxy = server.endpoint().replace("://", &format!("://user:{PROXY_PASSWORD}@"));
                command.env("HTTP_PROXY", proxy);
            }
        }
        From::Session => {
            command.env("OSS_ACCESS_KEY_ID", "STS.session-id");
            command.env("OSS_ACCESS_KEY_SECRET", "session-secret").env("OSS_SESSION_TOKEN", TOKEN);
        }
        From::S3Session => {
            command.env("AWS_ACCESS_KEY_ID", "STS.session-id");
            command.env("AWS_SECRET_ACCESS_KEY", "session-secret").env("AWS_SESSION_TOKEN", TOKEN);
        }
        From::Rrsa => {
            std::fs::write(place.file("oidc"), OIDC).unwrap();
            command
                .env("ALIBABA_CLOUD_ROLE_ARN", ROLE)
                .env("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER)
                .env("ALIBABA_CLOUD_OIDC_TOKEN_FILE", place.file("oidc"))
                .env("ALIBABA_CLOUD_STS_ENDPOINT", server.endpoint());
        }
        From::Instance => {
            command.env_remove("ALIBABA_CLOUD_ECS_METADATA_DISABLED");
            command.env("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", server.endpoint());
        }
        From::File(name, text) => {
            let file = place.file("home").join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(
                file,
                text.replace("ID\n", &format!("{ID}\n"))
                    .replace("\"ID\"", &format!("\"{ID}\""))
                    .replace("SECRET", SECRET),
            )
            .unwrap();
            command.env("HOME", place.file("home"));
        }
    }
    command
}

/// Every way to be talkative: level, form, progress.
const VOICES: [&[&str]; 8] = [
    &["-vvv", "--log-format", "text", "--progress", "json"],
    &["-vvv", "--log-format", "json", "--progress", "bar"],
    &["-vv", "--log-format", "text", "--progress", "auto"],
    &["-vv", "--log-format", "json", "--progress", "none"],
    &["-v", "--log-format", "json", "--progress", "json"],
    &["-v", "--log-format", "text", "--progress", "bar"],
    &["--log-format", "text", "--progress", "json"],
    &["--log-format", "json", "--progress", "none"],
];

/// What the source says, and with which codes a run may end that hears it.
fn faults() -> Vec<(&'static str, Option<Fault>, &'static [i32])> {
    let list = Fault::list;
    let get = || Fault::get("data/2");
    let part = || Fault::get("data/large");
    let any = || Fault::any();
    let sts = || Fault::on(Operation::AssumeRole);
    let echo = |matcher: Matcher, status, code: &str| Some(matcher.echo(status, code));
    vec![
        ("no fault", None, &[0]),
        ("a refused signature", echo(list(), 403, "SignatureDoesNotMatch"), &[3]),
        ("a refused signature of an object", echo(get(), 403, "SignatureDoesNotMatch"), &[3]),
        ("a refused request", echo(list(), 400, "InvalidArgument"), &[3]),
        ("no access", echo(part(), 403, "AccessDenied"), &[3]),
        ("an unknown key", echo(list(), 403, "InvalidAccessKeyId"), &[3]),
        ("an expired token", echo(get(), 403, "SecurityTokenExpired"), &[3]),
        ("clocks that differ", echo(get(), 403, "RequestTimeTooSkewed"), &[4]),
        ("another region", echo(list(), 400, "AuthorizationHeaderMalformed"), &[3]),
        ("a redirect", echo(list(), 307, "TemporaryRedirect"), &[3]),
        ("another version", echo(get(), 412, "PreconditionFailed"), &[5]),
        ("an object that is gone", echo(get(), 404, "NoSuchKey"), &[5]),
        ("a source that is away", echo(any(), 503, "ServiceUnavailable"), &[3, 4]),
        ("a source that is away for a moment", echo(get().times(2), 500, "InternalError"), &[0]),
        ("an STS that refuses", echo(sts(), 403, "NoPermission"), &[0, 3]),
        ("bytes that differ", Some(get().flip_byte(1)), &[6]),
        ("a connection that breaks", Some(get().reset_before_headers()), &[4]),
        ("a listing that is none", Some(list().instead("text/html", "<html>")), &[4]),
        ("an object that vanishes", Some(get().action(Action::Vanish)), &[5]),
    ]
}

/// Everything below a directory, names and contents.
fn all_below(directory: &Path, into: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_below(&path, into);
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            into.push((path.display().to_string(), text));
        }
    }
}

/// What no output may hold: what the server knows, and what it was sent.
fn secrets(server: &OssServer) -> BTreeSet<String> {
    let mut secrets = BTreeSet::from([OIDC, PROXY_PASSWORD, SECRET, TOKEN].map(str::to_owned));
    secrets.extend(server.key_pairs().into_iter().flatten());
    for logged in server.log() {
        secrets.extend(logged.security_token);
        if let Some(authorization) = logged.authorization {
            let signature = authorization.rsplit("Signature=").next().unwrap().to_owned();
            assert!(signature.len() == 64, "{authorization}");
            secrets.extend([signature, authorization]);
        }
    }
    // what may be part of one
    secrets.extend(["Signature=", "signature=", "HMAC-SHA256"].map(str::to_owned));
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

#[track_caller]
fn keeps(secrets: &BTreeSet<String>, what: &str, outputs: &[(String, String)]) {
    for (name, text) in outputs {
        for secret in secrets {
            assert!(!text.contains(secret), "{what}: {secret:?} in {name}: {text}");
        }
    }
}

/// One run: which credentials, what goes wrong, how talkative.
fn try_one(from: From, fault: &(&str, Option<Fault>, &[i32]), voice: usize) {
    let (name, fault, codes) = fault;
    let what = format!("{from:?}, {name}, {:?}", VOICES[voice]);
    let (server, place) = (server(), Place::new());
    if let Some(fault) = fault {
        server.fault(fault.clone());
    }
    let mut command = populate(from, &server, &place);
    command.args(VOICES[voice]).arg("--outcome").arg(place.file("outcome"));
    command.arg("--report").arg(place.file("report"));
    command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let line = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap_or_default();
    let ran = Ran::from(child.wait_with_output().unwrap());
    // who has no STS does not hear of one that refuses
    let hears = *name != "an STS that refuses" || matches!(from, From::Rrsa) == (ran.code == 3);
    assert!(codes.contains(&ran.code) && hears, "{what}: {}: {}", ran.code, ran.stderr);
    assert!(server.stats().requests > 0, "{what}");
    let mut outputs = vec![
        ("stdout".to_owned(), ran.stdout),
        ("stderr".to_owned(), ran.stderr),
        ("the process's command line".to_owned(), String::from_utf8_lossy(&line).into_owned()),
        ("the outcome".to_owned(), std::fs::read_to_string(place.file("outcome")).unwrap()),
        ("the report".to_owned(), std::fs::read_to_string(place.file("report")).unwrap()),
    ];
    all_below(&place.volume().join(".ossvp"), &mut outputs);
    keeps(&secrets(&server), &what, &outputs);
}

#[test]
fn no_output_holds_a_secret_however_a_run_ends() {
    let faults = faults();
    let mut all = Vec::new();
    for (f, from) in FROM.into_iter().enumerate() {
        for (n, fault) in faults.iter().enumerate() {
            // each fault is heard at each level by some, and where most is said by those that have
            // most to hide; what comes from a file is all alike behind it
            if !matches!(from, From::File(..)) || (f + n).is_multiple_of(3) {
                all.push((from, fault, (f + n) % VOICES.len()));
            }
            if matches!(from, From::Session | From::Rrsa) {
                all.push((from, fault, 0));
            }
        }
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some((from, fault, voice)) = all.get(next.fetch_add(1, Relaxed)) {
                    if std::panic::catch_unwind(|| try_one(*from, fault, *voice)).is_err() {
                        failed.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0, "of {} runs", all.len());
    let what = "no secret, token, signature or access key id in any output, at any log level";
    for (name, _, codes) in &faults {
        let codes: Vec<_> = codes.iter().map(ToString::to_string).collect();
        let case = format!("{name}, and the source quotes the request where it can");
        shown(Part::Secrets, &case, what, codes.join(" or "));
    }
    measured(
        Part::Secrets,
        &format!(
            "{} runs with credentials of {} kinds: stdout, stderr, outcome, report, command line and \
             everything in .ossvp searched",
            all.len(),
            FROM.len()
        ),
    );
}

/// A command that is wrong in itself: what it was given is not shown again.
#[track_caller]
fn hides(command: &mut Command, place: &Place, code: i32, secrets: &[&str]) {
    let outcome = place.file("outcome");
    command.arg("--outcome").arg(&outcome).arg("-vvv").env("RUST_LOG", "trace");
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, code, "{}", ran.stderr);
    let outputs = [
        ("stdout".to_owned(), ran.stdout),
        ("stderr".to_owned(), ran.stderr),
        ("the outcome".to_owned(), std::fs::read_to_string(outcome).unwrap()),
    ];
    for (name, text) in outputs {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret:?} in {name}: {text}");
        }
    }
}

#[test]
fn a_password_or_a_signature_in_a_url_is_not_shown_again() {
    let place = Place::new();
    let secrets = ["hushhush", "hush/hush", "0123456789abcdef"];
    let run = |args: &[&str]| {
        let mut command = ossvp();
        command.args(["populate"]).args(args).arg(place.volume());
        command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
        command
    };
    for endpoint in [
        "https://user:hushhush@oss.example.com",
        "user:hushhush@oss.example.com",
        "https://user:hushhush@host/path",
        "ftp://user:hushhush@host",
        "https://host/?x-oss-signature=0123456789abcdef",
        "https://host?x-oss-signature=0123456789abcdef",
    ] {
        let args = ["oss://bucket/data/", "--region", "cn-x"];
        hides(run(&args).args(["--endpoint", endpoint]), &place, 2, &secrets);
        hides(run(&args).env("OSSVP_ENDPOINT", endpoint), &place, 2, &secrets);
    }
    for source in [
        "oss://keyid:hushhush@bucket/data/",
        "s3://keyid:hush/hush@bucket/data/",
        "s3a://keyid:hushhush@bucket/data/",
        "https://bucket.oss.example.com/key?OSSAccessKeyId=i&Signature=0123456789abcdef",
        "https://user:hushhush@bucket.oss.example.com/key",
    ] {
        hides(&mut run(&[source]), &place, 2, &secrets);
        let mut command = ossvp();
        command.args(["populate", "--volume", "x"]).env("OSSVP_SOURCE", source);
        hides(&mut command, &place, 2, &secrets);
    }
    for proxy in ["http://user:hushhush@127.0.0.1:1", "socks5://user:hushhush@127.0.0.1:1"] {
        let args = ["oss://bucket/data/", "--region", "cn-x", "--retry-for", "0s"];
        let mut command = run(&args);
        command.env("HTTP_PROXY", proxy).env("HTTPS_PROXY", proxy).env("NO_PROXY", "");
        hides(&mut command, &place, 4, &secrets);
    }
    let mut command = run(&["oss://bucket/data/", "--region", "cn-x"]);
    command.env("HTTPS_PROXY", "ftp://user:hushhush@127.0.0.1:1");
    hides(&mut command, &place, 2, &secrets);
    let what = "named without the password or the signature";
    shown(Part::Secrets, "a password or a presigned query in an endpoint or a source", what, 2);
    shown(Part::Secrets, "a proxy with a password that cannot be reached", what, 4);
    shown(Part::Secrets, "a proxy with a password that cannot be one", what, 2);
}

#[test]
fn a_metadata_service_or_an_sts_that_quotes_secrets_is_not_quoted() {
    let quote = format!(
        "{{\"Code\": \"X\", \"Message\": \"bad {OIDC}\", \"AccessKeySecret\": \"{SECRET}\""
    );
    for (from, operation) in
        [(From::Rrsa, Operation::AssumeRole), (From::Instance, Operation::InstanceMetadata)]
    {
        for status in [200, 400, 403, 500] {
            for end in ["}", "", ", \"Credentials\": {\"AccessKeyId\": 5}}"] {
                let (server, place) = (server(), Place::new());
                let (content_type, body) = ("application/json".to_owned(), format!("{quote}{end}"));
                let instead = Action::Instead { status, content_type, body };
                // the role's name is asked for first
                server.fault(Fault::on(operation).action(instead.clone()));
                let mut command = populate(from, &server, &place);
                command.arg("-vvv").arg("--outcome").arg(place.file("outcome"));
                let ran = Ran::from(command.output().unwrap());
                assert!([3, 4].contains(&ran.code), "{}: {}", ran.code, ran.stderr);
                let outputs = [
                    ("stderr".to_owned(), ran.stderr),
                    ("the outcome".to_owned(), {
                        std::fs::read_to_string(place.file("outcome")).unwrap()
                    }),
                ];
                keeps(&secrets(&server), &format!("{from:?} {status} {end}"), &outputs);
            }
        }
    }
    let what = "its text is not passed on";
    shown(Part::Secrets, "STS or the metadata service quotes a token or a secret", what, "3 or 4");
}
