//! The least that a machine must do to fill a directory: what any client's CPU is compared with.
//!
//! Non-blocking sockets and epoll, a body from `recv` straight into `pwrite`. No signature, no
//! checksum, no renaming, nothing synced, no retry: a bound, not a client.
//!
//! `cargo run --release -p bench-tools --bin floor -- 127.0.0.1:9200 small DIRECTORY`

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{File, OpenOptions, create_dir_all};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use clap::Parser;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What is written at once with `--direct`.
const BUFFER: usize = 1 << 20;
/// What is received at once, as much as ours receives: it stays in the cache until it is written.
const RECEIVED: usize = 256 << 10;
/// What O_DIRECT asks of memory and of offsets.
const ALIGNMENT: usize = 4096;

#[derive(Debug, Parser)]
struct Options {
    /// The server.
    server: SocketAddr,
    /// The bucket, all of which is fetched.
    bucket: String,
    /// An empty directory; without one the bucket is only listed.
    directory: Option<PathBuf>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Of each thread.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Bytes of one ranged GET; larger objects are fetched in parts.
    #[arg(long, default_value_t = 8 << 20)]
    part: u64,
    /// Allocates a part before it is written.
    #[arg(long)]
    fallocate: bool,
    /// Writes past the page cache, in whole buffers.
    #[arg(long)]
    direct: bool,
}

/// A part of an object, or all of it.
#[derive(Debug)]
struct Part {
    key: String,
    offset: u64,
    bytes: u64,
    whole: bool,
}

/// The pages of a listing, one after the other.
struct Listing<'a> {
    stream: BufReader<TcpStream>,
    bucket: &'a str,
    body: Vec<u8>,
}

impl<'a> Listing<'a> {
    fn new(options: &'a Options) -> Outcome<Self> {
        let stream = BufReader::with_capacity(64 << 10, TcpStream::connect(options.server)?);
        stream.get_ref().set_nodelay(true)?;
        Ok(Self { stream, bucket: &options.bucket, body: Vec::new() })
    }

    /// The page behind `token`, and the next one's token.
    fn page(&mut self, token: Option<&str>) -> Outcome<(&str, Option<String>)> {
        let token = token.map(|token| format!("&continuation-token={}", token.replace('=', "%3D")));
        let head = format!(
            "GET /{}/?list-type=2&max-keys=1000{} HTTP/1.1\r\nHost: floor\r\n\r\n",
            self.bucket,
            token.unwrap_or_default()
        );
        self.stream.get_mut().write_all(head.as_bytes())?;
        let mut length = None;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse()?);
            }
        }
        self.body.resize(length.ok_or("a listing of no stated length")?, 0);
        self.stream.read_exact(&mut self.body)?;
        let page = std::str::from_utf8(&self.body)?;
        // it is said before the first object
        let start = page.split("<Contents>").next().unwrap_or(page);
        let next = element(start, "NextContinuationToken").map(|(token, _)| token.to_owned());
        Ok((page, next))
    }
}

/// The text of the first such element, and what is behind it.
fn element<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (_, text) = text.split_once(&format!("<{name}>"))?;
    text.split_once(&format!("</{name}>"))
}

fn list(options: &Options) -> Outcome<Vec<Part>> {
    let mut listing = Listing::new(options)?;
    let (mut parts, mut token) = (Vec::new(), None);
    loop {
        let (mut page, next) = listing.page(token.as_deref())?;
        while let Some((key, rest)) = element(page, "Key") {
            let (size, rest) = element(rest, "Size").ok_or("an object without a size")?;
            page = rest;
            let size: u64 = size.parse()?;
            let whole = size <= options.part;
            for offset in (0..size).step_by(usize::try_from(options.part)?) {
                let bytes = options.part.min(size - offset);
                parts.push(Part { key: key.to_owned(), offset, bytes, whole });
            }
        }
        token = match next {
            Some(token) => Some(token),
            None => return Ok(parts),
        };
    }
}

/// Asks for the pages of a listing and does nothing with them: the rate of the server.
fn only_list(options: &Options) -> Outcome<()> {
    let start = Instant::now();
    let mut listing = Listing::new(options)?;
    let (mut pages, mut token) = (0, None);
    loop {
        pages += 1;
        token = match listing.page(token.as_deref())?.1 {
            Some(token) => Some(token),
            None => break,
        };
    }
    println!("{pages} pages in {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// [`BUFFER`] bytes that begin where O_DIRECT wants them.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        let memory = vec![0; BUFFER + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + BUFFER]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER]
    }
}

/// A connection, and the part that is on its way.
struct Connection<'a> {
    options: &'a Options,
    directory: &'a Path,
    stream: TcpStream,
    current: Option<Current<'a>>,
    /// With `--direct`: of its own, to be written when it is full.
    own: Option<Buffer>,
}

struct Current<'a> {
    part: &'a Part,
    file: File,
    /// The head has been read.
    begun: bool,
    written: u64,
    /// Bytes in the connection's own buffer.
    waiting: usize,
}

impl<'a> Connection<'a> {
    fn new(options: &'a Options, directory: &'a Path) -> Outcome<Self> {
        let stream = TcpStream::connect(options.server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let own = options.direct.then(Buffer::default);
        Ok(Self { options, directory, stream, current: None, own })
    }

    /// Asks for a part.
    fn ask(&mut self, part: &'a Part) -> Outcome<()> {
        let Part { key, offset, bytes, whole } = part;
        let mut open = OpenOptions::new();
        open.write(true).create(true);
        if self.options.direct && !whole {
            open.custom_flags(OFlags::DIRECT.bits().cast_signed());
        }
        let file = open.open(self.directory.join(key))?;
        if self.options.fallocate {
            fallocate(&file, FallocateFlags::empty(), *offset, *bytes)?;
        }
        let bucket = &self.options.bucket;
        let range = match whole {
            true => String::new(),
            false => format!("Range: bytes={offset}-{}\r\n", offset + bytes - 1),
        };
        // a socket's empty buffer takes it at once
        write!(self.stream, "GET /{bucket}/{key} HTTP/1.1\r\nHost: floor\r\n{range}\r\n")?;
        self.current = Some(Current { part, file, begun: false, written: 0, waiting: 0 });
        Ok(())
    }

    /// Takes what is there; says whether that was the part's end.
    fn receive(&mut self, shared: &mut Buffer) -> Outcome<bool> {
        let current = self.current.as_mut().ok_or("an answer to nothing")?;
        let gathers = self.own.is_some();
        let buffer = self.own.as_mut().unwrap_or(shared);
        let mut begin = current.waiting;
        let most = BUFFER.min(begin + RECEIVED);
        let mut end = begin + self.stream.read(&mut buffer[begin..most])?;
        if begin == end {
            return Err("the server hung up".into());
        }
        if !current.begun {
            // nginx sends a head at once
            let head = memmem(&buffer[..end], b"\r\n\r\n").ok_or("a head in pieces")? + 4;
            if !buffer.starts_with(b"HTTP/1.1 20") {
                return Err(String::from_utf8_lossy(&buffer[..head]).into());
            }
            current.begun = true;
            begin = head;
        }
        let left = current.part.bytes - current.written;
        if gathers {
            buffer.copy_within(begin..end, current.waiting);
            end -= begin - current.waiting;
            begin = 0;
            current.waiting = end;
            if end < BUFFER && (end as u64) < left {
                return Ok(false);
            }
        }
        let at = current.part.offset + current.written;
        current.file.write_all_at(&buffer[begin..end], at)?;
        current.written += (end - begin) as u64;
        current.waiting = 0;
        Ok(current.written == current.part.bytes)
    }
}

fn memmem(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// One thread's connections, until no part is left.
fn work(options: &Options, directory: &Path, parts: &[Part], next: &AtomicUsize) -> Outcome<()> {
    let next = || parts.get(next.fetch_add(1, Relaxed));
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    while connections.len() < options.connections
        && let Some(part) = next()
    {
        let mut connection = Connection::new(options, directory)?;
        connection.ask(part)?;
        let number = epoll::EventData::new_u64(connections.len() as u64);
        epoll::add(&epoll, &connection.stream, number, epoll::EventFlags::IN)?;
        connections.push(connection);
    }
    let mut busy = connections.len();
    let mut shared = Buffer::default();
    let mut events = Vec::with_capacity(options.connections);
    while busy > 0 {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let connection = &mut connections[usize::try_from(event.data.u64())?];
            if connection.receive(&mut shared)? {
                match next() {
                    Some(part) => connection.ask(part)?,
                    None => {
                        epoll::delete(&epoll, &connection.stream)?;
                        busy -= 1;
                    }
                }
            }
        }
    }
    Ok(())
}

fn fetch(options: &Options, directory: &Path) -> Outcome<()> {
    let parts = list(options)?;
    let folders = parts.iter().filter_map(|part| Some(part.key.rsplit_once('/')?.0));
    for folder in folders.collect::<BTreeSet<_>>() {
        create_dir_all(directory.join(folder))?;
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || work(options, directory, &parts, &next);
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })
}

fn main() -> Outcome<()> {
    let options = Options::parse();
    match &options.directory {
        Some(directory) => fetch(&options, directory),
        None => only_list(&options),
    }
}
