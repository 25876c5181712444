//! The processes of all containers. Each has a thread that starts it, reads what it writes, and
//! waits for it: the kernel ties a process's death signal to the thread that started it, so that
//! thread must live as long.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use super::log::Log;

/// What a container's script writes before its process begins, followed by the process's id as the
/// host sees it.
pub(crate) const STARTED: &str = "\u{1}stand-in started ";

/// Every process that runs, until [`Processes::close`].
#[derive(Debug, Default)]
pub(crate) struct Processes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    closed: bool,
    serial: u64,
    /// The outermost process of each container: what is inside dies with it.
    running: BTreeMap<u64, Pid>,
    threads: Vec<JoinHandle<()>>,
}

/// A container's main process; none if it had ended before it could be held.
#[derive(Debug)]
pub(crate) struct Running(Option<OwnedFd>);

impl Running {
    /// One that has ended meanwhile is no error: its end is on its way.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.0 {
            let _ended = pidfd_send_signal(process, signal);
        }
    }
}

impl Processes {
    /// Starts a container. Its end is told once it has started, and then always.
    pub(crate) fn start(
        &self,
        command: Command,
        log: Arc<Log>,
        exited: impl FnOnce(i32) + Send + 'static,
    ) -> oneshot::Receiver<Result<Running, String>> {
        let (tell, told) = oneshot::channel();
        let mut state = self.lock();
        state.threads.retain(|thread| !thread.is_finished());
        let shared = Arc::clone(&self.0);
        state.threads.push(std::thread::spawn(move || live(&shared, command, &log, tell, exited)));
        told
    }

    /// Ends all, and waits for their end. Nothing can be started afterwards. Blocks.
    pub(crate) fn close(&self) {
        let threads = {
            let mut state = self.lock();
            state.closed = true;
            for process in state.running.values() {
                let _ended = kill_process(*process, Signal::KILL);
            }
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            let _ended = thread.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn live(
    shared: &Mutex<State>,
    mut command: Command,
    log: &Log,
    tell: oneshot::Sender<Result<Running, String>>,
    exited: impl FnOnce(i32),
) {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let spawned = (|| {
        let (reader, writer) = std::io::pipe()?;
        // one pipe for both, so that lines keep their order
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut state = lock();
        if state.closed {
            return Err(std::io::Error::other("the stand-in has been stopped"));
        }
        let child = command.spawn()?;
        state.serial += 1;
        let id = state.serial;
        state.running.insert(id, Pid::from_child(&child));
        Ok((child, id, reader))
    })();
    // it holds the pipe's other end
    drop(command);
    let (mut child, id, reader) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => return drop(tell.send(Err(error.to_string()))),
    };
    let mut output = BufReader::new(reader);
    let started = begin(&mut output);
    let runs = started.is_ok();
    let _listening = tell.send(started);
    if runs {
        let mut line = Vec::new();
        while matches!(output.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            log.add(std::mem::take(&mut line));
        }
        log.end();
    }
    let status = child.wait();
    lock().running.remove(&id);
    if runs {
        // wait fails for no child of ours
        exited(status.map_or(255, code));
    }
}

/// Reads up to the line that says it started; before it there are only complaints.
fn begin(output: &mut BufReader<PipeReader>) -> Result<Running, String> {
    let mut complaints = String::new();
    loop {
        let mut line = Vec::new();
        let read = output.read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
        if read == 0 {
            return Err(complaints.trim().to_owned());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let Some(pid) = line.strip_prefix(STARTED) else {
            complaints.push_str(&line);
            continue;
        };
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).ok_or("no process id")?;
        return match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => Ok(Running(Some(process))),
            Err(Errno::SRCH) => Ok(Running(None)),
            Err(error) => Err(error.to_string()),
        };
    }
}

/// As a container runtime tells it.
fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(255)
}
