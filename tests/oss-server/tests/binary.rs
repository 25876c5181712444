//! The server as a process: its flags, its output, its `/__admin/`, and the official clients.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "not every test file uses all of the support")]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::send;

struct Process(Child, SocketAddr);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn start(arguments: &[&str]) -> Process {
    let mut child = Command::new(env!("CARGO_BIN_EXE_oss-server"))
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap();
    let address = address.split_once("://").unwrap().1.parse().unwrap();
    Process(child, address)
}

#[test]
fn it_serves_what_it_was_told_to_generate() {
    let arguments = ["--public", "--bucket", "data", "--generate", "small=3x16KiB"];
    let server = start(&[&arguments[..], &["--prefix", "p/", "--generate", "mixed=4"]].concat());
    let answer = send(server.1, "GET", "/data/?list-type=2", &[], b"");
    assert_eq!(answer.text().matches("<Contents>").count(), 7);
    let answer = send(server.1, "GET", "/data/p/small/00000002.bin", &[], b"");
    assert_eq!((answer.status, answer.body.len()), (200, 16384));
}

#[test]
fn it_takes_faults_and_tells_its_counters_over_http() {
    let server = start(&["--public", "--generate", "small=1x1KiB"]);
    let key = "small/00000000.bin";
    let admin = |method: &str, path: &str, body: &str| {
        send(server.1, method, &format!("/__admin/{path}"), &[], body.as_bytes())
    };
    let fault = format!(
        r#"{{"operation":"get_object","key":"{key}","times":1,
            "action":{{"status":{{"status":503,"code":"ServiceUnavailable"}}}}}}"#
    );
    assert_eq!(admin("POST", "faults", &fault).status, 204);
    assert_eq!(admin("POST", "faults", "nonsense").status, 400);
    let get = || send(server.1, "GET", &format!("/bucket/{key}"), &[], b"").status;
    assert_eq!([get(), get()], [503, 200]);
    let stats: serde_json::Value = serde_json::from_str(admin("GET", "stats", "").text()).unwrap();
    assert_eq!((&stats["wasted"], &stats["bytes"]), (&1.into(), &1024.into()));
    assert_eq!(stats["by_operation"]["get_object"], 2);
    let log: serde_json::Value = serde_json::from_str(admin("GET", "log", "").text()).unwrap();
    assert_eq!((&log[0]["status"], &log[0]["method"]), (&503.into(), &"GET".into()));
    assert_eq!(admin("PUT", "pace", r#"{"admit":1}"#).status, 204);
    assert!((0..5).map(|_| get()).any(|status| status == 503));
    assert_eq!(admin("PUT", "pace", "{}").status, 204);
    assert_eq!(admin("DELETE", "faults", "").status, 204);
    assert_eq!(get(), 200);
}

#[test]
fn tls_writes_its_ca() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tls");
    let _server = start(&["--tls-dir", path.to_str().unwrap()]);
    let pem = std::fs::read_to_string(path.join("ca.pem")).unwrap();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
}

/// Skips, saying why, only where Python or its packages cannot be had; in CI that is a failure.
#[test]
fn the_official_clients_agree() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("official-clients");
    let output = Command::new("bash")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_oss-server"))
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(77) && std::env::var_os("CI").is_none() {
        eprintln!("skipped: {}", err.trim());
        return;
    }
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.trim_end().ends_with(" passed, 0 failed"), "{out}");
}
