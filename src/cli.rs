//! The top of the command line.

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::controller::{ControllerArgs, ManifestsArgs};
use crate::handoff::{LogFormat, PopulateArgs, VerifyArgs};

/// Fills a volume with the objects of an OSS prefix, and vouches for it.
#[derive(Debug, Parser)]
#[command(name = "ossvp", version = env!("OSSVP_VERSION"))]
#[command(arg_required_else_help = true, max_term_width = 100)]
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
    /// Print what makes a shell complete ossvp's command line
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a page of the manual, for `man -l -`
    Man {
        /// The command that the page is about; ossvp itself if none is named
        #[arg(value_parser = ["populate", "verify", "controller", "manifests", "completions", "man"])]
        command: Option<String>,
    },
}

/// What makes `shell` complete the command line.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ossvp", &mut script);
    script
}

/// The manual's page about a command, or about all.
pub fn manual(command: Option<&str>) -> Vec<u8> {
    let mut all = Cli::command().disable_help_subcommand(true);
    // gives commands their own names, as ossvp-populate
    all.build();
    let about = command.and_then(|name| all.find_subcommand(name)).unwrap_or(&all).clone();
    let mut page = Vec::new();
    let man = Man::new(about).source(concat!("ossvp ", env!("OSSVP_VERSION"))).manual("ossvp");
    man.render(&mut page).expect("memory takes what is written");
    page
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
