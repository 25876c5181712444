//! What was done, in order, for tests to wait for and to look at.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Longer than anything that a stand-in does takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Kubernetes' own")]
pub enum Deed {
    /// A claim with a data source of an unknown kind: some populator's.
    LeftToPopulator { namespace: String, claim: String },
    /// A volume was made, and its PersistentVolume.
    Provisioned { namespace: String, claim: String, volume: String },
    /// A rule, or the machine, did not let a volume be made.
    ProvisioningFailed { namespace: String, claim: String, message: String },
    /// A released volume's data and its PersistentVolume were removed.
    VolumeDeleted { volume: String },
    /// A claim that waits for its consumer was given a node.
    NodeSelected { namespace: String, claim: String, node: String },
    /// A Pod was bound to a node.
    Scheduled { namespace: String, pod: String, node: String },
    /// A Pod was bound to none.
    Unschedulable { namespace: String, pod: String, message: String },
    /// A container's process runs.
    Started { namespace: String, pod: String, container: String },
    /// A container's process ended.
    Exited { namespace: String, pod: String, container: String, code: i32 },
    /// A Pod that was to go has gone, as far as its node is concerned.
    Removed { namespace: String, pod: String },
    /// The API refused something that should work; it is tried again.
    Refused { what: String, error: String },
}

/// All deeds so far.
#[derive(Debug, Default)]
pub(crate) struct Record {
    deeds: Mutex<Vec<Deed>>,
    grown: watch::Sender<()>,
}

impl Record {
    pub(crate) fn add(&self, deed: Deed) {
        self.lock().push(deed);
        self.grown.send_replace(());
    }

    pub(crate) fn all(&self) -> Vec<Deed> {
        self.lock().clone()
    }

    pub(crate) async fn until<T>(
        &self,
        what: &str,
        mut seen: impl FnMut(&[Deed]) -> Option<T>,
    ) -> T {
        let mut grown = self.grown.subscribe();
        let waiting = async {
            loop {
                grown.borrow_and_update();
                if let Some(found) = seen(&self.all()) {
                    return Some(found);
                }
                // the sender lives in self
                grown.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(Some(found)) => found,
            _ => panic!("{what} did not happen within {PATIENCE:?}, but {:#?}", self.all()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Deed>> {
        self.deeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
