//! Connections, and the way of one request through the server.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use crate::error::ApiError;
use crate::faults::{Fault, Faults, Kind};
use crate::log::Call;
use crate::operations;
use crate::parameters::Parameters;
use crate::sign::Keys;
use crate::world::World;

const VERSION: &str = "2017-06-26";

/// The longest body that is read; those of the SDK are empty.
const MAX_BODY: usize = 1 << 20;

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) region: String,
    pub(crate) world: Mutex<World>,
    pub(crate) keys: Mutex<Keys>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) calls: Mutex<Vec<Call>>,
    pub(crate) request_ids: AtomicU64,
}

impl Server {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Lets everything happen that is due, and has the hook's word for what is imported. The hook
    /// runs unlocked: it may ask the server.
    pub(crate) fn settle(&self) {
        loop {
            let (imports, hook) = {
                let mut world = self.world();
                (world.settle(), world.hook.clone())
            };
            let Some(hook) = hook.filter(|_| !imports.is_empty()) else { return };
            for import in imports {
                let outcome = hook(&import);
                self.world().complete(&import.task.id, outcome);
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the lock is held")
}

/// Takes connections until the runtime is dropped.
pub(crate) async fn accept(server: Arc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(server.clone(), stream));
            }
            // out of descriptors, most likely: wait for connections to end
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(server: Arc<Server>, stream: TcpStream) {
    // without it the kernel holds small answers back
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| handle(server.clone(), request));
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // an error is a client that has gone first, or a connection that was to end
    let _ = connection.await;
}

/// An answer before it is written.
struct Reply {
    status: u16,
    body: Value,
    retry_after_ms: Option<u64>,
}

/// An error ends the connection.
async fn handle(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(io::Error::other)?.to_bytes();
    let header = |name: &str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let action = header("x-acs-action");
    let parameters = decode(head.uri.query().unwrap_or_default());
    let token = Some(header("x-acs-security-token")).filter(|token| !token.is_empty());
    let mut call = Call {
        action: action.clone(),
        parameters: parameters.clone(),
        access_key_id: None,
        security_token: token,
        status: 0,
        code: String::new(),
        changed: false,
    };
    let fault = lock(&server.faults).strike(&action).map(|Fault(kind)| kind);
    let early = match &fault {
        Some(Kind::DropBefore | Kind::Hang) => {
            lock(&server.calls).push(call);
            if fault == Some(Kind::Hang) {
                let forever: Infallible = std::future::pending().await;
                match forever {}
            }
            return Err(io::Error::other("a fault that was asked for"));
        }
        Some(Kind::Refuse { error, retry_after_ms }) => Some((error.clone(), *retry_after_ms)),
        _ => None,
    };
    let request_id = request_id(&server);
    let verified = verify(&server, &head, &parameters, &body);
    call.access_key_id = verified.as_ref().ok().cloned();
    let done = match (verified, early) {
        (Err(error), _) => Err((error, None)),
        (Ok(_), Some(early)) => Err(early),
        (Ok(_), None) => {
            server.settle();
            let asked = Parameters(parameters);
            let done = operations::run(&mut server.world(), &server.region, &action, &asked);
            done.map_err(|error| (error, None))
        }
    };
    call.changed = matches!(done, Ok((_, true)));
    let garbage = fault == Some(Kind::Garbage);
    let done = match fault {
        Some(Kind::DropAfter) => {
            lock(&server.calls).push(call);
            return Err(io::Error::other("a fault that was asked for"));
        }
        Some(Kind::RefuseAfter(error)) => Err((error, None)),
        _ => done,
    };
    let reply = match done {
        Ok((mut body, _)) => {
            body["RequestId"] = request_id.into();
            Reply { status: 200, body, retry_after_ms: None }
        }
        Err((error, retry_after_ms)) => {
            call.code = error.code.clone();
            Reply { status: error.status, body: error.json(&request_id), retry_after_ms }
        }
    };
    call.status = reply.status;
    lock(&server.calls).push(call);
    Ok(respond(reply, garbage))
}

fn verify(
    server: &Server,
    head: &Parts,
    parameters: &BTreeMap<String, String>,
    body: &[u8],
) -> Result<String, ApiError> {
    if head.uri.path() != "/" {
        let message = "Specified api is not found, please check your url and method.";
        return Err(ApiError::new(404, "InvalidAction.NotFound", message));
    }
    let version = head.headers.get("x-acs-version");
    if version.is_none_or(|version| version != VERSION) {
        let message = "Specified parameter Version is not valid.";
        return Err(ApiError::new(400, "InvalidVersion", message));
    }
    lock(&server.keys).verify(head, parameters, body, Utc::now())
}

fn respond(reply: Reply, garbage: bool) -> Response<Full<Bytes>> {
    let body = if garbage { "<html>".to_owned() } else { reply.body.to_string() };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json;charset=utf-8"));
    if let Some(ms) = reply.retry_after_ms {
        headers.insert("x-acs-retry-after", HeaderValue::from(ms));
    }
    response
}

/// In the form of the API's.
fn request_id(server: &Server) -> String {
    let n = server.request_ids.fetch_add(1, Relaxed) + 1;
    format!("473469C7-AA6F-4DC5-B3DB-{n:012X}")
}

/// The query as servers read it: `+` is a space.
fn decode(query: &str) -> BTreeMap<String, String> {
    let text = |part: &str| {
        let part = part.replace('+', " ");
        percent_decode_str(&part).decode_utf8_lossy().into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (text(name), text(value))).collect()
}
