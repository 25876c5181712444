//! A program of the cluster, as long as it runs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Error;
use crate::keeper::Keeper;
use crate::wait::{LIMIT, Look, until};

/// What of a log an error shows: some thirty lines, of which the reason is nearly always one.
const TAIL: u64 = 6 << 10;

/// A running program, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Component {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Component {
    /// Starts it with its output in `NAME.log` of the folder.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        logs: &Path,
        keeper: &Keeper,
    ) -> Result<Self, Error> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).map_err(Error::file("create", &log))?;
        let err = file.try_clone().map_err(Error::file("share", &log))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(err)
            .process_group(keeper.group())
            .spawn()
            .map_err(|source| Error::Start { name: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// An error if it no longer runs.
    pub(crate) fn running(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Error::Ended { name: self.name.clone(), status, tail: self.tail() })
            }
            Err(source) => Err(Error::Start { name: self.name.clone(), source }),
        }
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        tail(&self.log)
    }

    /// The same with a headline.
    pub(crate) fn titled_tail(&self) -> String {
        format!("\n--- {}:\n{}", self.name, self.tail())
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it at once and waits for its end.
    pub(crate) fn stop(&mut self) {
        // fails only if it has ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until `look` has found something, as long as all components run. That the API server does
/// not answer is no reason to give up.
pub(crate) fn wait_for<T>(
    components: &mut [Component],
    what: &str,
    mut look: impl FnMut() -> Result<Result<T, String>, Error>,
) -> Result<T, Error> {
    let result = until(
        what,
        LIMIT,
        || {
            components.iter_mut().try_for_each(Component::running)?;
            Ok(match look() {
                Ok(Ok(found)) => Look::Done(found),
                Ok(Err(last)) => Look::NotYet(last),
                Err(Error::Request { source, .. }) => Look::NotYet(source.to_string()),
                Err(error) => return Err(error),
            })
        },
        String::new,
    );
    match result {
        Err(Error::Late { what, seconds, last, .. }) => {
            let tails = components.iter().map(Component::titled_tail).collect();
            Err(Error::Late { what, seconds, last, tails })
        }
        result => result,
    }
}

/// The end of a file, or why it cannot be read.
pub(crate) fn tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}
