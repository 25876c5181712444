//! The top of the command line.

use clap::{Args, Parser, Subcommand};

use crate::controller::{ControllerArgs, ManifestsArgs};
use crate::handoff::{LogFormat, PopulateArgs, VerifyArgs};

/// Fills a volume with the objects of an OSS prefix, and vouches for it.
#[derive(Debug, Parser)]
#[command(name = "ossvp", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fill a directory with the objects under a prefix
    #[command(after_help = EXIT_CODES)]
    Populate(Box<PopulateArgs>),
    /// Read a filled directory again and compare it with its manifest
    Verify(VerifyArgs),
    /// Serve the OSSVolumePopulator resource of a cluster
    Controller(Box<ControllerArgs>),
    /// Print what `kubectl apply -f -` needs: namespaces, resource definition, rights, controller
    Manifests(ManifestsArgs),
}

/// How to log, to stderr.
#[derive(Debug, Clone, Copy, Args)]
pub struct LogArgs {
    /// The form of log lines
    #[arg(long, env = "OSSVP_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text,
          global = true, help_heading = "Output")]
    pub log_format: LogFormat,

    /// Log more: -v each object, -vv each part
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Output")]
    pub verbose: u8,
}

const EXIT_CODES: &str = "\
Exit codes: 0 complete, 2 usage, 3 the source refuses, 4 transient errors outlasted the retries,
5 an object changed during the run, 6 a checksum does not match, 7 the volume is full or cannot be
written, 8 the volume holds another source or a key is no safe path, 130 and 143 interrupted.
Running the same command again goes on where the last run stopped.

Credentials come from the environment (OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET, OSS_SESSION_TOKEN
or their ALIBABA_CLOUD_ forms; AWS_ for s3://), a file of the official tools, RRSA, or the
instance's role.";
