//! What a test has shown goes into `docs/reliability.md`: one row a case, in the words of the test
//! that saw it. `scripts/reliability` holds the document against these rows.

use std::cell::RefCell;
use std::io::Write;
use std::path::PathBuf;

use super::Ran;

thread_local! {
    static RECORDED: RefCell<bool> = const { RefCell::new(false) };
}

/// The parts of the document, in its order.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    Crash,
    Power,
    Network,
    Volume,
    Past,
    Hostile,
    Secrets,
    Load,
}

/// Notes that `case` was seen to end as `what` says, with exit code `code`: a number, or what
/// stands in its place, such as "0 on the next run". Deterministic words only: the document is
/// compared with them. Call it after the assertions, from the test's own thread.
pub fn shown(part: Part, case: &str, what: &str, code: impl ToString) {
    record(&["case", &format!("{part:?}"), case, what, &code.to_string()]);
}

/// As [`shown`], for a run that has ended.
pub fn shown_by(ran: &Ran, part: Part, case: &str, what: &str) {
    shown(part, case, what, ran.code);
}

/// Notes what was measured: counts, seconds, bytes. The document has the figures of one run; other
/// runs may differ.
pub fn measured(part: Part, figures: &str) {
    println!("{figures}");
    record(&["figures", &format!("{part:?}"), figures]);
}

/// Notes that this machine cannot run this test: the document keeps the rows it has.
pub fn not_here(why: impl std::fmt::Display) {
    println!("SKIPPED: {why}");
    record(&["skipped", &why.to_string()]);
}

/// One file a test, one line a record, fields parted by tabs.
fn record(fields: &[&str]) {
    let thread = std::thread::current();
    let test = thread.name().expect("a test's thread has its name");
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("reliability");
    std::fs::create_dir_all(&directory).unwrap();
    let name = format!("{}.{}", env!("CARGO_CRATE_NAME"), test.replace("::", "."));
    let mut options = std::fs::OpenOptions::new();
    // a test's first record replaces those of its last run
    let first = RECORDED.with(|recorded| !recorded.replace(true));
    options.create(true).write(true).truncate(first).append(!first);
    let line: Vec<_> = fields.iter().map(|field| field.replace(['\t', '\n'], " ")).collect();
    let mut file = options.open(directory.join(name)).unwrap();
    writeln!(file, "{}", line.join("\t")).unwrap();
}
