//! `/__admin/`: rules and counters for whoever drives the server from another process.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Deserialize;

use crate::faults::Fault;
use crate::reply::Reply;
use crate::server::{Pace, Server};

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(Fault),
    More(Vec<Fault>),
}

#[derive(Deserialize)]
struct Clock {
    ahead_s: i64,
}

/// Absent: none.
#[derive(Deserialize)]
struct NewPace {
    #[serde(default)]
    ttfb_ms: u64,
    per_connection: Option<u64>,
    admit: Option<u64>,
}

pub(crate) fn handle(server: &Server, head: &http::request::Parts, body: &[u8]) -> Reply {
    let faults = || server.faults.lock().expect("no panic while the lock is held");
    let what = head.uri.path().trim_start_matches("/__admin/");
    match (head.method.as_str(), what) {
        ("GET", "faults") => json(&faults().list()),
        ("POST", "faults") => match serde_json::from_slice(body) {
            Ok(OneOrMore::One(fault)) => {
                faults().add(fault);
                Reply::new(204)
            }
            Ok(OneOrMore::More(more)) => {
                more.into_iter().for_each(|fault| faults().add(fault));
                Reply::new(204)
            }
            Err(error) => refused(&error),
        },
        ("DELETE", "faults") => {
            faults().clear();
            Reply::new(204)
        }
        ("GET", "stats") => json(&server.counters.snapshot()),
        ("DELETE", "stats") => {
            server.counters.reset();
            Reply::new(204)
        }
        ("GET", "log") => json(&server.counters.log()),
        ("GET", "ca") => json(&server.tls.as_ref().map(|tls| &tls.ca_pem)),
        ("PUT", "pace") => match serde_json::from_slice::<NewPace>(body) {
            Ok(new) => {
                *server.pace.lock().expect("no panic while the lock is held") = Pace {
                    ttfb: Duration::from_millis(new.ttfb_ms),
                    bandwidth: new.per_connection,
                    admit: new.admit,
                };
                Reply::new(204)
            }
            Err(error) => refused(&error),
        },
        ("PUT", "clock") => match serde_json::from_slice::<Clock>(body) {
            Ok(clock) => {
                server.clock.store(clock.ahead_s, Relaxed);
                Reply::new(204)
            }
            Err(error) => refused(&error),
        },
        _ => Reply::json(404, "{\"error\":\"no such resource\"}".into()),
    }
}

fn json(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_string(value) {
        Ok(text) => Reply::json(200, text),
        Err(error) => Reply::json(500, format!("{{\"error\":{:?}}}", error.to_string())),
    }
}

fn refused(error: &serde_json::Error) -> Reply {
    Reply::json(400, serde_json::json!({ "error": error.to_string() }).to_string())
}
