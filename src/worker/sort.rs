//! An external merge sort: records of a key and a value, bounded memory, the rest in one file.
//!
//! The manifest is in commit order and some listings are in no order; both are sorted here, on the
//! volume, so that memory does not grow with the number of objects.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};

/// Bytes of records held before a run is written. With 150 bytes a record that is some 100,000
/// records a run; 10^8 records make 1,000 runs, whose read buffers take as much again.
const RUN_BYTES: usize = 16 << 20;
/// Bytes read at once from each run while merging.
const READ_BYTES: usize = 16 << 10;

/// Makes the file that holds what does not fit in memory; it should have no name.
pub(crate) type SpillFile = Box<dyn Fn() -> io::Result<File> + Send>;

/// Files without a name in the directory for temporary files, for a run that has no volume.
pub(crate) fn temporary() -> SpillFile {
    Box::new(|| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::open(std::env::temp_dir(), flags, mode)?.into())
    })
}

/// Collects records in any order.
pub(crate) struct Sorter {
    spill: SpillFile,
    file: Option<File>,
    file_end: u64,
    runs: Vec<(u64, u64)>,
    arena: Vec<u8>,
    index: Vec<Slot>,
    run_bytes: usize,
}

impl std::fmt::Debug for Sorter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sorter").field("runs", &self.runs.len()).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    at: usize,
    key: u32,
    value: u32,
}

impl Sorter {
    pub(crate) fn new(spill: SpillFile) -> Self {
        Self::with_run_bytes(spill, RUN_BYTES)
    }

    fn with_run_bytes(spill: SpillFile, run_bytes: usize) -> Self {
        Self {
            spill,
            file: None,
            file_end: 0,
            runs: Vec::new(),
            arena: Vec::new(),
            index: Vec::new(),
            run_bytes,
        }
    }

    /// Adds a record. Records of one key come out in the order in which they went in.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if !self.arena.is_empty() && self.arena.len() + key.len() + value.len() > self.run_bytes {
            self.write_run()?;
        }
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len()).map_err(|_| io::Error::other("a record of over 4 GiB"))
        };
        self.index.push(Slot { at: self.arena.len(), key: length(key)?, value: length(value)? });
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value);
        Ok(())
    }

    /// Forgets what was collected.
    pub(crate) fn clear(&mut self) {
        self.file = None;
        self.file_end = 0;
        self.runs.clear();
        self.arena.clear();
        self.index.clear();
    }

    fn sort_run(&mut self) {
        let arena = &self.arena;
        // stable: records of one key keep their order
        self.index.sort_by(|a, b| {
            arena[a.at..a.at + a.key as usize].cmp(&arena[b.at..b.at + b.key as usize])
        });
    }

    fn write_run(&mut self) -> io::Result<()> {
        self.sort_run();
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert((self.spill)()?),
        };
        let start = self.file_end;
        let mut buffer = Vec::with_capacity(1 << 20);
        for slot in &self.index {
            buffer.extend_from_slice(&slot.key.to_le_bytes());
            buffer.extend_from_slice(&slot.value.to_le_bytes());
            let end = slot.at + (slot.key + slot.value) as usize;
            buffer.extend_from_slice(&self.arena[slot.at..end]);
            if buffer.len() > (1 << 20) - (64 << 10) {
                file.write_all_at(&buffer, self.file_end)?;
                self.file_end += buffer.len() as u64;
                buffer.clear();
            }
        }
        file.write_all_at(&buffer, self.file_end)?;
        self.file_end += buffer.len() as u64;
        self.runs.push((start, self.file_end));
        self.arena.clear();
        self.index.clear();
        Ok(())
    }

    /// Sorts what was collected.
    pub(crate) fn finish(mut self) -> io::Result<Sorted> {
        if self.runs.is_empty() {
            self.sort_run();
            return Ok(Sorted::Memory { arena: self.arena, index: self.index, next: 0 });
        }
        self.write_run()?;
        let file = self.file.take().ok_or_else(|| io::Error::other("no file behind the runs"))?;
        let (readers, heap) = merged(&file, &self.runs)?;
        Ok(Sorted::Runs { file, runs: self.runs, readers, heap })
    }
}

/// Readers of all runs, and the first record of each.
fn merged(file: &File, runs: &[(u64, u64)]) -> io::Result<(Vec<RunReader>, Heap)> {
    let mut readers: Vec<RunReader> =
        runs.iter().map(|(at, end)| RunReader::new(*at, *end)).collect();
    let mut heap = BinaryHeap::with_capacity(readers.len());
    for (n, reader) in readers.iter_mut().enumerate() {
        if let Some((key, value)) = reader.next(file)? {
            heap.push(Reverse((key, n, value)));
        }
    }
    Ok((readers, heap))
}

/// The next record of each run: key, run, value.
type Heap = BinaryHeap<Reverse<(Vec<u8>, usize, Vec<u8>)>>;

/// The records, by key.
pub(crate) enum Sorted {
    Memory { arena: Vec<u8>, index: Vec<Slot>, next: usize },
    Runs { file: File, runs: Vec<(u64, u64)>, readers: Vec<RunReader>, heap: Heap },
}

impl std::fmt::Debug for Sorted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sorted").finish_non_exhaustive()
    }
}

impl Sorted {
    /// Goes back to the first record.
    pub(crate) fn rewind(&mut self) -> io::Result<()> {
        match self {
            Self::Memory { next, .. } => *next = 0,
            Self::Runs { file, runs, readers, heap } => {
                (*readers, *heap) = merged(file, runs)?;
            }
        }
        Ok(())
    }

    /// The next record: key and value.
    #[allow(clippy::type_complexity, reason = "a key and a value, nothing worth a name")]
    pub(crate) fn next(&mut self) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        match self {
            Self::Memory { arena, index, next } => {
                let Some(slot) = index.get(*next) else { return Ok(None) };
                *next += 1;
                let middle = slot.at + slot.key as usize;
                let end = middle + slot.value as usize;
                Ok(Some((arena[slot.at..middle].to_vec(), arena[middle..end].to_vec())))
            }
            Self::Runs { file, readers, heap, .. } => {
                let Some(Reverse((key, n, value))) = heap.pop() else { return Ok(None) };
                if let Some((key, value)) = readers[n].next(file)? {
                    heap.push(Reverse((key, n, value)));
                }
                Ok(Some((key, value)))
            }
        }
    }
}

/// Reads one sorted run from `at` to `end` of the file.
#[derive(Debug)]
pub(crate) struct RunReader {
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl RunReader {
    fn new(at: u64, end: u64) -> Self {
        Self { at, end, buffer: Vec::new(), used: 0 }
    }

    /// Makes at least `want` bytes available behind `used`.
    fn fill(&mut self, file: &File, want: usize) -> io::Result<()> {
        if self.buffer.len() - self.used >= want {
            return Ok(());
        }
        self.buffer.drain(..self.used);
        self.used = 0;
        let have = self.buffer.len();
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let more = READ_BYTES.max(want - have).min(left);
        self.buffer.resize(have + more, 0);
        file.read_exact_at(&mut self.buffer[have..], self.at)?;
        self.at += more as u64;
        if self.buffer.len() < want { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    #[allow(clippy::type_complexity, reason = "a key and a value, nothing worth a name")]
    fn next(&mut self, file: &File) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        if self.at == self.end && self.used == self.buffer.len() {
            return Ok(None);
        }
        self.fill(file, 8)?;
        let length = |bytes: &[u8]| {
            u32::from_le_bytes(bytes.try_into().expect("the slice has four bytes")) as usize
        };
        let key_len = length(&self.buffer[self.used..self.used + 4]);
        let value_len = length(&self.buffer[self.used + 4..self.used + 8]);
        self.used += 8;
        self.fill(file, key_len + value_len)?;
        let (key, value) =
            self.buffer[self.used..self.used + key_len + value_len].split_at(key_len);
        let record = (key.to_vec(), value.to_vec());
        self.used += key_len + value_len;
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_out_as_a_stable_sort_would_have_them(
            records in prop::collection::vec((prop::collection::vec(0u8..4, 0..4),
                                              prop::collection::vec(any::<u8>(), 0..40)), 0..200),
            run_bytes in 1usize..2000,
        ) {
            let mut sorter = Sorter::with_run_bytes(Box::new(tempfile::tempfile), run_bytes);
            for (key, value) in &records {
                sorter.push(key, value)?;
            }
            let mut sorted = sorter.finish()?;
            let mut expected = records;
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            for _ in 0..2 {
                for record in &expected {
                    let found = sorted.next()?;
                    prop_assert_eq!(found.as_ref(), Some(record));
                }
                prop_assert_eq!(sorted.next()?, None);
                sorted.rewind()?;
            }
        }
    }
}
