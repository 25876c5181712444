//! What was asked.

use std::collections::BTreeMap;

/// A call, as it came and as it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Such as `CreateDataFlow`.
    pub action: String,
    /// The query, decoded.
    pub parameters: BTreeMap<String, String>,
    /// Who asked.
    pub access_key_id: Option<String>,
    /// With what token.
    pub security_token: Option<String>,
    /// The answer's status; 0 where none was given.
    pub status: u16,
    /// The error's code; empty where there is none.
    pub code: String,
    /// Whether anything is different since.
    pub changed: bool,
}

impl Call {
    /// A parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}
