//! What can go wrong, with what the components said last.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why the cluster is not as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `build` failed.
    #[error("tests/cluster/build {mode} failed ({status}), see its output above")]
    Build {
        /// What was to be built.
        mode: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// A program could not be started.
    #[error("cannot start {name}")]
    Start {
        /// The program.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A program that should do something failed.
    #[error("{command} failed ({status}): {output}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
    /// A component that should run does not.
    #[error("{name} ended ({status}); its last lines:\n{tail}")]
    Ended {
        /// The component.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s, last seen: {last}{tails}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// What was there instead.
        last: String,
        /// The ends of the logs of those who should have done it.
        tails: String,
    },
    /// A file or folder of the cluster could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The API server could not be asked.
    #[error("cannot {method} {path}")]
    Request {
        /// The method.
        method: &'static str,
        /// The path below the server's address.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The API server refused.
    #[error("{method} {path} was answered by {status}: {message}")]
    Refused {
        /// The method.
        method: &'static str,
        /// The path below the server's address.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// No free port, or no random bytes.
    #[error("cannot get {what} of this machine")]
    Machine {
        /// What was asked for.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {name}")]
    Certificate {
        /// Whose.
        name: &'static str,
        /// Why it failed.
        source: rcgen::Error,
    },
    /// This machine cannot be a node.
    #[error("this machine cannot be a node: {0}")]
    Unsupported(String),
    /// A user that the options did not name.
    #[error("the cluster has no user {0}")]
    User(String),
}

impl Error {
    /// For `map_err` of what is done with a file.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
