//! Refusals as the API writes them.

/// A refusal, before it becomes a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    pub(crate) fn missing(name: &str) -> Self {
        let message = format!("{name} is mandatory for this action.");
        Self::new(400, &format!("Missing{name}"), message)
    }

    /// The description names no code for most of what is wrong with a parameter: this one is ours.
    pub(crate) fn invalid(name: &str) -> Self {
        Self::new(400, "InvalidParameter", format!("The specified {name} is invalid."))
    }

    pub(crate) fn no_file_system() -> Self {
        let message = "The specified file system does not exist.";
        Self::new(404, "InvalidFileSystem.NotFound", message)
    }

    pub(crate) fn no_flow() -> Self {
        let message = "The specified data flow does not exist.";
        Self::new(404, "InvalidDataFlow.NotFound", message)
    }

    pub(crate) fn no_task() -> Self {
        let message = "The specified task ID does not exist.";
        Self::new(404, "InvalidTaskId.NotFound", message)
    }

    /// The description names no code for a directory that is missing: this one is ours.
    pub(crate) fn no_directory(name: &str) -> Self {
        let message = format!("The specified {name} does not exist.");
        Self::new(404, &format!("Invalid{name}.NotFound"), message)
    }

    /// The description names no code for the eleventh data flow: this one is ours.
    pub(crate) fn too_many_flows() -> Self {
        let message = "The number of data flows exceeds the limit.";
        Self::new(403, "OperationDenied.DataFlowLimitExceeded", message)
    }

    pub(crate) fn state() -> Self {
        let message = "The operation is not permitted when the status is processing.";
        Self::new(403, "OperationDenied.InvalidState", message)
    }

    pub(crate) fn conflict() -> Self {
        let message = "The operation is denied due to a conflict with an ongoing operation.";
        Self::new(403, "OperationDenied.ConflictOperation", message)
    }

    pub(crate) fn dependency() -> Self {
        let message = "The operation is denied due to dependancy violation.";
        Self::new(403, "OperationDenied.DependencyViolation", message)
    }

    pub(crate) fn token_reused() -> Self {
        let message = "The client token was used with other parameters.";
        Self::new(400, "IdempotentParameterMismatch", message)
    }

    /// The body.
    pub(crate) fn json(&self, request_id: &str) -> serde_json::Value {
        serde_json::json!({
            "RequestId": request_id,
            "HostId": "nas.aliyuncs.com",
            "Code": self.code,
            "Message": self.message,
            "Recommend": format!("https://api.aliyun.com/troubleshoot?q={}", self.code),
        })
    }
}
