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

/// `text` without the user names, passwords and queries of the URLs in it: people paste keys into
/// them, and presigned ones end in a signature.
///
/// ```
/// use ossvp::telemetry::without_logins;
/// let said = without_logins("value 's3://id:secret@bucket/' for <SOURCE>");
/// assert_eq!(said, "value 's3://…@bucket/' for <SOURCE>");
/// assert_eq!(without_logins("https://host/key?Signature=x, no"), "https://host/key?…, no");
/// assert_eq!(without_logins("a@b? oss://b/p/"), "a@b? oss://b/p/");
/// ```
pub fn without_logins(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + "://".len());
        shown.push_str(before);
        let end = url
            .find(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | ',' | '\u{1b}'))
            .unwrap_or(url.len());
        let (url, behind) = url.split_at(end);
        let (url, query) = url.split_once('?').map_or((url, ""), |(url, _)| (url, "?…"));
        let (login, url) = url.rsplit_once('@').map_or(("", url), |(_, url)| ("…@", url));
        shown.extend([login, url, query]);
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// An error and its causes, in one line: a cause may be a message of the source's, and hold anything.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let line = causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"));
    line.replace(char::is_control, " ")
}
