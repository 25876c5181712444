//! ossvp fills a volume with the objects of an OSS prefix and vouches for it.
pub mod keys;
pub mod store;
