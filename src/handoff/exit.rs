//! The exit codes, by which the controller decides.

/// How a run ended. Every number has one meaning, on the command line and in a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// The volume, or the worker's share of it, is complete; the marker is written.
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

/// What is done about an exit code by whoever runs a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the volume, or the worker's share of it, is complete.
    Done,
    /// Another try, after a while, some times.
    Retry,
    /// Another try at once, which does not count.
    RetryAtOnce,
    /// Nothing until someone changes something.
    Stop,
}

impl ExitCode {
    /// Every one.
    pub const ALL: [Self; 11] = [
        Self::Complete,
        Self::Unexpected,
        Self::Usage,
        Self::Source,
        Self::Transient,
        Self::Changed,
        Self::Mismatch,
        Self::Volume,
        Self::Occupied,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// The one of this number, if there is one.
    pub fn of(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| i32::from(code.number()) == number)
    }

    /// What is done about it.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Complete => Verdict::Done,
            Self::Unexpected | Self::Transient | Self::Changed => Verdict::Retry,
            Self::Interrupted | Self::Terminated => Verdict::RetryAtOnce,
            Self::Usage | Self::Source | Self::Mismatch | Self::Volume | Self::Occupied => {
                Verdict::Stop
            }
        }
    }

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
