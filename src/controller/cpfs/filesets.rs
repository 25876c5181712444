//! Filesets: what is answered.

use serde::Deserialize;

use super::page::{Listing, Page, or_default, said};

/// A directory tree of a file system that has a quota and an id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Fileset {
    #[serde(rename = "FsetId", deserialize_with = "or_default")]
    pub(crate) id: String,
    /// `CREATING`, `CREATED`, `RELEASING`, `RELEASED`, …
    #[serde(deserialize_with = "or_default")]
    pub(crate) status: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) file_system_path: String,
    #[serde(deserialize_with = "said")]
    pub(crate) description: Option<String>,
}

/// The answer to DescribeFilesets.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Described {
    #[serde(default, deserialize_with = "or_default")]
    entries: Entries,
    #[serde(default, deserialize_with = "said")]
    next_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entries {
    /// Spelled so by the API.
    #[serde(default, deserialize_with = "or_default")]
    entrie: Vec<Fileset>,
}

impl Listing for Described {
    type Item = Fileset;
    fn page(self) -> Page<Fileset> {
        Page { items: self.entries.entrie, next: self.next_token }
    }
}
