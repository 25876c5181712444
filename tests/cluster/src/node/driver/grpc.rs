//! As much of gRPC as a driver needs: one request, one answer, on a Unix socket.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;

/// A refusal: one of gRPC's codes and why.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    pub(crate) fn exists(message: impl Into<String>) -> Self {
        Self { code: 6, message: message.into() }
    }

    pub(crate) fn unimplemented(method: &str) -> Self {
        Self { code: 12, message: format!("{method} is not implemented") }
    }

    pub(crate) fn internal(message: impl ToString) -> Self {
        Self { code: 13, message: message.to_string() }
    }
}

/// Answers all requests of all connections by `answer`, which gets the method's path and the
/// request's message.
pub(crate) async fn serve<A, F>(listener: UnixListener, answer: Arc<A>)
where
    A: Fn(String, Bytes) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Vec<u8>, Status>> + Send + 'static,
{
    // an error of `accept` is one of a connection that is gone
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let answer = answer.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let answer = answer.clone();
            async move {
                let method = request.uri().path().to_owned();
                let result = match message(request).await {
                    Ok(message) => answer(method, message).await,
                    Err(status) => Err(status),
                };
                Ok::<_, Infallible>(response(result))
            }
        });
        tokio::spawn(async move {
            // an error here is the client's end of the connection
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The one message of a request: a byte that says whether it is compressed, its length, itself.
async fn message(request: Request<Incoming>) -> Result<Bytes, Status> {
    let body = request.into_body().collect().await.map_err(Status::internal)?;
    let mut bytes = body.to_bytes();
    if bytes.len() < 5 || bytes.get_u8() != 0 {
        return Err(Status::invalid("no uncompressed message"));
    }
    let length = bytes.get_u32() as usize;
    if bytes.len() != length {
        return Err(Status::invalid("not one message"));
    }
    Ok(bytes)
}

type Frames = futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

fn response(result: Result<Vec<u8>, Status>) -> Response<StreamBody<Frames>> {
    let mut frames = Vec::new();
    let mut trailers = HeaderMap::new();
    let status = match result {
        Ok(message) => {
            let mut data = BytesMut::from(&[0][..]);
            // a message of the driver is far below 4 GiB
            data.extend_from_slice(&(message.len() as u32).to_be_bytes());
            data.extend_from_slice(&message);
            frames.push(Ok(Frame::data(data.freeze())));
            Status { code: 0, message: String::new() }
        }
        Err(status) => status,
    };
    trailers.insert("grpc-status", HeaderValue::from(status.code));
    let printable = |c: char| if c.is_ascii_graphic() && c != '%' { c } else { ' ' };
    let message: String = status.message.chars().map(printable).collect();
    if let Ok(message) = HeaderValue::from_str(message.trim()) {
        trailers.insert("grpc-message", message);
    }
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
