//! The S3 dialect against a server that is not ours: SeaweedFS, its real signatures, checksums and
//! listings.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use ossvp::handoff::Tally;
use sha2::{Digest, Sha256};
use support::{ID, Place, Ran, Run, SECRET, bytes, files, ossvp, tree, wait_until};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/seaweedfs");
const INSTALLED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/seaweedfs");

/// Puts what its stdin describes: endpoint, bucket, objects. The server needs a moment until it can
/// place data, so what fails is tried again for a while.
const PUT: &str = r#"
import concurrent.futures, json, sys, time
import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

order = json.load(sys.stdin)
client = boto3.client(
    "s3", endpoint_url=order["endpoint"], region_name="us-east-1",
    aws_access_key_id=order["id"], aws_secret_access_key=order["secret"],
    config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"))

def patiently(call, **arguments):
    start = time.monotonic()
    while True:
        try:
            return call(**arguments)
        except Exception:
            if time.monotonic() - start > 30:
                raise
            time.sleep(0.1)

def put(one):
    target = {"Bucket": order["bucket"], "Key": one["key"]}
    if one.get("part"):
        parts = TransferConfig(multipart_threshold=one["part"], multipart_chunksize=one["part"])
        patiently(client.upload_file, Filename=one["file"], Config=parts, **target)
    else:
        more = {"ChecksumAlgorithm": one["checksum"]} if one.get("checksum") else {}
        with open(one["file"], "rb") as body:
            patiently(client.put_object, Body=body.read(), Metadata=one.get("metadata") or {},
                      **target, **more)

patiently(client.list_buckets)
client.create_bucket(Bucket=order["bucket"])
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(put, order["objects"]))
"#;

/// One object to put.
#[derive(Default)]
struct Object {
    key: String,
    body: Vec<u8>,
    checksum: Option<&'static str>,
    /// Uploaded in parts of so many bytes.
    part: Option<u64>,
    metadata: BTreeMap<&'static str, String>,
}

fn object(key: &str, body: Vec<u8>) -> Object {
    Object { key: key.to_owned(), body, ..Object::default() }
}

/// A server for all tests of this file.
struct Weed {
    endpoint: String,
    /// Its stdin ends with this process, and the server with its stdin.
    _child: Child,
    _data: tempfile::TempDir,
}

impl Weed {
    fn get() -> &'static Self {
        static WEED: OnceLock<Weed> = OnceLock::new();
        WEED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let installed = Command::new(SCRIPT).args([INSTALLED, "install"]).status().unwrap();
        assert!(installed.success(), "SeaweedFS cannot be installed");
        let data = tempfile::tempdir().unwrap();
        let identities = serde_json::json!({ "identities": [{
            "name": "test",
            "credentials": [{ "accessKey": ID, "secretKey": SECRET }],
            "actions": ["Admin", "Read", "Write", "List"],
        }] });
        let config = data.path().join("s3.json");
        std::fs::write(&config, identities.to_string()).unwrap();

        // all at once, so that no two are the same
        let free: Vec<_> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = free.iter().map(|port| port.local_addr().unwrap().port()).collect();
        drop(free);
        let roles = ["master", "volume", "filer", "s3"];
        let flags = roles.iter().zip(ports.chunks(2)).flat_map(|(role, ports)| {
            [format!("-{role}.port={}", ports[0]), format!("-{role}.port.grpc={}", ports[1])]
        });
        let log = std::fs::File::create(data.path().join("log")).unwrap();
        let child = Command::new(SCRIPT)
            .args([INSTALLED, "serve", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"])
            .args(["-volume.max=50", "-master.volumeSizeLimitMB=64"])
            .args(flags)
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-dir={}", data.path().display()))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { endpoint: format!("http://127.0.0.1:{}", ports[6]), _child: child, _data: data }
    }

    fn put(&self, bucket: &str, objects: &[Object]) {
        let bodies = tempfile::tempdir().unwrap();
        let described: Vec<_> = objects
            .iter()
            .enumerate()
            .map(|(n, object)| {
                let Object { key, body, checksum, part, metadata } = object;
                let file = bodies.path().join(n.to_string());
                std::fs::write(&file, body).unwrap();
                serde_json::json!({ "key": key, "file": file, "checksum": checksum, "part": part,
                    "metadata": metadata })
            })
            .collect();
        let order = serde_json::json!({ "endpoint": self.endpoint, "bucket": bucket, "id": ID,
            "secret": SECRET, "objects": described });
        let mut child = Command::new(Path::new(INSTALLED).join("bin/python"))
            .args(["-c", PUT])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "objects could not be put");
    }

    fn populate(&self, bucket: &str, volume: &Path) -> Command {
        let mut command = ossvp();
        command.env("AWS_ACCESS_KEY_ID", ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command.arg("populate").arg(format!("s3://{bucket}/data/")).arg(volume);
        command.args(["--endpoint", &self.endpoint, "--report", "-", "--progress", "none"]);
        command
    }
}

fn wanted(objects: &[Object]) -> BTreeMap<String, Vec<u8>> {
    let path = |object: &Object| object.key.strip_prefix("data/").unwrap().to_owned();
    objects.iter().map(|object| (path(object), object.body.clone())).collect()
}

#[test]
fn whole_objects_are_verified_by_the_md5_that_their_etag_is() {
    let (weed, place) = (Weed::get(), Place::new());
    let names =
        ["plain", "a b", "a+b", "100%", "a%2Fb", "\u{4e2d}/\u{1f600}", "deep/er/file", "e="];
    let mut objects: Vec<_> = (1..)
        .zip(names)
        .map(|(n, name)| object(&format!("data/{name}"), bytes(n, 1000 * n as usize)))
        .collect();
    objects.push(object("data/empty", Vec::new()));
    let wanted = wanted(&objects);
    objects.extend([object("data/directory/", Vec::new()), object("other", bytes(9, 9))]);
    weed.put("whole", &objects);
    let ran = weed.populate("whole", &place.volume()).args(["--verify", "require"]).run().ended(0);
    assert_eq!(files(&place.volume()), wanted);
    assert!(tree(&place.volume()).contains_key("directory/"));
    assert_eq!(ran.marker().verified, Tally { md5: 9, ..Tally::default() });
    assert_eq!(ran.report().figures.requests_head, 0);

    let ran = weed.populate("whole", &place.volume()).run().ended(0).says("already complete");
    assert_eq!(ran.report().figures.requests_get, 0);
}

#[test]
fn what_the_server_states_vouches_for_objects_in_parts() {
    let (weed, place) = (Weed::get(), Place::new());
    let body = |n| bytes(n, 3_000_000 + n as usize);
    let by = |key: &str, n, checksum| Object { checksum: Some(checksum), ..object(key, body(n)) };
    let objects = [
        object("data/md5", body(1)),
        by("data/crc32", 2, "CRC32"),
        by("data/sha256", 3, "SHA256"),
        Object { checksum: Some("CRC32"), ..object("data/small", bytes(4, 1000)) },
    ];
    weed.put("parts", &objects);
    let flags = ["--part-size", "1MiB", "--verify", "require"];
    let ran = weed.populate("parts", &place.volume()).args(flags).run().ended(0);
    assert_eq!(files(&place.volume()), wanted(&objects));
    let tally = Tally { md5: 1, crc32: 2, sha256: 1, ..Tally::default() };
    assert_eq!(ran.marker().verified, tally);
    let figures = ran.report().figures;
    assert_eq!((figures.requests_get, figures.requests_head), (3 * 3 + 1, 3));
}

#[test]
fn an_object_that_was_uploaded_in_parts_has_no_md5() {
    let (weed, place) = (Weed::get(), Place::new());
    let body = bytes(1, 12 << 20);
    let metadata = BTreeMap::from([("sha256", sha256(b"small"))]);
    let objects = [
        Object { part: Some(5 << 20), ..object("data/large", body) },
        Object { metadata, ..object("data/small", b"small".to_vec()) },
    ];
    weed.put("uploaded", &objects);
    let run = |flags: &[&str]| weed.populate("uploaded", &place.volume()).args(flags).run();
    run(&["--verify", "require"]).ended(6).says("\"data/large\" has no checksum");
    let ran = run(&["--sha256"]).ended(0);
    assert_eq!(files(&place.volume()), wanted(&objects));
    assert_eq!(ran.marker().verified, Tally { md5: 1, unverified: 1, ..Tally::default() });
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let (weed, place) = (Weed::get(), Place::new());
    let objects = [object("data/a", bytes(1, 1000)), object("data/large", bytes(2, 8 << 20))];
    weed.put("resume", &objects);
    let parts = ["--part-size", "256KiB"];
    let mut child = weed
        .populate("resume", &place.volume())
        .args(parts)
        .args(["--throughput", "2MB/s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let noted = || {
        let staged = std::fs::read_dir(place.volume().join(".ossvp/staged")).into_iter().flatten();
        let notes = staged.map(|entry| entry.unwrap().path());
        let notes: Option<PathBuf> = notes.into_iter().find(|path| path.extension().is_some());
        let text = notes.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("p\t")).count() as u64
    };
    wait_until("three parts", || noted() >= 3 && place.volume().join("a").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let noted = noted();
    assert!((3..32).contains(&noted), "{noted}");

    let ran = weed.populate("resume", &place.volume()).args(parts).run().ended(0);
    assert_eq!(files(&place.volume()), wanted(&objects));
    assert_eq!(ran.marker().verified, Tally { md5: 2, ..Tally::default() });
    let figures = ran.report().figures;
    assert_eq!((figures.parts_kept, figures.objects_kept), (noted, 1));
    assert_eq!(figures.requests_get, 32 - noted);
}

/// SeaweedFS walks directories: `a/b` comes before `a-x`.
#[test]
fn a_listing_in_another_order_is_sorted_first() {
    let (weed, place) = (Weed::get(), Place::new());
    let objects: Vec<_> = (0..1100)
        .map(|n| match n % 3 {
            0 => format!("data/a/{n}"),
            1 => format!("data/a-{n}"),
            _ => format!("data/a/b.{n}/c"),
        })
        .map(|key| object(&key, key.clone().into_bytes()))
        .collect();
    weed.put("unordered", &objects);
    let run = |flags: &[&str]| -> Ran {
        weed.populate("unordered", &place.volume()).args(flags).run().ended(0)
    };
    let ran = run(&[]).says("listing out of order: sorting it first");
    assert_eq!(files(&place.volume()), wanted(&objects));
    assert_eq!(ran.marker().objects, 1100);

    std::fs::remove_file(place.volume().join(".ossvp/complete.json")).unwrap();
    let figures = run(&[]).report().figures;
    assert_eq!((figures.objects_kept, figures.requests_get), (1100, 0));

    for flags in [&["--dry-run"][..], &["--dry-run", "--plan-first"]] {
        let plan = run(flags).report().plan.unwrap();
        assert_eq!((plan.objects, plan.fetch_objects, plan.remove_objects), (1100, 0, 0));
    }
}

#[test]
fn what_the_server_refuses_is_named() {
    let (weed, place) = (Weed::get(), Place::new());
    weed.put("refusals", &[object("data/a", b"content".to_vec())]);
    weed.populate("missing", &place.volume()).run().ended(3).says("bucket missing does not exist");
    let mut wrong = weed.populate("refusals", &place.volume());
    let wrong = wrong.env("AWS_SECRET_ACCESS_KEY", "not-it").run().ended(3);
    wrong.says("the signature for bucket refusals does not match");
    let mut unknown = weed.populate("refusals", &place.volume());
    let unknown = unknown.env("AWS_ACCESS_KEY_ID", "nobody").run().ended(3);
    unknown.says("the access key was not accepted");
    let mut anonymous = weed.populate("refusals", &place.volume());
    anonymous.arg("--anonymous").run().ended(3).says("access to bucket refusals is denied");
    assert!(!place.is_marked());
}
