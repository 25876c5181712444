//! The contract between the two roles and with whoever runs them: what `populate` is asked, how it
//! ends, and what it writes down. Pure: no clock, no environment, no I/O.

mod args;
mod argv;
mod exit;
mod quantity;
mod records;

pub use args::{
    Direct, LogFormat, PopulateArgs, ProgressStyle, ShardOf, Unmappable, VerifyArgs, VerifyMode,
};
pub use argv::argv;
pub use exit::{ExitCode, Verdict};
pub use quantity::{ByteSize, QuantityError, Rate, Span};
pub(crate) use records::shortened;
pub use records::{
    Checked, Figures, MARKER_VERSION, Marker, OUTCOME_LIMIT, Outcome, Plan, Progress, Report,
    SourceIdentity, Tally,
};
