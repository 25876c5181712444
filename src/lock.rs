//! Mutexes that stay usable.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also if a holder panicked: that panic is what is told, and not one more here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
