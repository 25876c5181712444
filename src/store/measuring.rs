//! Doors for `benches`: what each request and each page costs, without the I/O around it. Nothing
//! here decides anything.

use chrono::{DateTime, Utc};

use super::{listing, sign};
use crate::keys::Dialect;

/// How many objects a page lists, if it is one.
pub fn page(body: &[u8], dialect: Dialect) -> Option<usize> {
    Some(listing::parse(body, dialect).ok()?.objects.len())
}

/// What signs a day's requests.
pub struct Signer(sign::SigningKey);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Of the day of `time`.
    pub fn new(secret: &str, time: DateTime<Utc>) -> Self {
        Self(sign::signing_key(Dialect::Oss, secret, &sign::day(time), "cn-hangzhou"))
    }

    /// The `Authorization` of a GET of `key` from OSS.
    pub fn get(&self, key: &str, time: DateTime<Utc>) -> String {
        let date = sign::timestamp(time);
        let unsigned = sign::Unsigned {
            dialect: Dialect::Oss,
            region: "cn-hangzhou",
            time,
            method: "GET",
            bucket: "bucket",
            key: Some(key),
            path_style: false,
            query: &[],
            headers: &[("x-oss-content-sha256", sign::UNSIGNED_PAYLOAD), ("x-oss-date", &date)],
        };
        unsigned.authorization("id", &self.0)
    }
}
