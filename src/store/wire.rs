//! HTTP/1.1 on one connection (RFC 9112): a request goes out, its answer comes in.
//!
//! What a general client cannot give: the bytes of a body are received into a few buffers that the
//! thread uses again and again, so that they are still in the core's cache when they are checked and
//! written, and a connection that waits holds none.

use crate::lock::lock;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};
use hyper::rt::{Read, ReadBuf, Write};

/// The most headers of an answer; OSS sends some 15 besides user metadata.
const MAX_HEADERS: usize = 100;
/// The longest head of an answer: user metadata may have 8 KiB, and a proxy adds its own.
const MAX_HEAD: usize = 64 << 10;
const TOO_LONG: &str = "the head of the answer is longer than any";
/// Bytes received at once. Two of these, and what the kernel copies them from, stay in a core's second
/// cache. Measured with 4 objects of 1 GiB: 32 KiB took a tenth more CPU time than 128 KiB, and 256 KiB
/// up to a tenth less.
pub(super) const FRAME: usize = 256 << 10;
/// Buffers that a thread keeps: what is held longer than a moment is few frames of small objects.
const SPARE: usize = 8;

/// Buffers to receive into, the one used last on top.
type Spare = Arc<Mutex<Vec<Vec<u8>>>>;

thread_local! {
    static BUFFERS: Spare = Spare::default();
}

/// A buffer that goes back to the thread that it is from, whichever lets go of it.
struct Lent {
    bytes: Vec<u8>,
    home: Spare,
}

impl Lent {
    fn new() -> Self {
        let home = BUFFERS.with(Spare::clone);
        let spare = lock(&home).pop();
        Self { bytes: spare.unwrap_or_else(|| vec![0; FRAME]), home }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = lock(&self.home);
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// After so many more bytes.
    Length(u64),
    /// As its chunks say: so many more bytes of this one.
    Chunk(u64),
    /// Behind a chunk, whose line end is still to come.
    ChunkEnd,
    /// Before the next chunk's size.
    ChunkSize,
    /// Behind the last chunk, in the trailers.
    Trailers,
    /// With the connection.
    Close,
    Done,
}

/// One connection.
pub(super) struct Wire<T> {
    io: T,
    /// Received and not yet used.
    rest: Bytes,
    framing: Framing,
    /// Whether it takes another request after this one.
    lasts: bool,
    /// Whether anything was received since the last request.
    answered: bool,
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<T: Read + Write + Unpin> Wire<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, rest: Bytes::new(), framing: Framing::Done, lasts: true, answered: false }
    }

    /// Whether the last answer is read to its end, and another request may follow it.
    pub(super) fn is_free(&self) -> bool {
        self.framing == Framing::Done && self.lasts && self.rest.is_empty()
    }

    /// Whether nothing came while it was kept: neither its end nor bytes that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.io).poll_read(&mut cx, buffer.unfilled()).is_pending()
    }

    /// Whether the last answer is read to its end.
    pub(super) fn is_done(&self) -> bool {
        self.framing == Framing::Done
    }

    /// Whether anything came since the last request was sent.
    pub(super) fn answered(&self) -> bool {
        self.answered
    }

    /// Sends a request for `target`, and receives the head of its answer.
    pub(super) async fn exchange(
        &mut self,
        request: &Request<Bytes>,
        target: &str,
    ) -> io::Result<Response<()>> {
        self.answered = false;
        self.lasts = false;
        self.send(encode(request, target)).await?;
        let is_head = request.method() == Method::HEAD;
        loop {
            let answer = poll_fn(|cx| self.poll_head(cx, is_head)).await?;
            // an interim answer is followed by the one that counts
            if !is_interim(answer.status()) {
                return Ok(answer);
            }
        }
    }

    async fn send(&mut self, mut bytes: Bytes) -> io::Result<()> {
        poll_fn(|cx| {
            while bytes.has_remaining() {
                let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &bytes))?;
                if sent == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                bytes.advance(sent);
            }
            Pin::new(&mut self.io).poll_flush(cx)
        })
        .await
    }

    /// Receives what is there, at most `limit` bytes; nothing at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>, limit: u64) -> Poll<io::Result<Bytes>> {
        // taken for this moment only: who waits holds no buffer
        let mut lent = Lent::new();
        let length = usize::try_from(limit).unwrap_or(FRAME).min(FRAME);
        let mut buffer = ReadBuf::new(&mut lent.bytes[..length]);
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer.unfilled()))?;
        let received = buffer.filled().len();
        self.answered |= received > 0;
        let mut bytes = Bytes::from_owner(lent);
        bytes.truncate(received);
        Poll::Ready(Ok(bytes))
    }

    /// Receives more behind what is not yet used.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let more = ready!(self.poll_receive(cx, u64::MAX))?;
        if more.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.rest = match self.rest.is_empty() {
            true => more,
            false => [&self.rest[..], &more].concat().into(),
        };
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, is_head: bool) -> Poll<io::Result<Response<()>>> {
        loop {
            if !self.rest.is_empty()
                && let Some((answer, length)) = parse(&self.rest)?
            {
                self.rest.advance(length);
                if !is_interim(answer.status()) {
                    self.framing = framing(&answer, is_head)?;
                    self.lasts = self.framing != Framing::Close && lasts(&answer);
                }
                return Poll::Ready(Ok(answer));
            }
            if self.rest.len() >= MAX_HEAD {
                return Poll::Ready(Err(malformed(TOO_LONG)));
            }
            ready!(self.poll_more(cx))?;
        }
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn frame(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| self.poll_frame(cx)).await.transpose()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            match self.framing {
                Framing::Done | Framing::Length(0) => {
                    self.framing = Framing::Done;
                    return Poll::Ready(Ok(None));
                }
                Framing::Length(left) | Framing::Chunk(left) => {
                    let frame = ready!(self.poll_bytes(cx, left))?;
                    if frame.is_empty() {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    let left = left - frame.len() as u64;
                    self.framing = match self.framing {
                        Framing::Chunk(_) if left == 0 => Framing::ChunkEnd,
                        Framing::Chunk(_) => Framing::Chunk(left),
                        _ if left == 0 => Framing::Done,
                        _ => Framing::Length(left),
                    };
                    return Poll::Ready(Ok(Some(frame)));
                }
                Framing::Close => {
                    let frame = ready!(self.poll_bytes(cx, u64::MAX))?;
                    if frame.is_empty() {
                        self.framing = Framing::Done;
                        continue;
                    }
                    return Poll::Ready(Ok(Some(frame)));
                }
                Framing::ChunkEnd => match ready!(self.poll_line(cx))?.is_empty() {
                    true => self.framing = Framing::ChunkSize,
                    false => return Poll::Ready(Err(malformed("a chunk is longer than it says"))),
                },
                Framing::ChunkSize => {
                    let line = ready!(self.poll_line(cx))?;
                    self.framing = match chunk_size(&line) {
                        Some(0) => Framing::Trailers,
                        Some(size) => Framing::Chunk(size),
                        None => return Poll::Ready(Err(malformed("a chunk has no size"))),
                    };
                }
                Framing::Trailers => {
                    if ready!(self.poll_line(cx))?.is_empty() {
                        self.framing = Framing::Done;
                    }
                }
            }
        }
    }

    /// What is there of a body, at most `left` bytes; nothing where the connection ends.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, left: u64) -> Poll<io::Result<Bytes>> {
        if self.rest.is_empty() {
            return self.poll_receive(cx, left);
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(self.rest.len());
        Poll::Ready(Ok(self.rest.split_to(length)))
    }

    /// A line, without its end.
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line = self.rest.split_to(end + 1);
                if !line.ends_with(b"\r\n") {
                    return Poll::Ready(Err(malformed("a line between chunks has no end")));
                }
                line.truncate(end - 1);
                return Poll::Ready(Ok(line));
            }
            if self.rest.len() >= MAX_HEAD {
                return Poll::Ready(Err(malformed("a line between chunks is longer than any")));
            }
            ready!(self.poll_more(cx))?;
        }
    }
}

/// A request as it is sent. Its header values hold no line ends: their type sees to that.
fn encode(request: &Request<Bytes>, target: &str) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1024 + request.body().len());
    let mut put = |part: &[u8]| bytes.extend_from_slice(part);
    put(request.method().as_str().as_bytes());
    put(b" ");
    put(target.as_bytes());
    put(b" HTTP/1.1\r\n");
    for (name, value) in request.headers().iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        put(name.as_str().as_bytes());
        put(b": ");
        put(value.as_bytes());
        put(b"\r\n");
    }
    // a server waits for a body, or for its length, where one may come
    let takes_body = !matches!(*request.method(), Method::GET | Method::HEAD);
    if takes_body || !request.body().is_empty() {
        put(b"content-length: ");
        put(request.body().len().to_string().as_bytes());
        put(b"\r\n");
    }
    put(b"\r\n");
    put(request.body());
    bytes.freeze()
}

/// What a server itself is asked for: path and query, without the host.
pub(super) fn origin(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

/// The head at the start of `bytes` and its length, once it is whole.
fn parse(bytes: &Bytes) -> io::Result<Option<(Response<()>, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Complete(_)) => return Err(malformed(TOO_LONG)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in head.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        // a copy: a header that is kept must not keep the whole buffer
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(malformed("the answer has a header that is none"));
        };
        headers.append(name, value);
    }
    let mut answer = Response::new(());
    *answer.status_mut() = status.ok_or_else(|| malformed("the answer's status is none"))?;
    *answer.headers_mut() = headers;
    *answer.version_mut() = match head.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    Ok(Some((answer, length)))
}

/// 101 is followed by another protocol, which nobody asked for.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// How the body of an answer ends (RFC 9112, section 6.3).
fn framing(answer: &Response<()>, is_head: bool) -> io::Result<Framing> {
    let status = answer.status();
    if is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok(Framing::Done);
    }
    if answer.headers().contains_key(TRANSFER_ENCODING) {
        let mut codings = tokens(answer.headers(), TRANSFER_ENCODING);
        return match (codings.next(), codings.next()) {
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Framing::ChunkSize)
            }
            _ => Err(malformed("the answer is in a transfer coding that nobody asked for")),
        };
    }
    let mut lengths = tokens(answer.headers(), CONTENT_LENGTH);
    let Some(length) = lengths.next() else { return Ok(Framing::Close) };
    // digits alone: a sign would parse, too
    let is_number = length.bytes().all(|byte| byte.is_ascii_digit());
    match length.parse() {
        Ok(bytes) if is_number && lengths.all(|other| other == length) => Ok(match bytes {
            0 => Framing::Done,
            bytes => Framing::Length(bytes),
        }),
        _ => Err(malformed("the answer's Content-Length is no number")),
    }
}

/// Whether the connection takes another request behind this answer.
fn lasts(answer: &Response<()>) -> bool {
    let says = |word: &str| {
        tokens(answer.headers(), CONNECTION).any(|token| token.eq_ignore_ascii_case(word))
    };
    match answer.version() {
        // whoever passed on a coding that HTTP/1.0 has not may have lost the end of the body
        Version::HTTP_10 => says("keep-alive") && !answer.headers().contains_key(TRANSFER_ENCODING),
        _ => !says("close"),
    }
}

/// The elements of a list header; what is no text is one that equals nothing.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.to_str().unwrap_or("\u{fffd}").split(',').map(str::trim))
}

/// The size that a chunk begins with; what follows a `;` is for nobody.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?;
    let digits = line.split(';').next().unwrap_or_default().trim();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| is_number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use futures::FutureExt;
    use hyper::rt::ReadBufCursor;
    use proptest::prelude::*;

    use super::*;

    /// A server that sends `pieces`, each when it is asked for more, whatever it is sent.
    struct Script {
        pieces: std::collections::VecDeque<Vec<u8>>,
        sent: Vec<u8>,
    }

    impl Read for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            mut buffer: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(mut piece) = self.pieces.pop_front() {
                let length = piece.len().min(buffer.remaining());
                buffer.put_slice(&piece[..length]);
                if length < piece.len() {
                    self.pieces.push_front(piece.split_off(length));
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    impl Write for Script {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            // as slow as a connection can be
            self.sent.extend_from_slice(&bytes[..1]);
            Poll::Ready(Ok(1))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What an answer in `pieces` says: its status and body, and whether another request may follow.
    fn read(method: Method, pieces: &[&[u8]]) -> io::Result<(StatusCode, Vec<u8>, bool)> {
        let pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
        let mut wire = Wire::new(Script { pieces, sent: Vec::new() });
        let request = Request::builder().method(method).body(Bytes::new()).unwrap();
        let reading = async {
            let answer = wire.exchange(&request, "/").await?;
            let mut body = Vec::new();
            while let Some(frame) = wire.frame().await {
                body.extend_from_slice(&frame?);
            }
            Ok((answer.status(), body, wire.is_free()))
        };
        reading.now_or_never().expect("nothing here waits")
    }

    fn get(text: &str) -> io::Result<(StatusCode, Vec<u8>, bool)> {
        read(Method::GET, &[text.as_bytes()])
    }

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
        3\r\nabc\r\n00A;name=value\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";

    #[test]
    fn a_body_ends_where_its_answer_says() {
        let (status, body, free) = get("HTTP/1.1 206 x\r\nContent-Length: 3\r\n\r\nabc").unwrap();
        assert_eq!((status.as_u16(), &body[..], free), (206, &b"abc"[..], true));
        let (_, body, free) = get(CHUNKED).unwrap();
        assert_eq!((&body[..], free), (&b"abc0123456789"[..], true));
        let (_, body, free) = get("HTTP/1.1 200 OK\r\n\r\nto the end").unwrap();
        assert_eq!((&body[..], free), (&b"to the end"[..], false));
        for empty in ["HTTP/1.1 204 x\r\n\r\n", "HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n"] {
            let (_, body, free) = get(empty).unwrap();
            assert!(body.is_empty() && free, "{empty}");
        }
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n";
        let (_, body, free) = read(Method::HEAD, &[head]).unwrap();
        assert!(body.is_empty() && free);
    }

    #[test]
    fn a_connection_is_used_again_only_where_both_sides_mean_it() {
        let free = |text: &str| get(text).unwrap().2;
        assert!(!free("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: x, Close\r\n\r\na"));
        assert!(!free("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na"));
        assert!(free("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\na"));
        // what nobody asked for
        assert!(!free("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc"));
    }

    #[test]
    fn an_interim_answer_is_not_the_answer() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(get(text).unwrap().1, b"ok");
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let length = |value: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nabc");
        for text in [
            String::new(),
            "HTTP/1.1 200".to_owned(),
            "SSH-2.0-OpenSSH\r\n\r\n".to_owned(),
            length("4"),
            length("+3"),
            length("-3"),
            length("3, 4"),
            length("3\r\nContent-Length: 2"),
            length("99999999999999999999"),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(),
            CHUNKED.replace("3\r\n", "4\r\n"),
            CHUNKED.replace("3\r\n", "\r\n"),
            CHUNKED.replace("3\r\n", "+3\r\n"),
            CHUNKED.replace("3\r\n", "11111111111111111\r\n"),
            CHUNKED[..CHUNKED.len() - 2].to_owned(),
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD)),
            format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: x\r\n".repeat(MAX_HEADERS + 1)),
        ] {
            assert!(get(&text).is_err(), "{text:.200}");
        }
    }

    #[test]
    fn a_request_says_what_it_is_to() {
        let mut wire = Wire::new(Script { pieces: [].into(), sent: Vec::new() });
        let request = Request::put("http://host/a?b=c").header("host", "host");
        let request = request.body(Bytes::from("xyz")).unwrap();
        let target = origin(request.uri());
        wire.exchange(&request, target).now_or_never().unwrap().unwrap_err();
        let sent = String::from_utf8(wire.io.sent).unwrap();
        assert_eq!(sent, "PUT /a?b=c HTTP/1.1\r\nhost: host\r\ncontent-length: 3\r\n\r\nxyz");
    }

    proptest! {
        /// Wherever the network cuts it, an answer is the same.
        #[test]
        fn pieces_make_no_difference(cuts in prop::collection::vec(0..CHUNKED.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, CHUNKED.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts
                .windows(2)
                .map(|cut| &CHUNKED.as_bytes()[cut[0]..cut[1]])
                .filter(|piece| !piece.is_empty())
                .collect();
            let (_, body, free) = read(Method::GET, &pieces).unwrap();
            prop_assert_eq!((&body[..], free), (&b"abc0123456789"[..], true));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), flips in
            prop::collection::vec((0..CHUNKED.len(), any::<u8>()), 0..8)) {
            let _ = read(Method::GET, &[&bytes]);
            let mut text = CHUNKED.as_bytes().to_vec();
            for (at, byte) in flips {
                text[at] = byte;
            }
            let _ = read(Method::GET, &[&text]);
        }
    }
}
