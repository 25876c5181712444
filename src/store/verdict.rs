//! What a refusal means: pure.

use http::StatusCode;

use crate::keys::{Bucket, Dialect};

use super::answer::Answer;
use super::error::{StoreError, Subject};

/// What a request is for; it decides method, counter and permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Get,
    Head,
}

/// A request as far as a verdict depends on it.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) dialect: Dialect,
    pub(super) kind: Kind,
    pub(super) subject: Box<Subject>,
    pub(super) host: &'a str,
    /// The region signed for.
    pub(super) region: &'a str,
    /// Signed with a token.
    pub(super) temporary: bool,
    /// Not signed.
    pub(super) anonymous: bool,
}

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

/// Judges an answer other than 2xx.
///
/// Codes: OSS "Error responses" and the official SDKs, Amazon S3 "Error responses". A code that is
/// not known is judged by its status alone.
pub(super) fn judge(asked: Asked<'_>, answer: Answer) -> Verdict {
    let Asked { dialect, kind, subject, host, region, temporary, anonymous } = asked;
    let answer = Box::new(answer);
    let (bucket, host) = (subject.bucket.clone(), host.to_owned());
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
        code if is_throttling(code) => {
            Verdict::Passing(StoreError::Unavailable { subject, answer })
        }
        "RequestTimeout" => Verdict::Passing(StoreError::Unavailable { subject, answer }),
        "AuthorizationHeaderMalformed" => Verdict::Final(wrong_region(bucket, region, answer)),
        _ if names_region(&answer) => Verdict::Final(wrong_region(bucket, region, answer)),
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
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                if matches!(answer.code(), "" | "AccessDenied" | "Forbidden") =>
            {
                let needed = match (dialect, kind) {
                    (Dialect::S3, Kind::List) => "s3:ListBucket",
                    (Dialect::S3, _) => "s3:GetObject",
                    (_, Kind::List) => "oss:ListObjects",
                    (_, _) => "oss:GetObject",
                };
                let needed = (!anonymous).then_some(needed);
                StoreError::AccessDenied { subject, needed, answer }
            }
            // a HEAD of S3 has no code
            StatusCode::NOT_FOUND if subject.key.is_some() => StoreError::Gone { subject, answer },
            _ => StoreError::Refused { subject, answer },
        }),
    }
}

/// Whether a status is one that a later attempt may not get.
pub(super) fn is_passing(status: StatusCode) -> bool {
    (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
        // an answer to a request that was not made
        || status.is_informational()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Codes that ask to slow down, with whatever status: `QpsLimitExceeded`,
/// `DownloadTrafficRateLimitExceeded`, S3's `SlowDown`.
pub(super) fn is_throttling(code: &str) -> bool {
    code.ends_with("LimitExceeded") || code.starts_with("Throttling") || code == "SlowDown"
}

/// OSS: "Invalid signing region in Authorization header, expected 'cn-hangzhou'".
fn names_region(answer: &Answer) -> bool {
    answer.message.as_deref().is_some_and(|message| message.contains("signing region"))
}

fn wrong_region(bucket: Bucket, region: &str, answer: Box<Answer>) -> StoreError {
    let quoted = answer.message.as_deref().and_then(|message| {
        let (_, after) = message.split_once("expect")?;
        after.split(['\'', '"']).nth(1).map(str::to_owned)
    });
    StoreError::WrongRegion {
        bucket,
        region: region.to_owned(),
        right: answer.region.clone().or(quoted),
        answer,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use crate::keys::Key;
    use crate::store::Class;

    use super::*;

    fn verdict(status: u16, code: &str, key: Option<&str>, temporary: bool) -> Verdict {
        let asked = Asked {
            dialect: Dialect::Oss,
            kind: if key.is_some() { Kind::Get } else { Kind::List },
            subject: Box::new(Subject {
                bucket: "models".parse().unwrap(),
                key: key.map(|key| Key::new(key).unwrap()),
            }),
            host: "models.oss-cn-hangzhou.aliyuncs.com",
            region: "cn-hangzhou",
            temporary,
            anonymous: false,
        };
        let code = Some(code.to_owned()).filter(|code| !code.is_empty());
        judge(asked, Answer { status, code, ..Answer::default() })
    }

    #[test]
    fn codes_say_what_helps() {
        let name = |verdict: Verdict| match verdict {
            Verdict::Passing(error) => ("time", error.class()),
            Verdict::Clock(error) => ("clock", error.class()),
            Verdict::Credential(error) => ("credential", error.class()),
            Verdict::Final(error) => ("nothing", error.class()),
        };
        for (status, code, temporary, helps, class) in [
            (503, "ServiceUnavailable", false, "time", Class::Transient),
            (500, "", false, "time", Class::Transient),
            (429, "", false, "time", Class::Transient),
            (403, "QpsLimitExceeded", false, "time", Class::Transient),
            (400, "SlowDown", false, "time", Class::Transient),
            (501, "NotImplemented", false, "nothing", Class::Refused),
            (403, "RequestTimeTooSkewed", false, "clock", Class::Transient),
            (403, "SecurityTokenExpired", true, "credential", Class::Refused),
            (400, "ExpiredToken", true, "credential", Class::Refused),
            (403, "InvalidAccessKeyId", true, "credential", Class::Refused),
            (403, "InvalidAccessKeyId", false, "nothing", Class::Refused),
            (403, "SignatureDoesNotMatch", true, "nothing", Class::Refused),
            (403, "AccessDenied", true, "nothing", Class::Refused),
            (403, "", false, "nothing", Class::Refused),
            (403, "KmsServiceNotEnabled", false, "nothing", Class::Refused),
            (403, "InvalidObjectState", false, "nothing", Class::Refused),
            (404, "SymlinkTargetNotExist", false, "nothing", Class::Refused),
            (404, "NoSuchBucket", false, "nothing", Class::Refused),
            (404, "NoSuchKey", false, "nothing", Class::Changed),
            (404, "", false, "nothing", Class::Changed),
            (412, "PreconditionFailed", false, "nothing", Class::Changed),
            (416, "InvalidRange", false, "nothing", Class::Changed),
            (304, "", false, "nothing", Class::Changed),
            (301, "", false, "nothing", Class::Refused),
        ] {
            let verdict = name(verdict(status, code, Some("a"), temporary));
            assert_eq!(verdict, (helps, class), "{status} {code}");
        }
    }

    #[test]
    fn a_bucket_is_not_gone_but_refused() {
        let Verdict::Final(error) = verdict(404, "", None, false) else { panic!() };
        assert_eq!(error.class(), Class::Refused);
    }
}
