//! `oss-server`: the endpoint as a process of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use oss_server::{Generated, OssServer, parse_rate};

/// An OSS endpoint in memory, for tests, the demo and benchmarks.
///
/// Faults and counters are at /__admin/faults, /__admin/stats, /__admin/log, /__admin/pace and
/// /__admin/clock, the CA that vouches for it is at /__admin/ca.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Where to listen; port 0 takes a free one. The address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A bucket; repeatable.
    #[arg(long = "bucket", default_value = "bucket")]
    buckets: Vec<String>,
    /// Anyone may read the buckets.
    #[arg(long)]
    public: bool,
    /// The region that signatures name.
    #[arg(long, default_value = "cn-hangzhou")]
    region: String,
    /// The key pair that is accepted.
    #[arg(long, env = "OSS_SERVER_ACCESS_KEY_ID", default_value = "id")]
    access_key_id: String,
    /// Its secret.
    #[arg(
        long,
        env = "OSS_SERVER_ACCESS_KEY_SECRET",
        default_value = "secret",
        hide_env_values = true
    )]
    access_key_secret: String,
    /// Objects that are computed, in the first bucket: NAME=COUNTxSIZE, mixed, or mixed=COUNT;
    /// repeatable.
    #[arg(long = "generate", value_name = "SPEC")]
    generate: Vec<Generated>,
    /// What the keys of generated objects begin with.
    #[arg(long, default_value = "")]
    prefix: String,
    /// What generated objects are computed from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Milliseconds to the first byte of every answer.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    ttfb: u64,
    /// The bandwidth of one connection, such as 100MB/s.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    per_connection: Option<u64>,
    /// Requests per second; those above are answered with 503.
    #[arg(long, value_name = "N")]
    admit: Option<u64>,
    /// A host that is the service, so that BUCKET.HOST is a bucket; repeatable.
    #[arg(long = "endpoint-host", value_name = "HOST")]
    endpoint_hosts: Vec<String>,
    /// A host that is one bucket: HOST=BUCKET; repeatable.
    #[arg(long = "cname", value_name = "HOST=BUCKET")]
    cnames: Vec<String>,
    /// Speaks TLS; the CA that vouches for it is written to ca.pem in this directory.
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Lets STS issue credentials for ROLE_ARN,PROVIDER_ARN,TOKEN.
    #[arg(long, value_name = "ROLE,PROVIDER,TOKEN")]
    oidc: Option<String>,
    /// The RAM role that the instance's metadata service tells of.
    #[arg(long, value_name = "NAME")]
    instance_role: Option<String>,
    /// How many seconds credentials live that the server issues.
    #[arg(long, value_name = "SECONDS")]
    lifetime: Option<i64>,
    /// Threads that serve.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Does not log requests or count them by key: what a benchmark wants.
    #[arg(long)]
    no_log: bool,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oss-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let mut builder = OssServer::builder()
        .listen(options.listen)
        .region(&options.region)
        .credentials(&options.access_key_id, &options.access_key_secret)
        .ttfb(Duration::from_millis(options.ttfb))
        .threads(options.threads)
        .log(!options.no_log);
    for bucket in &options.buckets {
        builder = match options.public {
            true => builder.public_bucket(bucket),
            false => builder.bucket(bucket),
        };
    }
    for host in &options.endpoint_hosts {
        builder = builder.endpoint_host(host);
    }
    for cname in &options.cnames {
        let (host, bucket) = cname.split_once('=').ok_or("--cname takes HOST=BUCKET")?;
        builder = builder.cname(host, bucket);
    }
    if let Some(rate) = options.per_connection {
        builder = builder.per_connection(rate);
    }
    if let Some(rate) = options.admit {
        builder = builder.admit(rate);
    }
    if let Some(oidc) = &options.oidc {
        let [role, provider, token] = oidc.splitn(3, ',').collect::<Vec<_>>()[..] else {
            return Err("--oidc takes ROLE,PROVIDER,TOKEN".into());
        };
        builder = builder.oidc(role, provider, token);
    }
    if let Some(role) = &options.instance_role {
        builder = builder.instance_role(role);
    }
    if let Some(seconds) = options.lifetime {
        builder = builder.lifetime(chrono::TimeDelta::seconds(seconds));
    }
    if options.tls_dir.is_some() {
        builder = builder.tls();
    }
    let server = builder.start_blocking()?;
    if let (Some(dir), Some(pem)) = (&options.tls_dir, server.ca_pem()) {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("ca.pem"), pem)?;
    }
    for mut set in options.generate {
        set.prefix.insert_str(0, &options.prefix);
        set.seed = options.seed;
        eprintln!("{} objects, {} bytes under {}", set.count, set.bytes(), set.prefix);
        server.generate(&options.buckets[0], set);
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
