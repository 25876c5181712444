//! From `populate`'s arguments back to a command line, for the Pod that runs it.

use clap::ValueEnum;

use super::args::PopulateArgs;

/// The command line that parses to `args`, without the program's name.
///
/// ```
/// use clap::Parser;
/// use ossvp::cli::{Cli, Command};
/// use ossvp::handoff::argv;
/// let line = ["ossvp", "populate", "oss://models/qwen3/", "/volume", "--throughput", "1000"];
/// let Command::Populate(args) = Cli::try_parse_from(line)?.command else { unreachable!() };
/// assert_eq!(
///     argv(&args)[..2],
///     ["populate".to_owned(), "--addressing=auto".to_owned()],
/// );
/// let again = Cli::try_parse_from([vec!["ossvp".to_owned()], argv(&args)].concat())?;
/// assert!(matches!(again.command, Command::Populate(same) if same == args));
/// # Ok::<(), clap::Error>(())
/// ```
pub fn argv(args: &PopulateArgs) -> Vec<String> {
    // without `..`: a new argument must find its place here
    let PopulateArgs {
        source,
        volume,
        endpoint,
        region,
        addressing,
        anonymous,
        ca_bundle,
        timeout,
        retry_for,
        include,
        exclude,
        unmappable,
        shard,
        allow_empty,
        throughput,
        request_rate,
        concurrency,
        part_size,
        direct,
        verify,
        sha256,
        plan_first,
        dry_run,
        force,
        outcome,
        report,
        progress,
    } = args;
    let mut line = Line(vec!["populate".to_owned()]);
    line.option("endpoint", endpoint.as_ref());
    line.option("region", region.as_ref());
    line.option("addressing", Some(addressing));
    line.switch("anonymous", *anonymous);
    line.option("ca-bundle", ca_bundle.as_ref().map(|path| path.display()));
    line.option("timeout", timeout.as_ref());
    line.option("retry-for", retry_for.as_ref());
    include.iter().for_each(|glob| line.option("include", Some(glob)));
    exclude.iter().for_each(|glob| line.option("exclude", Some(glob)));
    line.value("unmappable", unmappable);
    line.option("shard", Some(shard));
    line.switch("allow-empty", *allow_empty);
    line.option("throughput", throughput.as_ref());
    line.option("request-rate", request_rate.as_ref());
    line.option("concurrency", concurrency.as_ref());
    line.option("part-size", part_size.as_ref());
    line.value("direct", direct);
    line.value("verify", verify);
    line.switch("sha256", *sha256);
    line.switch("plan-first", *plan_first);
    line.switch("dry-run", *dry_run);
    line.switch("force", *force);
    line.option("outcome", outcome.as_ref().map(|path| path.display()));
    line.option("report", report.as_ref().map(|path| path.display()));
    line.value("progress", progress);
    // behind `--`, whatever they begin with
    line.0.push("--".to_owned());
    line.0.push(source.to_string());
    line.0.extend(volume.as_ref().map(|path| path.display().to_string()));
    line.0
}

struct Line(Vec<String>);

impl Line {
    fn option(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        self.0.extend(value.map(|value| format!("--{name}={value}")));
    }

    fn value(&mut self, name: &str, value: &impl ValueEnum) {
        let value = value.to_possible_value();
        self.option(name, value.as_ref().map(clap::builder::PossibleValue::get_name));
    }

    fn switch(&mut self, name: &str, on: bool) {
        self.0.extend(on.then(|| format!("--{name}")));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::handoff::{Direct, ProgressStyle, ShardOf, Unmappable, VerifyMode};

    fn any_value<T: ValueEnum + std::fmt::Debug + 'static>() -> impl Strategy<Value = T> {
        proptest::sample::select(T::value_variants().to_vec())
    }

    prop_compose! {
        // a NUL ends an argument, and a newline is what separates globs in the environment
        fn source()(bucket in "[a-z0-9]([a-z0-9-]{1,20})[a-z0-9]", prefix in "[^/\0][^\0]{0,40}|")
            -> crate::keys::SourceUrl {
            format!("oss://{bucket}/{prefix}").parse().unwrap()
        }
    }

    prop_compose! {
        fn where_from()(source in source(),
            endpoint in option::of("[a-z-][a-z0-9.:-]{0,30}"), region in option::of("[a-z0-9-]{1,20}"),
            addressing in proptest::sample::select(vec!["auto", "virtual", "path", "cname"]),
            anonymous: bool, ca_bundle in option::of("/[^\0]{1,20}"),
            timeout in option::of(10u64..100_000), retry_for in option::of(0u64..1_000_000))
            -> PopulateArgs {
            let mut args = parsed(["ossvp", "populate", "oss://bucket/", "/volume"].map(str::to_owned));
            args.source = source;
            args.endpoint = endpoint;
            args.region = region;
            args.addressing = addressing.to_owned();
            args.anonymous = anonymous;
            args.ca_bundle = ca_bundle.map(Into::into);
            args.timeout = timeout.map(|ms| format!("{ms}ms").parse().unwrap());
            args.retry_for = retry_for.map(|ms| format!("{ms}ms").parse().unwrap());
            args
        }
    }

    prop_compose! {
        fn arguments()(args in where_from(),
            globs in (proptest::collection::vec("[^\0\n]{1,20}", 0..3),
                      proptest::collection::vec("[^\0\n]{1,20}", 0..3)),
            unmappable in any_value::<Unmappable>(), shard in (0u32..256, 1u32..=256),
            speed in (option::of(1u64..100_000), option::of(1u32..=4096), option::of(1u64..1 << 50),
                      option::of(1u32..=1_000_000)),
            direct in any_value::<Direct>(), verify in any_value::<VerifyMode>(),
            switches: [bool; 5], outcome in option::of("[^\0]{1,20}"), report in option::of("[^\0]{1,20}"),
            progress in any_value::<ProgressStyle>(), volume in option::of("[^\0]{1,20}"))
            -> PopulateArgs {
            let [allow_empty, sha256, plan_first, dry_run, force] = switches;
            PopulateArgs {
                volume: volume.or_else(|| (!dry_run).then(|| "/volume".to_owned())).map(Into::into),
                include: globs.0,
                exclude: globs.1,
                unmappable,
                shard: ShardOf { index: shard.0 % shard.1, count: shard.1 },
                allow_empty,
                throughput: speed.0.map(|rate| rate.to_string().parse().unwrap()),
                request_rate: speed.3,
                concurrency: speed.1,
                part_size: speed.2.map(crate::handoff::ByteSize::new),
                direct,
                verify,
                sha256,
                plan_first,
                dry_run,
                force,
                outcome: outcome.map(Into::into),
                report: report.map(Into::into),
                progress,
                ..args
            }
        }
    }

    fn parsed(line: impl IntoIterator<Item = String>) -> PopulateArgs {
        match Cli::try_parse_from(line).unwrap().command {
            Command::Populate(args) => *args,
            other => panic!("not populate: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_command_line_parses_to_what_it_was_made_of(args in arguments()) {
            let line = argv(&args);
            let again = parsed(std::iter::once("ossvp".to_owned()).chain(line.clone()));
            prop_assert_eq!(&again, &args, "{:?}", line);
        }
    }
}
