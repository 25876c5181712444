//! Where credentials may come from, in the order they are asked.

use std::sync::Arc;

use reqsign_core::Env;

use crate::keys::Dialect;

use super::credentials::Credential;
use super::error::StoreError;

#[derive(Debug)]
pub(super) struct Chain {
    dialect: Dialect,
    env: Arc<dyn Env>,
}

/// The names of three environment variables: id, secret, token.
type Names = [&'static str; 3];

const OSS: [Names; 2] = [
    ["OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"],
    [
        "ALIBABA_CLOUD_ACCESS_KEY_ID",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
        "ALIBABA_CLOUD_SECURITY_TOKEN",
    ],
];
const S3: [Names; 1] = [["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]];

impl Chain {
    pub(super) fn new(dialect: Dialect, env: Arc<dyn Env>) -> Self {
        Self { dialect, env }
    }

    pub(super) async fn fetch(&self) -> Result<Credential, StoreError> {
        if let Some(credential) = self.from_env()? {
            return Ok(credential);
        }
        Err(StoreError::NoCredentials { variables: self.variables(), detail: None })
    }

    fn variables(&self) -> &'static str {
        match self.dialect {
            Dialect::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Dialect::Oss | Dialect::File => "OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
        }
    }

    fn from_env(&self) -> Result<Option<Credential>, StoreError> {
        let names: &[Names] = match self.dialect {
            Dialect::S3 => &S3,
            Dialect::Oss | Dialect::File => &OSS,
        };
        let var = |name| self.env.var(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        for &[id, secret, token] in names {
            match (var(id), var(secret)) {
                (Some(id), Some(secret)) => {
                    return Ok(Some(Credential::new(id, secret, var(token), None)));
                }
                (Some(_), None) => {
                    return Err(StoreError::HalfCredentials { set: id, missing: secret });
                }
                (None, Some(_)) => {
                    return Err(StoreError::HalfCredentials { set: secret, missing: id });
                }
                (None, None) => {}
            }
        }
        Ok(None)
    }
}
