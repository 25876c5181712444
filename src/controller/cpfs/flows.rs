//! Data flows: what is asked and what is answered.

use serde::{Deserialize, Deserializer};

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
    /// `Starting`, `Running`, `Updating`, `Deleting`, `Stopping`, `Stopped`, `Misconfigured`, …
    #[serde(deserialize_with = "or_default")]
    pub(crate) status: String,
    /// Such as `SourceStorageUnreachable` or `ThroughputTooLow`.
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

impl DataFlow {
    /// Whether its description begins with `mark`.
    pub(crate) fn is_marked(&self, mark: &str) -> bool {
        self.description.as_ref().is_some_and(|description| description.starts_with(mark))
    }
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

/// The API says that nothing is wrong with a word for it; its description in Chinese has that word,
/// too.
fn fault<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(said(from)?.filter(|text| text != "None" && text != "无"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(json: &str) -> Page<DataFlow> {
        serde_json::from_str::<Described>(json).unwrap().page()
    }

    #[test]
    fn the_documentation_s_example_is_read() {
        let Page { items, next } = page(
            r#"{"RequestId": "2D69A58F", "NextToken": "TGlz=", "DataFlowInfo": {"DataFlow": [{
                "FileSystemId": "cpfs-099394bd928c", "DataFlowId": "dfid-194433a5be31",
                "FsetId": "fset-1902718ea0ae", "Status": "Running", "ErrorMessage": "无",
                "SourceStorage": "oss://bucket1", "SourceSecurityType": "SSL", "Throughput": 600,
                "Description": "Bucket01数据流动", "CreateTime": "2021-09-30T10:08:08Z",
                "AutoRefresh": {"AutoRefresh": [{"RefreshPath": "/prefix1/prefix2/"}]},
                "FileSystemPath": "/a/b/c/", "FsetDescription": "x", "AutoRefreshInterval": 10,
                "AutoRefreshPolicy": "None", "SourceStoragePath": "/prefix/"}]}}"#,
        );
        let expected = DataFlow {
            id: "dfid-194433a5be31".to_owned(),
            status: "Running".to_owned(),
            error: None,
            file_system_path: "/a/b/c/".to_owned(),
            fileset: Some("fset-1902718ea0ae".to_owned()),
            source_storage: "oss://bucket1".to_owned(),
            source_storage_path: "/prefix/".to_owned(),
            source_security_type: Some("SSL".to_owned()),
            throughput: Some(600),
            description: Some("Bucket01数据流动".to_owned()),
            create_time: Some("2021-09-30T10:08:08Z".to_owned()),
        };
        assert_eq!((items, next.as_deref()), (vec![expected], Some("TGlz=")));
    }

    #[test]
    fn what_is_missing_or_nothing_is_no_error() {
        for nothing in [
            "{}",
            r#"{"DataFlowInfo": null, "NextToken": null}"#,
            r#"{"DataFlowInfo": {}, "NextToken": ""}"#,
            r#"{"DataFlowInfo": {"DataFlow": null}}"#,
        ] {
            let Page { items, next } = page(nothing);
            assert!(items.is_empty() && next.is_none(), "{nothing}");
        }
        let flow = r#"{"DataFlowInfo": {"DataFlow": [{"DataFlowId": "df-1", "Status": "Odd",
            "ErrorMessage": "SourceStorageUnreachable", "Description": null, "Throughput": null}]}}"#;
        let flow = page(flow).items.remove(0);
        assert_eq!((flow.status.as_str(), flow.throughput), ("Odd", None));
        assert_eq!(flow.error.as_deref(), Some("SourceStorageUnreachable"));
    }

    #[test]
    fn only_what_is_given_is_asked() {
        let new = NewDataFlow {
            file_system: "bmcpfs-1".to_owned(),
            file_system_path: "/a/".to_owned(),
            source_storage: "oss://b".to_owned(),
            source_storage_path: "/p/".to_owned(),
            source_security_type: None,
            throughput: None,
            description: None,
            token: "t".to_owned(),
        };
        let names: Vec<_> = new.query().into_iter().map(|(name, _)| name).collect();
        let given = "FileSystemId FileSystemPath SourceStorage SourceStoragePath ClientToken";
        assert_eq!(names.join(" "), given);
    }
}
