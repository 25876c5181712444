//! Parses the command line, runs what it asks for, and ends with the exit code that says how it
//! went.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode as ProcessCode;
use std::time::Duration;

use clap::Parser;
use ossvp::cli::{self, Cli, Command, LogArgs};
use ossvp::controller::{self, ControllerArgs, ManifestsArgs, Settings, manifests};
use ossvp::handoff::{ExitCode, Outcome, PopulateArgs, VerifyArgs};
use ossvp::telemetry::{self, chain};
use ossvp::worker::{self, Ended, Options, Stop};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

fn main() -> ProcessCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let Cli { command, log: LogArgs { log_format, verbose } } = cli;
    telemetry::init(log_format, verbose, LevelFilter::INFO);
    match command {
        Command::Populate(args) => populate(*args),
        Command::Verify(args) => verify(&args),
        Command::Controller(args) => control(*args),
        Command::Manifests(args) => print_manifests(&args),
        Command::Completions { shell } => print(&cli::completions(shell)),
        Command::Man { command } => print(&cli::manual(command.as_deref())),
    }
    .into()
}

/// What clap says, and the exit code; an outcome is owed at every exit, also at this one.
fn usage(error: &clap::Error) -> ProcessCode {
    // stderr or stdout gone: there is no one to tell
    if !error.use_stderr() {
        let _ = error.print();
        return ProcessCode::SUCCESS;
    }
    // clap quotes what it was given
    let rendered = error.render();
    let text = match std::io::stderr().is_terminal() {
        true => rendered.ansi().to_string(),
        false => rendered.to_string(),
    };
    let _ = write!(std::io::stderr(), "{}", telemetry::without_logins(&text));
    if let Some(path) = outcome_path() {
        let text = telemetry::without_logins(&error.to_string());
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let _ = std::fs::write(path, Outcome::new(ExitCode::Usage, line, "").to_json());
    }
    ExitCode::Usage.into()
}

/// `--outcome` of a command line that could not be parsed.
fn outcome_path() -> Option<PathBuf> {
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--outcome" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--outcome=")) {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("OSSVP_OUTCOME").map(PathBuf::from)
}

fn fail(message: &str, code: ExitCode) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "ossvp: {message}");
    code
}

fn populate(args: PopulateArgs) -> ExitCode {
    let outcome = args.outcome.clone();
    let options = match Options::new(args) {
        Ok(options) => options,
        Err(error) => {
            let message = chain(&error);
            if let Some(path) = outcome {
                let _ = std::fs::write(path, Outcome::new(ExitCode::Usage, &message, "").to_json());
            }
            return fail(&message, ExitCode::Usage);
        }
    };
    allow_descriptors();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let ended = runtime.block_on(async {
        let (sender, stop) = Stop::channel();
        on_signal(move |code| {
            sender.send_replace(Some(code));
        });
        worker::run(options, stop).await
    });
    // a file call that hangs must not hold the exit; what it may still finish is right, only unsaid
    runtime.shutdown_timeout(Duration::from_secs(1));
    show(&ended);
    ended.code
}

fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| fail(&format!("cannot start: {error}"), ExitCode::Unexpected))
}

/// Calls `stop` at each SIGINT and SIGTERM, with the exit code that it asks for.
fn on_signal(stop: impl Fn(ExitCode) + Clone + Send + 'static) {
    for (kind, code) in [
        (SignalKind::interrupt(), ExitCode::Interrupted),
        (SignalKind::terminate(), ExitCode::Terminated),
    ] {
        let stop = stop.clone();
        match signal(kind) {
            Ok(mut signals) => drop(tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    stop(code);
                }
            })),
            Err(error) => tracing::warn!(%error, "signals cannot be caught"),
        }
    }
}

fn control(args: ControllerArgs) -> ExitCode {
    let settings = match Settings::new(args) {
        Ok(settings) => settings,
        Err(error) => return fail(&chain(&error), ExitCode::Usage),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let ended = runtime.block_on(async {
        let stopped = std::sync::Arc::new(tokio::sync::Notify::new());
        let notify = stopped.clone();
        on_signal(move |_| notify.notify_one());
        controller::run(settings, async move { stopped.notified().await }).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        // asked to end, and ended: a Pod that is replaced has not failed
        Ok(()) => ExitCode::Complete,
        Err(error) => fail(&chain(&error), ExitCode::Unexpected),
    }
}

fn print_manifests(args: &ManifestsArgs) -> ExitCode {
    match manifests(args) {
        Ok(yaml) => print(yaml.as_bytes()),
        Err(error) => {
            let _ = write!(std::io::stderr(), "{}", error.render());
            ExitCode::Usage
        }
    }
}

/// All of stdout.
fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().lock().write_all(text) {
        Ok(()) => ExitCode::Complete,
        Err(error) => fail(&format!("cannot write: {error}"), ExitCode::Unexpected),
    }
}

/// A connection and a file for each request in flight, a few for ourselves: the soft limit of 1024
/// that most systems start with is too low, the hard one is ours to use.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// One line for people on stderr; a plan goes to stdout.
fn show(ended: &Ended) {
    if let Some(message) = ended.message() {
        let code = ended.code;
        fail(&message, code);
        return;
    }
    if let Some(plan) = &ended.plan {
        let mut out = std::io::stdout().lock();
        let _ = ossvp::worker::print_plan(&mut out, plan);
    }
    if let Some(marker) = &ended.marker {
        let tally = &marker.verified;
        let what = if ended.already_complete { "already complete" } else { "complete" };
        let unverified = tally.unverified + tally.off;
        let line = format!(
            "{what}: {} objects, {} bytes, {} verified, {unverified} unverified",
            marker.objects,
            marker.bytes,
            tally.verified(),
        );
        let rate = indicatif::DecimalBytes(marker.bytes_per_s);
        let seconds = ended.figures.seconds;
        let _ = match ended.already_complete {
            true => writeln!(std::io::stderr(), "ossvp: {line}"),
            false => writeln!(std::io::stderr(), "ossvp: {line}, in {seconds:.1} s ({rate}/s)"),
        };
    }
}

fn verify(args: &VerifyArgs) -> ExitCode {
    let differs = |difference: &str| {
        let _ = writeln!(std::io::stdout(), "{difference}");
    };
    match worker::audit(&args.volume, &differs) {
        Ok(audit) => {
            let mends = match audit.differences {
                0 => "",
                _ => "; run ossvp populate again with --force, which fetches what differs",
            };
            let line = format!(
                "{} files and {} bytes are as they were committed, {} differences{mends}",
                audit.intact, audit.bytes, audit.differences
            );
            fail(&line, audit.exit_code())
        }
        Err(failure) => fail(&chain(&failure), failure.exit_code()),
    }
}
