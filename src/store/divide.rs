//! Where to divide a range of keys of which only the beginning is known: pure.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::keys::fork;

/// The characters that keys are made of, as far as they were seen.
///
/// Keys use few of the characters that there are, and a place behind which there may be keys is found
/// sooner among those.
#[derive(Debug, Default)]
pub(super) struct Alphabet(BTreeSet<char>);

impl Alphabet {
    /// Takes the characters of a key.
    pub(super) fn learn(&mut self, key: &str) {
        self.0.extend(key.chars());
    }

    /// The middle one of the characters strictly between the two.
    fn middle(&self, above: Option<char>, below: Option<char>) -> Option<char> {
        if above.is_some() && below.is_some() && above >= below {
            return None;
        }
        let bound = |end: Option<char>| end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut between = self.0.range((bound(above), bound(below)));
        let count = between.clone().count();
        between.nth(count / 2).copied()
    }
}

/// A text behind `last` and before `end`, if there is an end, made of `last`'s beginning and one other
/// character; `None` if there is none to be found.
///
/// - with an end, in the middle of the characters at the first place where the two differ, or at the
///   first behind it where there is room
/// - without one, at the first place where `last` differs from `first`, the first of all keys: keys go on
///   there; or at the last before it where there is room
///
/// Whoever finds nothing behind the text takes it for the end: after at most as many times as `last` has
/// characters, times the logarithm of the alphabet's size, it is `None`.
pub(super) fn divide(
    alphabet: &Alphabet,
    first: &str,
    last: &str,
    end: Option<&str>,
) -> Option<String> {
    let fork = fork(last, end.unwrap_or(first));
    let own = |at: usize| last[at..].chars().next();
    let at = |at: usize, below: Option<char>| {
        alphabet.middle(own(at), below).map(|middle| format!("{}{middle}", &last[..at]))
    };
    let Some(end) = end else {
        let before = last[..fork].char_indices().rev().map(|(at, _)| at);
        return std::iter::once(fork).chain(before).find_map(|place| at(place, None));
    };
    if last >= end {
        return None;
    }
    let below = end[fork..].chars().next();
    // behind a character of `last`'s own that is before the end's, everything is
    let mut behind = last[fork..].char_indices().map(|(at, c)| fork + at + c.len_utf8());
    at(fork, below).or_else(|| behind.find_map(|place| at(place, None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn alphabet<'a>(keys: impl IntoIterator<Item = &'a str>) -> Alphabet {
        let mut alphabet = Alphabet::default();
        keys.into_iter().for_each(|key| alphabet.learn(key));
        alphabet
    }

    #[test]
    fn a_range_is_divided_where_its_keys_differ() {
        let digits = alphabet(["0123456789"]);
        let case = |first, last, end| divide(&digits, first, last, end);
        let is = |text: &str| Some(text.to_owned());
        // on from what the keys have had in common so far
        assert_eq!(case("d/0000", "d/0041", None), is("d/007"));
        // where nothing follows there, from before it
        assert_eq!(case("d/0000", "d/0091", None), is("d/05"));
        assert_eq!(case("d/9990", "d/9999", None), is("d5"));
        assert_eq!(case("9990", "9999", None), None);
        // between the two, whatever they have in common
        assert_eq!(case("d/0000", "d/2000", Some("d/7000")), is("d/5"));
        assert_eq!(case("d/0000", "d/2000", Some("d/3")), is("d/25"));
        assert_eq!(case("d/0000", "d/29", Some("d/3")), is("d/295"));
        // what begins the other
        assert_eq!(case("a", "d", Some("d5")), is("d2"));
        assert_eq!(case("a", "d", Some("d0")), None);
        assert_eq!(case("a", "d", Some("d")), None);
        assert_eq!(case("a", "e", Some("d")), None);
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c/]{0,6}", "[0-9]{4}", "[aé\u{7ff}\u{ffff}\u{10ffff}😀]{0,4}", ".{0,8}"]
    }

    proptest! {
        #[test]
        fn what_divides_is_strictly_between(
            keys in prop::collection::vec(text(), 0..20),
            mut of in [text(), text()], end in prop::option::of(text()),
        ) {
            of.sort();
            let [first, last] = of;
            let alphabet = alphabet(keys.iter().map(String::as_str));
            if let Some(text) = divide(&alphabet, &first, &last, end.as_deref()) {
                prop_assert!(text > last);
                prop_assert!(end.is_none_or(|end| text < end));
                prop_assert!(text.chars().count() <= last.chars().count() + 1);
            }
        }

        #[test]
        fn who_finds_nothing_comes_to_an_end(
            keys in prop::collection::vec(text(), 0..20), mut of in [text(), text()],
        ) {
            of.sort();
            let [first, last] = of;
            let alphabet = alphabet(keys.iter().map(String::as_str));
            let halvings = alphabet.0.len().checked_ilog2().map_or(0, |log| log as usize + 1);
            let most = (last.chars().count() + 1) * halvings;
            let mut end = divide(&alphabet, &first, &last, None);
            for _ in 0..most {
                end = end.and_then(|end| divide(&alphabet, &first, &last, Some(&end)));
            }
            prop_assert_eq!(end, None);
        }
    }
}
