//! A small client of the API server, for one user: one request, one connection, one answer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

use crate::Error;
use crate::wait::{LIMIT, Look, until};

/// How long one request may take: the API server itself gives up after a minute.
const REQUEST: Duration = Duration::from_secs(70);

/// The API of a cluster, as seen by one user.
#[derive(Clone)]
pub struct Api {
    address: SocketAddr,
    token: String,
    tls: Arc<ClientConfig>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What the API server answered.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "no answer of HTTP");
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(bad)?;
        let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
        let status = std::str::from_utf8(line).ok().and_then(|line| line.split(' ').nth(1));
        let status = status.and_then(|status| status.parse().ok()).ok_or_else(bad)?;
        Ok(Self { status, body: bytes[end + 4..].to_vec() })
    }
}

impl Api {
    pub(crate) fn new(address: SocketAddr, ca_pem: &str, token: &str) -> io::Result<Self> {
        let invalid = |error: &dyn fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
        };
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| invalid(&e))?;
        roots.add(ca).map_err(|error| invalid(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address, token: token.to_owned(), tls: Arc::new(tls) })
    }

    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Sends a request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn request(
        &self,
        method: &'static str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Answer, Error> {
        self.exchange(method, path, content_type, body).map_err(|source| Error::Request {
            method,
            path: path.to_owned(),
            source,
        })
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        let name = ServerName::IpAddress(self.address.ip().into());
        let connection = ClientConnection::new(self.tls.clone(), name).map_err(io::Error::other)?;
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(REQUEST))?;
        stream.set_nodelay(true)?;
        let mut stream = StreamOwned::new(connection, stream);
        // HTTP/1.0 has bodies that end with the connection: no chunks to put together
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nUser-Agent: cluster\r\n\
             Authorization: Bearer {}\r\nAccept: application/json\r\n\
             Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            self.token,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Answer::parse(&answer)
    }

    fn json(
        &self,
        method: &'static str,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> Result<Value, Error> {
        let answer = self.request(method, path, kind, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.json());
        }
        let message = match &answer.json()["message"] {
            Value::String(message) => message.clone(),
            _ => answer.text(),
        };
        Err(Error::Refused { method, path: path.to_owned(), status: answer.status, message })
    }

    /// An object or a list, e.g. of `/api/v1/namespaces/default/pods`.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for every status but 2xx, as with all that follow.
    pub fn get(&self, path: &str) -> Result<Value, Error> {
        self.json("GET", path, "application/json", &[])
    }

    /// The text at a path, e.g. a Pod's log.
    ///
    /// # Errors
    ///
    /// As [`Api::get`].
    pub fn text(&self, path: &str) -> Result<String, Error> {
        let answer = self.request("GET", path, "application/json", &[])?;
        match answer.status {
            200 => Ok(answer.text()),
            status => {
                let (path, message) = (path.to_owned(), answer.text());
                Err(Error::Refused { method: "GET", path, status, message })
            }
        }
    }

    /// Creates an object; `path` is the list's.
    ///
    /// # Errors
    ///
    /// As [`Api::get`].
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.json("POST", path, "application/json", object.to_string().as_bytes())
    }

    /// Replaces an object.
    ///
    /// # Errors
    ///
    /// As [`Api::get`].
    pub fn replace(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.json("PUT", path, "application/json", object.to_string().as_bytes())
    }

    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    ///
    /// As [`Api::get`].
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        let kind = "application/merge-patch+json";
        self.json("PATCH", path, kind, patch.to_string().as_bytes())
    }

    /// Deletes an object, or a list of them. It is gone when its finalizers are.
    ///
    /// # Errors
    ///
    /// As [`Api::get`].
    pub fn delete(&self, path: &str) -> Result<Value, Error> {
        self.json("DELETE", path, "application/json", &[])
    }

    /// Waits until what is at a path is as it should be, and returns it.
    ///
    /// # Errors
    ///
    /// [`Error::Late`] with what is there instead if it is not so within two minutes.
    pub fn wait(
        &self,
        path: &str,
        what: &str,
        mut good: impl FnMut(&Value) -> bool,
    ) -> Result<Value, Error> {
        until(
            &format!("{what} of {path}"),
            LIMIT,
            || match self.get(path) {
                Ok(object) if good(&object) => Ok(Look::Done(object)),
                Ok(object) => Ok(Look::NotYet(object.to_string())),
                Err(error @ Error::Refused { status: 404 | 429 | 500.., .. }) => {
                    Ok(Look::NotYet(error.to_string()))
                }
                Err(error) => Err(error),
            },
            String::new,
        )
    }

    /// Waits until nothing is at a path.
    ///
    /// # Errors
    ///
    /// [`Error::Late`] with what is still there after two minutes.
    pub fn wait_gone(&self, path: &str) -> Result<(), Error> {
        until(
            &format!("the end of {path}"),
            LIMIT,
            || match self.get(path) {
                Ok(object) => Ok(Look::NotYet(object.to_string())),
                Err(Error::Refused { status: 404, .. }) => Ok(Look::Done(())),
                Err(error) => Err(error),
            },
            String::new,
        )
    }
}
