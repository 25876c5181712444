//! A plain HTTP/1.1 client: what it sends is exactly what a test says, and what it gets is shown
//! as it came.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use reqsign_core::{Context, Signer};

/// An answer; `complete` says whether the body had the length that its header gave.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub end: End,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum End {
    Complete,
    Closed,
    Reset,
    Silence,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
    pub fn code(&self) -> &str {
        let from = self.text().find("<Code>").expect("an error") + 6;
        &self.text()[from..self.text().find("</Code>").unwrap()]
    }
}

pub fn send(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    send_for(Duration::from_secs(20), to, method, target, headers, body)
}

/// As [`send`], but waits no longer than `patience` for more of the answer.
pub fn send_for(
    patience: Duration,
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += &format!("host: {to}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    receive(&mut stream, method)
}

fn receive(stream: &mut TcpStream, method: &str) -> Answer {
    let mut got = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut answer = Answer { status: 0, headers: Vec::new(), body: Vec::new(), end: End::Closed };
    let mut wanted = usize::MAX;
    loop {
        if answer.status == 0
            && let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&got[..at]).into_owned();
            let mut lines = head.lines();
            answer.status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            answer.headers = lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            got.drain(..at + 4);
            let none = method == "HEAD" || answer.status == 204 || answer.status == 304;
            let length = answer.header("content-length").and_then(|l| l.parse().ok());
            wanted = if none { 0 } else { length.unwrap_or(0) };
        }
        if answer.status != 0 && got.len() >= wanted {
            answer.end = End::Complete;
            break;
        }
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {
                answer.end = End::Reset;
                break;
            }
            Err(_) => {
                answer.end = End::Silence;
                break;
            }
        }
    }
    answer.body = got;
    answer
}

/// Signs with reqsign, OSS version 4.
pub fn sign_oss(
    method: &str,
    url: &str,
    bucket: &str,
    headers: &[(&str, &str)],
    key: (&str, &str, Option<&str>),
) -> Vec<(String, String)> {
    use reqsign_aliyun_oss::{RequestSigner, SigningVersion, StaticCredentialProvider};
    let provider = StaticCredentialProvider::new(key.0, key.1);
    let provider = match key.2 {
        Some(token) => provider.with_security_token(token),
        None => provider,
    };
    let signer = RequestSigner::new(bucket)
        .with_signing_version(SigningVersion::V4)
        .with_region("cn-hangzhou");
    let mut parts = parts(method, url, headers);
    block_on(Signer::new(Context::new(), provider, signer).sign(&mut parts, None)).unwrap();
    signed(&parts)
}

/// Signs with reqsign, AWS version 4.
pub fn sign_s3(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    key: (&str, &str),
) -> Vec<(String, String)> {
    use reqsign_aws_v4::{RequestSigner, StaticCredentialProvider};
    let provider = StaticCredentialProvider::new(key.0, key.1);
    let signer = RequestSigner::new("s3", "cn-hangzhou");
    let mut parts = parts(method, url, headers);
    block_on(Signer::new(Context::new(), provider, signer).sign(&mut parts, None)).unwrap();
    signed(&parts)
}

fn parts(method: &str, url: &str, headers: &[(&str, &str)]) -> http::request::Parts {
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn signed(parts: &http::request::Parts) -> Vec<(String, String)> {
    parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
