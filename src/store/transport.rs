//! HTTP/1.1 over hyper: pooled connections, TLS, proxies.
//!
//! Nothing here follows redirects, decompresses or rewrites a URL.

use std::error::Error;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::PROXY_AUTHORIZATION;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use reqsign_core::Env;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use super::error::{Cause, StoreError, beneath};

/// Idle connections are closed before the source closes them (OSS: after some 60 s), so that no
/// request is sent into a closing one.
const IDLE: Duration = Duration::from_secs(30);

/// The default for the size of one body frame: 256 KiB is a few hundred system calls a gigabyte,
/// and still only 64 MiB for 256 connections. hyper's own default is 408 KiB.
pub(super) const READ_BUFFER: usize = 256 * 1024;

/// The buffer also bounds an answer's headers, of which 8 KiB may be user metadata alone. A smaller
/// frame is cut by [`super::body`].
const READ_BUFFER_MIN: usize = 64 * 1024;

/// The time between connection attempts to the addresses of one name (RFC 8305, section 8).
const HAPPY_EYEBALLS: Duration = Duration::from_millis(250);

type BoxError = Box<dyn Error + Send + Sync>;
type Tcp = TokioIo<TcpStream>;

/// What is particular to one transport.
#[derive(Debug)]
pub(super) struct Options<'a> {
    pub(super) env: &'a dyn Env,
    pub(super) ca_bundle: Option<&'a Path>,
    pub(super) read_buffer: Option<usize>,
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

/// A pool of connections.
#[derive(Clone)]
pub(super) struct Transport {
    client: Client<Timed, Full<Bytes>>,
    proxies: Arc<Matcher>,
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
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(options.connect_timeout));
        tcp.set_happy_eyeballs_timeout(Some(HAPPY_EYEBALLS));
        // dead peers are noticed by our own timers; this keeps NAT gateways' tables warm
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let route = Route { tcp, tls: tls.clone(), proxies: proxies.clone() };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(options.read_buffer.unwrap_or(READ_BUFFER).max(READ_BUFFER_MIN))
            .build(Timed {
                limit: options.answer_timeout,
                connect: HttpsConnector::from((route, tls)),
            });
        Ok(Self { client, proxies })
    }

    /// Sends a request and waits for the headers of its answer.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, SendError> {
        // a proxy for plain HTTP sees the request itself; a tunnel was authorized when it was dug
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(auth) = self.proxies.intercept(request.uri())
            && let Some(auth) = auth.basic_auth()
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, auth.clone());
        }
        match tokio::time::timeout(timeout, self.client.request(request)).await {
            Err(_) => Err(SendError::Late),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if is_untrusted(&error) => Err(SendError::Certificate(Arc::new(error))),
            Ok(Err(error)) if error.is_connect() => Err(SendError::Connect(Arc::new(error))),
            Ok(Err(error)) => Err(SendError::Broken(Arc::new(error))),
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
    body: Incoming,
    bound: usize,
    stall: Duration,
    longest: Duration,
) -> Result<Bytes, BodyError> {
    let read = tokio::time::timeout(longest, read_frames(body, bound, stall));
    read.await.map_err(|_| BodyError::Late)?
}

async fn read_frames(
    mut body: Incoming,
    bound: usize,
    stall: Duration,
) -> Result<Bytes, BodyError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) =
        tokio::time::timeout(stall, body.frame()).await.map_err(|_| BodyError::Late)?
    {
        let frame = frame.map_err(|error| BodyError::Broken(Arc::new(error)))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > bound {
                return Err(BodyError::Long);
            }
            bytes.extend_from_slice(&data);
        }
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

/// Connects within a time. A request that gets another's connection leaves its own attempt to go on
/// by itself, and one that a host never finishes would keep its descriptor for ever.
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
    tcp: HttpConnector,
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
