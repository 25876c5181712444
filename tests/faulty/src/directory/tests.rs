#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use super::*;

/// A real directory and the place where it is shown.
struct Shown {
    directory: Directory,
    real: PathBuf,
    at: PathBuf,
}

impl Shown {
    /// Says why not where FUSE is not to be had.
    fn new(name: &str, options: Options) -> Option<Self> {
        let base = std::env::temp_dir().join(format!("faulty-{}-{name}", std::process::id()));
        let (real, at) = (base.join("real"), base.join("at"));
        std::fs::create_dir_all(&real).unwrap();
        std::fs::create_dir_all(&at).unwrap();
        match options.mount(&real, &at) {
            Ok(directory) => Some(Self { directory, real, at }),
            Err(error) => {
                println!("SKIPPED: FUSE: {error}");
                None
            }
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir_all(self.real.parent().unwrap());
    }
}

fn error(result: io::Result<impl fmt::Debug>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn without_rules_it_is_the_real_directory() {
    let Some(shown) = Shown::new("faithful", Options::default()) else { return };
    let (at, real) = (&shown.at, &shown.real);
    std::fs::create_dir_all(at.join("a/b")).unwrap();
    std::fs::write(at.join("a/b/file"), vec![7; 300_000]).unwrap();
    assert_eq!(std::fs::read(real.join("a/b/file")).unwrap(), vec![7; 300_000]);
    std::fs::write(real.join("a/b/file"), "changed behind its back").unwrap();
    assert_eq!(std::fs::read(at.join("a/b/file")).unwrap(), b"changed behind its back");

    std::fs::rename(at.join("a/b/file"), at.join("moved")).unwrap();
    std::fs::hard_link(at.join("moved"), at.join("linked")).unwrap();
    std::os::unix::fs::symlink("moved", at.join("pointing")).unwrap();
    assert_eq!(std::fs::read_link(at.join("pointing")).unwrap(), Path::new("moved"));
    let [moved, linked] = ["moved", "linked"].map(|name| std::fs::metadata(at.join(name)).unwrap());
    assert_eq!((moved.ino(), moved.nlink()), (linked.ino(), 2));

    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    assert_eq!(fs::open(at.join("moved"), flags, Mode::RUSR).unwrap_err(), Errno::EXIST);
    let renamed =
        fs::renameat_with(CWD, at.join("moved"), CWD, at.join("linked"), RenameFlags::NOREPLACE);
    assert_eq!(renamed.unwrap_err(), Errno::EXIST);

    let file = std::fs::File::options().write(true).open(at.join("moved")).unwrap();
    file.set_len(5).unwrap();
    fs::fallocate(&file, FallocateFlags::empty(), 0, 4096).unwrap();
    let then = UNIX_EPOCH + Duration::from_millis(1_234_567_891_011);
    file.set_modified(then).unwrap();
    file.sync_all().unwrap();
    fs::syncfs(&file).unwrap();
    fs::flock(&file, fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    std::fs::set_permissions(at.join("moved"), PermissionsExt::from_mode(0o640)).unwrap();
    let meta = std::fs::metadata(real.join("moved")).unwrap();
    assert_eq!((meta.len(), meta.modified().unwrap(), meta.mode() & 0o777), (4096, then, 0o640));
    assert!(fs::statvfs(at).unwrap().f_blocks > 0);

    let names = |at: &Path| -> Vec<_> {
        let mut names: Vec<_> =
            std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for n in 0..1000 {
        std::fs::write(at.join(format!("a/b/{n}")), "").unwrap();
    }
    assert_eq!(names(&at.join("a/b")).len(), 1000);
    assert_eq!(error(std::fs::remove_dir(at.join("a/b"))), Errno::NOTEMPTY.raw_os_error());
    std::fs::remove_dir_all(at.join("a")).unwrap();
    assert_eq!(names(at), ["linked", "moved", "pointing"]);
    assert_eq!(names(at), names(real));
}

#[test]
fn the_nth_call_fails_with_the_number_that_was_asked_for() {
    let Some(shown) = Shown::new("nth", Options::default()) else { return };
    let (at, directory) = (&shown.at, &shown.directory);
    directory.rule(On::kind(Kind::Mkdir).nth(2).fails(Errno::DQUOT));
    std::fs::create_dir(at.join("1")).unwrap();
    assert_eq!(error(std::fs::create_dir(at.join("2"))), Errno::DQUOT.raw_os_error());
    assert!(!shown.real.join("2").exists());
    std::fs::create_dir(at.join("2")).unwrap();
    assert_eq!(directory.fired(), 1);

    directory.clear();
    let refuses = |name: &str| name.contains(':');
    directory.rule(On::kinds(&[Kind::Lookup, Kind::Create]).name(refuses).fails(Errno::INVAL));
    assert_eq!(error(std::fs::write(at.join("a:b"), "")), Errno::INVAL.raw_os_error());
    std::fs::write(at.join("a-b"), "").unwrap();

    directory.clear();
    directory.rule(On::kinds(Kind::CHANGES).from(2).fails(Errno::ROFS));
    std::fs::remove_file(at.join("a-b")).unwrap();
    for _ in 0..2 {
        assert_eq!(error(std::fs::create_dir(at.join("3"))), Errno::ROFS.raw_os_error());
    }
}

#[test]
fn writes_are_short_and_closes_and_syncs_fail() {
    let Some(shown) = Shown::new("short", Options::default()) else { return };
    let file = File::create(shown.at.join("file")).unwrap();
    shown.directory.rule(On::kind(Kind::Write).path("file").nth(1).short(3));
    assert_eq!(rustix::io::write(&file, b"12345").unwrap(), 3);
    assert_eq!(rustix::io::write(&file, b"45").unwrap(), 2);
    assert_eq!(std::fs::read(shown.real.join("file")).unwrap(), b"12345");
    shown.directory.rule(On::kind(Kind::Fsync).nth(1).fails(Errno::IO));
    assert_eq!(fs::fsync(&file).unwrap_err(), Errno::IO);
    fs::fsync(&file).unwrap();
    shown.directory.rule(On::kind(Kind::Flush).nth(1).fails(Errno::NOSPC));
    assert_eq!(nix::unistd::close(file).unwrap_err(), nix::errno::Errno::ENOSPC);
}

#[test]
fn a_write_that_is_lost_later_shows_at_close() {
    let Some(shown) = Shown::new("lost", Options::default().writeback()) else { return };
    shown.directory.rule(On::kind(Kind::Write).fails(Errno::IO));
    let file = File::create(shown.at.join("file")).unwrap();
    rustix::io::write(&file, b"12345").unwrap();
    assert_eq!(nix::unistd::close(file).unwrap_err(), nix::errno::Errno::EIO);
}

#[test]
fn names_are_folded_and_the_first_spelling_stays() {
    let there = |shown: &Shown, name: &str| std::fs::read_to_string(shown.at.join(name)).ok();
    let [composed, parted] = ["caf\u{e9}", "cafe\u{301}"];
    for (folding, case, forms) in [
        (Folding::None, false, false),
        (Folding::Case, true, false),
        (Folding::Forms, false, true),
        (Folding::Both, true, true),
    ] {
        let name = format!("{folding:?}");
        let Some(shown) = Shown::new(&name, Options::default().folding(folding)) else { return };
        std::fs::write(shown.at.join(composed), "x").unwrap();
        assert_eq!(there(&shown, "CAF\u{c9}").is_some(), case, "{name}");
        assert_eq!(there(&shown, parted).is_some(), forms, "{name}");
        assert_eq!(there(&shown, "CAFE\u{301}").is_some(), case && forms, "{name}");
        std::fs::create_dir(shown.at.join("Dir")).unwrap();
        let again = std::fs::create_dir(shown.at.join("dIR"));
        assert_eq!(again.is_err(), case, "{name}");
        if case {
            // replaced and removed by another spelling
            std::fs::write(shown.at.join("DIR/new"), "new").unwrap();
            std::fs::rename(shown.at.join("dir/NEW"), shown.at.join("CAF\u{c9}")).unwrap();
            assert_eq!(std::fs::read_to_string(shown.real.join(composed)).unwrap(), "new");
            std::fs::remove_file(shown.at.join("CAF\u{c9}")).unwrap();
            assert!(!shown.real.join(composed).exists());
        }
    }
}

#[test]
fn calls_that_take_long_do_not_wait_for_each_other() {
    let Some(shown) = Shown::new("delay", Options::default().threads(16)) else { return };
    for n in 0..16 {
        std::fs::create_dir(shown.at.join(n.to_string())).unwrap();
    }
    let delay = Duration::from_millis(50);
    shown.directory.rule(On::kind(Kind::Mkdir).delayed(delay));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..16 {
            let path = shown.at.join(format!("{n}/new"));
            scope.spawn(move || std::fs::create_dir(path).unwrap());
        }
    });
    assert_eq!(shown.directory.fired(), 16);
    assert!(start.elapsed() >= delay);
    assert!(start.elapsed() < delay * 12, "one after the other: {:?}", start.elapsed());
}

#[test]
fn something_may_happen_just_before_a_call() {
    let Some(shown) = Shown::new("runs", Options::default()) else { return };
    std::fs::write(shown.at.join("file"), "x").unwrap();
    let planted = shown.real.join("new");
    let plant = move || std::os::unix::fs::symlink("file", &planted).unwrap();
    shown.directory.log();
    shown.directory.rule(On::kind(Kind::Rename).path("new").nth(1).runs(plant));
    let (from, to) = (shown.at.join("file"), shown.at.join("new"));
    let renamed = fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
    assert_eq!(renamed.unwrap_err(), Errno::EXIST);
    let paths = vec!["file".to_owned(), "new".to_owned()];
    assert!(shown.directory.calls().contains(&Call { kind: Kind::Rename, paths }));
}
