//! What the source says when it does not do as asked: pure.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use quick_xml::Reader;
use quick_xml::events::Event;

use super::listing::entity;

/// The longest piece of an answer that goes into a message, in characters.
const MAX_TEXT: usize = 300;

/// A refusal: the status, and what its body and headers explain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The protocol's code, such as `AccessDenied`.
    pub code: Option<String>,
    /// The message for people.
    pub message: Option<String>,
    /// OSS's error code with its explanation page, such as `0003-00000001`.
    pub ec: Option<String>,
    /// What support asks for.
    pub request_id: Option<String>,
    /// The endpoint that the bucket wants to be asked at.
    pub endpoint: Option<String>,
    /// The region that the bucket is in.
    pub region: Option<String>,
}

/// One line: status, code, message, EC and request id.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {}", message.trim_end_matches('.'))?;
        }
        if let Some(ec) = &self.ec {
            write!(f, ", EC {ec}")?;
        }
        if let Some(id) = &self.request_id {
            write!(f, ", request id {id}")?;
        }
        Ok(())
    }
}

impl Answer {
    /// Reads an answer of any form; what it does not state stays `None`.
    ///
    /// The answer to a HEAD has no body: OSS puts its XML into `x-oss-err`, in base64. `secrets` of
    /// the request are left out wherever the source quotes them.
    pub(super) fn read(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[&str],
    ) -> Self {
        let shown = |text: &str| clean(&hide(text.to_owned(), secrets.iter().copied()));
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(shown);
        let mut answer = Self {
            status: status.as_u16(),
            ec: header("x-oss-ec"),
            request_id: header("x-oss-request-id").or_else(|| header("x-amz-request-id")),
            region: header("x-amz-bucket-region"),
            // elsewhere it is no word about the bucket
            endpoint: header("location")
                .filter(|_| status.is_redirection())
                .and_then(|location| host_of(&location)),
            ..Self::default()
        };
        if body.is_empty() {
            if let Some(body) = headers.get("x-oss-err").and_then(|v| STANDARD.decode(v).ok()) {
                answer.read_body(&body, shown);
            }
        } else {
            answer.read_body(body, shown);
        }
        answer
    }

    fn read_body(&mut self, body: &[u8], shown: impl Fn(&str) -> String) {
        let Ok(body) = std::str::from_utf8(body) else { return };
        let mut reader = Reader::from_str(body);
        let mut depth = 0usize;
        let mut field = String::new();
        let mut text = String::new();
        loop {
            match reader.read_event() {
                Ok(Event::Start(tag)) => {
                    depth += 1;
                    text.clear();
                    if depth == 2 {
                        field = tag.local_name().into_inner().to_owned();
                    }
                }
                Ok(Event::Text(piece)) => text.push_str(&piece),
                Ok(Event::CData(piece)) => text.push_str(&piece),
                Ok(Event::GeneralRef(name)) => text.extend(entity(&name)),
                Ok(Event::End(_)) => {
                    if depth == 2 {
                        self.take(&field, shown(&text));
                    }
                    depth = depth.saturating_sub(1);
                }
                Ok(Event::Eof) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn take(&mut self, field: &str, text: String) {
        if text.is_empty() {
            return;
        }
        match field {
            "Code" => self.code = Some(text),
            "Message" => self.message = Some(text),
            "EC" => self.ec = Some(text),
            "RequestId" => self.request_id = Some(text),
            "Endpoint" => self.endpoint = Some(text),
            "Region" => self.region = Some(text),
            _ => {}
        }
    }

    /// The code, or nothing.
    pub(super) fn code(&self) -> &str {
        self.code.as_deref().unwrap_or_default()
    }
}

/// One line of at most [`MAX_TEXT`] characters.
pub(super) fn clean(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT + 1)
        .collect::<String>()
        .trim()
        .to_owned();
    if let Some((at, _)) = line.char_indices().nth(MAX_TEXT) {
        line.truncate(at);
        line.push('…');
    }
    line
}

/// `text` without `secrets`, and without anything that quotes how a request was signed.
pub(super) fn hide<'a>(text: String, secrets: impl Iterator<Item = &'a str>) -> String {
    let text = secrets
        .filter(|secret| !secret.is_empty())
        .fold(text, |text, secret| text.replace(secret, HIDDEN));
    let signs = ["HMAC-SHA256", "Signature=", "signature="].iter().any(|sign| text.contains(sign));
    if signs { HIDDEN.to_owned() } else { text }
}

/// Stands in the place of a secret.
const HIDDEN: &str = "(hidden)";

/// The host of an absolute URL, with its port.
fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    Some(uri.authority()?.as_str().rsplit('@').next()?.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>\n  <Code>AccessDenied</Code>\n  \
        <Message>You have no right &amp;\nno reason.</Message>\n  <RequestId>5C3D9175</RequestId>\n  \
        <HostId>b.oss-cn-hangzhou.aliyuncs.com</HostId>\n  <StringToSign>secret</StringToSign>\n  \
        <EC>0003-00000001</EC>\n</Error>";
    const LINE: &str =
        "403 AccessDenied: You have no right & no reason, EC 0003-00000001, request id 5C3D9175";

    #[test]
    fn reads_a_body() {
        let answer = Answer::read(StatusCode::FORBIDDEN, &HeaderMap::new(), BODY.as_bytes(), &[]);
        assert_eq!(answer.to_string(), LINE);
    }

    #[test]
    fn reads_the_header_of_a_head() {
        let mut headers = HeaderMap::new();
        headers.insert("x-oss-err", STANDARD.encode(BODY).parse().unwrap());
        let answer = Answer::read(StatusCode::FORBIDDEN, &headers, b"", &[]);
        assert_eq!(answer.to_string(), LINE);
    }

    #[test]
    fn reads_what_headers_say() {
        let mut headers = HeaderMap::new();
        headers.insert("x-oss-request-id", "ABC".parse().unwrap());
        headers.insert("location", "https://b.oss-cn-beijing.aliyuncs.com/x?y".parse().unwrap());
        let answer = Answer::read(StatusCode::MOVED_PERMANENTLY, &headers, b"<html>", &[]);
        assert_eq!(answer.to_string(), "301, request id ABC");
        assert_eq!(answer.endpoint.as_deref(), Some("b.oss-cn-beijing.aliyuncs.com"));
    }

    #[test]
    fn keeps_what_the_source_quotes_of_a_request() {
        let quote = |message: &str| {
            let body = format!("<Error><Message>{message}</Message></Error>");
            let secrets = ["token+1=", "5eb63bbbe01eeed0"];
            Answer::read(StatusCode::FORBIDDEN, &HeaderMap::new(), body.as_bytes(), &secrets)
                .message
                .unwrap()
        };
        assert_eq!(quote("token token+1= is bad"), "token (hidden) is bad");
        assert_eq!(quote("not 5eb63bbbe01eeed0"), "not (hidden)");
        assert_eq!(quote("sign OSS4-HMAC-SHA256&#10;2024"), "(hidden)");
        assert_eq!(quote("bad ?x-oss-signature=abc"), "(hidden)");
        // not a secret's beginning either, where a long message is cut
        let long = format!("{}token+1=", "x".repeat(MAX_TEXT - 3));
        assert!(!quote(&long).contains("tok"));
    }

    proptest! {
        #[test]
        fn any_body_makes_one_short_line(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut xml = b"<Error><Message>".to_vec();
            xml.extend(&body);
            xml.extend(b"</Message></Error>");
            for body in [&body, &xml] {
                let line = Answer::read(StatusCode::NOT_FOUND, &HeaderMap::new(), body, &[]).to_string();
                prop_assert!(!line.contains('\n') && line.chars().count() < 4 * MAX_TEXT);
            }
        }
    }
}
