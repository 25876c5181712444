//! The escape between keys and `object_store` paths.
//!
//! `object_store::path::Path` refuses empty, `.` and `..` segments and control characters and drops
//! a leading and a trailing `/`; keys may hold all of them. The escape is injective, so what comes
//! back is the key, byte for byte.

use object_store::path::Path;

use crate::keys::Key;

/// The path that stands for `key` in calls of an [`object_store::ObjectStore`] of this module.
///
/// Segment by segment: `%` and ASCII control characters become `%XX`, `.` becomes `%2E`, `..`
/// becomes `%2E%2E`, and an empty segment becomes a lone `%`, which nothing else can become.
///
/// ```
/// use ossvp::keys::Key;
/// use ossvp::store::{key_at, location};
/// for (key, path) in [("a/b", "a/b"), ("dir/", "dir/%"), ("/a//b", "%/a/%/b"), ("../100%", "%2E%2E/100%25")] {
///     let key = Key::new(key).unwrap();
///     assert_eq!(location(&key).as_ref(), path);
///     assert_eq!(key_at(&location(&key)), Some(key));
/// }
/// ```
pub fn location(key: &Key) -> Path {
    let mut path = String::with_capacity(key.as_str().len() + 8);
    for (index, segment) in key.as_str().split('/').enumerate() {
        if index > 0 {
            path.push('/');
        }
        match segment {
            "" => path.push('%'),
            "." => path.push_str("%2E"),
            ".." => path.push_str("%2E%2E"),
            segment if segment.bytes().all(is_plain) => path.push_str(segment),
            segment => segment.chars().for_each(|c| match c {
                '%' => path.push_str("%25"),
                c if c.is_ascii_control() => path.push_str(&format!("%{:02X}", u32::from(c))),
                c => path.push(c),
            }),
        }
    }
    Path::parse(path).expect("the escape leaves no segment that a path refuses")
}

/// Whether a byte stands for itself.
fn is_plain(byte: u8) -> bool {
    byte != b'%' && !byte.is_ascii_control()
}

/// The key that `path` stands for; `None` if [`location`] makes no such path.
pub fn key_at(path: &Path) -> Option<Key> {
    if path.as_ref().bytes().all(is_plain) {
        // a path has no segments but those that stand for themselves
        return Key::new(path.as_ref()).ok();
    }
    let mut key = String::with_capacity(path.as_ref().len());
    for (index, segment) in path.as_ref().split('/').enumerate() {
        if index > 0 {
            key.push('/');
        }
        if segment == "%" {
            continue;
        }
        let mut rest = segment;
        while let Some(at) = rest.find('%') {
            key.push_str(&rest[..at]);
            let code = u8::from_str_radix(rest.get(at + 1..at + 3)?, 16).ok()?;
            key.push(char::from(code));
            rest = &rest[at + 3..];
        }
        key.push_str(rest);
    }
    let key = Key::new(key).ok()?;
    (location(&key) == *path).then_some(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_paths_that_no_key_makes() {
        for path in ["a%2", "a%zz", "%41", "a%", "%%", "%2e", "a%2Fb", "%C3%A9"] {
            assert_eq!(key_at(&Path::parse(path).unwrap()), None, "{path}");
        }
        assert_eq!(key_at(&Path::default()), None);
    }

    proptest! {
        #[test]
        fn every_key_comes_back(
            key in prop_oneof![any::<String>(), "[a./%\\x00-\\x1f\u{7f}é😀]{1,24}"],
        ) {
            let Ok(key) = Key::new(key) else { return Ok(()) };
            let path = location(&key);
            prop_assert_eq!(key_at(&path), Some(key));
            prop_assert!(Path::parse(path.as_ref()).unwrap() == path);
        }

        #[test]
        fn two_keys_are_two_paths(a in "[a./%E2]{1,8}", b in "[a./%E2]{1,8}") {
            let (a, b) = (Key::new(a).unwrap(), Key::new(b).unwrap());
            prop_assert_eq!(a == b, location(&a) == location(&b));
        }
    }
}
