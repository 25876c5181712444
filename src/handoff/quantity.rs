//! Sizes and rates as users write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a size or a rate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a size.
    #[error("size {0:?}: expected a number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB")]
    Size(String),
    /// Not a rate.
    #[error(
        "rate {0:?}: expected bytes (200MB/s, 512KiB/s), bits (1.5Gbit/s) or a bare number of MB/s, from 16KiB/s"
    )]
    Rate(String),
    /// Not a length of time.
    #[error("time {0:?}: expected a number of ms, s, m or h, or a bare number of seconds")]
    Span(String),
}

/// A number of bytes. `kB`, `MB`, `GB`, `TB` are powers of 1000; `KiB`, `MiB`, `GiB`, `TiB` of 1024.
///
/// ```
/// use ossvp::handoff::ByteSize;
/// assert_eq!("8MiB".parse::<ByteSize>()?.bytes(), 8 << 20);
/// assert_eq!("1.5 kB".parse::<ByteSize>()?.bytes(), 1500);
/// assert_eq!("4096".parse::<ByteSize>()?.bytes(), 4096);
/// assert_eq!("4096".parse::<ByteSize>()?.to_string(), "4KiB");
/// for bad in ["", "MB", "-1", "1 XB", "1e400", "nan", "99999999999TB"] {
///     assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
/// }
/// # Ok::<(), ossvp::handoff::QuantityError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size of exactly `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Splits `12.5 MB` into number and unit and multiplies, or `None`.
fn scaled(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let factor = match unit {
        "" => bare,
        _ => units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    // 2^53: above it an f64 is no longer exact, and no one writes fractions of such sizes
    (value.is_finite() && value < 9_007_199_254_740_992.0).then_some(value.round() as u64)
}

impl FromStr for ByteSize {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        scaled(text, &UNITS, 1).map(Self).ok_or_else(|| QuantityError::Size(text.to_owned()))
    }
}

/// Exact: the largest unit that divides the size, so that parsing it again gives the same.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().filter(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let (unit, factor) = exact.max_by_key(|(_, factor)| *factor).copied().unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// A rate in bytes a second.
///
/// ```
/// use ossvp::handoff::Rate;
/// assert_eq!("200MB/s".parse::<Rate>()?.bytes_per_second(), 200_000_000);
/// assert_eq!("1.5Gbit/s".parse::<Rate>()?.bytes_per_second(), 187_500_000);
/// assert_eq!("512KiB/s".parse::<Rate>()?.bytes_per_second(), 524_288);
/// // a bare number is MB/s, as in the resource
/// assert_eq!("1000".parse::<Rate>()?.bytes_per_second(), 1_000_000_000);
/// for bad in ["", "0", "fast", "10 apples/s", "1kB/s", "10MB"] {
///     assert!(bad.parse::<Rate>().is_err(), "{bad}");
/// }
/// # Ok::<(), ossvp::handoff::QuantityError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(u64);

impl Rate {
    /// The lowest rate in bytes a second: below it the cap's smallest cell (4 KiB) would be more
    /// than 250 ms' worth.
    pub const LOWEST: u64 = 16 * 1024;

    /// The rate in bytes a second.
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }

    /// What each of `workers` may have so that they stay below the rate together; `None` if that is
    /// less than [`Rate::LOWEST`].
    pub fn shared_by(self, workers: u32) -> Option<Self> {
        let share = self.0.checked_div(workers.into())?;
        (share >= Self::LOWEST).then_some(Self(share))
    }
}

impl FromStr for Rate {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        const BITS: [(&str, u64); 3] =
            [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000)];
        let refuse = || QuantityError::Rate(text.to_owned());
        let rate = match text.trim().strip_suffix("/s") {
            Some(amount) if amount.trim_end().ends_with("bit") => {
                scaled(amount, &BITS, 0).map(|bits| bits / 8)
            }
            Some(amount) => scaled(amount, &UNITS, 0),
            None => scaled(text, &[], 1_000_000),
        };
        rate.filter(|rate| *rate >= Self::LOWEST).map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

/// A length of time, up to a year.
///
/// ```
/// use ossvp::handoff::Span;
/// use std::time::Duration;
/// assert_eq!("30s".parse::<Span>()?.duration(), Duration::from_secs(30));
/// assert_eq!("1.5 m".parse::<Span>()?.duration(), Duration::from_secs(90));
/// assert_eq!("250ms".parse::<Span>()?.duration(), Duration::from_millis(250));
/// // a bare number is seconds
/// assert_eq!("5".parse::<Span>()?.duration(), Duration::from_secs(5));
/// for bad in ["", "s", "-1s", "1 day", "nan", "1e9s", "99999h"] {
///     assert!(bad.parse::<Span>().is_err(), "{bad}");
/// }
/// # Ok::<(), ossvp::handoff::QuantityError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// The time.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        const UNITS: [(&str, u64); 4] =
            [("ms", 1), ("s", 1000), ("m", 60 * 1000), ("h", 3600 * 1000)];
        const YEAR: u64 = 365 * 24 * 3600 * 1000;
        scaled(text, &UNITS, 1000)
            .filter(|ms| *ms <= YEAR)
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| QuantityError::Span(text.to_owned()))
    }
}

/// Exact, so that parsing it again gives the same.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms if ms.is_multiple_of(1000) => write!(f, "{}s", ms / 1000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_shown_size_parses_back(bytes: u64) {
            let size = ByteSize::new(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Rate>();
            let _ = text.parse::<Span>();
        }
    }
}
