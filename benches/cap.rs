//! How exact the bandwidth cap is: bodies from memory, through `Capped`, at the rates that matter.
//!
//! Prints for each rate the mean after the first second, the worst deviation from the rate over any
//! 5 s after the first second, and the most that passed in any 250 ms (from the start on), in
//! seconds of the rate: 0.25 is the rate itself, 0.35 that and a full bucket.
//!
//! `cargo bench --bench cap`, on a machine that does nothing else; rates in MB/s as arguments
//! replace the table's.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use object_store::chunked::ChunkedStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use ossvp::worker::{Cap, Capped};

/// In MB/s. 187.5 is 1.5 Gbit/s; 300, 600 and 900 are grades of cloud disks.
const RATES: [&str; 7] = ["1", "10", "187.5", "300", "600", "900", "1000"];
/// Frames as a socket gives them.
const FRAME: usize = 64 << 10;
const CONNECTIONS: usize = 16;
const SECONDS: f64 = 12.0;
const WARM_UP: f64 = 1.0;

/// Bytes that passed, and when, in seconds from the start.
type Passed = (f64, u64);

async fn run(rate: &str) -> Vec<Passed> {
    let memory = InMemory::new();
    memory.put(&Path::from("object"), vec![7; 16 << 20].into()).await.unwrap();
    let frames = Arc::new(ChunkedStore::new(Arc::new(memory), FRAME));
    let cap = Arc::new(Cap::new(rate.parse().unwrap()));
    let capped: Arc<dyn ObjectStore> = Arc::new(Capped::new(frames, cap));
    let start = Instant::now();
    let connections = (0..CONNECTIONS).map(|_| {
        let capped = Arc::clone(&capped);
        tokio::spawn(async move {
            let mut passed = Vec::new();
            loop {
                let mut body = capped.get(&Path::from("object")).await.unwrap().into_stream();
                while let Some(frame) = body.next().await {
                    let at = start.elapsed().as_secs_f64();
                    if at > SECONDS {
                        return passed;
                    }
                    passed.push((at, frame.unwrap().len() as u64));
                }
            }
        })
    });
    let mut all = Vec::new();
    for connection in connections.collect::<Vec<_>>() {
        all.extend(connection.await.unwrap());
    }
    all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    all
}

/// The least and the most bytes of any window of `span` seconds within `passed`.
///
/// Both are reached where a window begins with a frame or right behind one.
fn extremes(passed: &[Passed], span: f64) -> (u64, u64) {
    let (mut least, mut most) = (u64::MAX, 0);
    let (mut end, mut sum) = (0, 0);
    let last = passed.last().map_or(0.0, |(at, _)| *at);
    for (at, bytes) in passed {
        while let Some((_, more)) = passed.get(end).filter(|(then, _)| *then < at + span) {
            sum += more;
            end += 1;
        }
        most = most.max(sum);
        sum -= bytes;
        if at + span <= last {
            least = least.min(sum);
        }
    }
    (least.min(most), most)
}

fn main() {
    let mut rates: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if rates.is_empty() {
        rates = RATES.map(str::to_owned).to_vec();
    }
    println!("{CONNECTIONS} connections, frames of {FRAME} bytes, {SECONDS} s each");
    println!("  MB/s        mean   worst 5 s   most in 250 ms   first 250 ms");
    for rate in rates {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let passed = runtime.block_on(run(&rate));
        runtime.shutdown_timeout(Duration::from_secs(1));

        let asked = rate.parse::<ossvp::handoff::Rate>().unwrap().bytes_per_second() as f64;
        let mut steady = vec![(WARM_UP, 0)];
        steady.extend(passed.iter().filter(|(at, _)| *at >= WARM_UP));
        steady.push((SECONDS, 0));
        let bytes: u64 = steady.iter().map(|(_, bytes)| bytes).sum();
        let mean = bytes as f64 / (SECONDS - WARM_UP);
        let (least, most) = extremes(&steady, 5.0);
        let deviation = |bytes: u64| (bytes as f64 / 5.0 / asked - 1.0) * 100.0;
        let worst =
            [least, most].map(deviation).into_iter().max_by(|a, b| a.abs().total_cmp(&b.abs()));
        let (_, burst) = extremes(&passed, 0.25);
        let first: u64 =
            passed.iter().take_while(|(at, _)| *at < 0.25).map(|(_, bytes)| bytes).sum();
        println!(
            "{rate:>6}  {:>9.3}%  {:>9.3}%   {:>9.3} s      {:>9.3} s",
            (mean / asked - 1.0) * 100.0,
            worst.unwrap_or_default(),
            burst as f64 / asked,
            first as f64 / asked,
        );
    }
}
