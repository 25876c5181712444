//! The exit codes, by which the controller decides.

/// How a run ended. Every number has one meaning, on the command line and in a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// The volume is complete; the marker is written.
    Complete,
    /// Something that should not happen.
    Unexpected,
    /// The command line.
    Usage,
    /// The source refuses: no such bucket, 403, archived object, nothing under the prefix.
    Source,
    /// Transient errors outlasted the retries, or another worker holds the volume.
    Transient,
    /// An object changed or vanished during the run.
    Changed,
    /// A checksum does not match, also after fetching again.
    Mismatch,
    /// The volume is full, too small, read-only or not ours to write.
    Volume,
    /// The volume holds another source, or a key is no safe path.
    Occupied,
    /// SIGINT; can be resumed.
    Interrupted,
    /// SIGTERM; can be resumed.
    Terminated,
}

impl ExitCode {
    /// The number that the process ends with.
    pub const fn number(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::Source => 3,
            Self::Transient => 4,
            Self::Changed => 5,
            Self::Mismatch => 6,
            Self::Volume => 7,
            Self::Occupied => 8,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}
