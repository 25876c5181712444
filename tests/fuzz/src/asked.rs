//! What users and their machines bring: credentials, settings, texts that end in an outcome.

use clap::Parser;
use http::StatusCode;
use ossvp::cli::{Cli, Command};
use ossvp::handoff::{
    ByteSize, ExitCode, Marker, OUTCOME_LIMIT, Outcome, Plan, Progress, Rate, Report, ShardOf,
};
use ossvp::keys::{Bucket, Dialect, SourceUrl, VolumePath};
use ossvp::store::fuzzing::{Found, chain, encode, ossutil, sts, url};
use ossvp::store::{Addressing, Class, StoreError};
use ossvp::telemetry;
use ossvp::worker::Options;

use super::heap::within;
use super::network::{error, one_line};

/// What stands for a secret in the inputs: no error may quote it.
pub(crate) const SECRET: &str = "hush-hush";

/// Files of the official tools, and answers of STS and of the metadata service.
pub(crate) fn credentials(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let found = within(200, rest.len() + 4096, || match first % 6 {
        0 => ossutil(&text).map(Ok),
        1 => Some(sts(StatusCode::OK, rest, SECRET)),
        2 => Some(sts(StatusCode::FORBIDDEN, rest, SECRET)),
        3 => Some(chain(Dialect::Oss, &[], rest)),
        4 => Some(chain(Dialect::S3, &[], rest)),
        _ => Some(chain(Dialect::Oss, &[("ALIBABA_CLOUD_ECS_METADATA", "role")], rest)),
    });
    match found {
        None => {}
        Some(Ok(found)) => usable(&found),
        Some(Err(wrong)) => {
            error(&wrong);
            let said = telemetry::chain(&wrong);
            assert!(!said.contains(SECRET) || own_words(rest).contains(SECRET), "{said}");
        }
    }
}

/// Why STS or the metadata service refuses, in its own words, which are shown.
fn own_words(body: &[u8]) -> String {
    let body = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    let words =
        ["Code", "Message", "RequestId"].map(|name| body[name].as_str().unwrap_or_default());
    words.concat()
}

fn usable((id, token): &Found) {
    assert!(!id.is_empty());
    assert!(token.as_ref().is_none_or(|token| !token.is_empty()));
}

/// Settings as people write them.
pub(crate) fn settings(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match first % 3 {
        0 => values(text),
        1 => endpoint(text),
        _ => command_line(text),
    }
}

fn values(text: &str) {
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(rate) = text.parse::<Rate>() {
        assert!(rate.bytes_per_second() >= Rate::LOWEST);
        assert_eq!(rate.to_string().parse(), Ok(rate));
    }
    if let Ok(shard) = text.parse::<ShardOf>() {
        assert!(shard.index < shard.count && shard.count <= ShardOf::MOST);
        assert_eq!(shard.to_string().parse(), Ok(shard));
    }
    if let Ok(bucket) = text.parse::<Bucket>() {
        assert_eq!(bucket.as_str(), text);
    }
    if let Ok(path) = text.parse::<VolumePath>() {
        assert_eq!(path.as_str(), text);
        let parts =
            path.parent().map_or(path.name().to_owned(), |p| format!("{p}/{}", path.name()));
        assert_eq!(parts, text);
    }
    if let Ok(source) = text.parse::<SourceUrl>() {
        assert_eq!(source.to_string().parse(), Ok(source));
    }
}

/// Endpoint, region, bucket and key, a line each, after how the bucket is named.
fn endpoint(text: &str) {
    let mut lines = text.splitn(5, '\n');
    let [Some(addressing), Some(given), Some(region), Some(bucket), Some(key)] =
        [(); 5].map(|()| lines.next())
    else {
        return;
    };
    let addressing = addressing.parse::<Addressing>().unwrap_or_default();
    let bucket = bucket.parse::<Bucket>().unwrap_or_else(|_| "models".parse().unwrap());
    for dialect in [Dialect::Oss, Dialect::S3] {
        match url(dialect, &bucket, Some(given), Some(region), addressing, key) {
            Ok(url) => {
                let host = url.host().unwrap();
                assert!(["http", "https"].contains(&url.scheme_str().unwrap()), "{url}");
                assert!(!host.is_empty() && !url.authority().unwrap().as_str().contains('@'));
                assert!(url.path().ends_with(&encode(key, true)), "{url}");
                assert_eq!(url.query(), None);
            }
            Err(StoreError::BadKey { .. }) => assert!(key.len() > 10_000),
            Err(wrong) => {
                assert_eq!(wrong.class(), Class::Usage);
                one_line(&wrong.to_string(), 1024 + 8 * text.len());
            }
        }
    }
}

/// Arguments, parted by NUL.
fn command_line(text: &str) {
    let args = ["ossvp", "populate"].into_iter().chain(text.split('\0').take(40));
    // clap's own tables, and of each glob an automaton that globset bounds
    within(4096, text.len() + 4096, || {
        if let Ok(Cli { command: Command::Populate(args), .. }) = Cli::try_parse_from(args)
            && let Err(wrong) = Options::new(*args)
        {
            one_line(&telemetry::chain(&wrong), 4096 + 8 * text.len());
        }
    });
}

/// Whatever a run ends with, its outcome keeps the limit, and says as much of it as fits.
pub(crate) fn outcome(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    match first % 3 {
        0 | 1 => {
            let text = String::from_utf8_lossy(rest);
            let (message, source) = text.split_once('\u{1f}').unwrap_or((&text, ""));
            let most = if first % 3 == 0 { 0 } else { u64::MAX };
            shortened(Outcome {
                objects: most,
                bytes: most,
                verified: most,
                unverified: most,
                bytes_per_s: most,
                ..Outcome::new(ExitCode::Source, message, source)
            });
        }
        _ => {
            written_by_others(rest);
            let mut plan = Plan::default();
            let sizes =
                rest.chunks_exact(8).map(|size| u64::from_le_bytes(size.try_into().unwrap()));
            let mut objects = 0;
            for size in sizes {
                plan.count(size);
                objects += 1;
            }
            assert_eq!(plan.objects, objects);
            assert_eq!(plan.sizes.iter().map(|(_, objects, _)| objects).sum::<u64>(), objects);
        }
    }
}

fn shortened(outcome: Outcome) {
    let line = within(64, outcome.message.len() + outcome.source.len(), || outcome.to_json());
    assert!(line.len() <= OUTCOME_LIMIT && !line.contains('\n'), "{} bytes", line.len());
    let back: Outcome = serde_json::from_str(&line).unwrap();
    for (short, whole) in [(&back.message, &outcome.message), (&back.source, &outcome.source)] {
        let cut = short.strip_suffix('…').is_some_and(|start| whole.starts_with(start));
        assert!(short == whole || cut, "{short:?} of {whole:?}");
    }
    let figures =
        |o: &Outcome| (o.code, o.objects, o.bytes, o.verified, o.unverified, o.bytes_per_s);
    assert_eq!(figures(&back), figures(&outcome));
    let all = serde_json::to_string(&outcome).unwrap();
    assert!(all.len() > OUTCOME_LIMIT || back == outcome, "cut without need");
}

/// The controller reads what a worker's Pod says of itself.
fn written_by_others(bytes: &[u8]) {
    if let Ok(outcome) = serde_json::from_slice::<Outcome>(bytes) {
        shortened(outcome);
    }
    if let Ok(progress) = serde_json::from_slice::<Progress>(bytes) {
        assert!(!progress.to_json().contains('\n'));
    }
    let _ = serde_json::from_slice::<Marker>(bytes);
    let _ = serde_json::from_slice::<Report>(bytes);
}
