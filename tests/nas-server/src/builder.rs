//! What a server starts with.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;

use crate::faults::Faults;
use crate::handle::NasServer;
use crate::server::{Server, accept};
use crate::sign::Keys;
use crate::time::{Clock, Times};
use crate::world::{Bucket, FileSystem, Hook, Import, Outcome, World};

/// What a server starts with.
#[must_use]
pub struct Builder {
    listen: SocketAddr,
    region: String,
    keys: Keys,
    file_systems: BTreeMap<String, FileSystem>,
    buckets: BTreeMap<String, Bucket>,
    times: Times,
    speed: f64,
    per_describe: Duration,
    hook: Option<Hook>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            region: "cn-wulanchabu".into(),
            keys: Keys::default(),
            file_systems: BTreeMap::new(),
            buckets: BTreeMap::new(),
            times: Times::default(),
            speed: 0.0,
            per_describe: Duration::ZERO,
            hook: None,
        }
    }
}

impl Builder {
    /// Where to listen; a free port of 127.0.0.1 unless told otherwise.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// The region of what is made from now on, and of calls that name none; `cn-wulanchabu` unless
    /// told otherwise.
    pub fn region(mut self, region: &str) -> Self {
        self.region = region.into();
        self
    }

    /// An access key that may ask.
    pub fn credentials(mut self, id: &str, secret: &str) -> Self {
        self.keys.keys.insert(id.into(), (secret.into(), None));
        self
    }

    /// A temporary access key that may ask.
    pub fn temporary_credentials(mut self, id: &str, secret: &str, token: &str) -> Self {
        self.keys.keys.insert(id.into(), (secret.into(), Some(token.into())));
        self
    }

    /// A file system and the directories that it has; each begins and ends in `/`.
    pub fn file_system(mut self, id: &str, directories: &[&str]) -> Self {
        let directories = directories.iter().copied().chain(["/"]).map(str::to_owned).collect();
        let region = self.region.clone();
        let new = FileSystem { region, running: true, directories, filesets: BTreeMap::new() };
        self.file_systems.insert(id.into(), new);
        self
    }

    /// A bucket that CPFS may use.
    pub fn bucket(self, name: &str) -> Self {
        self.any_bucket(name, true, false)
    }

    /// A bucket without the tag `cpfs-dataflow`.
    pub fn untagged_bucket(self, name: &str) -> Self {
        self.any_bucket(name, false, false)
    }

    /// A bucket that CPFS may not read.
    pub fn denied_bucket(self, name: &str) -> Self {
        self.any_bucket(name, true, true)
    }

    fn any_bucket(mut self, name: &str, tagged: bool, denied: bool) -> Self {
        let region = self.region.clone();
        self.buckets.insert(name.into(), Bucket { region, tagged, denied });
        self
    }

    /// How long everything takes, in the server's time.
    pub fn times(mut self, times: Times) -> Self {
        self.times = times;
        self
    }

    /// How much of the server's time passes in a true second; none unless told otherwise.
    pub fn speed(mut self, speed: f64) -> Self {
        self.speed = speed.max(0.0);
        self
    }

    /// How much of the server's time passes with each call that describes.
    pub fn per_describe(mut self, time: Duration) -> Self {
        self.per_describe = time;
        self
    }

    /// Is asked what comes of each import when it is about to be complete, and may put the files in
    /// place. It may block, and ask the server.
    pub fn on_import(mut self, hook: impl Fn(&Import) -> Outcome + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// Starts the server on threads of its own.
    pub fn start_blocking(self) -> std::io::Result<NasServer> {
        let Self { listen, region, keys, file_systems, buckets, times, speed, per_describe, hook } =
            self;
        let socket = std::net::TcpListener::bind(listen)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        // last of what can fail: a runtime must not be dropped inside another one
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("nas-server")
            .enable_all()
            .build()?;
        let listener = {
            let _guard = runtime.enter();
            TcpListener::from_std(socket)?
        };
        let world = World {
            clock: Clock::new(speed, per_describe),
            times,
            file_systems,
            buckets,
            flows: Vec::new(),
            tasks: Vec::new(),
            outcomes: VecDeque::new(),
            answered: BTreeMap::new(),
            ids: 0,
            hook,
        };
        let server = Arc::new(Server {
            region,
            world: Mutex::new(world),
            keys: Mutex::new(keys),
            faults: Mutex::new(Faults::default()),
            calls: Mutex::default(),
            request_ids: AtomicU64::new(0),
        });
        runtime.spawn(accept(server.clone(), listener));
        Ok(NasServer::new(server, address, runtime))
    }
}
