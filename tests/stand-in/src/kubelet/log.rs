//! What containers write, line by line with its time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

/// A real container runtime rotates logs at 10 MiB.
const LARGEST: usize = 10 << 20;

/// One run of one container.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Mutex<Lines>,
    grown: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<(Timestamp, Vec<u8>)>,
    bytes: usize,
    /// Lines that were dropped for those that came after.
    dropped: u64,
    ended: bool,
}

/// Which part of a log is asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) tail: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit: Option<usize>,
}

impl Log {
    /// A line, with its line end if it has one.
    pub(crate) fn add(&self, line: Vec<u8>) {
        {
            let mut state = self.lock();
            state.bytes += line.len();
            state.lines.push_back((Timestamp::now(), line));
            while state.bytes > LARGEST {
                let Some((_, line)) = state.lines.pop_front() else { break };
                state.bytes -= line.len();
                state.dropped += 1;
            }
        }
        self.grown.send_replace(());
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.grown.send_replace(());
    }

    /// What is there now, and how to go on after it.
    pub(crate) fn read(&self, part: &Part) -> (Vec<u8>, u64) {
        let state = self.lock();
        let skipped = part.tail.map_or(0, |tail| state.lines.len().saturating_sub(tail));
        let lines = state.lines.iter().skip(skipped);
        let mut text = Vec::new();
        for (at, line) in lines.filter(|(at, _)| part.since.is_none_or(|since| *at >= since)) {
            write(&mut text, *at, line, part.timestamps);
        }
        text.truncate(part.limit.unwrap_or(usize::MAX));
        (text, state.dropped + state.lines.len() as u64)
    }

    /// Waits for what comes after the first `from` lines; `None` at the end.
    pub(crate) async fn follow(&self, from: u64, timestamps: bool) -> Option<(Vec<u8>, u64)> {
        let mut grown = self.grown.subscribe();
        loop {
            grown.borrow_and_update();
            {
                let state = self.lock();
                let skipped = usize::try_from(from.saturating_sub(state.dropped)).ok()?;
                if skipped < state.lines.len() {
                    let mut text = Vec::new();
                    for (at, line) in state.lines.iter().skip(skipped) {
                        write(&mut text, *at, line, timestamps);
                    }
                    return Some((text, state.dropped + state.lines.len() as u64));
                }
                if state.ended {
                    return None;
                }
            }
            grown.changed().await.ok()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(text: &mut Vec<u8>, at: Timestamp, line: &[u8], timestamps: bool) {
    if timestamps {
        text.extend_from_slice(format!("{at:.9} ").as_bytes());
    }
    text.extend_from_slice(line);
}

/// The logs of all containers. They outlive their Pods, for tests to look at.
#[derive(Debug, Default)]
pub(crate) struct Logs(Mutex<BTreeMap<[String; 3], Runs>>);

#[derive(Debug)]
struct Runs {
    current: Arc<Log>,
    previous: Option<Arc<Log>>,
}

impl Logs {
    /// A new run of a container. The last one of the same Pod becomes the previous one.
    pub(crate) fn begin(&self, key: [String; 3], restarted: bool) -> Arc<Log> {
        let current = Arc::new(Log::default());
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = logs.remove(&key).map(|runs| runs.current).filter(|_| restarted);
        logs.insert(key, Runs { current: Arc::clone(&current), previous: before });
        current
    }

    pub(crate) fn get(&self, key: &[String; 3], previous: bool) -> Option<Arc<Log>> {
        let logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = logs.get(key)?;
        if previous { runs.previous.clone() } else { Some(Arc::clone(&runs.current)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gives_its_last_lines() {
        let log = Log::default();
        for line in ["one\n", "two\n", "three"] {
            log.add(line.into());
        }
        let text = |part: Part| String::from_utf8(log.read(&part).0).unwrap();
        assert_eq!(text(Part::default()), "one\ntwo\nthree");
        assert_eq!(text(Part { tail: Some(2), ..Part::default() }), "two\nthree");
        assert_eq!(text(Part { tail: Some(0), ..Part::default() }), "");
        assert_eq!(text(Part { limit: Some(5), ..Part::default() }), "one\nt");
        let stamped = text(Part { tail: Some(1), timestamps: true, ..Part::default() });
        assert!(stamped.ends_with("Z three") && stamped.starts_with("20"), "{stamped}");
    }

    #[test]
    fn a_log_keeps_what_came_last() {
        let log = Log::default();
        for _ in 0..20 {
            log.add(vec![b'x'; 1 << 20]);
        }
        let (text, seen) = log.read(&Part::default());
        assert_eq!((text.len(), seen), (10 << 20, 20));
    }

    #[tokio::test]
    async fn who_follows_sees_every_line_and_the_end() {
        let log = Log::default();
        log.add(b"one\n".to_vec());
        let (_, seen) = log.read(&Part::default());
        log.add(b"two\n".to_vec());
        let (text, seen) = log.follow(seen, false).await.unwrap();
        assert_eq!((text.as_slice(), seen), (b"two\n".as_slice(), 2));
        log.end();
        assert_eq!(log.follow(seen, false).await, None);
    }
}
