//! Sizes, rates and sets of generated objects, as a command line writes them.

use std::str::FromStr;

use crate::synthetic::{Generated, Sizes};

/// `16KiB`, `1GB`, `17`: bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let text = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)))
        .unwrap_or((text, 1));
    let number: f64 = number.trim().parse().map_err(|_| {
        format!("{text:?} is no size: a number, then B, kB, MB, GB, KiB, MiB or GiB")
    })?;
    Ok((number * unit as f64) as u64)
}

/// `100MB/s`, `1.5Gbit/s`: bytes per second.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    const BITS: [(&str, f64); 3] = [("kbit/s", 1e3), ("Mbit/s", 1e6), ("Gbit/s", 1e9)];
    for (unit, bits) in BITS {
        if let Some(number) = text.strip_suffix(unit) {
            let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is no rate"))?;
            return Ok((number * bits / 8.0) as u64);
        }
    }
    let size = text.strip_suffix("/s").ok_or_else(|| format!("{text:?} is no rate: 100MB/s"))?;
    parse_size(size)
}

/// `name=COUNTxSIZE`, `mixed` or `mixed=COUNT`: the objects of `name/`.
///
/// ```
/// let set: oss_server::Generated = "small=10000x16KiB".parse().unwrap();
/// assert_eq!((set.prefix.as_str(), set.count, set.bytes()), ("small/", 10_000, 163_840_000));
/// ```
impl FromStr for Generated {
    type Err = String;

    fn from_str(spec: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{spec:?} is no set of objects: NAME=COUNTxSIZE such as small=10000x16KiB, mixed, or mixed=COUNT"
            )
        };
        let (name, what) = spec.split_once('=').unwrap_or((spec, ""));
        let (count, sizes) = match (name, what.split_once('x')) {
            ("mixed", _) if what.is_empty() => (2000, Sizes::Mixed),
            ("mixed", None) => (what.parse().map_err(|_| wrong())?, Sizes::Mixed),
            (_, Some((count, size))) => {
                (count.parse().map_err(|_| wrong())?, Sizes::Fixed(parse_size(size)?))
            }
            _ => return Err(wrong()),
        };
        if count > 100_000_000 {
            return Err(format!("{count} objects: at most 100000000"));
        }
        // A directory of a million entries is slow on every file system.
        let fan_out = if count > 10_000 { 1000 } else { 0 };
        Ok(Self { prefix: format!("{name}/"), count, sizes, seed: 0, fan_out })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_are_read() {
        assert_eq!(parse_size("16KiB"), Ok(16384));
        assert_eq!(parse_size("1.5GB"), Ok(1_500_000_000));
        assert_eq!(parse_size("7"), Ok(7));
        assert_eq!(parse_rate("100MB/s"), Ok(100_000_000));
        assert_eq!(parse_rate("1Gbit/s"), Ok(125_000_000));
        assert!(parse_rate("100MB").is_err());
        assert!(parse_size("many").is_err());
    }

    #[test]
    fn sets_are_read() {
        let set: Generated = "keys=1000000x1KiB".parse().unwrap();
        assert_eq!((set.count, set.sizes, set.fan_out), (1_000_000, Sizes::Fixed(1024), 1000));
        assert_eq!("mixed".parse::<Generated>().unwrap().sizes, Sizes::Mixed);
        assert_eq!("mixed=50".parse::<Generated>().unwrap().count, 50);
        assert!("small".parse::<Generated>().is_err());
    }
}
