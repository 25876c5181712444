//! What a command took, as one line of JSON: seconds, its CPU, everyone's CPU, its peak memory.
//!
//! A process's peak has that of the process which forked it as its floor, so the parent is this one,
//! which takes 3 MiB, and not an interpreter.
#![allow(clippy::print_stdout, reason = "its figures are its output")]

use std::error::Error;
use std::ffi::OsString;
use std::fs::{File, read_to_string};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

#[derive(Debug, Parser)]
struct Options {
    /// Also sync the file system of this directory.
    #[arg(long)]
    sync: Option<PathBuf>,
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// Hundredths of a second in which a processor was busy, of all processors since the machine started:
/// the kernel tells no finer.
fn busy() -> Result<u64, Box<dyn Error>> {
    let stat = read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields = fields.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let [user, nice, system, _idle, _iowait, interrupts, softly, ..] = fields[..] else {
        return Err("/proc/stat has another form".into());
    };
    Ok(user + nice + system + interrupts + softly)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Options { sync, command } = Options::parse();
    let (busy_before, start) = (busy()?, Instant::now());
    let status = Command::new(&command[0]).args(&command[1..]).stdout(Stdio::null()).status()?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(directory) = sync {
        rustix::fs::syncfs(File::open(directory)?)?;
    }
    let seconds_synced = start.elapsed().as_secs_f64();
    let busy = busy()? - busy_before;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let [user, system] = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6);
    let figures = json!({
        "code": status.code(),
        "seconds": seconds,
        "seconds_synced": seconds_synced,
        "cpu_client": user + system,
        "cpu_all": busy as f64 / 100.0,
        // the kernel counts KiB
        "peak_rss_bytes": usage.max_rss() * 1024,
    });
    println!("{figures}");
    Ok(())
}
