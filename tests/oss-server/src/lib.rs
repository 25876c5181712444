//! An OSS endpoint in memory.
