//! Counts the heap: how much a target needs at most is held against how much it was given.

#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came, and what that answers goes back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `at` came from `System` with this layout, as the caller vouches.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // both may exist for a moment
        more(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `at` came from `System` with this layout, as the caller vouches.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Does `what`, and says how many bytes of heap it needed at most.
pub(crate) fn peak_of<T>(what: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let done = what();
    (done, PEAK.load(Relaxed).saturating_sub(before))
}

/// Does `what` within `each` bytes of heap for each of the `given` bytes, and 64 KiB.
#[track_caller]
pub(crate) fn within<T>(each: usize, given: usize, what: impl FnOnce() -> T) -> T {
    let (done, peak) = peak_of(what);
    let limit = (64 << 10) + each * given;
    assert!(peak <= limit, "{peak} bytes of heap for {given}, at most {limit}");
    done
}
