//! A file system that takes its time over names, as a NAS does: a FUSE view of a real directory whose
//! every metadata call takes so much longer. Prints `ready` once it is mounted; at the end of its
//! standard input it unmounts, and prints how many calls there were of each kind.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use faulty::directory::{Kind, On, Options};

#[derive(Debug, Parser)]
#[command(about = "A directory that takes its time over names")]
struct Arguments {
    /// The directory that is shown.
    real: PathBuf,
    /// Where it is shown.
    at: PathBuf,
    /// What each metadata call takes, in ms.
    #[arg(long, default_value_t = 2)]
    delay: u64,
    /// Calls that are served at once.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { real, at, delay, at_once } = Arguments::parse();
    // as a client of NFS: names are known for a while, and a rename knows no flags
    let options =
        Options::default().threads(at_once).remember(Duration::from_secs(1)).plain_renames();
    let directory = options.mount(&real, &at)?;
    directory.rule(On::kinds(Kind::METADATA).delayed(Duration::from_millis(delay)));
    directory.log();
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let mut calls = BTreeMap::<String, u64>::new();
    for call in directory.calls() {
        *calls.entry(format!("{:?}", call.kind).to_lowercase()).or_default() += 1;
    }
    let metadata: u64 = Kind::METADATA
        .iter()
        .filter_map(|kind| calls.get(&format!("{kind:?}").to_lowercase()))
        .sum();
    println!("{}", serde_json::json!({ "metadata": metadata, "calls": calls }));
    Ok(())
}
