//! Connections: how they are made (names, addresses, proxies, TLS), kept and used again.
//!
//! Nothing here follows redirects, decompresses or rewrites a URL. A connection has no task of its
//! own: whoever waits for its answer drives it, so that a request costs no hop from one task to
//! another, and a connection stays on the thread that uses it.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use reqsign_core::Env;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use super::error::{Cause, StoreError, beneath};
use super::names::Names;
use super::wire::{Wire, origin};
use crate::lock::lock;

/// Idle connections are closed before the source closes them (OSS: after some 60 s), so that no
/// request is sent into a closing one.
const IDLE: Duration = Duration::from_secs(30);

/// The time between connection attempts to the addresses of one name (RFC 8305, section 8).
const HAPPY_EYEBALLS: Duration = Duration::from_millis(250);

type BoxError = Box<dyn Error + Send + Sync>;
type Tcp = TokioIo<TcpStream>;

/// What is particular to one transport.
#[derive(Debug)]
pub(super) struct Options<'a> {
    pub(super) env: &'a dyn Env,
    pub(super) ca_bundle: Option<&'a Path>,
    pub(super) connect_timeout: Duration,
    /// Longest wait for a connection that can be used: name, address, proxy, TLS.
    pub(super) answer_timeout: Duration,
    /// Whether the environment's proxies apply.
    pub(super) proxied: bool,
}

/// Why no answer came.
#[derive(Debug)]
pub(super) enum SendError {
    Connect(Cause),
    /// The host's certificate is not trusted.
    Certificate(Cause),
    Broken(Cause),
    Late,
}

/// Opens connections, and keeps those that can be used again.
#[derive(Clone)]
pub(super) struct Transport {
    connect: Timed,
    proxies: Arc<Matcher>,
    kept: Arc<Kept>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

impl Transport {
    /// # Errors
    /// [`StoreError::CaBundle`] and [`StoreError::Proxy`].
    pub(super) fn new(options: &Options<'_>) -> Result<Self, StoreError> {
        let tls = Arc::new(tls(options)?);
        let proxies = Arc::new(if options.proxied { proxies(options.env)? } else { no_proxies() });
        let mut tcp = HttpConnector::new_with_resolver(Names::of_the_system());
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(options.connect_timeout));
        tcp.set_happy_eyeballs_timeout(Some(HAPPY_EYEBALLS));
        // dead peers are noticed by our own timers; this keeps NAT gateways' tables warm
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let route = Route { tcp, tls: tls.clone(), proxies: proxies.clone() };
        let connect =
            Timed { limit: options.answer_timeout, connect: HttpsConnector::from((route, tls)) };
        Ok(Self { connect, proxies, kept: Arc::default() })
    }

    /// The same with connections of its own: one for each thread, and none is driven by two.
    pub(super) fn apart(&self) -> Self {
        Self { kept: Arc::default(), ..self.clone() }
    }

    /// Sends a request and waits at most `timeout` for the headers of its answer. A connection to be
    /// opened has its own time before that, so that it is known which of the two did not come.
    pub(super) async fn send(
        &self,
        mut request: Request<Bytes>,
        timeout: Duration,
    ) -> Result<Response<Arriving>, SendError> {
        // a proxy for plain HTTP sees the request itself; a tunnel was authorized when it was dug
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(auth) = self.proxies.intercept(request.uri())
            && let Some(auth) = auth.basic_auth()
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, auth.clone());
        }
        let to = To::of(request.uri())?;
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(to.authority.as_str());
            request.headers_mut().insert(HOST, host.map_err(broken)?);
        }
        loop {
            let (mut line, used) = match self.kept.take(&to) {
                Some(line) => (line, true),
                None => (self.open(request.uri()).await?, false),
            };
            let target: Cow<'_, str> = match line.proxied {
                true => request.uri().to_string().into(),
                false => origin(request.uri()).into(),
            };
            let exchange = line.wire.exchange(&request, &target);
            let answer = tokio::time::timeout(timeout, exchange).await;
            match answer.map_err(|_| SendError::Late)? {
                Ok(answer) => {
                    let home = Home { kept: self.kept.clone(), to };
                    return Ok(answer.map(|()| Arriving { line: Some(line), home }));
                }
                // the other side closed it while it was kept, or what came is left over from the answer
                // before: it is asked for again, which nothing here minds
                Err(error) if used && (!line.wire.answered() || is_no_answer(&error)) => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    async fn open(&self, to: &Uri) -> Result<Box<Line>, SendError> {
        let mut connect = self.connect.clone();
        let io = match connect.call(to.clone()).await {
            Ok(io) => io,
            Err(error) if is_untrusted(&*error) => {
                return Err(SendError::Certificate(error.into()));
            }
            Err(error) => return Err(SendError::Connect(error.into())),
        };
        let proxied = io.connected().is_proxied();
        Ok(Box::new(Line { wire: Wire::new(io), proxied }))
    }
}

fn broken(error: impl Error + Send + Sync + 'static) -> SendError {
    SendError::Broken(Arc::new(error))
}

fn is_no_answer(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// Where a connection leads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct To {
    scheme: Scheme,
    authority: Authority,
}

impl To {
    fn of(uri: &Uri) -> Result<Self, SendError> {
        match (uri.scheme(), uri.authority()) {
            (Some(scheme), Some(authority)) => {
                Ok(Self { scheme: scheme.clone(), authority: authority.clone() })
            }
            _ => Err(broken(io::Error::other("no host to send it to"))),
        }
    }
}

/// Connections that wait for their next request, the one used last on top: the others grow old.
#[derive(Default)]
struct Kept(Mutex<Vec<(To, Instant, Box<Line>)>>);

impl Kept {
    fn take(&self, to: &To) -> Option<Box<Line>> {
        let mut kept = lock(&self.0);
        loop {
            let at = kept.iter().rposition(|(leads, ..)| leads == to)?;
            let (_, since, mut line) = kept.remove(at);
            if since.elapsed() < IDLE && line.wire.is_quiet() {
                return Some(line);
            }
        }
    }

    fn keep(&self, to: To, line: Box<Line>) {
        let mut kept = lock(&self.0);
        // fewer requests leave connections that are not asked for again
        let old = kept.iter().take_while(|(_, since, _)| since.elapsed() >= IDLE).count();
        kept.drain(..old);
        kept.push((to, Instant::now(), line));
    }
}

/// A connection, and how its requests are addressed.
struct Line {
    wire: Wire<MaybeHttpsStream<Routed>>,
    /// Whether it leads to a proxy that takes whole URLs.
    proxied: bool,
}

/// Where a connection goes back to.
struct Home {
    kept: Arc<Kept>,
    to: To,
}

/// A body on its way. Read to its end, it leaves its connection to the next request; dropped before,
/// it closes it.
pub(super) struct Arriving {
    /// Gone only while it is dropped.
    line: Option<Box<Line>>,
    home: Home,
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arriving").field("to", &self.home.to).finish_non_exhaustive()
    }
}

impl Arriving {
    /// The next bytes; `None` at the end.
    pub(super) async fn frame(&mut self) -> Option<io::Result<Bytes>> {
        self.line.as_mut()?.wire.frame().await
    }

    /// Whether the end is known to be reached.
    pub(super) fn is_end(&self) -> bool {
        self.line.as_ref().is_none_or(|line| line.wire.is_done())
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if let Some(line) = self.line.take()
            && line.wire.is_free()
        {
            self.home.kept.keep(self.home.to.clone(), line);
        }
    }
}

/// Why a body could not be read to its end.
#[derive(Debug)]
pub(super) enum BodyError {
    Broken(Cause),
    /// No byte in time.
    Late,
    /// More than the bound.
    Long,
}

/// Reads a body of at most `bound` bytes, waiting at most `stall` for each frame and `longest` for
/// all of it: bytes that drip are no answer either.
pub(super) async fn read_body(
    body: Arriving,
    bound: usize,
    stall: Duration,
    longest: Duration,
) -> Result<Bytes, BodyError> {
    let read = tokio::time::timeout(longest, read_frames(body, bound, stall));
    read.await.map_err(|_| BodyError::Late)?
}

async fn read_frames(
    mut body: Arriving,
    bound: usize,
    stall: Duration,
) -> Result<Bytes, BodyError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) =
        tokio::time::timeout(stall, body.frame()).await.map_err(|_| BodyError::Late)?
    {
        let frame = frame.map_err(|error| BodyError::Broken(Arc::new(error)))?;
        if bytes.len() + frame.len() > bound {
            return Err(BodyError::Long);
        }
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes.freeze())
}

/// Bundled roots, plus the caller's and those of `SSL_CERT_FILE`; TLS 1.2 and 1.3.
fn tls(options: &Options<'_>) -> Result<ClientConfig, StoreError> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = options.ca_bundle {
        add_roots(&mut roots, path)?;
    }
    if let Some(path) = options.env.var("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        add_roots(&mut roots, Path::new(&path))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3");
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), StoreError> {
    let refuse = |reason: String| StoreError::CaBundle { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
        roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
        found = true;
    }
    if found { Ok(()) } else { Err(refuse("it holds no PEM certificate".to_owned())) }
}

/// The proxies of the environment, as curl reads them.
fn proxies(env: &dyn Env) -> Result<Matcher, StoreError> {
    let var = |upper: &str, lower: &str| {
        env.var(upper).or_else(|| env.var(lower)).map(|v| v.trim().to_owned()).unwrap_or_default()
    };
    let all = var("ALL_PROXY", "all_proxy");
    let https = var("HTTPS_PROXY", "https_proxy");
    let http = var("HTTP_PROXY", "http_proxy");
    for given in [&all, &https, &http].into_iter().filter(|given| !given.is_empty()) {
        let known = given.parse::<Uri>().is_ok_and(|uri| {
            let scheme = uri.scheme_str().unwrap_or("http");
            uri.authority().is_some() && ["http", "https", "socks5", "socks5h"].contains(&scheme)
        });
        if !known {
            let host = given.rsplit('@').next().unwrap_or_default().to_owned();
            return Err(StoreError::Proxy(host));
        }
    }
    let no = var("NO_PROXY", "no_proxy");
    Ok(Matcher::builder().all(all).https(https).http(http).no(no).build())
}

fn no_proxies() -> Matcher {
    Matcher::builder().build()
}

/// Whether it is the host's certificate that failed: other attempts will not do better.
fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    let mut below = Some(error);
    while let Some(error) = below {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return matches!(error, rustls::Error::InvalidCertificate(_));
        }
        below = beneath(error);
    }
    false
}

/// Whether what answered does not speak TLS.
pub(super) fn is_plain(error: &(dyn Error + 'static)) -> bool {
    let mut below = Some(error);
    while let Some(error) = below {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            let other = rustls::InvalidMessage::InvalidContentType;
            return *error == rustls::Error::InvalidMessage(other);
        }
        below = beneath(error);
    }
    false
}

/// Connects within a time: name, address, proxy and TLS together.
#[derive(Clone)]
struct Timed {
    limit: Duration,
    connect: HttpsConnector<Route>,
}

impl Service<Uri> for Timed {
    type Response = MaybeHttpsStream<Routed>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connect.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.limit, self.connect.call(to));
        Box::pin(async move { connecting.await.map_err(|_| "no connection in time")? })
    }
}

/// Connects to a host: directly, or through the proxy that the environment names for it.
#[derive(Clone)]
struct Route {
    tcp: HttpConnector<Names<GaiResolver>>,
    /// For proxies that are themselves reached by TLS.
    tls: Arc<ClientConfig>,
    proxies: Arc<Matcher>,
}

impl Service<Uri> for Route {
    type Response = Routed;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Routed, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move { Ok(Routed::direct(connecting.await?)) });
        };
        if proxy.uri().scheme_str().is_some_and(|scheme| scheme.starts_with("socks")) {
            return self.through_socks(&proxy, to);
        }
        let mut connector = HttpsConnector::from((self.tcp.clone(), self.tls.clone()));
        if to.scheme() == Some(&Scheme::HTTPS) {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), connector);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            let digging = tunnel.call(to);
            return Box::pin(async move { Ok(Routed { io: digging.await?, proxied: false }) });
        }
        let connecting = connector.call(proxy.uri().clone());
        Box::pin(async move { Ok(Routed { io: connecting.await?, proxied: true }) })
    }
}

impl Route {
    fn through_socks(&self, proxy: &Intercept, to: Uri) -> <Self as Service<Uri>>::Future {
        let mut at = proxy.uri().clone();
        if at.port().is_none() {
            let host = at.host().unwrap_or_default();
            at = match format!("http://{host}:1080/").parse() {
                Ok(at) => at,
                Err(error) => return Box::pin(async move { Err(Box::new(error) as BoxError) }),
            };
        }
        let mut socks = SocksV5::new(at, self.tcp.clone());
        if let Some((user, password)) = proxy.raw_auth() {
            socks = socks.with_auth(user.to_owned(), password.to_owned());
        }
        let connecting = socks.call(to);
        Box::pin(async move { Ok(Routed::direct(connecting.await?)) })
    }
}

/// A connection to the source, or to a proxy that takes whole URLs.
struct Routed {
    io: MaybeHttpsStream<Tcp>,
    proxied: bool,
}

impl Routed {
    fn direct(tcp: Tcp) -> Self {
        Self { io: MaybeHttpsStream::Http(tcp), proxied: false }
    }
}

impl Connection for Routed {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.proxied)
    }
}

impl Read for Routed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Routed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
