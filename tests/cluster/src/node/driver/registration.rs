//! The kubelet's question what is behind a socket, and its word that it has registered it.
//!
//! The kubelet puts the escaped path of the socket where HTTP/2 has the name of a host, and the
//! `h2` crate resets such a request. So this speaks just enough of HTTP/2 (RFC 9113) for two
//! methods that differ by their message: a question is empty, a notice is not.

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::messages::{Empty, Registration};
use super::{NAME, SOCKET};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// More than any frame of the kubelet's: what is larger is not from it.
const LARGEST: usize = 16 << 10;
/// A message's flag and length before it.
const PREFIX: usize = 5;

/// `:status: 200` by its number in HPACK's table (RFC 7541), `content-type` by the number of its
/// name.
const HEAD: &[u8] = b"\x88\x0f\x10\x10application/grpc";
const TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";

/// Answers the kubelet, connection after connection.
pub(crate) async fn serve(listener: UnixListener) {
    // an error of `accept` is one of a connection that is gone
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // an error here is the kubelet's end of the connection
        tokio::spawn(connection(stream));
    }
}

async fn connection(mut stream: UnixStream) -> std::io::Result<()> {
    let invalid = |what| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != PREFACE {
        return Err(invalid("no HTTP/2"));
    }
    send(&mut stream, SETTINGS, 0, 0, &[]).await?;
    loop {
        // three bytes of length, one of the kind
        let head = stream.read_u32().await?;
        let (length, kind) = ((head >> 8) as usize, (head & 0xff) as u8);
        let flags = stream.read_u8().await?;
        let id = stream.read_u32().await?;
        if length > LARGEST {
            return Err(invalid("a frame that is too large"));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            PING if flags & ACK == 0 => send(&mut stream, PING, ACK, 0, &payload).await?,
            // the message comes whole in one frame; the stream's end may be an empty one after it
            DATA if payload.len() >= PREFIX => {
                let message = answer(payload.len() == PREFIX);
                let mut data = vec![0];
                data.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
                data.extend_from_slice(&message);
                send(&mut stream, HEADERS, END_HEADERS, id, HEAD).await?;
                send(&mut stream, DATA, 0, id, &data).await?;
                send(&mut stream, HEADERS, END_HEADERS | END_STREAM, id, TRAILERS).await?;
            }
            // headers need no look, and windows are never full
            _ => {}
        }
    }
}

fn answer(question: bool) -> Vec<u8> {
    if !question {
        return Empty {}.encode_to_vec();
    }
    Registration {
        kind: "CSIPlugin".to_owned(),
        name: NAME.to_owned(),
        // as the kubelet sees it
        endpoint: format!("/var/lib/kubelet/{SOCKET}"),
        supported_versions: vec!["1.0.0".to_owned()],
    }
    .encode_to_vec()
}

async fn send(
    stream: &mut UnixStream,
    kind: u8,
    flags: u8,
    id: u32,
    payload: &[u8],
) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame).await
}
