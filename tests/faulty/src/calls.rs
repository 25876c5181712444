//! Processes that stop at a chosen system call.
//!
//! A process is traced with ptrace(2), every thread of it. Each call that changes something below
//! one directory is shown before it happens, and the caller says what becomes of it: it passes, or
//! the process is killed before it, or the process is killed when half of what it writes is
//! written. A call that this tracer does not know is an error: what is not known to be harmless is
//! not passed over in silence.
//!
//! It reads the registers of x86-64; elsewhere [`supported`] says so.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A call that changes something, before it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The call's name, such as `pwrite64`.
    pub name: &'static str,
    /// What it changes, relative to the directory that is watched; of two names the new one.
    pub path: PathBuf,
    /// How many bytes it writes, if it writes from one buffer.
    pub bytes: Option<u64>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It happens.
    Pass,
    /// The process is killed, and the call does not happen.
    Kill,
    /// Half of its bytes are written, then the process is killed.
    Tear,
}

/// How a traced process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// As it was told to.
    Killed,
}

/// Whether this machine lets a process be traced; if not, why.
///
/// # Errors
/// The reason.
pub fn supported() -> io::Result<()> {
    let mut command = Command::new("/bin/true");
    command.stdout(std::process::Stdio::null());
    trace(&command, Path::new("/nonexistent"), std::fs::File::open("/dev/null")?, |_| Verdict::Pass)
        .map(drop)
}

/// Runs `command` and asks `decide` about every call that changes what is below `root`, in the
/// order in which they are begun. The process gets the arguments and variables that `command`
/// names, no others; what it says goes to `output`.
///
/// Only the thread that calls this traces; several threads may trace a process each. It waits for
/// every process that it has started: what `decide` starts must end before it answers, or be
/// another thread's.
///
/// # Errors
/// What the kernel answers; a call that this tracer does not know.
pub fn trace(
    command: &Command,
    root: &Path,
    output: std::fs::File,
    decide: impl FnMut(&Call) -> Verdict,
) -> io::Result<End> {
    #[cfg(target_arch = "x86_64")]
    return x86_64::trace(command, root, output, decide);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (command, root, output, decide);
        Err(io::Error::other("calls are only traced on x86-64"))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::collections::HashMap;
    use std::ffi::OsString;
    use std::fs::File;
    use std::io;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::FileExt;
    use std::path::{Component, Path, PathBuf};
    use std::process::{Command, Stdio};

    use nix::libc;
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::{Call, End, Verdict};

    /// A path in memory is read up to here.
    const PATH_MAX: usize = 4096;
    /// Halves of large writes are whole pages: what O_DIRECT takes.
    const PAGE: u64 = 4096;

    pub(super) fn trace(
        command: &Command,
        root: &Path,
        output: File,
        mut decide: impl FnMut(&Call) -> Verdict,
    ) -> io::Result<End> {
        let mut tracee = Tracee::start(command, root, output)?;
        let traced = tracee.run(&mut decide);
        if traced.is_err() {
            tracee.kill()?;
        }
        traced
    }

    struct Tracee {
        pid: Pid,
        root: PathBuf,
        memory: File,
        /// The threads, and whether each is inside a call.
        inside: HashMap<Pid, bool>,
        /// The thread whose call is cut in half.
        tearing: Option<Pid>,
    }

    impl Tracee {
        fn start(command: &Command, root: &Path, output: File) -> io::Result<Self> {
            // a shell that stops until it is seized, and becomes the command then: nothing is missed
            let mut launcher = Command::new("/bin/sh");
            launcher
                .env_clear()
                .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
                .arg(command.get_program())
                .args(command.get_args())
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output);
            for (name, value) in command.get_envs() {
                if let Some(value) = value {
                    launcher.env(name, value);
                }
            }
            if let Some(directory) = command.get_current_dir() {
                launcher.current_dir(directory);
            }
            let child = launcher.spawn()?;
            let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
            let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
            if !matches!(stopped, WaitStatus::Stopped(..)) {
                return Err(io::Error::other(format!("the launcher did not stop: {stopped:?}")));
            }
            let options = Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACEVFORK
                | Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_EXITKILL;
            if let Err(errno) = ptrace::seize(pid, options) {
                kill(pid, Signal::SIGKILL)?;
                waitpid(pid, None)?;
                return Err(errno.into());
            }
            kill(pid, Signal::SIGCONT)?;
            Ok(Self {
                pid,
                // paths are compared as the kernel names them
                root: canonical(root),
                memory: File::open(format!("/proc/{pid}/mem"))?,
                inside: HashMap::new(),
                tearing: None,
            })
        }

        fn run(&mut self, decide: &mut impl FnMut(&Call) -> Verdict) -> io::Result<End> {
            loop {
                match self.next()? {
                    WaitStatus::PtraceSyscall(thread) => {
                        let inside = self.inside.entry(thread).or_default();
                        *inside = !*inside;
                        if *inside {
                            match self.entry(thread, decide)? {
                                Verdict::Pass => {}
                                Verdict::Tear => self.tearing = Some(thread),
                                Verdict::Kill => return self.kill(),
                            }
                        } else if self.tearing == Some(thread) {
                            return self.kill();
                        }
                        resume(thread, None)?;
                    }
                    WaitStatus::PtraceEvent(thread, _, event) => {
                        if event == libc::PTRACE_EVENT_EXEC {
                            // another program, another memory
                            self.memory = File::open(format!("/proc/{}/mem", self.pid))?;
                        }
                        resume(thread, None)?;
                    }
                    WaitStatus::Stopped(thread, signal) => resume(thread, Some(signal))?,
                    WaitStatus::Exited(thread, code) if thread == self.pid => {
                        return Ok(End::Exited(code));
                    }
                    WaitStatus::Signaled(thread, signal, _) if thread == self.pid => {
                        return Err(io::Error::other(format!("it died of {signal}")));
                    }
                    WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                        self.inside.remove(&thread);
                    }
                    _ => {}
                }
            }
        }

        /// Whatever happens next to a thread. While one is being torn, the others stay where they
        /// are.
        fn next(&self) -> io::Result<WaitStatus> {
            match self.tearing {
                Some(thread) => Ok(waitpid(thread, Some(WaitPidFlag::__WALL))?),
                None => {
                    // only what this thread traces
                    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
                    Ok(waitpid(None, Some(flags))?)
                }
            }
        }

        /// Kills the process with all its threads.
        fn kill(&mut self) -> io::Result<End> {
            kill(self.pid, Signal::SIGKILL)?;
            loop {
                match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))? {
                    WaitStatus::Signaled(thread, Signal::SIGKILL, _) if thread == self.pid => {
                        return Ok(End::Killed);
                    }
                    // it was about to end by itself
                    WaitStatus::Exited(thread, code) if thread == self.pid => {
                        return Ok(End::Exited(code));
                    }
                    _ => {}
                }
            }
        }

        fn entry(
            &self,
            thread: Pid,
            decide: &mut impl FnMut(&Call) -> Verdict,
        ) -> io::Result<Verdict> {
            let mut registers = ptrace::getregs(thread)?;
            let r = &registers;
            let arguments = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
            let Some(call) = self.change(r.orig_rax as i64, arguments)? else {
                return Ok(Verdict::Pass);
            };
            let verdict = decide(&call);
            match verdict {
                Verdict::Pass => {}
                Verdict::Kill => {
                    // no call: SIGKILL alone would stop it only in kernels that look again
                    registers.orig_rax = u64::MAX;
                    ptrace::setregs(thread, registers)?;
                }
                Verdict::Tear => {
                    let Some(bytes) = call.bytes else {
                        return Err(io::Error::other(format!("{call:?} cannot be torn")));
                    };
                    let half = bytes / 2;
                    registers.rdx = if half > PAGE { half / PAGE * PAGE } else { half };
                    ptrace::setregs(thread, registers)?;
                }
            }
            Ok(verdict)
        }

        /// What the call `number` changes below the root, if it changes anything there.
        fn change(&self, number: i64, arguments: [u64; 6]) -> io::Result<Option<Call>> {
            let Some(kind) = KINDS.iter().find(|kind| kind.number == number) else {
                if HARMLESS.contains(&number) {
                    return Ok(None);
                }
                let unknown = format!("the process makes a call that is not known here: {number}");
                return Err(io::Error::other(unknown));
            };
            let changes = match kind.when {
                When::Always => true,
                When::Makes(flags) => makes(arguments[flags]),
                When::MakesHow(how) => makes(self.word(arguments[how])?),
                When::SharedAndWritable => {
                    let [_, _, protection, flags, ..] = arguments;
                    protection & libc::PROT_WRITE as u64 != 0
                        && flags & libc::MAP_SHARED as u64 != 0
                }
            };
            if !changes {
                return Ok(None);
            }
            let paths = match kind.on {
                On::File(fd) => vec![self.descriptor(arguments[fd])],
                On::Path(path) => vec![self.path(None, arguments[path])?],
                On::At(at, path) => vec![self.path(Some(arguments[at]), arguments[path])?],
                On::TwoPaths(old, new) => {
                    vec![self.path(None, arguments[new])?, self.path(None, arguments[old])?]
                }
                On::TwoAt(old, new) => vec![
                    self.path(Some(arguments[new]), arguments[new + 1])?,
                    self.path(Some(arguments[old]), arguments[old + 1])?,
                ],
                On::Everything => vec![self.root.clone()],
            };
            let Some(path) = paths.iter().find_map(|path| path.strip_prefix(&self.root).ok())
            else {
                return Ok(None);
            };
            if matches!(kind.when, When::SharedAndWritable) {
                let what =
                    format!("{} is written through memory, which is not seen", path.display());
                return Err(io::Error::other(what));
            }
            let bytes = kind.bytes.then_some(arguments[2]);
            Ok(Some(Call { name: kind.name, path: path.to_owned(), bytes }))
        }

        fn descriptor(&self, fd: u64) -> PathBuf {
            // one that is closed, or -1, names nothing
            std::fs::read_link(format!("/proc/{}/fd/{}", self.pid, fd as i32)).unwrap_or_default()
        }

        fn path(&self, at: Option<u64>, address: u64) -> io::Result<PathBuf> {
            let name = self.text(address)?;
            if name.is_absolute() {
                return Ok(plain(&name));
            }
            let at = match at.map(|at| at as i32) {
                None | Some(libc::AT_FDCWD) => {
                    std::fs::read_link(format!("/proc/{}/cwd", self.pid))?
                }
                Some(at) => self.descriptor(at as u64),
            };
            Ok(plain(&at.join(name)))
        }

        /// The text at an address up to its NUL; a null pointer is no text.
        fn text(&self, address: u64) -> io::Result<PathBuf> {
            let mut text = Vec::new();
            while address != 0 && text.len() < PATH_MAX {
                let at = address + text.len() as u64;
                // not beyond a page: the next may not be there
                let mut bytes = vec![0; (PAGE - at % PAGE).min(256) as usize];
                self.memory.read_exact_at(&mut bytes, at)?;
                match bytes.iter().position(|byte| *byte == 0) {
                    Some(end) => {
                        text.extend_from_slice(&bytes[..end]);
                        break;
                    }
                    None => text.extend_from_slice(&bytes),
                }
            }
            Ok(OsString::from_vec(text).into())
        }

        fn word(&self, address: u64) -> io::Result<u64> {
            let mut word = [0; 8];
            self.memory.read_exact_at(&mut word, address)?;
            Ok(u64::from_ne_bytes(word))
        }
    }

    /// Goes on to the next call; a thread that was killed meanwhile has nothing to go on with.
    fn resume(thread: Pid, signal: Option<Signal>) -> io::Result<()> {
        match ptrace::syscall(thread, signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The path as the kernel names it, though its last segment may not exist yet.
    fn canonical(path: &Path) -> PathBuf {
        let whole = path.canonicalize();
        whole.unwrap_or_else(|_| match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                parent.canonicalize().unwrap_or_else(|_| parent.to_owned()).join(name)
            }
            _ => path.to_owned(),
        })
    }

    /// Without `.`: names that a process gives to the calls that it makes at a descriptor.
    fn plain(path: &Path) -> PathBuf {
        path.components().filter(|part| *part != Component::CurDir).collect()
    }

    fn makes(flags: u64) -> bool {
        let flags = flags as i32;
        flags & (libc::O_CREAT | libc::O_TRUNC) != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE
    }

    struct Kind {
        number: i64,
        name: &'static str,
        on: On,
        when: When,
        /// Whether the third argument is a number of bytes to write.
        bytes: bool,
    }

    /// Which arguments say what is changed.
    #[derive(Clone, Copy)]
    enum On {
        /// A descriptor.
        File(usize),
        /// A path.
        Path(usize),
        /// A directory's descriptor, and a path.
        At(usize, usize),
        /// Two paths: old and new.
        TwoPaths(usize, usize),
        /// Two descriptors, each before its path: old and new.
        TwoAt(usize, usize),
        Everything,
    }

    /// When it is a change.
    #[derive(Clone, Copy)]
    enum When {
        Always,
        /// If these flags of open(2) make or empty a file.
        Makes(usize),
        /// If the flags at this address do.
        MakesHow(usize),
        SharedAndWritable,
    }

    const fn kind(number: i64, name: &'static str, on: On) -> Kind {
        Kind { number, name, on, when: When::Always, bytes: false }
    }

    const fn writes(number: i64, name: &'static str) -> Kind {
        Kind { number, name, on: On::File(0), when: When::Always, bytes: true }
    }

    const fn opens(number: i64, name: &'static str, on: On, when: When) -> Kind {
        Kind { number, name, on, when, bytes: false }
    }

    /// Calls that change a file system.
    const KINDS: &[Kind] = &[
        opens(libc::SYS_open, "open", On::Path(0), When::Makes(1)),
        opens(libc::SYS_openat, "openat", On::At(0, 1), When::Makes(2)),
        opens(libc::SYS_openat2, "openat2", On::At(0, 1), When::MakesHow(2)),
        opens(libc::SYS_mmap, "mmap", On::File(4), When::SharedAndWritable),
        kind(libc::SYS_creat, "creat", On::Path(0)),
        writes(libc::SYS_write, "write"),
        writes(libc::SYS_pwrite64, "pwrite64"),
        kind(libc::SYS_writev, "writev", On::File(0)),
        kind(libc::SYS_pwritev, "pwritev", On::File(0)),
        kind(libc::SYS_pwritev2, "pwritev2", On::File(0)),
        kind(libc::SYS_sendfile, "sendfile", On::File(0)),
        kind(libc::SYS_splice, "splice", On::File(2)),
        kind(libc::SYS_copy_file_range, "copy_file_range", On::File(2)),
        kind(libc::SYS_ioctl, "ioctl", On::File(0)),
        kind(libc::SYS_fallocate, "fallocate", On::File(0)),
        kind(libc::SYS_ftruncate, "ftruncate", On::File(0)),
        kind(libc::SYS_truncate, "truncate", On::Path(0)),
        kind(libc::SYS_fsync, "fsync", On::File(0)),
        kind(libc::SYS_fdatasync, "fdatasync", On::File(0)),
        kind(libc::SYS_syncfs, "syncfs", On::File(0)),
        kind(libc::SYS_sync_file_range, "sync_file_range", On::File(0)),
        kind(libc::SYS_sync, "sync", On::Everything),
        kind(libc::SYS_fchmod, "fchmod", On::File(0)),
        kind(libc::SYS_fchown, "fchown", On::File(0)),
        kind(libc::SYS_fsetxattr, "fsetxattr", On::File(0)),
        kind(libc::SYS_fremovexattr, "fremovexattr", On::File(0)),
        kind(libc::SYS_chmod, "chmod", On::Path(0)),
        kind(libc::SYS_chown, "chown", On::Path(0)),
        kind(libc::SYS_lchown, "lchown", On::Path(0)),
        kind(libc::SYS_setxattr, "setxattr", On::Path(0)),
        kind(libc::SYS_lsetxattr, "lsetxattr", On::Path(0)),
        kind(libc::SYS_removexattr, "removexattr", On::Path(0)),
        kind(libc::SYS_lremovexattr, "lremovexattr", On::Path(0)),
        kind(libc::SYS_utime, "utime", On::Path(0)),
        kind(libc::SYS_utimes, "utimes", On::Path(0)),
        kind(libc::SYS_fchmodat, "fchmodat", On::At(0, 1)),
        kind(libc::SYS_fchownat, "fchownat", On::At(0, 1)),
        kind(libc::SYS_futimesat, "futimesat", On::At(0, 1)),
        kind(libc::SYS_utimensat, "utimensat", On::At(0, 1)),
        kind(libc::SYS_mkdir, "mkdir", On::Path(0)),
        kind(libc::SYS_mkdirat, "mkdirat", On::At(0, 1)),
        kind(libc::SYS_mknod, "mknod", On::Path(0)),
        kind(libc::SYS_mknodat, "mknodat", On::At(0, 1)),
        kind(libc::SYS_rmdir, "rmdir", On::Path(0)),
        kind(libc::SYS_unlink, "unlink", On::Path(0)),
        kind(libc::SYS_unlinkat, "unlinkat", On::At(0, 1)),
        kind(libc::SYS_symlink, "symlink", On::Path(1)),
        kind(libc::SYS_symlinkat, "symlinkat", On::At(1, 2)),
        kind(libc::SYS_link, "link", On::TwoPaths(0, 1)),
        kind(libc::SYS_linkat, "linkat", On::TwoAt(0, 2)),
        kind(libc::SYS_rename, "rename", On::TwoPaths(0, 1)),
        kind(libc::SYS_renameat, "renameat", On::TwoAt(0, 2)),
        kind(libc::SYS_renameat2, "renameat2", On::TwoAt(0, 2)),
    ];

    /// Calls that change no file.
    const HARMLESS: &[i64] = &[
        // reading and looking
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_readv,
        libc::SYS_preadv,
        libc::SYS_lseek,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_statfs,
        libc::SYS_fstatfs,
        libc::SYS_access,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        libc::SYS_getcwd,
        libc::SYS_chdir,
        libc::SYS_fchdir,
        libc::SYS_umask,
        libc::SYS_dup,
        libc::SYS_dup2,
        libc::SYS_dup3,
        libc::SYS_fcntl,
        libc::SYS_flock,
        libc::SYS_fadvise64,
        libc::SYS_readahead,
        libc::SYS_pipe2,
        // waiting
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_eventfd2,
        libc::SYS_futex,
        libc::SYS_restart_syscall,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_sched_yield,
        // the network
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getsockname,
        libc::SYS_getpeername,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_shutdown,
        // memory
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        // the process
        libc::SYS_execve,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_kill,
        libc::SYS_tgkill,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_arch_prctl,
        libc::SYS_prctl,
        libc::SYS_prlimit64,
        libc::SYS_sched_getaffinity,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_uname,
        libc::SYS_sysinfo,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_gettimeofday,
        libc::SYS_getrusage,
        libc::SYS_times,
    ];

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn no_call_is_both_a_change_and_harmless() {
            for kind in KINDS {
                assert!(!HARMLESS.contains(&kind.number), "{}", kind.name);
            }
        }
    }
}
