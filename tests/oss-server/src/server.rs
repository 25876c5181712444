//! Connections, and the way of one request through the server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::body::{Connection, Cut, Payload, Plan, Seize};
use crate::error::ApiError;
use crate::faults::{Action, Faults};
use crate::reply::{Reply, http_date};
use crate::request::{Addressing, Call, Dialect, Operation, parse};
use crate::sign::Caller;
use crate::stats::{Counters, Logged};
use crate::store::{Store, base64};
use crate::sts::Sts;
use crate::tls::Tls;

/// What the server does to every request; may be changed while it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    /// Time to the first byte.
    pub(crate) ttfb: Duration,
    /// Bytes per second of one connection.
    pub(crate) bandwidth: Option<u64>,
    /// Requests per second; those above it are turned away.
    pub(crate) admit: Option<u64>,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) region: String,
    pub(crate) addressing: Addressing,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) counters: Arc<Counters>,
    /// How far the server's clock is ahead of the true one, in seconds.
    pub(crate) clock: AtomicI64,
    pub(crate) pace: Mutex<Pace>,
    pub(crate) admitted: Mutex<Option<(Instant, f64)>>,
    pub(crate) request_ids: AtomicU64,
    pub(crate) tls: Option<Tls>,
    /// Whether answers of the S3 dialect carry OSS's CRC: nobody has said whether OSS's do.
    pub(crate) crc_in_s3: bool,
    /// The most keys of a page.
    pub(crate) page: usize,
    pub(crate) sts: Sts,
}

impl Server {
    pub(crate) fn now(&self) -> DateTime<Utc> {
        Utc::now() + TimeDelta::seconds(self.clock.load(Relaxed))
    }

    fn pace(&self) -> Pace {
        self.pace.lock().expect("no panic while the lock is held").clone()
    }

    /// Whether this request is within the admission.
    fn admits(&self, rate: Option<u64>) -> bool {
        let Some(rate) = rate else { return true };
        let rate = rate as f64;
        // A tenth of a second's worth may come at once.
        let burst = (rate / 10.0).max(1.0);
        let mut admitted = self.admitted.lock().expect("no panic while the lock is held");
        let now = Instant::now();
        let (at, left) = admitted.unwrap_or((now, burst));
        let left = (left + (now - at).as_secs_f64() * rate).min(burst);
        let admits = left >= 1.0;
        *admitted = Some((now, if admits { left - 1.0 } else { left }));
        admits
    }
}

/// Takes connections until the runtime is dropped.
pub(crate) async fn accept(server: Arc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(server.clone(), stream, peer));
            }
            // Out of descriptors, most likely: wait for connections to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream, _peer: SocketAddr) {
    server.counters.connections.fetch_add(1, Relaxed);
    server.counters.open_connections.fetch_add(1, Relaxed);
    // Without it the kernel holds small answers back.
    let _ = stream.set_nodelay(true);
    match server.tls.as_ref().map(|tls| tls.acceptor.clone()) {
        None => serve(&server, stream, |stream| stream).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(&server, stream, |stream| stream.get_ref().0).await;
            }
        }
    }
    server.counters.open_connections.fetch_sub(1, Relaxed);
}

async fn serve<S>(server: &Arc<Server>, stream: S, tcp: impl Fn(&S) -> &TcpStream)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (shared, mut seized) = Connection::new(server.pace().bandwidth);
    let service = service_fn(|request| handle(server.clone(), shared.clone(), request));
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let how = tokio::select! {
        _ = &mut connection => return,
        how = &mut seized => how,
    };
    let mut stream = connection.into_parts().io.into_inner();
    // Errors mean that the client has gone first, which is what it is to learn here.
    let _ = match how {
        Ok(Seize::Reset) => tcp(&stream).set_zero_linger(),
        Ok(Seize::Trail(bytes)) => write_out(&mut stream, b"HTTP/1.1", bytes).await,
        Ok(Seize::Header(bytes)) => {
            write_out(&mut stream, b"HTTP/1.1 200 OK\r\nx-long: ", bytes).await
        }
        Ok(Seize::SlowHeader(pause)) => {
            drip(&mut stream, b"HTTP/1.1 200 OK\r\nx-long: ", pause).await
        }
        Ok(Seize::Raw(bytes)) => match stream.write_all(&bytes).await {
            Ok(()) => stream.shutdown().await,
            Err(error) => Err(error),
        },
        Ok(Seize::Close) | Err(_) => stream.shutdown().await,
    };
}

/// Writes `start` and filler up to `len` bytes in all, then closes.
async fn write_out(
    stream: &mut (impl AsyncWrite + Unpin),
    start: &[u8],
    len: u64,
) -> std::io::Result<()> {
    stream.write_all(start).await?;
    let filler = vec![b'x'; 64 << 10];
    let mut left = len.saturating_sub(start.len() as u64);
    while left > 0 {
        let n = left.min(filler.len() as u64);
        stream.write_all(&filler[..n as usize]).await?;
        left -= n;
    }
    stream.shutdown().await
}

/// Writes `start` and then a byte at a time, until the client goes.
async fn drip(
    stream: &mut (impl AsyncWrite + Unpin),
    start: &[u8],
    pause: Duration,
) -> std::io::Result<()> {
    stream.write_all(start).await?;
    loop {
        stream.write_all(b"x").await?;
        stream.flush().await?;
        tokio::time::sleep(pause).await;
    }
}

async fn handle(
    server: Arc<Server>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Payload>, Infallible> {
    let (head, body) = request.into_parts();
    if head.uri.path().starts_with("/__admin/") {
        let body = read(body).await.unwrap_or_default();
        return Ok(respond(crate::admin::handle(&server, &head, &body)));
    }
    let in_flight = server.counters.enter();
    let id = format!("{:024X}", 0x6500_0000_0000_u64 + server.request_ids.fetch_add(1, Relaxed));
    let mut call = match parse(&head, &server.addressing) {
        Ok(call) => call,
        Err(_) => {
            let error =
                ApiError::new(400, "InvalidObjectName", "The key is not UTF-8.", "0016-00000003");
            return Ok(respond(write_error(&error, &id, "", Dialect::Oss, head.method == "HEAD")));
        }
    };
    let faults = {
        let mut faults = server.faults.lock().expect("no panic while the lock is held");
        if faults.is_empty() { Vec::new() } else { faults.strike(&call) }
    };
    server.counters.faults.fetch_add(faults.len() as u64, Relaxed);

    let pace = server.pace();
    let delay = faults.iter().fold(pace.ttfb, |delay, fault| match fault {
        Action::Delay(ms) => delay + Duration::from_millis(*ms),
        _ => delay,
    });
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    for fault in &faults {
        let seize = match fault {
            Action::ResetBeforeHeaders => Seize::Reset,
            Action::HugeHeader(bytes) => Seize::Header(*bytes),
            Action::SlowHeader(ms) => Seize::SlowHeader(Duration::from_millis(*ms)),
            Action::Raw(text) => Seize::Raw(text.clone().into()),
            _ => continue,
        };
        record(&server, &call, &head, 0);
        connection.seize(seize);
        // The connection is taken away; nothing more is said here.
        return std::future::pending().await;
    }

    let result = match instead(&server, &call, &head, &faults, pace.admit) {
        Some(reply) => reply,
        None => answer(&server, &mut call, body, &faults, &id).await,
    };
    let head_request = call.method == http::Method::HEAD;
    let mut reply = result
        .unwrap_or_else(|error| write_error(&error, &id, &call.host, call.dialect, head_request));
    let now = server.now();
    let plan = tamper(&mut reply, &call, &faults, now);
    let own = call.dialect.prefix();
    reply.set(&format!("{own}request-id"), &id);
    if !reply.headers.contains_key("date") {
        reply.set("date", &http_date(now));
    }
    reply.set("server", "AliyunOSS");
    record(&server, &call, &head, reply.status);
    reply.body = reply.body.dispatch(plan, connection, server.counters.clone(), in_flight);
    Ok(respond(reply))
}

pub(crate) async fn read(body: Incoming) -> Result<bytes::Bytes, ApiError> {
    let collected = body.collect().await;
    collected
        .map(|body| body.to_bytes())
        .map_err(|_| ApiError::new(400, "IncompleteBody", "The body ended early.", "0017-00000701"))
}

fn respond(mut reply: Reply) -> Response<Payload> {
    if !reply.headers.contains_key("content-length") && reply.status != 304 && reply.status != 204 {
        let length = reply.body.len().to_string();
        reply.set("content-length", &length);
    }
    let mut response = Response::new(reply.body);
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = reply.headers;
    response
}

fn record(server: &Server, call: &Call, head: &http::request::Parts, status: u16) {
    let text = |name: &str| call.header(name).map(str::to_owned);
    server.counters.record(call, status, || Logged {
        operation: call.operation,
        method: call.method.to_string(),
        target: head.uri.path_and_query().map(|t| t.to_string()).unwrap_or_default(),
        host: call.host.clone(),
        range: text("range"),
        if_match: text("if-match"),
        access_key_id: call.access_key_id.clone(),
        authorization: text("authorization"),
        security_token: call.dialect_header("security-token").map(str::to_owned),
        status,
    });
}

fn write_error(error: &ApiError, id: &str, host: &str, dialect: Dialect, head: bool) -> Reply {
    let xml = error.xml(id, host);
    let mut reply = if head { Reply::new(error.status) } else { Reply::xml(xml.clone()) };
    reply.status = error.status;
    if dialect == Dialect::Oss {
        reply.set("x-oss-ec", error.ec);
        if head {
            reply.set("x-oss-err", &base64(xml.as_bytes()));
        }
    }
    for (name, value) in &error.headers {
        reply.set(name, value);
    }
    reply
}

/// An answer that a fault or the admission gives before the request is looked at.
fn instead(
    server: &Server,
    call: &Call,
    head: &http::request::Parts,
    faults: &[Action],
    admit: Option<u64>,
) -> Option<Result<Reply, ApiError>> {
    for fault in faults {
        match fault {
            Action::Status { status, code, headers } => {
                let message = "A fault that was asked for.";
                let error = ApiError::new(*status, code, message, "0000-00000000");
                let error =
                    headers.iter().fold(error, |error, (name, value)| error.header(name, value));
                return Some(Err(error));
            }
            Action::Instead { status, content_type, body } => {
                let mut reply = Reply::new(*status).header("content-type", content_type);
                reply.body = Payload::text(body.clone());
                return Some(Ok(reply));
            }
            Action::Echo { status, code } => {
                return Some(Err(ApiError::echo(*status, code, call, head)));
            }
            Action::RedirectLoop => {
                let scheme = if server.tls.is_some() { "https" } else { "http" };
                let target = head.uri.path_and_query().map_or("/", |t| t.as_str());
                let location = format!("{scheme}://{}{target}", call.host);
                return Some(Ok(Reply::new(307).header("location", location)));
            }
            _ => {}
        }
    }
    let is_data = !matches!(call.operation, Operation::AssumeRole | Operation::InstanceMetadata);
    if is_data && !server.admits(admit) {
        let message = "Please reduce your request rate.";
        return Some(Err(ApiError::new(503, "QpsLimitExceeded", message, "0048-00000001")));
    }
    None
}

async fn answer(
    server: &Server,
    call: &mut Call,
    body: Incoming,
    faults: &[Action],
    id: &str,
) -> Result<Reply, ApiError> {
    match call.operation {
        Operation::AssumeRole => {
            let body = read(body).await?;
            return Ok(server.sts.assume_role(&server.store, call, &body, server.now(), id));
        }
        Operation::InstanceMetadata => {
            return Ok(server.sts.metadata(&server.store, call, server.now()));
        }
        _ => {}
    }
    let caller = crate::sign::verify(call, &server.store, &server.region, server.now())?;
    if let Caller::Key { id, .. } = &caller {
        call.access_key_id = Some(id.clone());
    }
    crate::buckets::authorize(server, call, &caller)?;
    crate::objects::disturb(&server.store, call, faults);
    crate::buckets::answer(server, call, body, faults).await
}

/// Inverts a bit of a header's value; of one that is made last, its length is known here.
fn flip_header(reply: &mut Reply, name: &str, at: usize) {
    let own = (name == "content-length").then(|| reply.body.len().to_string());
    let value = reply.headers.get(name).map(|value| value.as_bytes().to_vec());
    let Some(mut value) = value.or(own.map(String::into_bytes)) else { return };
    if let Some(byte) = value.get_mut(at) {
        *byte ^= 1;
    }
    if let (Ok(name), Ok(value)) =
        (http::HeaderName::from_bytes(name.as_bytes()), http::HeaderValue::from_bytes(&value))
    {
        reply.headers.insert(name, value);
    }
}

/// Applies to a finished answer what faults change in it, and plans what they do to its body.
fn tamper(reply: &mut Reply, call: &Call, faults: &[Action], now: DateTime<Utc>) -> Plan {
    let mut plan = Plan::default();
    let is_object = call.operation == Operation::GetObject && reply.status < 300;
    for fault in faults {
        match fault {
            Action::ResetAfter(bytes) => plan.cut = Some((*bytes, Cut::Reset)),
            Action::ShortBody(bytes) => plan.cut = Some((*bytes, Cut::Close)),
            Action::Stall { after, ms } => {
                plan.stalls.push((*after, ms.map(Duration::from_millis)));
            }
            Action::LongBody(extra) => plan.extra += extra,
            Action::Trailing(bytes) => plan.trailing = Some(*bytes),
            Action::FlipByte(offset) => {
                let at = offset.checked_sub(if is_object { reply.offset } else { 0 });
                plan.flips.extend(at.map(|at| (at, 0xff)));
            }
            Action::FlipBit(offset) => {
                let at = offset.checked_sub(if is_object { reply.offset } else { 0 });
                plan.flips.extend(at.map(|at| (at, 1)));
            }
            Action::Header(name, Some(value)) => reply.set(name, value),
            Action::Header(name, None) => {
                if let Ok(name) = http::HeaderName::from_bytes(name.as_bytes()) {
                    reply.headers.remove(name);
                }
            }
            Action::FlipHeader(name, at) => flip_header(reply, name, *at),
            Action::Replace(from, to) => {
                if let Some(text) = reply.body.as_text() {
                    reply.body = Payload::text(text.replacen(from.as_str(), to, 1));
                }
            }
            Action::Trickle { after, ms } => {
                plan.trickle = Some((*after, Duration::from_millis(*ms)));
            }
            Action::Etag(etag) => reply.set("etag", &format!("\"{etag}\"")),
            Action::ContentRange(value) => reply.set("content-range", value),
            Action::DateOffset(seconds) => {
                reply.set("date", &http_date(now + TimeDelta::seconds(*seconds)));
            }
            Action::Crc(crc) => reply.set("x-oss-hash-crc64ecma", &crc.to_string()),
            Action::NoCrc => {
                reply.headers.remove("x-oss-hash-crc64ecma");
            }
            Action::HugeXml(bytes) => plan.extra += bytes,
            Action::Status { .. }
            | Action::ResetBeforeHeaders
            | Action::HugeHeader(_)
            | Action::OtherRange(..)
            | Action::IgnoreRange
            | Action::RedirectLoop
            | Action::RepeatToken
            | Action::RepeatPage
            | Action::BeginAnew
            | Action::EmptyPages
            | Action::Vanish
            | Action::Overwrite
            | Action::Instead { .. }
            | Action::Raw(_)
            | Action::Echo { .. }
            | Action::SlowHeader(_)
            | Action::Delay(_) => {}
        }
    }
    if plan.extra > 0 {
        let length = (reply.body.len() + plan.extra).to_string();
        reply.set("content-length", &length);
    }
    plan
}
