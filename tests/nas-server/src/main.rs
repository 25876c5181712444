//! `nas-server`: the NAS API in memory, until it is told to stop.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use nas_server::NasServer;

/// CPFS's data flows in memory, behind the NAS API
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The region of everything.
    #[arg(long, default_value = "cn-wulanchabu")]
    region: String,
    /// The key pair that is accepted.
    #[arg(long, env = "NAS_SERVER_ACCESS_KEY_ID", default_value = "id")]
    access_key_id: String,
    /// Its secret.
    #[arg(
        long,
        env = "NAS_SERVER_ACCESS_KEY_SECRET",
        default_value = "secret",
        hide_env_values = true
    )]
    access_key_secret: String,
    /// With this, the key pair is a temporary one.
    #[arg(long, env = "NAS_SERVER_SECURITY_TOKEN", hide_env_values = true)]
    security_token: Option<String>,
    /// A file system and its directories: ID=/DIRECTORY/,...; repeatable.
    #[arg(long = "file-system", value_name = "ID=PATH,...", default_value = "bmcpfs-1=/data/")]
    file_systems: Vec<String>,
    /// A fileset: FILE_SYSTEM=ID=/DIRECTORY/; repeatable.
    #[arg(long = "fileset", value_name = "FILE_SYSTEM=ID=PATH")]
    filesets: Vec<String>,
    /// A bucket that CPFS may use; repeatable.
    #[arg(long = "bucket", default_value = "bucket")]
    buckets: Vec<String>,
    /// A bucket without the tag cpfs-dataflow; repeatable.
    #[arg(long = "untagged-bucket")]
    untagged_buckets: Vec<String>,
    /// How much of the server's time passes in a second.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nas-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let (id, secret) = (&options.access_key_id, &options.access_key_secret);
    let builder = NasServer::builder().listen(options.listen).region(&options.region);
    let mut builder = builder.speed(options.speed);
    builder = match &options.security_token {
        Some(token) => builder.temporary_credentials(id, secret, token),
        None => builder.credentials(id, secret),
    };
    for given in &options.file_systems {
        let (id, directories) = given.split_once('=').unwrap_or((given, ""));
        let directories: Vec<&str> = directories.split(',').filter(|d| !d.is_empty()).collect();
        builder = builder.file_system(id, &directories);
    }
    for name in &options.buckets {
        builder = builder.bucket(name);
    }
    for name in &options.untagged_buckets {
        builder = builder.untagged_bucket(name);
    }
    let server = builder.start_blocking()?;
    for given in &options.filesets {
        let [file_system, id, path] = given.splitn(3, '=').collect::<Vec<_>>()[..] else {
            return Err("--fileset takes FILE_SYSTEM=ID=PATH".into());
        };
        server.fileset(file_system, id, path);
    }
    println!("listening on {}", server.endpoint());
    std::io::stdout().flush()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminated.recv() => Ok(()),
        }
    })?;
    Ok(())
}
