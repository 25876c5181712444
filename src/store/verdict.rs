//! What a refusal means: pure.

use http::StatusCode;

use crate::keys::Dialect;

use super::answer::Answer;
use super::client::{Ask, Client, Kind, is_passing};
use super::error::StoreError;

/// What may help against a refusal.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Time.
    Passing(StoreError),
    /// Setting the clock.
    Clock(StoreError),
    /// Other credentials.
    Credential(StoreError),
    /// Nothing.
    Final(StoreError),
}

/// Judges an answer other than 2xx; `temporary`: it was signed with a token.
///
/// Codes: OSS "Error responses" and the official SDKs, Amazon S3 "Error responses". A code that is
/// not known is judged by its status alone.
pub(super) fn judge(client: &Client, ask: &Ask, answer: Answer, temporary: bool) -> Verdict {
    let answer = Box::new(answer);
    let subject = client.subject(ask.key.as_ref());
    let bucket = client.endpoint.bucket().clone();
    let host = client.endpoint.host().to_owned();
    let status = StatusCode::from_u16(answer.status).unwrap_or_default();
    match answer.code() {
        "NoSuchBucket" => Verdict::Final(StoreError::NoSuchBucket { bucket, host, answer }),
        "RequestTimeTooSkewed" => Verdict::Clock(StoreError::ClockSkew { host, answer }),
        "SecurityTokenExpired"
        | "InvalidSecurityToken"
        | "SecurityTokenInvalid"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired" => Verdict::Credential(StoreError::AccessKey { subject, answer }),
        "InvalidAccessKeyId" if temporary => {
            Verdict::Credential(StoreError::AccessKey { subject, answer })
        }
        "InvalidAccessKeyId" => Verdict::Final(StoreError::AccessKey { subject, answer }),
        "SignatureDoesNotMatch" => Verdict::Final(StoreError::Signature { subject, answer }),
        "InvalidObjectState" => Verdict::Final(StoreError::Archived { subject, answer }),
        "InvalidTargetType" => Verdict::Final(StoreError::Dangling { subject, answer }),
        code if code.starts_with("SymlinkTarget") => {
            Verdict::Final(StoreError::Dangling { subject, answer })
        }
        "NoSuchKey" | "NoSuchVersion" => Verdict::Final(StoreError::Gone { subject, answer }),
        "RequestTimeout" => Verdict::Passing(StoreError::Unavailable { subject, answer }),
        "AuthorizationHeaderMalformed" => Verdict::Final(wrong_region(client, answer)),
        _ if names_region(&answer) => Verdict::Final(wrong_region(client, answer)),
        _ if status == StatusCode::NOT_MODIFIED => {
            Verdict::Final(StoreError::NotModified { subject })
        }
        _ if is_passing(status) => Verdict::Passing(StoreError::Unavailable { subject, answer }),
        // OSS says AccessDenied and names the endpoint, S3 redirects
        _ if status.is_redirection() || answer.endpoint.is_some() => {
            let right = answer.endpoint.as_deref().map(|endpoint| {
                let prefix = format!("{bucket}.");
                endpoint.strip_prefix(&prefix).unwrap_or(endpoint).to_owned()
            });
            let right = right.or_else(|| answer.region.as_ref().map(|r| format!("of region {r}")));
            Verdict::Final(StoreError::WrongEndpoint { bucket, host, right, answer })
        }
        _ => Verdict::Final(match status {
            StatusCode::PRECONDITION_FAILED => StoreError::Changed { subject, answer },
            StatusCode::RANGE_NOT_SATISFIABLE => StoreError::NoSuchRange { subject },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let needed = match (client.dialect, ask.kind) {
                    (Dialect::S3, Kind::List) => "s3:ListBucket",
                    (Dialect::S3, _) => "s3:GetObject",
                    (_, Kind::List) => "oss:ListObjects",
                    (_, _) => "oss:GetObject",
                };
                StoreError::AccessDenied { subject, needed, answer }
            }
            // a HEAD of S3 has no code
            StatusCode::NOT_FOUND if ask.key.is_some() => StoreError::Gone { subject, answer },
            _ => StoreError::Refused { subject, answer },
        }),
    }
}

/// OSS: "Invalid signing region in Authorization header, expected 'cn-hangzhou'".
fn names_region(answer: &Answer) -> bool {
    answer.message.as_deref().is_some_and(|message| message.contains("signing region"))
}

fn wrong_region(client: &Client, answer: Box<Answer>) -> StoreError {
    let quoted = answer.message.as_deref().and_then(|message| {
        let (_, after) = message.split_once("expect")?;
        after.split(['\'', '"']).nth(1).map(str::to_owned)
    });
    StoreError::WrongRegion {
        bucket: client.endpoint.bucket().clone(),
        region: client.endpoint.region().to_owned(),
        right: answer.region.clone().or(quoted),
        answer,
    }
}
