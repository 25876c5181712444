//! Doors for `benches`: what the bytes themselves cost, without the I/O around them. Nothing here
//! decides anything.

use super::combine::Combining;
use super::verify::{Digester, Wanted};

/// The CRC-64/XZ that is computed over whatever arrives.
pub fn crc64(bytes: &[u8]) -> u64 {
    let mut digester = Digester::new(Wanted::default());
    digester.update(bytes);
    digester.finish().crc64
}

/// The CRC-64/XZ of bytes followed by `length` others, from those of both.
pub fn combined(first: u64, second: u64, length: u64) -> u64 {
    Combining::CRC64_XZ.combine(first, second, length)
}
