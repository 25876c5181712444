//! The source of a run: opens what a [`SourceUrl`](crate::keys::SourceUrl) names and hides which
//! protocol serves it.
