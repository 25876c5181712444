//! Temporary credentials, from STS and the metadata service, and TLS.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "not every test file uses all of the support")]

mod support;

use std::io::{Read, Write};
use std::sync::Arc;

use chrono::TimeDelta;
use oss_server::{Operation, OssServer};
use rustls_pki_types::pem::PemObject;
use support::{Answer, send, sign_oss};

const ROLE: &str = "acs:ram::1:role/r";
const PROVIDER: &str = "acs:ram::1:oidc-provider/p";

fn server() -> OssServer {
    let server = OssServer::builder()
        .bucket("b")
        .oidc(ROLE, PROVIDER, "jwt+1")
        .instance_role("node")
        .instance_token_required()
        .start_blocking()
        .unwrap();
    server.put("b", "k", "x");
    server
}

fn assume(server: &OssServer, token: &str, more: &str) -> Answer {
    let form = format!(
        "Action=AssumeRoleWithOIDC&Version=2015-04-01&Format=JSON&RoleSessionName=s&RoleArn={}\
         &OIDCProviderArn={}&OIDCToken={token}{more}",
        ROLE.replace(':', "%3A"),
        PROVIDER.replace('/', "%2F"),
    );
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    send(server.address(), "POST", "/", &kind, form.as_bytes())
}

fn get(server: &OssServer, key: &serde_json::Value) -> Answer {
    let text = |name: &str| key[name].as_str().unwrap();
    let host = "b.oss-cn-hangzhou.aliyuncs.com";
    let key = (text("AccessKeyId"), text("AccessKeySecret"), Some(text("SecurityToken")));
    let headers = sign_oss("GET", &format!("http://{host}/k"), "b", &[], key);
    let mut all = vec![("host", host)];
    all.extend(headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).filter(|h| h.0 != "host"));
    send(server.address(), "GET", "/k", &all, b"")
}

#[test]
fn sts_issues_credentials_that_work_until_they_expire() {
    let server = server();
    let answer = assume(&server, "jwt%2B1", "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
    assert_eq!(get(&server, &answer["Credentials"]).status, 200);
    server.set_clock_ahead(3599);
    assert_eq!(get(&server, &answer["Credentials"]).code(), "RequestTimeTooSkewed");
    server.set_clock_ahead(0);
    server.expire(answer["Credentials"]["AccessKeyId"].as_str().unwrap());
    assert_eq!(get(&server, &answer["Credentials"]).code(), "SecurityTokenExpired");
    server.set_lifetime(TimeDelta::seconds(-1));
    let answer: serde_json::Value =
        serde_json::from_str(assume(&server, "jwt%2B1", "").text()).unwrap();
    assert_eq!(get(&server, &answer["Credentials"]).code(), "SecurityTokenExpired");
    assert_eq!((server.issued(), server.stats().count(Operation::AssumeRole)), (2, 2));
}

#[test]
fn sts_refuses_what_it_does_not_believe() {
    let server = server();
    let code = |answer: Answer| {
        let json: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
        (answer.status, json["Code"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        code(assume(&server, "other", "")),
        (400, "AuthenticationFail.OIDCToken.Invalid".into())
    );
    assert_eq!(code(assume(&server, "", "")), (400, "MissingParameter".into()));
    assert_eq!(
        code(assume(&server, "jwt%2B1", "&DurationSeconds=10")),
        (400, "InvalidParameter.DurationSeconds".into())
    );
    server.set_oidc_token("rotated");
    assert_eq!(assume(&server, "rotated", "").status, 200);
}

#[test]
fn the_metadata_service_tells_of_its_role() {
    let server = server();
    let path = "/latest/meta-data/ram/security-credentials/";
    let host = ("host", "100.100.100.200");
    assert_eq!(send(server.address(), "GET", path, &[host], b"").status, 403);
    let ttl = ("x-aliyun-ecs-metadata-token-ttl-seconds", "60");
    let token = send(server.address(), "PUT", "/latest/api/token", &[host, ttl], b"");
    let token = ("x-aliyun-ecs-metadata-token", token.text());
    assert_eq!(send(server.address(), "GET", path, &[host, token], b"").text(), "node");
    let answer = send(server.address(), "GET", &format!("{path}node"), &[host, token], b"");
    let answer: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
    assert_eq!(answer["Code"], "Success");
    assert_eq!(get(&server, &answer).status, 200);
    assert_eq!(send(server.address(), "GET", &format!("{path}x"), &[host, token], b"").status, 404);
}

#[test]
fn tls_is_vouched_for_by_the_ca() {
    let server = OssServer::builder()
        .public_bucket("b")
        .endpoint_host("oss.test")
        .tls()
        .start_blocking()
        .unwrap();
    server.put("b", "k", "over TLS");
    assert!(server.endpoint().starts_with("https://127.0.0.1:"));
    let mut roots = rustls::RootCertStore::empty();
    let pem = server.ca_pem().unwrap().as_bytes();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    for name in ["127.0.0.1", "localhost", "oss.test", "b.oss.test"] {
        let connection =
            rustls::ClientConnection::new(config.clone(), name.try_into().unwrap()).unwrap();
        let tcp = std::net::TcpStream::connect(server.address()).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, tcp);
        let target = if name.starts_with("b.") { "/k" } else { "/b/k" };
        write!(stream, "GET {target} HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("over TLS"), "{name}: {answer}");
    }
}
