//! `/__admin/`: rules and counters for whoever drives the server from another process.

use std::sync::atomic::Ordering::Relaxed;

use serde::Deserialize;

use crate::faults::Fault;
use crate::reply::Reply;
use crate::server::Server;

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
            Err(error) => Reply::json(400, format!("{{\"error\":{:?}}}", error.to_string())),
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
        ("PUT", "clock") => match serde_json::from_slice::<Clock>(body) {
            Ok(clock) => {
                server.clock.store(clock.ahead_s, Relaxed);
                Reply::new(204)
            }
            Err(error) => Reply::json(400, format!("{{\"error\":{:?}}}", error.to_string())),
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
