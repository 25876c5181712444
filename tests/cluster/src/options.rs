//! What a control plane should be like.

use crate::{ControlPlane, Error, binaries};

/// Another process may take a port between its choice and its use.
const TRIES: usize = 3;

/// What a control plane should be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    feature_gates: Vec<String>,
    pub(crate) api_server: Vec<String>,
    pub(crate) controller_manager: Vec<String>,
    pub(crate) users: Vec<(String, String)>,
}

impl Options {
    /// Switches a feature gate of all components, e.g. `("AnyVolumeDataSource", false)`.
    #[must_use]
    pub fn feature_gate(mut self, name: &str, on: bool) -> Self {
        self.feature_gates.push(format!("{name}={on}"));
        self
    }

    /// One more flag for kube-apiserver, e.g. `--enable-admission-plugins=AlwaysPullImages`.
    #[must_use]
    pub fn api_server_flag(mut self, flag: &str) -> Self {
        self.api_server.push(flag.to_owned());
        self
    }

    /// One more flag for kube-controller-manager.
    #[must_use]
    pub fn controller_manager_flag(mut self, flag: &str) -> Self {
        self.controller_manager.push(flag.to_owned());
        self
    }

    /// One more user with a token of its own and no rights but its groups'.
    #[must_use]
    pub fn user(mut self, name: &str, groups: &[&str]) -> Self {
        self.users.push((name.to_owned(), groups.join(",")));
        self
    }

    /// Starts it and waits until it works.
    ///
    /// # Errors
    ///
    /// If it does not, with the end of the log of who is to blame.
    pub fn start(self) -> Result<ControlPlane, Error> {
        let bin = binaries::build("control-plane")?;
        let mut tries = 1;
        loop {
            match ControlPlane::try_start(&self, &bin) {
                Err(Error::Ended { tail, .. })
                    if tries < TRIES && tail.contains("address already in use") =>
                {
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    pub(crate) fn feature_gates(&self) -> Option<String> {
        let gates = self.feature_gates.join(",");
        (!gates.is_empty()).then(|| format!("--feature-gates={gates}"))
    }
}
