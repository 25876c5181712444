//! How a run ends: an exit code that says what to do, one line that says why, an outcome for the
//! controller, and nothing secret in any of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oss_server::{Builder, Fault, Operation, OssServer, PutOptions};
use ossvp::handoff::{OUTCOME_LIMIT, Outcome};
use rustix::process::{Pid, Signal};
use support::cases::{Part, shown, shown_by};
use support::mount::Mounted;
use support::{BUCKET, ID, Place, Ran, Run, SECRET, bytes, files, ossvp, populate, server, tree};

const SOURCE: &str = "oss://bucket/data/";
const TOKEN: &str = "test-session-token";

fn builder() -> Builder {
    OssServer::builder().bucket(BUCKET).credentials(ID, SECRET)
}

/// A server with one object.
fn filled(server: OssServer) -> OssServer {
    server.put(BUCKET, "data/a", "content");
    server
}

/// What never stands in an output: the secret, the session token, a signature.
#[track_caller]
fn keeps_secrets(text: &str) {
    for secret in [SECRET, TOKEN, "Signature=", "HMAC-SHA256"] {
        assert!(!text.contains(secret), "{secret:?} in {text}");
    }
}

/// Runs `command` with all its logs, and expects that it ends with `code`, says `texts` in one line
/// on stderr, and leaves an outcome that says the same.
#[track_caller]
fn ends(command: &mut Command, code: u8, texts: &[&str]) -> Ran {
    let place = Place::new();
    let ran = command.arg("-vv").arg("--outcome").arg(place.file("outcome")).run();
    told(&ran, &place.file("outcome"), code, texts);
    ran
}

#[track_caller]
fn told(ran: &Ran, outcome: &Path, code: u8, texts: &[&str]) {
    let everything = format!("{}{}", ran.stdout, ran.stderr);
    keeps_secrets(&everything);
    assert_eq!(ran.code, i32::from(code), "{everything}");
    let said: Vec<_> = ran.stderr.lines().filter_map(|line| line.strip_prefix("ossvp: ")).collect();
    let [said] = said[..] else { panic!("not one message: {}", ran.stderr) };
    assert!(ran.stderr.ends_with(&format!("ossvp: {said}\n")), "{}", ran.stderr);
    let outcome = read_outcome(outcome);
    assert_eq!(outcome.code, code);
    for text in texts {
        assert!(said.contains(text), "no {text:?} in {said:?}");
    }
    if code != 0 {
        assert_eq!(said, outcome.message);
    }
}

fn read_outcome(path: &Path) -> Outcome {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.len() <= OUTCOME_LIMIT, "{} bytes", text.len());
    keeps_secrets(&text);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_filled_volume_is_0() {
    let (server, place) = (filled(server()), Place::new());
    ends(&mut populate(&server, SOURCE, &place.volume()), 0, &["complete: 1 objects, 7 bytes"]);
    let again = &mut populate(&server, SOURCE, &place.volume());
    ends(again, 0, &["already complete: 1 objects, 7 bytes"]);
}

fn populate_without_report(server: &OssServer, place: &Place) -> Command {
    let mut command = ossvp();
    command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
    command.args(["populate", SOURCE]).arg(place.volume());
    command.args(["--endpoint", &server.endpoint(), "--region", server.region()]);
    command
}

#[test]
fn a_report_that_cannot_be_written_is_1_before_anything_is_done() {
    let (server, place) = (filled(server()), Place::new());
    let mut command = populate_without_report(&server, &place);
    command.arg("--report").arg(place.file("no/report"));
    ends(&mut command, 1, &["cannot write ", "no/report", "No such file or directory"]);
    let mut command = populate_without_report(&server, &place);
    command.arg("--outcome").arg(place.file("no/outcome"));
    let ran = command.run();
    assert!(ran.code == 1 && ran.stderr.contains("no/outcome"), "{ran:?}");
    assert!(!place.volume().exists());
    assert_eq!(server.stats().requests, 0);
}

#[test]
fn a_report_that_can_no_longer_be_written_is_1_and_spares_the_volume() {
    let (server, place) = (filled(server()), Place::new());
    let mut command = populate_without_report(&server, &place);
    // it can be opened, but there is never room
    command.args(["--report", "/dev/full"]);
    ends(&mut command, 1, &["cannot write /dev/full", "No space left on device"]);
    assert!(place.is_marked());
    ends(&mut populate(&server, SOURCE, &place.volume()), 0, &["already complete"]);
}

#[test]
fn usage_is_2_and_leaves_an_outcome() {
    for (args, said) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["--part-size", "8 parsecs"], "--part-size"),
        (&["--part-size", "1KiB"], "--part-size 1KiB: at least 64KiB"),
        (&["--throughput", "fast"], "--throughput"),
        (&["--throughput", "0"], "from 16KiB/s"),
        (&["--concurrency", "0"], "--concurrency"),
        (&["--timeout", "soon"], "--timeout"),
        (&["--timeout", "1ms"], "--timeout: at least 10ms"),
        (&["--retry-for", "ever"], "--retry-for"),
        (&["--include", "a[b"], "glob \"a[b\""),
        (&["--exclude", "{a"], "glob \"{a\""),
        (&["--shard", "2/2"], "shard"),
        (&["--verify", "perhaps"], "--verify"),
        (&["--endpoint", "ftp://host"], "endpoint \"ftp://host\""),
        (&["--endpoint", "http://host/bucket"], "the bucket goes into the source"),
        (&["--endpoint", "oss.example.com"], "does not tell its region: give --region"),
        (&["--region", ""], "neither --region nor --endpoint is given"),
        (
            &["--endpoint", "http://10.0.0.1", "--region", "cn-x", "--addressing", "virtual"],
            "use --addressing path",
        ),
        (&["--region", "cn-x", "--ca-bundle", "/nonexistent/ca.pem"], "/nonexistent/ca.pem"),
        (&["--addressing", "elsewhere"], "--addressing"),
    ] {
        let place = Place::new();
        let outcome = place.file("outcome");
        let mut command = ossvp();
        command.args(["populate", SOURCE]).arg(place.volume()).args(args);
        command.arg("--outcome").arg(&outcome).run().ended(2).says(said);
        let written = read_outcome(&outcome);
        assert_eq!(written.code, 2, "{args:?}");
        assert!(written.message.contains(said), "{args:?}: {written:?}");
        assert!(!written.message.contains('\n'), "{written:?}");
        assert!(!place.volume().exists(), "{args:?}");
    }
    for source in ["bucket/prefix", "http://bucket/", "oss://", "oss://UPPER/", "oss:/bucket", ""] {
        let place = Place::new();
        let outcome = place.file("outcome");
        let mut command = ossvp();
        command.env("OSSVP_OUTCOME", &outcome).args(["populate", source]).arg(place.volume());
        command.run().ended(2);
        assert_eq!(read_outcome(&outcome).code, 2, "{source:?}");
    }
    let place = Place::new();
    let outcome = place.file("outcome");
    let flag = format!("--outcome={}", outcome.display());
    ossvp().args(["populate", SOURCE, &flag]).run().ended(2).says("VOLUME");
    assert_eq!(read_outcome(&outcome).code, 2);
    ossvp().args(["populate", "--help"]).run().ended(0);
    ossvp().arg("--version").run().ended(0);
}

#[test]
fn what_the_source_refuses_is_3_and_named_with_what_helps() {
    let server = builder().foreign_bucket("abroad", "cn-beijing").powerless("poor", "poor-secret");
    let server = filled(server.start_blocking().unwrap());
    let place = Place::new();
    let run = |source: &str| populate(&server, source, &place.volume());

    ends(&mut run("oss://missing/data/"), 3, &["bucket missing does not exist", "EC "]);
    let elsewhere = ["bucket abroad is not served by", "use endpoint oss-cn-beijing"];
    ends(&mut run("oss://abroad/data/"), 3, &elsewhere);
    let region = ["is not in region cn-beijing", "check the region"];
    let mut moved = ossvp();
    moved.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
    moved.args(["populate", SOURCE]).arg(place.volume());
    moved.args(["--endpoint", &server.endpoint(), "--region", "cn-beijing"]);
    ends(&mut moved, 3, &region);
    let denied =
        ["access to bucket bucket is denied", "EC 0003-", "request id ", "oss:ListObjects"];
    let poor = &mut run(SOURCE);
    poor.env("OSS_ACCESS_KEY_ID", "poor").env("OSS_ACCESS_KEY_SECRET", "poor-secret");
    let ran = ends(poor, 3, &denied);
    assert!(!ran.stderr.contains("poor-secret"));
    let wrong = &mut run(SOURCE);
    let signature = ["signature for bucket bucket does not match", "check the access key's secret"];
    let ran = ends(wrong.env("OSS_ACCESS_KEY_SECRET", "not-it"), 3, &signature);
    assert!(!ran.stderr.contains("not-it"));
    let unknown = &mut run(SOURCE);
    let key = ["the access key was not accepted", "InvalidAccessKeyId"];
    ends(unknown.env("OSS_ACCESS_KEY_ID", "nobody"), 3, &key);
    let nobody = &mut run(SOURCE);
    nobody.env_remove("OSS_ACCESS_KEY_ID").env_remove("OSS_ACCESS_KEY_SECRET");
    let none = ["no credentials found", "OSS_ACCESS_KEY_ID", "--anonymous"];
    ends(nobody, 3, &none);
    let refused = ["access to bucket bucket is denied", "leave out --anonymous"];
    ends(run(SOURCE).arg("--anonymous"), 3, &refused);
    ends(
        &mut run("oss://bucket/elsewhere/"),
        3,
        &["nothing under oss://bucket/elsewhere/", "--allow-empty"],
    );
    assert!(tree(&place.volume()).is_empty());
    assert!(!place.is_marked());
}

#[test]
fn an_object_that_is_refused_is_3_and_named() {
    let refused = |lay_out: fn(&OssServer), texts: &[&str]| {
        let (server, place) = (filled(server()), Place::new());
        lay_out(&server);
        ends(&mut populate(&server, SOURCE, &place.volume()), 3, texts);
        assert!(!place.is_marked());
    };
    refused(
        |server| server.fault(Fault::get("data/a").status(403, "AccessDenied")),
        &["access to object \"data/a\" of bucket bucket is denied", "oss:GetObject"],
    );
    refused(
        |server| {
            let archived = PutOptions::new().storage_class("ColdArchive");
            server.put_with(BUCKET, "data/old", "x", archived);
        },
        &["object \"data/old\" of bucket bucket is archived", "ossutil restore"],
    );
    refused(
        |server| {
            let restoring = PutOptions::new().storage_class("Archive").restoring();
            server.put_with(BUCKET, "data/old", "x", restoring);
        },
        &["object \"data/old\" of bucket bucket is archived"],
    );
    refused(
        |server| server.put_symlink(BUCKET, "data/link", "data/nothing"),
        &["object \"data/link\" of bucket bucket is a symlink without a target"],
    );
}

#[test]
fn what_only_looks_refusable_is_filled() {
    let (server, place) = (server(), Place::new());
    let restored = PutOptions::new().storage_class("Archive").restored();
    server.put_with(BUCKET, "data/restored", "restored", restored);
    server.put_with(BUCKET, "data/ia", "ia", PutOptions::new().storage_class("IA"));
    server.put(BUCKET, "elsewhere/target", "target");
    server.put_symlink(BUCKET, "data/link", "elsewhere/target");
    ends(&mut populate(&server, SOURCE, &place.volume()), 0, &["complete: 3 objects"]);
    assert_eq!(files(&place.volume())["link"], b"target");
}

#[test]
fn an_empty_prefix_is_3_unless_it_may_be() {
    let server = server();
    server.put(BUCKET, "placeholder/", "");
    for source in ["oss://bucket/nothing/", "oss://bucket/placeholder/"] {
        let place = Place::new();
        let run = || populate(&server, source, &place.volume());
        let nothing = format!("nothing under {source}");
        ends(&mut run(), 3, &[&nothing, "check bucket and prefix", "--allow-empty"]);
        assert!(!place.is_marked());
        ends(run().arg("--allow-empty"), 0, &["complete: 0 objects, 0 bytes"]);
        assert!(place.is_marked());
    }
}

#[test]
fn filters_that_leave_nothing_are_3() {
    let server = server();
    server.put(BUCKET, "data/model.bin", "x");
    let place = Place::new();
    let run = || {
        let mut command = populate(&server, SOURCE, &place.volume());
        command.args(["--include", "*.safetensors"]);
        command
    };
    ends(&mut run(), 3, &["nothing under oss://bucket/data/", "filters"]);
    assert!(!place.is_marked());
    ends(run().arg("--allow-empty"), 0, &["complete: 0 objects"]);
}

#[test]
fn a_clock_that_is_an_hour_off_is_corrected() {
    for ahead in [3600, -3600] {
        let server = filled(builder().clock_ahead(ahead).start_blocking().unwrap());
        let place = Place::new();
        ends(&mut populate(&server, SOURCE, &place.volume()), 0, &["complete: 1 objects"]);
    }
    shown(Part::Network, "a clock that is an hour ahead or behind", "corrected by the source's", 0);
}

#[test]
fn an_endpoint_that_nobody_serves_is_4() {
    let place = Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = ossvp();
    command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
    command.args(["populate", SOURCE]).arg(place.volume());
    command.args(["--endpoint", &format!("http://127.0.0.1:{port}"), "--region", "cn-x"]);
    ends(&mut command, 4, &[&format!("cannot connect to 127.0.0.1:{port}")]);
    assert!(!place.is_marked());
}

#[test]
fn a_service_without_tls_or_without_a_host_for_each_bucket_is_told_from_one_that_is_not_there() {
    let (server, place) = (filled(server()), Place::new());
    let run = |flags: &[&str]| {
        let mut command = ossvp();
        command.env("OSS_ACCESS_KEY_ID", ID).env("OSS_ACCESS_KEY_SECRET", SECRET);
        command.args(["populate", SOURCE]).arg(place.volume()).args(["--region", "cn-x"]);
        command.args(["--retry-for", "100ms", "--endpoint"]).args(flags);
        command
    };
    let bare = server.endpoint().replace("http://", "");
    let plain = ["cannot connect to 127.0.0.1:", "begin --endpoint with http://"];
    ends(&mut run(&[&bare]), 4, &plain);
    let hosts = ["cannot connect to bucket.localhost:1", "take --addressing path"];
    ends(&mut run(&["http://localhost:1", "--addressing", "virtual"]), 4, &hosts);
    assert!(!place.is_marked());
}

/// A run that waits for the rest of `data/stalls`.
struct Stalled {
    child: Option<Child>,
    outcome: PathBuf,
}

impl Stalled {
    fn start(server: &OssServer, place: &Place, flags: &[&str]) -> Self {
        let outcome = place.file("stalled-outcome");
        let gets = server.gets(BUCKET, "data/stalls");
        let child = populate(server, SOURCE, &place.volume())
            .args(["-vv", "--outcome"])
            .arg(&outcome)
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stalled = Self { child: Some(child), outcome };
        support::wait_until("a stalled request", || server.gets(BUCKET, "data/stalls") > gets);
        stalled
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(id, signal).unwrap();
    }

    fn wait(mut self) -> Ran {
        self.child.take().unwrap().wait_with_output().unwrap().into()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_volume_that_another_worker_holds_is_4() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/stalls", "content");
    server.fault(Fault::get("data/stalls").stall_forever_after(1));
    let holder = Stalled::start(&server, &place, &[]);
    let held =
        ["another worker holds the volume", place.volume().to_str().unwrap()].map(String::from);
    ends(&mut populate(&server, SOURCE, &place.volume()), 4, &held.each_ref().map(String::as_str));
    drop(holder);
    server.clear_faults();
    ends(&mut populate(&server, SOURCE, &place.volume()), 0, &["complete: 1 objects"]);
    shown(
        Part::Volume,
        "another worker holds the volume",
        "names the volume; once it is gone the next run finishes",
        4,
    );
}

#[test]
fn an_object_that_goes_or_changes_before_its_fetch_is_5() {
    type Change = fn(&OssServer);
    let change: [(&str, Change, &str); 3] = [
        (
            "deleted",
            |server| assert!(server.delete(BUCKET, "data/z")),
            "\"data/z\" of bucket bucket is gone",
        ),
        (
            "replaced",
            |server| server.put(BUCKET, "data/z", "other"),
            "\"data/z\" of bucket bucket has changed",
        ),
        (
            "grown",
            |server| server.put(BUCKET, "data/z", bytes(1, 300_000)),
            "\"data/z\" of bucket bucket has changed",
        ),
    ];
    for (what, change, said) in change {
        let (server, place) = (server(), Place::new());
        server.put(BUCKET, "data/stalls", "content");
        server.put(BUCKET, "data/z", "first");
        server.fault(Fault::get("data/stalls").stall_after(1, Duration::from_secs(2)));
        let run = Stalled::start(&server, &place, &["--concurrency", "1"]);
        change(&server);
        let outcome = run.outcome.clone();
        told(&run.wait(), &outcome, 5, &[said]);
        assert!(!place.is_marked());
        assert_eq!(files(&place.volume()).into_keys().collect::<Vec<_>>(), ["stalls"], "{what}");
        // a new listing knows better, and what is committed is kept
        let ran = populate(&server, SOURCE, &place.volume()).run().ended(0);
        assert_eq!(ran.report().figures.objects_kept, 1);
    }
    let what = "the rest is committed and kept; a new listing finishes";
    shown(Part::Network, "an object deleted or replaced between listing and fetch", what, 5);
}

#[test]
fn an_object_that_changes_between_its_parts_is_5() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/stalls", bytes(1, 300_000));
    let first = Fault::get("data/stalls").range_start(0);
    server.fault(first.stall_after(1, Duration::from_secs(2)));
    let run = Stalled::start(&server, &place, &["--concurrency", "1", "--part-size", "64KiB"]);
    let other = bytes(2, 300_000);
    server.put(BUCKET, "data/stalls", other.clone());
    let outcome = run.outcome.clone();
    told(&run.wait(), &outcome, 5, &["\"data/stalls\" of bucket bucket has changed"]);
    assert!(tree(&place.volume()).is_empty());
    server.clear_faults();
    populate(&server, SOURCE, &place.volume()).run().ended(0);
    assert_eq!(files(&place.volume())["stalls"], other);
    let what = "nothing of it is in the volume; a new listing finishes";
    shown(Part::Network, "an object that is replaced between two of its parts", what, 5);
}

#[test]
fn a_checksum_that_does_not_match_is_6() {
    let (server, place) = (filled(server()), Place::new());
    server.fault(Fault::get("data/a").flip_byte(0));
    let said = ["object \"data/a\" does not match its checksum, fetched 3 times: crc64 is "];
    ends(&mut populate(&server, SOURCE, &place.volume()), 6, &said);
}

#[test]
fn a_volume_that_cannot_be_made_is_7() {
    let (server, place) = (filled(server()), Place::new());
    let lost = place.file("no/parent");
    let said = ["cannot make the volume's directory", "no/parent", "No such file or directory"];
    ends(&mut populate(&server, SOURCE, &lost), 7, &said);
    std::fs::write(place.volume(), "a file").unwrap();
    let said = ["cannot open the volume", "Not a directory"];
    let ran = ends(&mut populate(&server, SOURCE, &place.volume()), 7, &said);
    assert_eq!(std::fs::read(place.volume()).unwrap(), b"a file");
    assert_eq!(server.stats().count(Operation::GetObject), 0);
    shown_by(
        &ran,
        Part::Volume,
        "the volume's parent does not exist, or the volume is a file",
        "names it before anything is fetched",
    );
}

#[test]
fn a_read_only_volume_is_7() {
    let (server, place) = (filled(server()), Place::new());
    std::fs::create_dir(place.file("real")).unwrap();
    let bound = Mounted::new(&["--bind", "-o", "ro"], &place.file("real"), &place.volume());
    let Some(_mounted) = bound else { return };
    let said = ["the volume is mounted read-only", "Read-only file system"];
    let ran = ends(&mut populate(&server, SOURCE, &place.volume()), 7, &said);
    shown_by(&ran, Part::Volume, "the volume is mounted read-only", "says so");
}

#[test]
fn a_volume_that_is_not_ours_to_write_is_7() {
    let (server, place) = (filled(server()), Place::new());
    std::fs::create_dir(place.volume()).unwrap();
    let outcome = place.file("outcome");
    let mut command = populate(&server, SOURCE, &place.volume());
    command.arg("--outcome").arg(&outcome);
    if rustix::process::geteuid().is_root() {
        // root may write anywhere: as nobody, with the same arguments
        let program = command.get_program().to_owned();
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let nobody = place.file("ossvp");
        std::fs::copy(program, &nobody).unwrap();
        std::fs::write(&outcome, "").unwrap();
        for path in [place.file(""), nobody.clone(), outcome.clone()] {
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(path, open).unwrap();
        }
        let envs: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        command = Command::new(nobody);
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        command.args(args).env_clear().envs(envs);
    } else {
        let shut = std::os::unix::fs::PermissionsExt::from_mode(0o555);
        std::fs::set_permissions(place.volume(), shut).unwrap();
    }
    let ran = command.run();
    let said = ["the volume's root must be writable", "generic.fsGroup", "Permission denied"];
    told(&ran, &outcome, 7, &said);
    shown_by(
        &ran,
        Part::Volume,
        "the volume is not this user's to write",
        "says so, and names the settings of a Pod that help",
    );
}

#[test]
fn a_volume_that_is_too_small_is_7_before_it_is_full() {
    let (server, place) = (server(), Place::new());
    let Some(_mounted) = Mounted::small(&place) else { return };
    for n in 0..4 {
        server.put_synthetic(BUCKET, &format!("data/{n}"), 5 << 20, n, PutOptions::new());
    }
    let ran = ends(
        &mut populate(&server, SOURCE, &place.volume()),
        7,
        &["too small: at least 15728640 bytes listed so far, the volume holds 1"],
    );
    let holds = ran.stderr.rsplit("the volume holds ").next().unwrap();
    let holds: u64 = holds.split(';').next().unwrap().parse().unwrap();
    assert!((10 << 20..16 << 20).contains(&holds), "{holds}");
    assert!(!place.is_marked());

    let planned = &mut populate(&server, SOURCE, &place.volume());
    planned.args(["--plan-first", "--force"]);
    let ran = ends(planned, 7, &["too small: at least "]);
    shown_by(
        &ran,
        Part::Volume,
        "the volume is too small for what is listed",
        "ends before it is full, with both figures; with --plan-first before anything is fetched",
    );
}

#[test]
fn a_volume_that_is_full_is_7_with_both_figures() {
    let (server, place) = (server(), Place::new());
    let Some(_mounted) = Mounted::small(&place) else { return };
    server.put(BUCKET, "data/stalls", "content");
    server.put_synthetic(BUCKET, "data/z", 5 << 20, 1, PutOptions::new());
    server.fault(Fault::get("data/stalls").stall_after(1, Duration::from_secs(2)));
    let run = Stalled::start(&server, &place, &["--concurrency", "1"]);
    // someone else takes the room that the plan counted on
    let ballast = std::fs::File::create(place.volume().join("ballast")).unwrap();
    let room = rustix::fs::fstatvfs(&ballast).unwrap();
    let most = room.f_bavail * room.f_frsize - (1 << 20);
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
    let outcome = run.outcome.clone();
    let ran = run.wait();
    told(&ran, &outcome, 7, &["the volume is full: 5242880 more bytes", "available of 1"]);
    assert!(!place.is_marked());

    drop(ballast);
    std::fs::remove_file(place.volume().join("ballast")).unwrap();
    let again = populate(&server, SOURCE, &place.volume()).run().ended(0);
    assert_eq!(again.report().figures.objects_kept, 1);
    shown_by(
        &ran,
        Part::Volume,
        "someone else takes the room that the plan counted on",
        "ends with both figures; with room again the next run keeps what is committed and finishes",
    );
}

#[test]
fn a_volume_of_another_source_is_8_until_it_is_discarded() {
    let (server, place) = (filled(server()), Place::new());
    server.put(BUCKET, "other/b", "other");
    server.put(BUCKET, "other/stalls", "other");
    populate(&server, SOURCE, &place.volume()).run().ended(0);
    let other = || populate(&server, "oss://bucket/other/", &place.volume());
    let said = ["the volume holds oss://bucket/data/, not oss://bucket/other/", "--force"];
    ends(&mut other(), 8, &said);
    let filtered = &mut populate(&server, SOURCE, &place.volume());
    ends(filtered.args(["--exclude", "x"]), 8, &["not oss://bucket/data/ (1 filter)"]);
    assert_eq!(files(&place.volume()).into_keys().collect::<Vec<_>>(), ["a"]);

    // nor is a part of it
    server.fault(Fault::get("other/stalls").status(403, "AccessDenied"));
    ends(other().args(["--force", "--concurrency", "1"]), 3, &["other/stalls"]);
    let part = ["the volume holds a part of oss://bucket/other/, not oss://bucket/data/"];
    ends(&mut populate(&server, SOURCE, &place.volume()), 8, &part);
    ends(populate(&server, SOURCE, &place.volume()).arg("--force"), 0, &["complete: 1 objects"]);
    assert_eq!(files(&place.volume()).into_keys().collect::<Vec<_>>(), ["a"]);
    shown(
        Part::Past,
        "the volume is complete with another source, or with other filters",
        "names both and what to do; --force removes that source's files and finishes",
        8,
    );
}

#[test]
fn a_run_that_committed_nothing_leaves_the_volume_free() {
    let (server, place) = (filled(server()), Place::new());
    ends(&mut populate(&server, "oss://mistyped/data/", &place.volume()), 3, &["mistyped"]);
    ends(&mut populate(&server, SOURCE, &place.volume()), 0, &["complete: 1 objects"]);
    let marker = std::fs::read_to_string(place.volume().join(".ossvp/complete.json")).unwrap();
    assert!(!marker.contains("mistyped"), "{marker}");

    // but what was fetched of a large object counts
    let place = Place::new();
    server.put(BUCKET, "other/large", bytes(1, 300_000));
    let last = Fault::get("other/large").range_start(262_144);
    server.fault(last.delay(Duration::from_millis(300)));
    server.fault(Fault::get("other/large").range_start(262_144).status(403, "AccessDenied"));
    let other = &mut populate(&server, "oss://bucket/other/", &place.volume());
    ends(other.args(["--part-size", "64KiB"]), 3, &["denied"]);
    let part = ["the volume holds a part of oss://bucket/other/, not oss://bucket/data/"];
    ends(&mut populate(&server, SOURCE, &place.volume()), 8, &part);
    shown(
        Part::Past,
        "a run of another source committed nothing (a bucket's name mistyped)",
        "leaves the volume free for the right one",
        0,
    );
}

#[test]
fn an_unmappable_key_is_8() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/a//b", "x");
    let said =
        ["key \"data/a//b\" cannot be a path in the volume: an empty segment", "--unmappable"];
    ends(&mut populate(&server, SOURCE, &place.volume()), 8, &said);
}

#[test]
fn a_signal_ends_a_run_at_once_and_the_next_run_finishes_it() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (server, place) = (server(), Place::new());
        server.put(BUCKET, "data/a", "content");
        server.put(BUCKET, "data/stalls", bytes(1, 300_000));
        server.fault(Fault::get("data/stalls").stall_forever_after(1000));
        let flags = ["--concurrency", "1", "--part-size", "64KiB"];
        let run = Stalled::start(&server, &place, &flags);
        let outcome = run.outcome.clone();
        let start = Instant::now();
        run.signal(signal);
        let ran = run.wait();
        assert!(start.elapsed() < Duration::from_secs(2), "{signal:?}: {:?}", start.elapsed());
        told(&ran, &outcome, code, &["interrupted; run again to go on"]);
        assert_eq!(read_outcome(&outcome).objects, 1);
        assert!(!place.is_marked());

        server.clear_faults();
        let ran = populate(&server, SOURCE, &place.volume()).args(flags).run().ended(0);
        assert_eq!(ran.report().figures.objects_kept, 1);
        assert_eq!(files(&place.volume())["stalls"], bytes(1, 300_000));
    }
}

#[test]
fn a_signal_is_heard_while_nothing_answers() {
    let (server, place) = (filled(server()), Place::new());
    server.fault(Fault::list().delay(Duration::from_secs(600)));
    let outcome = place.file("outcome");
    let child = populate(&server, SOURCE, &place.volume())
        .args(["-vv", "--outcome"])
        .arg(&outcome)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let run = Stalled { child: Some(child), outcome: outcome.clone() };
    support::wait_until("a listing", || server.stats().concurrent > 0);
    let start = Instant::now();
    run.signal(Signal::TERM);
    told(&run.wait(), &outcome, 143, &["interrupted"]);
    assert!(start.elapsed() < Duration::from_secs(2));
    shown(Part::Network, "SIGTERM while nothing answers", "ends at once", 143);
}

#[test]
fn an_outcome_is_short_whatever_it_has_to_say() {
    let server = server();
    let long = |c: &str| format!("data/{}", c.repeat(1018 / c.len()));
    for c in ["\u{1}", "\"", "\\", "\u{1f600}", "x"] {
        let (key, place) = (long(c), Place::new());
        server.put(BUCKET, &key, "x");
        let outcome = place.file("outcome");
        let mut command = populate(&server, SOURCE, &place.volume());
        let ran = command.arg("--outcome").arg(&outcome).run().ended(8);
        let written = read_outcome(&outcome);
        assert_eq!(written.code, 8);
        assert!(written.message.starts_with("key \"data/"), "{written:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        server.delete(BUCKET, &key);
    }

    let place = Place::new();
    let outcome = place.file("outcome");
    let globs = (0..500).map(|n| format!("--include={n}-{}", "\u{1f600}/".repeat(60)));
    let mut command =
        populate(&server, &format!("oss://bucket/{}", "p".repeat(1000)), &place.volume());
    command.args(globs).arg("--outcome").arg(&outcome).run().ended(3);
    assert_eq!(read_outcome(&outcome).code, 3);

    let place = Place::new();
    let outcome = place.file("outcome");
    server.put(BUCKET, "data/a", "x");
    let globs = (0..500).map(|n| format!("--exclude={n}-{}", "\"".repeat(200)));
    let mut command = populate(&server, SOURCE, &place.volume());
    command.args(globs).arg("--outcome").arg(&outcome).run().ended(0);
    let written = read_outcome(&outcome);
    assert_eq!((written.code, written.objects), (0, 1));
    assert_eq!(written.source, "oss://bucket/data/ (500 filters)");

    let place = Place::new();
    let outcome = place.file("outcome");
    let mut command = ossvp();
    command.args(["populate", &"\u{1f600}\"".repeat(5000)]).arg(place.volume());
    command.arg("--outcome").arg(&outcome).run().ended(2);
    assert_eq!(read_outcome(&outcome).code, 2);
}

#[test]
fn a_session_token_shows_nowhere() {
    let server = builder().session("session-id", "session-secret", TOKEN, None);
    let server = filled(server.start_blocking().unwrap());
    let place = Place::new();
    let run = |token: &str| {
        let mut command = populate(&server, SOURCE, &place.volume());
        command.env("OSS_ACCESS_KEY_ID", "session-id");
        command.env("OSS_ACCESS_KEY_SECRET", "session-secret").env("OSS_SESSION_TOKEN", token);
        command
    };
    let ran = ends(&mut run("another-token"), 3, &["the access key was not accepted"]);
    assert!(!ran.stderr.contains("another-token") && !ran.stderr.contains("session-secret"));
    let ran = ends(&mut run(TOKEN), 0, &["complete: 1 objects"]);
    assert!(!ran.stderr.contains("session-secret"));
    for name in ["complete.json", "manifest"] {
        let text = std::fs::read_to_string(place.volume().join(".ossvp").join(name)).unwrap();
        keeps_secrets(&text);
        assert!(!text.contains("session-"), "{text}");
    }
    let what = "neither in output nor in marker and manifest";
    shown(Part::Secrets, "a session token, accepted and refused", what, "0 and 3");
}
