//! Logs: structured, to stderr.

use std::io::stderr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::handoff::LogFormat;

/// Sets up logging for the process: state changes, with `verbose` 1 also each object, with 2 each
/// part. `default` is the level without any.
pub fn init(format: LogFormat, verbose: u8, default: LevelFilter) {
    let level = match verbose {
        0 => default,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // only our own: the libraries' debug logs hold request headers, and with them signatures
    let ours = Targets::new().with_target("ossvp", level).with_default(LevelFilter::WARN);
    let registry = tracing_subscriber::registry().with(ours);
    let layer = tracing_subscriber::fmt::layer().with_writer(stderr);
    match format {
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&stderr());
            registry.with(layer.with_ansi(colour).with_target(false)).init();
        }
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
}

/// An error and its causes, in one line: a cause may be a message of the source's, and hold anything.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let line = causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"));
    line.replace(char::is_control, " ")
}
