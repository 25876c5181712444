//! Feeds hostile bytes to everything of ossvp that reads what others wrote: answers of a source,
//! files of a volume, settings of users. libFuzzer makes the bytes, by what they reach.
//!
//! Each target asks for more than that nothing panics: what was read reads back, agrees with a
//! simpler model, keeps within bounds. `scripts/fuzz` builds and runs it:
//!
//! - the environment's `FUZZ_TARGET` is the target
//! - with `FUZZ_PUMP`, each input is tried as it is and blown up to that many bytes by repeating it
//!   and its parts: what is not linear in time or memory shows
#![no_main]
#![allow(clippy::unwrap_used, reason = "a target may panic: that is what is looked for")]

mod asked;
mod heap;
#[path = "../../support/layout.rs"]
#[allow(unreachable_pub, reason = "other tests share it")]
mod layout;
mod network;
mod volume;

use std::sync::OnceLock;

type Target = fn(&[u8]);

/// The most exposed first: anyone on the way to the source, the source, the volume, the user.
const TARGETS: [(&str, Target); 8] = [
    ("listing", network::listing),
    ("refusal", network::refusal),
    ("headers", network::headers),
    ("layout", volume::layout),
    ("records", volume::records),
    ("credentials", asked::credentials),
    ("settings", asked::settings),
    ("outcome", asked::outcome),
];

static TARGET: OnceLock<(Target, Option<usize>)> = OnceLock::new();

fn choose() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some((_, target)) = TARGETS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = TARGETS.iter().map(|(known, _)| *known).collect();
        eprintln!("FUZZ_TARGET is {name:?}, none of: {}", known.join(" "));
        std::process::exit(2);
    };
    let pump = std::env::var("FUZZ_PUMP").ok().and_then(|bytes| bytes.parse().ok());
    TARGET.get_or_init(|| (*target, pump));
}

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    let (target, pump) = TARGET.get().expect("chosen before the first input");
    target(bytes);
    if let Some(size) = pump {
        blown_up(bytes, *size).for_each(|bytes| target(&bytes));
    }
});

/// `bytes` with one of their parts repeated until there are `size` of them: the whole, each half,
/// each eighth; what is before and behind stays.
fn blown_up(bytes: &[u8], size: usize) -> impl Iterator<Item = Vec<u8>> {
    let parts = [1, 2, 8].into_iter().flat_map(|n| (0..n).map(move |part| (part, n)));
    let cut = move |(part, n): (usize, usize)| {
        let (start, end) = (bytes.len() * part / n, bytes.len() * (part + 1) / n);
        let times = size.checked_div(end - start)?;
        let parts = [&bytes[..start], &bytes[start..end].repeat(times), &bytes[end..]];
        Some(parts.concat())
    };
    parts.filter_map(cut)
}
