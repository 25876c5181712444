//! Faults on request.

use std::collections::{HashMap, VecDeque};

use crate::error::ApiError;

/// What goes wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub(crate) Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Refused, nothing is done.
    Refuse { error: ApiError, retry_after_ms: Option<u64> },
    /// The connection ends, nothing is done.
    DropBefore,
    /// Done, and the connection ends without an answer.
    DropAfter,
    /// Done, and answered with this error.
    RefuseAfter(ApiError),
    /// Done, and answered with something that is no JSON.
    Garbage,
    /// Nothing is done, and no answer comes.
    Hang,
}

impl Fault {
    /// Refuses.
    pub fn refuse(status: u16, code: &str) -> Self {
        let error = ApiError::new(status, code, "A fault that was asked for.");
        Self(Kind::Refuse { error, retry_after_ms: None })
    }

    /// Asks for fewer calls.
    pub fn throttle() -> Self {
        Self(Kind::Refuse { error: throttling(), retry_after_ms: None })
    }

    /// Asks to be left alone for a time.
    pub fn throttle_for(retry_after_ms: u64) -> Self {
        Self(Kind::Refuse { error: throttling(), retry_after_ms: Some(retry_after_ms) })
    }

    /// Ends the connection before anything is done.
    pub fn drop_before() -> Self {
        Self(Kind::DropBefore)
    }

    /// Does what is asked and ends the connection without an answer.
    pub fn drop_after() -> Self {
        Self(Kind::DropAfter)
    }

    /// Does what is asked and says that it failed.
    pub fn refuse_after(status: u16, code: &str) -> Self {
        Self(Kind::RefuseAfter(ApiError::new(status, code, "A fault that was asked for.")))
    }

    /// Does what is asked and answers with something that is no JSON.
    pub fn garbage() -> Self {
        Self(Kind::Garbage)
    }

    /// Never answers.
    pub fn hang() -> Self {
        Self(Kind::Hang)
    }
}

fn throttling() -> ApiError {
    let message = "Request was denied due to user flow control.";
    ApiError::new(400, "Throttling.User", message)
}

/// What is to go wrong, by action: once each in this order, then always.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    once: HashMap<String, VecDeque<Fault>>,
    always: HashMap<String, Fault>,
}

impl Faults {
    pub(crate) fn push(&mut self, action: &str, fault: Fault) {
        self.once.entry(action.to_owned()).or_default().push_back(fault);
    }

    pub(crate) fn set(&mut self, action: &str, fault: Fault) {
        self.always.insert(action.to_owned(), fault);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn strike(&mut self, action: &str) -> Option<Fault> {
        let next = self.once.get_mut(action).and_then(VecDeque::pop_front);
        next.or_else(|| self.always.get(action).cloned())
    }
}
