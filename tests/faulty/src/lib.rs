//! A machine that fails on request. What `oss-server` is for the network, this is for the host:
//! processes that stop at a chosen system call, disks that lose power, directories that misbehave.
//!
//! All of it is real: the process, the kernel, its file systems. Each part needs rights that not
//! every machine gives (root, FUSE, loop devices, ptrace), and says so in an error that a test may
//! print instead of failing.

pub mod calls;
mod dice;
pub mod directory;
pub mod disk;

pub use dice::Dice;
