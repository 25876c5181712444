//! Checksums: what is computed over the bytes that arrive, and what it is compared with.
//!
//! Pure. CRC-64/XZ is always computed: it is what OSS states, what the manifest records, and free (tens
//! of GB/s a core). CRCs of parts combine to the CRC of the whole; MD5 and SHA-256 do not.

use crc_fast::CrcAlgorithm;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use super::combine::Combining;
use crate::handoff::{Checked, Tally, VerifyMode};
use crate::keys::hex;
use crate::store::Stated;

/// The checksum that a source states for an object, of those it states the one we compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Crc64(u64),
    Crc64Nvme(u64),
    Crc32c(u32),
    Crc32(u32),
    Sha256([u8; 32]),
    Md5([u8; 16]),
}

impl Expected {
    /// The best of what is stated: CRCs first, since they cost nothing and combine, and against
    /// accidents 64 bits are plenty; then SHA-256, then MD5.
    pub(crate) fn best(stated: &Stated) -> Option<Self> {
        stated
            .crc64
            .map(Self::Crc64)
            .or(stated.crc64nvme.map(Self::Crc64Nvme))
            .or(stated.crc32c.map(Self::Crc32c))
            .or(stated.crc32.map(Self::Crc32))
            .or(stated.sha256.map(Self::Sha256))
            .or(stated.md5.map(Self::Md5))
    }

    pub(crate) fn kind(self) -> Checked {
        match self {
            Self::Crc64(_) => Checked::Crc64,
            Self::Crc64Nvme(_) => Checked::Crc64Nvme,
            Self::Crc32c(_) => Checked::Crc32c,
            Self::Crc32(_) => Checked::Crc32,
            Self::Sha256(_) => Checked::Sha256,
            Self::Md5(_) => Checked::Md5,
        }
    }
}

/// What this run asks of every file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demands {
    pub(crate) verify: VerifyMode,
    pub(crate) sha256: bool,
}

impl Demands {
    /// Whether a file that was checked like this needs no other check.
    pub(crate) fn satisfied(self, checked: Checked) -> bool {
        match self.verify {
            VerifyMode::Off => true,
            VerifyMode::Auto => checked != Checked::Off,
            VerifyMode::Require => !matches!(checked, Checked::Off | Checked::Unverified),
        }
    }

    /// Whether files that were checked like these need no other check.
    pub(crate) fn met_by(self, tally: &Tally) -> bool {
        (tally.off == 0 || self.satisfied(Checked::Off))
            && (tally.unverified == 0 || self.satisfied(Checked::Unverified))
    }

    /// What the bytes are compared with, if anything.
    pub(crate) fn expected(self, stated: &Stated) -> Option<Expected> {
        match self.verify {
            VerifyMode::Off => None,
            VerifyMode::Auto | VerifyMode::Require => Expected::best(stated),
        }
    }

    /// Whether bytes are the object's, by what the source states of it, in an answer and, as
    /// `listed`, in a `SHA256SUMS`.
    pub(crate) fn judge(
        self,
        stated: &Stated,
        listed: Option<[u8; 32]>,
        digests: &Digests,
    ) -> Judged {
        if self.verify == VerifyMode::Off {
            return Judged::Sound(Checked::Off);
        }
        let mut checked = Checked::Unverified;
        if self.sha256 {
            for sha256 in [stated.user_sha256, listed].into_iter().flatten() {
                if let Err(mismatch) = digests.compare(Expected::Sha256(sha256)) {
                    return Judged::Wrong(mismatch);
                }
                checked = Checked::Sha256;
            }
        }
        if let Some(expected) = self.expected(stated) {
            if let Err(mismatch) = digests.compare(expected) {
                return Judged::Wrong(mismatch);
            }
            checked = expected.kind();
        }
        if self.satisfied(checked) { Judged::Sound(checked) } else { Judged::Unverifiable }
    }
}

/// What was found of an object's bytes.
#[derive(Debug)]
pub(crate) enum Judged {
    /// They are what the source states, or nothing is asked.
    Sound(Checked),
    /// They are not.
    Wrong(Mismatch),
    /// The source states nothing, and that is not enough.
    Unverifiable,
}

/// Two checksums of one kind that should be equal and are not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} is {actual}, the source states {expected}")]
pub struct Mismatch {
    /// The kind of checksum.
    pub kind: &'static str,
    /// Of the bytes that arrived.
    pub actual: String,
    /// What the source states.
    pub expected: String,
}

/// Which checksums to compute besides CRC-64/XZ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) crc64nvme: bool,
    pub(crate) crc32c: bool,
    pub(crate) crc32: bool,
    pub(crate) md5: bool,
    pub(crate) sha256: bool,
}

impl Wanted {
    /// What comparing with `expected` takes; SHA-256 also when it is to be recorded.
    pub(crate) fn for_check(expected: Option<Expected>, sha256: bool) -> Self {
        Self {
            crc64nvme: matches!(expected, Some(Expected::Crc64Nvme(_))),
            crc32c: matches!(expected, Some(Expected::Crc32c(_))),
            crc32: matches!(expected, Some(Expected::Crc32(_))),
            md5: matches!(expected, Some(Expected::Md5(_))),
            sha256: sha256 || matches!(expected, Some(Expected::Sha256(_))),
        }
    }

    /// Everything that combines, for a part of an object whose checksum is not known yet.
    pub(crate) const COMBINING: Self =
        Self { crc64nvme: true, crc32c: true, crc32: true, md5: false, sha256: false };
}

/// Computes over bytes in their order.
#[derive(Debug)]
pub(crate) struct Digester {
    length: u64,
    crc64: crc_fast::Digest,
    crc64nvme: Option<crc_fast::Digest>,
    crc32c: Option<crc_fast::Digest>,
    crc32: Option<crc_fast::Digest>,
    md5: Option<Md5>,
    sha256: Option<Sha256>,
}

impl Digester {
    pub(crate) fn new(wanted: Wanted) -> Self {
        let crc = |wanted: bool, kind| wanted.then(|| crc_fast::Digest::new(kind));
        Self {
            length: 0,
            crc64: crc_fast::Digest::new(CrcAlgorithm::Crc64Xz),
            crc64nvme: crc(wanted.crc64nvme, CrcAlgorithm::Crc64Nvme),
            crc32c: crc(wanted.crc32c, CrcAlgorithm::Crc32Iscsi),
            crc32: crc(wanted.crc32, CrcAlgorithm::Crc32IsoHdlc),
            md5: wanted.md5.then(Md5::new),
            sha256: wanted.sha256.then(Sha256::new),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let Self { length, crc64, crc64nvme, crc32c, crc32, md5, sha256 } = self;
        *length += bytes.len() as u64;
        crc64.update(bytes);
        for crc in [crc64nvme, crc32c, crc32].into_iter().flatten() {
            crc.update(bytes);
        }
        if let Some(md5) = md5 {
            md5.update(bytes);
        }
        if let Some(sha256) = sha256 {
            sha256.update(bytes);
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn finish(self) -> Digests {
        // 32-bit algorithms answer in the low half
        let short = |crc: crc_fast::Digest| crc.finalize() as u32;
        Digests {
            length: self.length,
            crc64: self.crc64.finalize(),
            crc64nvme: self.crc64nvme.map(|crc| crc.finalize()),
            crc32c: self.crc32c.map(short),
            crc32: self.crc32.map(short),
            md5: self.md5.map(|md5| md5.finalize().into()),
            sha256: self.sha256.map(|sha256| sha256.finalize().into()),
        }
    }
}

/// The checksums of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) length: u64,
    pub(crate) crc64: u64,
    pub(crate) crc64nvme: Option<u64>,
    pub(crate) crc32c: Option<u32>,
    pub(crate) crc32: Option<u32>,
    pub(crate) md5: Option<[u8; 16]>,
    pub(crate) sha256: Option<[u8; 32]>,
}

impl Digests {
    /// Of no bytes, able to be joined with parts.
    pub(crate) fn empty() -> Self {
        Digester::new(Wanted::COMBINING).finish()
    }

    /// Of these bytes followed by those of `next`. MD5 and SHA-256 do not combine and are lost.
    pub(crate) fn join(self, next: &Self) -> Self {
        let combine = |kind: Combining, a, b| kind.combine(a, b, next.length);
        let long = |kind, a: Option<u64>, b: Option<u64>| Some(combine(kind, a?, b?));
        let short = |kind, a: Option<u32>, b: Option<u32>| {
            Some(combine(kind, u64::from(a?), u64::from(b?)) as u32)
        };
        Self {
            length: self.length + next.length,
            crc64: combine(Combining::CRC64_XZ, self.crc64, next.crc64),
            crc64nvme: long(Combining::CRC64_NVME, self.crc64nvme, next.crc64nvme),
            crc32c: short(Combining::CRC32_ISCSI, self.crc32c, next.crc32c),
            crc32: short(Combining::CRC32_ISO_HDLC, self.crc32, next.crc32),
            md5: None,
            sha256: None,
        }
    }

    /// Whether everything that `wanted` asks for is there.
    pub(crate) fn have(&self, wanted: Wanted) -> bool {
        let Wanted { crc64nvme, crc32c, crc32, md5, sha256 } = wanted;
        (!crc64nvme || self.crc64nvme.is_some())
            && (!crc32c || self.crc32c.is_some())
            && (!crc32 || self.crc32.is_some())
            && (!md5 || self.md5.is_some())
            && (!sha256 || self.sha256.is_some())
    }

    /// Compares with what the source states.
    ///
    /// # Errors
    /// [`Mismatch`]. A checksum that was not computed counts as different.
    pub(crate) fn compare(&self, expected: Expected) -> Result<(), Mismatch> {
        let differ = |kind, actual: Option<String>, expected: String| match actual {
            Some(actual) if actual == expected => Ok(()),
            actual => {
                let actual = actual.unwrap_or_else(|| "unknown".to_owned());
                Err(Mismatch { kind, actual, expected })
            }
        };
        match expected {
            // OSS writes it in decimal: so do we, so that the two can be compared by eye
            Expected::Crc64(crc) => differ("crc64", Some(self.crc64.to_string()), crc.to_string()),
            Expected::Crc64Nvme(crc) => differ(
                "crc64nvme",
                self.crc64nvme.map(|crc| format!("{crc:016x}")),
                format!("{crc:016x}"),
            ),
            Expected::Crc32c(crc) => {
                differ("crc32c", self.crc32c.map(|crc| format!("{crc:08x}")), format!("{crc:08x}"))
            }
            Expected::Crc32(crc) => {
                differ("crc32", self.crc32.map(|crc| format!("{crc:08x}")), format!("{crc:08x}"))
            }
            Expected::Sha256(sha) => differ("sha256", self.sha256.map(|sha| hex(&sha)), hex(&sha)),
            Expected::Md5(md5) => differ("md5", self.md5.map(|md5| hex(&md5)), hex(&md5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digests(wanted: Wanted, bytes: &[u8]) -> Digests {
        let mut digester = Digester::new(wanted);
        digester.update(bytes);
        digester.finish()
    }

    #[test]
    fn the_check_values_are_the_published_ones() {
        let all = Wanted { md5: true, sha256: true, ..Wanted::COMBINING };
        let found = digests(all, b"123456789");
        // CRC RevEng catalogue: CRC-64/XZ, CRC-64/NVME, CRC-32/ISCSI, CRC-32/ISO-HDLC
        assert_eq!(found.crc64, 0x995d_c9bb_df19_39fa);
        assert_eq!(found.crc64nvme, Some(0xae8b_1486_0a79_9888));
        assert_eq!(found.crc32c, Some(0xe306_9283));
        assert_eq!(found.crc32, Some(0xcbf4_3926));
        assert_eq!(
            found.md5.map(|md5| hex(&md5)).as_deref(),
            Some("25f9e794323b453885f5181f1b624d0b")
        );
        assert_eq!(
            found.sha256.map(|sha| hex(&sha)).as_deref(),
            Some("15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225")
        );
    }

    proptest! {
        #[test]
        fn checksums_of_parts_combine_to_that_of_the_whole(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        ) {
            let joined = parts
                .iter()
                .map(|part| digests(Wanted::COMBINING, part))
                .fold(Digests::empty(), |whole, part| whole.join(&part));
            prop_assert_eq!(joined, digests(Wanted::COMBINING, &parts.concat()));
        }

        #[test]
        fn any_flipped_bit_is_seen(
            bytes in prop::collection::vec(any::<u8>(), 1..300), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let good = digests(Wanted::default(), &bytes);
            let mut bad = bytes;
            let at = at.index(bad.len());
            bad[at] ^= 1 << bit;
            let bad = digests(Wanted::default(), &bad);
            prop_assert!(bad.compare(Expected::Crc64(good.crc64)).is_err());
        }
    }
}
