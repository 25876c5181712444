//! Objects that are computed, not stored: any byte of a 50 GB object, any key of a million.

use std::sync::LazyLock;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

/// Bytes served from one slice of the pattern. Each such piece starts elsewhere in the pattern, so
/// that a piece written to the wrong place shows.
const PIECE: u64 = 1 << 20;

/// Random bytes every synthetic body is cut from: slices of it are served without a copy.
static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
    let mut pattern = Vec::with_capacity(2 * PIECE as usize);
    for word in 0..PIECE / 4 {
        pattern.extend_from_slice(&mix(word ^ 0x6f73_7376_7000_0000).to_le_bytes());
    }
    Bytes::from(pattern)
});

/// The SplitMix64 finaliser: a cheap, well mixed function from a number to a number.
pub(crate) fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes of the body of `seed` from `offset`, at least one and at most `max` of them.
pub(crate) fn slice(seed: u64, offset: u64, max: u64) -> Bytes {
    let within = offset % PIECE;
    let start = mix(seed ^ mix(offset / PIECE)) % PIECE + within;
    let len = (PIECE - within).min(max);
    PATTERN.slice(start as usize..(start + len) as usize)
}

/// The CRC-64/XZ of a synthetic body of `len` bytes: reads all of it.
pub(crate) fn crc64(seed: u64, len: u64) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Xz);
    let mut offset = 0;
    while offset < len {
        let piece = slice(seed, offset, len - offset);
        digest.update(&piece);
        offset += piece.len() as u64;
    }
    digest.finalize()
}

/// How large the objects of a generated set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// All the same number of bytes.
    Fixed(u64),
    /// A mixture as training sets have it: of 1,000 objects 800 of 4 to 64 KiB, 149 of 256 KiB to
    /// 1 MiB, 50 of 1 to 16 MiB, one of 128 MiB.
    Mixed,
}

/// `count` objects below `prefix` whose keys sort in the order of their index.
///
/// With `fan_out` keys a directory: `d000000/00000000.bin`; without: `00000000.bin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// What every key begins with.
    pub prefix: String,
    /// How many objects there are, at most 10^8.
    pub count: u64,
    /// Their sizes.
    pub sizes: Sizes,
    /// What the bodies are computed from.
    pub seed: u64,
    /// Keys in one directory; 0 puts all directly below the prefix.
    pub fan_out: u64,
}

/// One object of a generated set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GeneratedObject {
    pub(crate) seed: u64,
    pub(crate) size: u64,
    pub(crate) index: u64,
}

impl Generated {
    /// Writes the key of `index` over `out`.
    pub(crate) fn key(&self, index: u64, out: &mut String) {
        use std::fmt::Write;
        out.clear();
        out.push_str(&self.prefix);
        let written = match index.checked_div(self.fan_out) {
            Some(directory) => write!(out, "d{directory:06}/{index:08}.bin"),
            None => write!(out, "{index:08}.bin"),
        };
        written.expect("writing to a String does not fail");
    }

    /// The first index whose key is at or after `key`.
    pub(crate) fn lower_bound(&self, key: &str) -> u64 {
        let (mut low, mut high) = (0, self.count);
        let mut probe = String::new();
        while low < high {
            let middle = low + (high - low) / 2;
            self.key(middle, &mut probe);
            if probe.as_str() < key { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The index of exactly `key`.
    pub(crate) fn index_of(&self, key: &str) -> Option<u64> {
        if !key.starts_with(&self.prefix) {
            return None;
        }
        let index = self.lower_bound(key);
        let mut found = String::new();
        self.key(index, &mut found);
        (index < self.count && found == key).then_some(index)
    }

    pub(crate) fn object(&self, index: u64) -> GeneratedObject {
        let seed = mix(self.seed ^ mix(index));
        let size = match self.sizes {
            Sizes::Fixed(size) => size,
            Sizes::Mixed => mixed_size(seed, index),
        };
        GeneratedObject { seed, size, index }
    }

    /// The sum of all sizes.
    pub fn bytes(&self) -> u64 {
        match self.sizes {
            Sizes::Fixed(size) => self.count * size,
            Sizes::Mixed => (0..self.count).map(|index| self.object(index).size).sum(),
        }
    }
}

fn mixed_size(seed: u64, index: u64) -> u64 {
    let between = |low: u64, high: u64| low + mix(seed) % (high - low);
    match index % 1000 {
        500 => 128 << 20,
        n if n % 20 == 7 => between(1 << 20, 16 << 20),
        n if n % 20 < 3 => between(256 << 10, 1 << 20),
        _ => between(4 << 10, 64 << 10),
    }
}

impl GeneratedObject {
    /// An ETag that is no MD5, as an object uploaded in parts has.
    pub(crate) fn etag(&self) -> String {
        format!("\"{:016X}{:016X}-1\"", mix(self.seed ^ 1), mix(self.seed ^ self.size))
    }

    /// Seconds since the epoch; fixed, so that a restarted server serves the same bucket.
    pub(crate) fn modified(&self) -> i64 {
        1_735_689_600 + (self.index % 86_400) as i64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_however_it_is_cut() {
        let len = 3 * PIECE + 12_345;
        let whole: Vec<u8> = read(7, 0, len, u64::MAX);
        let cut: Vec<u8> = read(7, 0, len, 77_777);
        assert!(whole == cut);
        assert!(read(7, 1_000_000, len, 5_000) == whole[1_000_000..]);
        assert_eq!(crc64(7, len), crc_fast::checksum(CrcAlgorithm::Crc64Xz, &whole));
    }

    #[test]
    fn pieces_and_seeds_differ() {
        assert_ne!(slice(7, 0, 64), slice(7, PIECE, 64));
        assert_ne!(slice(7, 0, 64), slice(8, 0, 64));
    }

    #[test]
    fn generated_keys_are_sorted_and_found_again() {
        let set = Generated {
            prefix: "many/".into(),
            count: 2500,
            sizes: Sizes::Fixed(1),
            seed: 1,
            fan_out: 1000,
        };
        let mut previous = String::new();
        for index in 0..set.count {
            let mut key = String::new();
            set.key(index, &mut key);
            assert!(previous < key);
            assert_eq!(set.index_of(&key), Some(index));
            previous = key;
        }
        assert_eq!(set.index_of("many/d000002/00002500.bin"), None);
        assert_eq!(set.index_of("many/nothing"), None);
    }

    fn read(seed: u64, mut offset: u64, end: u64, step: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while offset < end {
            let piece = slice(seed, offset, (end - offset).min(step));
            offset += piece.len() as u64;
            out.extend_from_slice(&piece);
        }
        out
    }
}
