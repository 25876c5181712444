//! The kubelet's HTTPS endpoint, from which the API server serves `pods/log`.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use percent_encoding::percent_decode_str;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::log::Part;
use crate::world::World;

type Body = BoxBody<Bytes, Infallible>;

/// Listens on a free port of the loopback address.
pub(crate) async fn listen() -> io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// A certificate that nobody vouches for: API servers check none unless they are told to.
pub(crate) fn acceptor() -> io::Result<TlsAcceptor> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let names = CertificateParams::new(vec![super::ADDRESS.to_owned()]);
    let certificate = names.and_then(|names| names.self_signed(&key)).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(io::Error::other)?;
    Ok(Arc::new(config).into())
}

/// Serves for as long as it is polled.
pub(crate) async fn serve(world: Arc<World>, listener: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let (world, acceptor) = (Arc::clone(&world), acceptor.clone());
        connections.spawn(async move {
            // a client that went away is no matter of ours
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let answer = answer(&world, &request);
                async move { answer }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            let _gone = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// An error breaks the connection.
fn answer(world: &World, request: &Request<Incoming>) -> io::Result<Response<Body>> {
    let path: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    let query = Query::of(request.uri().query().unwrap_or_default());
    let (namespace, pod, container) = match path.as_slice() {
        ["healthz"] => return Ok(text(StatusCode::OK, "ok")),
        ["containerLogs", namespace, pod, container] => (*namespace, *pod, *container),
        _ => return Ok(text(StatusCode::NOT_FOUND, "404 page not found")),
    };
    if world.pod(namespace, pod).is_some_and(|pod| is_lost(world, &pod)) {
        return Err(io::Error::other("the node is lost"));
    }
    let key = [namespace, pod, container].map(str::to_owned);
    let Some(log) = world.logs.get(&key, query.previous) else {
        let why = if query.previous {
            format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
        } else {
            format!(
                "container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating"
            )
        };
        return Ok(text(StatusCode::BAD_REQUEST, &why));
    };
    let (now, seen) = log.read(&query.part);
    if !query.follow {
        return Ok(Response::new(Full::new(now.into()).boxed()));
    }
    let timestamps = query.part.timestamps;
    let later = stream::unfold((log, seen), move |(log, seen)| async move {
        let (more, seen) = log.follow(seen, timestamps).await?;
        Some((more, (log, seen)))
    });
    let all = stream::once(async { now }).chain(later);
    let frames = all.map(|bytes| Ok(Frame::data(Bytes::from(bytes))));
    Ok(Response::new(BodyExt::boxed(StreamBody::new(Box::pin(frames)))))
}

fn is_lost(world: &World, pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.is_some_and(|node| world.is_lost(node))
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed());
    *response.status_mut() = status;
    response
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    part: Part,
    follow: bool,
    previous: bool,
}

impl Query {
    /// What it does not know, or cannot read, is left out.
    fn of(query: &str) -> Self {
        let mut all = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            match name {
                "follow" => all.follow = value == "true",
                "previous" => all.previous = value == "true",
                "timestamps" => all.part.timestamps = value == "true",
                "tailLines" => all.part.tail = value.parse().ok(),
                "limitBytes" => all.part.limit = value.parse().ok(),
                "sinceTime" => all.part.since = value.parse().ok(),
                "sinceSeconds" => {
                    let ago = value.parse().ok().map(SignedDuration::from_secs);
                    all.part.since = ago.and_then(|ago| Timestamp::now().checked_sub(ago).ok());
                }
                _ => {}
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_the_part_of_a_log() {
        let query =
            Query::of("follow=true&tailLines=50&unknown=1&sinceTime=2026-01-02T03%3A04%3A05Z");
        assert!(query.follow && !query.previous);
        assert_eq!(query.part.tail, Some(50));
        assert_eq!(query.part.since, "2026-01-02T03:04:05Z".parse().ok());
        let since = Query::of("sinceSeconds=60").part.since.unwrap();
        assert!(since < Timestamp::now());
        assert_eq!(Query::of(""), Query::default());
    }
}
