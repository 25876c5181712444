//! What a test forbids for a while.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use tokio::sync::watch;

use crate::options::ProvisionFailure;

type Meant<K> = dyn Fn(&K) -> bool + Send + Sync;

/// Holds as long as it lives.
#[must_use = "a rule that is dropped is lifted"]
pub struct Rule(Option<Box<dyn FnOnce() + Send>>);

impl Rule {
    /// Lets go on, as dropping does; for tests to say so.
    pub fn lift(self) {
        drop(self);
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        if let Some(lift) = self.0.take() {
            lift();
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").finish_non_exhaustive()
    }
}

/// Every rule in force.
pub(crate) struct Rules {
    pub(crate) provisioning: Arc<List<PersistentVolumeClaim, ()>>,
    pub(crate) failures: Arc<List<PersistentVolumeClaim, ProvisionFailure>>,
    pub(crate) pods: Arc<List<Pod, ()>>,
    pub(crate) scheduling: Arc<List<Pod, ()>>,
}

impl Rules {
    pub(crate) fn new(changed: &watch::Sender<u64>) -> Self {
        Self {
            provisioning: List::new(changed),
            failures: List::new(changed),
            pods: List::new(changed),
            scheduling: List::new(changed),
        }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").finish_non_exhaustive()
    }
}

/// Rules of one sort, each with what it says of the objects that it means.
pub(crate) struct List<K, T> {
    rules: Mutex<Vec<Entry<K, T>>>,
    changed: watch::Sender<u64>,
}

/// The sort's rules are told apart by the address of what they mean.
struct Entry<K, T> {
    meant: Arc<Meant<K>>,
    says: T,
}

impl<K: 'static, T: Clone + Send + 'static> List<K, T> {
    fn new(changed: &watch::Sender<u64>) -> Arc<Self> {
        Arc::new(Self { rules: Mutex::default(), changed: changed.clone() })
    }

    pub(crate) fn add(
        self: &Arc<Self>,
        meant: impl Fn(&K) -> bool + Send + Sync + 'static,
        says: T,
    ) -> Rule {
        let meant: Arc<Meant<K>> = Arc::new(meant);
        self.lock().push(Entry { meant: Arc::clone(&meant), says });
        let list = Arc::clone(self);
        Rule(Some(Box::new(move || {
            list.lock().retain(|entry| !Arc::ptr_eq(&entry.meant, &meant));
            list.changed.send_modify(|version| *version += 1);
        })))
    }

    /// What the first rule says that means this object.
    pub(crate) fn of(&self, object: &K) -> Option<T> {
        self.lock().iter().find(|entry| (entry.meant)(object)).map(|entry| entry.says.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry<K, T>>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_holds_for_what_it_means_as_long_as_it_lives() {
        let (changed, seen) = watch::channel(0);
        let list: Arc<List<u8, &str>> = List::new(&changed);
        let small = list.add(|n| *n < 10, "small");
        let _any = list.add(|_| true, "any");
        assert_eq!((list.of(&1), list.of(&99)), (Some("small"), Some("any")));
        small.lift();
        assert_eq!((list.of(&1), *seen.borrow()), (Some("any"), 1));
    }
}
