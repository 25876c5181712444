//! How a container's process is started: its own mounts and process ids, its user, its rights.
//!
//! Its root is an overlay of the host's, so that a volume can be mounted anywhere and nothing that
//! the process writes beside its volumes stays. The tools are util-linux and coreutils.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::processes::STARTED;

/// Where the host's own tree is while a container's mounts are made.
const HOST: &str = "/.stand-in-host";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What of the host is where in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) host: PathBuf,
    pub(crate) at: String,
    pub(crate) read_only: bool,
}

/// A container's process, ready to start.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// An empty directory for the overlay.
    pub(crate) scratch: PathBuf,
    pub(crate) binds: Vec<Bind>,
    pub(crate) who: Who,
    pub(crate) read_only_root: bool,
    pub(crate) directory: String,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) argv: Vec<String>,
}

/// As whom a process runs, and with what rights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
    /// Capabilities that can be had at all, in lower case; `None` are all of them.
    pub(crate) capabilities: Option<Vec<String>>,
    pub(crate) no_new_privileges: bool,
}

impl Launch {
    /// The outermost process. It writes [`STARTED`] and a process id once everything is mounted.
    pub(crate) fn command(&self) -> Command {
        // dies with the thread that starts it, and its child with it: also if a test is killed.
        // The shell's first child is the new namespace's first process; `unshare --fork` of
        // util-linux 2.38 would lose its exit code if it is killed.
        let wait = "setpriv --pdeathsig KILL /bin/sh -c \"$1\" & wait $!";
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid"])
            .args(["--propagation", "private", "/bin/sh", "-c", wait, "sh"])
            .arg(self.outside())
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null());
        command
    }

    /// Makes the container's root. `/proc` still shows the ids that the host sees.
    fn outside(&self) -> String {
        let scratch = quoted(&self.scratch.to_string_lossy());
        let inside = quoted(&self.inside());
        format!(
            "set -e
read -r pid rest < /proc/self/stat
mount -t tmpfs -o mode=755 stand-in {scratch}
cd {scratch}
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=\"$PWD/upper\",workdir=\"$PWD/work\" stand-in root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 dev dev
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mkdir -m 1777 dev/shm
mkdir .{HOST}
mount --rbind / .{HOST}
exec chroot . /bin/sh -c {inside} sh \"$pid\"
"
        )
    }

    /// Mounts from within the root, where links lead to what the container sees, never out of it.
    fn inside(&self) -> String {
        let mut script = "set -e\n".to_owned();
        let mut binds: Vec<&Bind> = self.binds.iter().collect();
        // what is mounted below another comes after it
        binds.sort_by_key(|bind| bind.at.split('/').filter(|part| !part.is_empty()).count());
        for Bind { host, at, read_only } in binds {
            let from = quoted(&format!("{HOST}{}", host.display()));
            let quoted_at = quoted(at);
            if host.is_dir() {
                script += &format!("mkdir -p {quoted_at}\n");
            } else {
                let parent = Path::new(at).parent().unwrap_or(Path::new("/"));
                let parent = quoted(&parent.to_string_lossy());
                script += &format!("mkdir -p {parent}\n[ -e {quoted_at} ] || : > {quoted_at}\n");
            }
            script += &format!("mount --bind {from} {quoted_at}\n");
            if *read_only {
                script += &format!("mount -o remount,bind,ro {quoted_at}\n");
            }
        }
        let directory = quoted(&self.directory);
        script += &format!("umount -l {HOST}\nrmdir {HOST}\nmkdir -p {directory}\n");
        if self.read_only_root {
            script += "mount -o remount,bind,ro /\n";
        }
        script += &format!("printf '%s%s\\n' {} \"$1\"\nexec setpriv", quoted(STARTED));
        for argument in self.who.arguments() {
            script += &format!(" {}", quoted(&argument));
        }
        // a shell's background processes ignore some signals
        script += &format!(" -- env -i --default-signal -C {directory}");
        for (name, value) in &self.env {
            script += &format!(" {}", quoted(&format!("{name}={value}")));
        }
        for argument in &self.argv {
            script += &format!(" {}", quoted(argument));
        }
        script
    }
}

impl Who {
    /// For `setpriv`.
    fn arguments(&self) -> Vec<String> {
        let Self { user, group, groups, capabilities, no_new_privileges } = self;
        // a change of user takes the death signal away
        let mut arguments = vec!["--pdeathsig=KILL".to_owned()];
        arguments.push(format!("--reuid={user}"));
        arguments.push(format!("--regid={group}"));
        if groups.is_empty() {
            arguments.push("--clear-groups".to_owned());
        } else {
            let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
            arguments.push(format!("--groups={}", groups.join(",")));
        }
        if let Some(capabilities) = capabilities {
            let kept: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
            arguments.push("--inh-caps=-all".to_owned());
            arguments.push(format!("--bounding-set=-all{kept}"));
        }
        if *no_new_privileges {
            arguments.push("--no-new-privs".to_owned());
        }
        arguments
    }
}

/// One word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::super::log::{Log, Part};
    use super::super::processes::Processes;
    use super::*;

    /// Runs a shell command in a container; its exit code and what it wrote.
    async fn run(script: &str, change: impl FnOnce(&Path, &mut Launch)) -> (i32, String) {
        let place = tempfile::tempdir().unwrap();
        let scratch = place.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let mut launch = Launch {
            scratch,
            binds: Vec::new(),
            who: Who { capabilities: Some(vec!["chown".to_owned()]), ..Who::default() },
            read_only_root: false,
            directory: "/".to_owned(),
            env: Vec::new(),
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        };
        change(place.path(), &mut launch);
        let processes = Processes::default();
        let log = Arc::new(Log::default());
        let (tell, told) = mpsc::channel();
        let started = processes
            .start(launch.command(), Arc::clone(&log), move |code| tell.send(code).unwrap());
        let _running = started.await.unwrap().unwrap();
        let code = told.recv().unwrap();
        processes.close();
        (code, String::from_utf8(log.read(&Part::default()).0).unwrap())
    }

    #[tokio::test]
    async fn a_container_has_its_own_root_processes_and_environment() {
        let script =
            "echo $$; tr '\\0' '\\n' < /proc/1/environ; pwd; echo x > /stand-in-was-here && exit 3";
        let (code, text) = run(script, |_, launch| {
            launch.directory = "/made for it".to_owned();
            launch.env = vec![("A.b".to_owned(), "it's $HOME".to_owned())];
        })
        .await;
        assert_eq!((code, text.as_str()), (3, "1\nA.b=it's $HOME\n/made for it\n"));
        assert!(!Path::new("/stand-in-was-here").exists());
    }

    #[tokio::test]
    async fn a_bind_is_where_it_is_asked_for_and_not_on_the_host() {
        let script = "cat /var/run/deep/er/file; echo more > /volume/out; echo no > /ro/out";
        let mut volume = tempfile::tempdir().unwrap();
        let (code, text) = run(script, |place, launch| {
            std::fs::write(place.join("file"), "content\n").unwrap();
            let bind = |host: &Path, at: &str, read_only| Bind {
                host: host.to_owned(),
                at: at.to_owned(),
                read_only,
            };
            launch.binds = vec![
                bind(&place.join("file"), "/var/run/deep/er/file", false),
                bind(volume.path(), "/volume", false),
                bind(volume.path(), "/ro", true),
            ];
        })
        .await;
        assert_ne!(code, 0);
        assert!(text.starts_with("content\n") && text.contains("Read-only"), "{text}");
        assert_eq!(std::fs::read_to_string(volume.path().join("out")).unwrap(), "more\n");
        volume.disable_cleanup(false);
        for path in ["/volume", "/ro", "/run/deep", "/var/run/deep"] {
            assert!(!Path::new(path).exists(), "{path}");
        }
    }

    #[tokio::test]
    async fn a_process_runs_as_whom_it_is_told() {
        let script = "id -u; id -g; id -G; grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status";
        let (_, text) = run(script, |_, launch| {
            launch.who = Who {
                user: 1234,
                group: 5,
                groups: vec![77, 88],
                capabilities: Some(Vec::new()),
                no_new_privileges: true,
            };
        })
        .await;
        let expected = "1234\n5\n5 77 88\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
                        NoNewPrivs:\t1\n";
        assert_eq!(text, expected);
        let (_, text) = run("grep CapEff /proc/self/status", |_, _| {}).await;
        assert_eq!(text, "CapEff:\t0000000000000001\n", "root has what the bounding set leaves");
    }

    #[tokio::test]
    async fn a_root_may_be_read_only_and_a_killed_process_says_so() {
        let (_, text) = run("touch /x", |_, launch| launch.read_only_root = true).await;
        assert!(text.contains("Read-only file system"), "{text}");
        let (code, _) = run("sh -c 'kill -KILL $$'; exit $?", |_, _| {}).await;
        assert_eq!(code, 137);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_container_that_ends_at_once_has_been_started() {
        let mut runs = tokio::task::JoinSet::new();
        for _ in 0..40 {
            runs.spawn(run("exit 3", |_, _| {}));
        }
        while let Some(done) = runs.join_next().await {
            assert_eq!(done.unwrap(), (3, String::new()));
        }
    }

    #[tokio::test]
    async fn a_container_dies_with_what_started_it_whoever_its_user_is() {
        for user in [0, 1234] {
            let place = tempfile::tempdir().unwrap();
            let launch = Launch {
                scratch: place.path().to_owned(),
                binds: Vec::new(),
                who: Who { user, capabilities: Some(Vec::new()), ..Who::default() },
                read_only_root: false,
                directory: "/".to_owned(),
                env: Vec::new(),
                argv: ["/bin/sh", "-c", "sleep 1000; true"].map(str::to_owned).to_vec(),
            };
            let processes = Processes::default();
            let (tell, told) = mpsc::channel();
            let exited = move |code| tell.send(code).unwrap();
            let started = processes.start(launch.command(), Arc::default(), exited);
            let running = started.await.unwrap().unwrap();
            if user == 0 {
                running.signal(rustix::process::Signal::KILL);
                assert_eq!(told.recv(), Ok(137));
            }
            // waits for the end of all that has the pipe open
            processes.close();
        }
    }

    #[tokio::test]
    async fn what_cannot_be_mounted_is_told_before_the_start() {
        let place = tempfile::tempdir().unwrap();
        let launch = Launch {
            scratch: place.path().join("missing"),
            binds: Vec::new(),
            who: Who::default(),
            read_only_root: false,
            directory: "/".to_owned(),
            env: Vec::new(),
            argv: vec!["true".to_owned()],
        };
        let processes = Processes::default();
        let started = processes.start(launch.command(), Arc::default(), |_| {});
        let error = started.await.unwrap().unwrap_err();
        assert!(error.contains("missing"), "{error}");
    }
}
