//! Data flows: what is asked and what is answered.

use serde::Deserialize;

use super::page::{Listing, Page, or_default, parameters, said};

/// What a data flow is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewDataFlow {
    pub(crate) file_system: String,
    /// Begins and ends in `/`, and exists.
    pub(crate) file_system_path: String,
    /// `oss://bucket`, or `oss://account:bucket`.
    pub(crate) source_storage: String,
    /// Begins and ends in `/`.
    pub(crate) source_storage_path: String,
    /// `None` or `SSL`, in the API's words.
    pub(crate) source_security_type: Option<String>,
    /// MB/s: 600, 1200 or 1500.
    pub(crate) throughput: Option<i64>,
    /// 2 to 128 letters, digits, `:`, `_` and `-`; begins with a letter.
    pub(crate) description: Option<String>,
    /// The same for the same data flow; up to 64 ASCII characters.
    pub(crate) token: String,
}

/// A data flow of a file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DataFlow {
    #[serde(rename = "DataFlowId", deserialize_with = "or_default")]
    pub(crate) id: String,
    /// `Starting`, `Running`, `Stopped`, `Deleting`, …
    #[serde(deserialize_with = "or_default")]
    pub(crate) status: String,
    /// Such as `SourceStorageUnreachable`.
    #[serde(rename = "ErrorMessage", deserialize_with = "fault")]
    pub(crate) error: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) file_system_path: String,
    #[serde(rename = "FsetId", deserialize_with = "said")]
    pub(crate) fileset: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) source_storage: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) source_storage_path: String,
    #[serde(deserialize_with = "said")]
    pub(crate) source_security_type: Option<String>,
    pub(crate) throughput: Option<i64>,
    #[serde(deserialize_with = "said")]
    pub(crate) description: Option<String>,
    /// As the API writes it.
    #[serde(deserialize_with = "said")]
    pub(crate) create_time: Option<String>,
}

impl NewDataFlow {
    pub(super) fn query(&self) -> Vec<(String, String)> {
        let Self {
            file_system,
            file_system_path,
            source_storage,
            source_storage_path,
            source_security_type,
            throughput,
            description,
            token,
        } = self;
        let throughput = throughput.map(|throughput| throughput.to_string());
        parameters([
            ("FileSystemId", Some(file_system)),
            ("FileSystemPath", Some(file_system_path)),
            ("SourceStorage", Some(source_storage)),
            ("SourceStoragePath", Some(source_storage_path)),
            ("SourceSecurityType", source_security_type.as_deref()),
            ("Throughput", throughput.as_deref()),
            ("Description", description.as_deref()),
            ("ClientToken", Some(token)),
        ])
    }
}

/// The answer to CreateDataFlow.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Created {
    pub(super) data_flow_id: String,
}

/// The answer to DescribeDataFlows.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Described {
    #[serde(default, deserialize_with = "or_default")]
    data_flow_info: Info,
    #[serde(default, deserialize_with = "said")]
    next_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default, deserialize_with = "or_default")]
    data_flow: Vec<DataFlow>,
}

impl Listing for Described {
    type Item = DataFlow;
    fn page(self) -> Page<DataFlow> {
        Page { items: self.data_flow_info.data_flow, next: self.next_token }
    }
}

/// `None` is how the API says that nothing is wrong.
fn fault<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(said(from)?.filter(|text| text != "None"))
}
