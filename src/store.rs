//! The source of objects: a prefix of an OSS or S3 bucket, or a local directory.
//!
//! Our own client, because keys must come out exact and answers must be seen whole: it signs
//! (`sign`), sends (`transport`, `wire`), judges refusals (`verdict`) and tries again (`retry`),
//! lists a few pages ahead (`lister`, `listing`) or with several listers at once (`spread`, `divide`),
//! and resumes broken bodies (`body`). To the rest of ossvp a source is a stream of [`Listed`] and an
//! [`object_store::ObjectStore`], so a decorator can stand between, and tests can bring their own.
//!
//! Keys travel through [`object_store::path::Path`] by [`location()`] and come back by [`key_at`].

mod answer;
mod body;
mod client;
mod credentials;
mod divide;
mod endpoint;
mod error;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hedge;
mod lister;
mod listing;
mod location;
#[doc(hidden)]
pub mod measuring;
mod meter;
mod names;
mod objects;
mod providers;
mod read_only;
mod retry;
mod rrsa;
pub(crate) mod service;
mod sign;
mod spread;
mod stated;
mod transport;
mod turns;
mod verdict;
mod wire;

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use reqsign_core::{Env, OsEnv};

use crate::keys::{Dialect, Key, Prefix, SourceUrl};

pub use answer::Answer;
pub use endpoint::Addressing;
pub use error::{Cause, Class, StoreError, Subject, explain};
pub use listing::Listed;
pub use location::{key_at, location};
pub use meter::Meter;
pub use retry::RetryPolicy;
pub use spread::Found;
pub use stated::Stated;

/// How to reach the source.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Host, with a scheme and a port if need be; a bare host means https. `None`: the region's
    /// public endpoint.
    pub endpoint: Option<String>,
    /// Such as `cn-hangzhou`; `oss-cn-hangzhou` means the same. `None`: as the endpoint tells.
    pub region: Option<String>,
    /// How requests name the bucket.
    pub addressing: Addressing,
    /// Send no signature, ask for no credentials.
    pub anonymous: bool,
    /// More roots to trust, a PEM file.
    pub ca_bundle: Option<PathBuf>,
    /// Upper bound for one piece of a body, in bytes; `None`: 256 KiB.
    pub read_buffer: Option<usize>,
    /// The longest wait for an answer, and for more of one; `None`: 30 s.
    pub timeout: Option<Duration>,
    /// How long to go on without progress; `None`: as [`RetryPolicy`] says.
    pub retry_for: Option<Duration>,
    /// The most requests in a second, over all connections; `None`: no limit.
    pub request_rate: Option<NonZeroU32>,
}

/// What the process brings: environment and patience. Tests bring their own.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Environment variables and the home directory.
    pub env: Arc<dyn Env>,
    /// Timeouts and retries.
    pub policy: RetryPolicy,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { env: Arc::new(OsEnv), policy: RetryPolicy::default() }
    }
}

/// A source, ready to be listed and read.
pub struct Source {
    dialect: Dialect,
    prefix: Prefix,
    place: Place,
    decorate: Option<Decorator>,
    meter: Arc<Meter>,
}

type Decorator = Box<dyn Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync>;

enum Place {
    Bucket(Arc<client::Client>),
    Directory(files::Files),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("dialect", &self.dialect)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// Settles endpoint, region, TLS roots, proxies and where credentials come from; sends nothing
    /// and reads no object.
    ///
    /// # Errors
    /// Class [`Class::Usage`] for settings that cannot be used, [`Class::Refused`] for a directory
    /// that cannot be read.
    pub fn open(url: &SourceUrl, connection: &Connection) -> Result<Self, StoreError> {
        Self::open_in(url, connection, Surroundings::default())
    }

    /// [`Source::open`] with the caller's surroundings.
    #[doc(hidden)]
    pub fn open_in(
        url: &SourceUrl,
        connection: &Connection,
        surroundings: Surroundings,
    ) -> Result<Self, StoreError> {
        let meter = Arc::new(Meter::default());
        let Connection {
            endpoint,
            region,
            addressing,
            anonymous,
            ca_bundle,
            read_buffer,
            timeout,
            retry_for,
            request_rate,
        } = connection;
        let (dialect, bucket, prefix) = match url {
            SourceUrl::Bucket { dialect, bucket, prefix } => (*dialect, bucket, prefix.clone()),
            SourceUrl::Directory(path) => {
                let files = files::Files::open(path, *read_buffer, meter.clone())?;
                return Ok(Self {
                    dialect: Dialect::File,
                    prefix: Prefix::default(),
                    place: Place::Directory(files),
                    decorate: None,
                    meter,
                });
            }
        };
        let endpoint = endpoint::Endpoint::settle(
            dialect,
            bucket,
            endpoint.as_deref(),
            region.as_deref(),
            *addressing,
            *anonymous,
        )?;
        let Surroundings { env, policy } = surroundings;
        let policy = policy.within(*timeout, *retry_for);
        let transport = transport::Transport::new(&transport::Options {
            env: env.as_ref(),
            ca_bundle: ca_bundle.as_deref(),
            connect_timeout: policy.connect_timeout,
            answer_timeout: policy.first_byte_timeout,
            proxied: true,
        })?;
        let credentials = if *anonymous {
            None
        } else {
            let (region, vpc) = (endpoint.region(), endpoint.is_internal());
            let rrsa = rrsa::Rrsa::new(transport.clone(), region, vpc, policy.first_byte_timeout);
            let chain = providers::Chain::new(dialect, env, rrsa)?;
            let ahead = policy.refresh_ahead;
            Some(credentials::Credentials::new(chain, ahead, meter.clone()))
        };
        let client = Arc::new(client::Client {
            dialect,
            endpoint,
            credentials,
            transport,
            policy,
            meter: meter.clone(),
            max_frame: read_buffer.unwrap_or(wire::FRAME).max(1),
            turns: request_rate.map(|rate| Arc::new(turns::Turns::new(rate))),
            clock_offset: Arc::default(),
            answered: Arc::default(),
        });
        Ok(Self { dialect, prefix, place: Place::Bucket(client), decorate: None, meter })
    }

    /// The objects under the prefix, page by page, only those strictly behind `after` if given. OSS and
    /// most S3 servers list in key order; nothing here relies on it.
    ///
    /// Up to three pages are asked for while another is used. A page may be empty.
    /// After an error nothing follows.
    ///
    /// Of a directory: the regular files below it, symlinks followed, keys being their paths
    /// relative to it; also in key order. Empty directories are no objects.
    pub fn list(&self, after: Option<&Key>) -> BoxStream<'static, Result<Vec<Listed>, StoreError>> {
        match &self.place {
            Place::Bucket(client) => {
                lister::list(client.clone(), self.prefix.clone(), after.cloned())
            }
            Place::Directory(files) => files.list(after.cloned()),
        }
    }

    /// The objects under the prefix, each once, page by page: the first keys in order, and between them
    /// some of the others.
    ///
    /// A bucket is listed by one lister as long as there are a few pages, or none is waited for longer than
    /// `worth`; then by several at once: each in a part of the keys, which is divided again for whoever
    /// has come to its end. That takes a source that lists behind a key what it lists behind that key
    /// anyway; one that is seen to do otherwise, or to list in another order than by bytes, is listed by
    /// one lister.
    ///
    /// Of a directory: as [`Source::list`].
    ///
    /// # Errors
    /// Those of [`Source::list`], and [`StoreError::Torn`] where parts do not make a whole:
    /// [`Source::list`] is to be asked then. After an error nothing follows.
    pub fn list_by_several(
        &self,
        worth: Duration,
    ) -> BoxStream<'static, Result<Found, StoreError>> {
        match &self.place {
            Place::Bucket(client) => spread::list(client.clone(), self.prefix.clone(), worth),
            Place::Directory(files) => files.list(None).map_ok(Found::Next).boxed(),
        }
    }

    /// GET and HEAD of single objects by [`location()`]; nothing else is supported. Each has
    /// connections of its own, which are best used on one thread.
    ///
    /// - a failed request is sent again, and a broken body resumes, as [`RetryPolicy`] says
    /// - [`Stated`] rides in the result's extensions
    /// - [`explain`] gets the [`StoreError`] out of an error
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        let objects: Arc<dyn ObjectStore> = match &self.place {
            Place::Bucket(client) => {
                Arc::new(read_only::ReadOnly(objects::Objects(Arc::new(client.apart()))))
            }
            Place::Directory(files) => Arc::new(read_only::ReadOnly(files.clone())),
        };
        match &self.decorate {
            Some(decorate) => decorate(objects),
            None => objects,
        }
    }

    /// Puts a decorator (cap, faults) around all [`Source::objects`].
    #[must_use]
    pub fn decorate(
        mut self,
        wrap: impl Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync + 'static,
    ) -> Self {
        self.decorate = Some(Box::new(wrap));
        self
    }

    /// What the client counts, live.
    pub fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// Which protocol the source speaks.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }
}
