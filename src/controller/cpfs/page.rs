//! What all answers have in common: pages, and lists within objects.

use serde::{Deserialize, Deserializer};

/// One page of an operation that lists, its items as `T` has them.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// What the next page is asked with; `None` at the end.
    pub(super) next: Option<String>,
}

/// An answer that lists.
pub(super) trait Listing: for<'de> Deserialize<'de> {
    type Item;
    fn page(self) -> Page<Self::Item>;
}

/// Where there is nothing, the API says `null`, leaves it out, or says it as if it were something.
pub(super) fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Text that says something.
pub(super) fn said<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()))
}

/// The query of one that lists: of a file system, filtered by `key` if it has a value.
pub(super) fn listing(file_system: &str, filter: Option<(&str, &str)>) -> Vec<(String, String)> {
    let mut query = parameters([("FileSystemId", Some(file_system)), ("MaxResults", Some("100"))]);
    if let Some((key, value)) = filter {
        query.push(("Filters.1.Key".to_owned(), key.to_owned()));
        query.push(("Filters.1.Value".to_owned(), value.to_owned()));
    }
    query
}

/// Those that are given.
pub(super) fn parameters<const N: usize>(
    given: [(&str, Option<&str>); N],
) -> Vec<(String, String)> {
    let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
    given.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
