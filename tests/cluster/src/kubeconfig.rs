//! What kubectl and the components need to know of the API server.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

/// A kubeconfig as JSON, which is YAML too.
pub(crate) fn kubeconfig(url: &str, ca_pem: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": url,
            "certificate-authority-data": BASE64_STANDARD.encode(ca_pem),
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}
