//! What the controller cannot do.

use super::cpfs::NasError;
use super::pass::LONGEST_PASS;
use super::words;

/// What the controller cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster, or no right to it.
    #[error(
        "cannot reach the API server; is KUBECONFIG set, or is this a Pod with a service account?"
    )]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address is taken.
    #[error("cannot listen on {address}; choose another by --listen")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The Lease.
    #[error("cannot take part in the election of a leader by Lease {namespace}/{name}")]
    Lease {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another replica leads now.
    #[error("the lease is lost; another replica leads")]
    Deposed,
    /// The API server, or the network.
    #[error("a pass was not done within {} s: the API server, or CPFS, is slow", LONGEST_PASS.as_secs())]
    Slow,
    /// The watches ended, which they never do.
    #[error("the watches have ended")]
    Ended,
    /// An object.
    #[error("cannot read {kind} {name}")]
    Read {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        error: Answer,
    },
    /// An action.
    #[error("cannot do {action}")]
    Apply {
        /// What.
        action: String,
        /// The API server's answer.
        #[source]
        error: Answer,
    },
    /// The caches asked for an action that the API server's objects do not.
    #[error("the caches are behind")]
    CachesLag,
    /// An action's object.
    #[error("cannot do {action}: the {what} is gone")]
    Vanished {
        /// What.
        action: String,
        /// What was needed.
        what: &'static str,
    },
    /// What CPFS says, and what helps.
    #[error("{said}")]
    Cpfs {
        /// One line.
        said: String,
        /// The NAS API's code, if it answered with one.
        code: String,
    },
    /// A spec that passed and does not any more.
    #[error("{0}")]
    Refused(String),
    /// The resource's status.
    #[error("cannot write the status of {name}")]
    Publish {
        /// The resource.
        name: String,
        /// The API server's answer.
        #[source]
        error: Answer,
    },
}

/// What the API server answered, in its own words and only once.
#[derive(Debug)]
pub struct Answer(pub(super) kube::Error);

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            kube::Error::Api(status) => f.write_str(&status.message),
            error => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Answer {}

impl From<NasError> for Error {
    fn from(error: NasError) -> Self {
        Self::Cpfs { said: words::cpfs(&error), code: error.code().to_owned() }
    }
}

impl Error {
    pub(super) fn read(kind: &str, name: &str, error: kube::Error) -> Self {
        Self::Read { kind: kind.to_owned(), name: name.to_owned(), error: Answer(error) }
    }

    /// Whether someone else was faster, and another look is all that is needed.
    pub(super) fn is_race(&self) -> bool {
        match self {
            Self::Apply { error: Answer(error), .. } => is_stale(error),
            Self::Vanished { .. } | Self::CachesLag => true,
            _ => false,
        }
    }
}

/// Whether an object is not as it was seen: a test of a JSON patch that fails is 422, and no field is
/// to blame.
pub(super) fn is_stale(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_conflict() || status.code == 422 && causes.count() == 0
}

pub(super) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}
