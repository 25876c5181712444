//! The CRC of a whole from those of its parts. Pure.
//!
//! A CRC is the remainder of a polynomial over GF(2), and every byte behind it multiplies it by x^8.
//! That power comes by squaring: for a part, some 25 products of 64 steps. The general function of
//! `crc_fast` squares matrices of 64 rows instead, which took 1.6 % of all time for objects of 1 GiB.

/// A CRC that is reflected, and begins and ends with an inversion, as all do that a source states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Combining {
    /// Bit `width - 1` is the coefficient of 1, bit 0 that of x^(width - 1); x^width goes without saying.
    polynomial: u64,
    width: u32,
}

impl Combining {
    pub(crate) const CRC64_XZ: Self = Self { polynomial: 0xc96c_5795_d787_0f42, width: 64 };
    pub(crate) const CRC64_NVME: Self = Self { polynomial: 0x9a6c_9329_ac4b_c9b5, width: 64 };
    pub(crate) const CRC32_ISCSI: Self = Self { polynomial: 0x82f6_3b78, width: 32 };
    pub(crate) const CRC32_ISO_HDLC: Self = Self { polynomial: 0xedb8_8320, width: 32 };

    /// The CRC of bytes whose CRC is `first`, followed by `length` bytes whose CRC is `second`.
    pub(crate) fn combine(self, first: u64, second: u64, length: u64) -> u64 {
        self.product(first, self.bytes(length)) ^ second
    }

    /// x to the power of the bits in `length` bytes.
    fn bytes(self, mut length: u64) -> u64 {
        let one = 1 << (self.width - 1);
        let (mut power, mut square) = (one, one >> 8);
        while length > 0 {
            if length & 1 == 1 {
                power = self.product(power, square);
            }
            square = self.product(square, square);
            length >>= 1;
        }
        power
    }

    fn product(self, a: u64, mut b: u64) -> u64 {
        let mut product = 0;
        for bit in (0..self.width).rev() {
            product ^= b & (a >> bit & 1).wrapping_neg();
            b = b >> 1 ^ self.polynomial & (b & 1).wrapping_neg();
        }
        product
    }
}

#[cfg(test)]
mod tests {
    use crc_fast::{CrcAlgorithm, checksum_combine};
    use proptest::prelude::*;

    use super::Combining;

    proptest! {
        #[test]
        fn it_combines_as_the_general_function_does(
            first: u64, second: u64, length in 0..u64::MAX / 8, short in 0_u64..100,
        ) {
            for (ours, theirs) in [
                (Combining::CRC64_XZ, CrcAlgorithm::Crc64Xz),
                (Combining::CRC64_NVME, CrcAlgorithm::Crc64Nvme),
                (Combining::CRC32_ISCSI, CrcAlgorithm::Crc32Iscsi),
                (Combining::CRC32_ISO_HDLC, CrcAlgorithm::Crc32IsoHdlc),
            ] {
                let (first, second) = match ours.width {
                    32 => (first >> 32, second >> 32),
                    _ => (first, second),
                };
                for length in [length, short, 8 << 20] {
                    prop_assert_eq!(
                        ours.combine(first, second, length),
                        checksum_combine(theirs, first, second, length)
                    );
                }
            }
        }
    }
}
