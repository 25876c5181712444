//! What file systems have, described once for all claims: the API takes 120 calls a minute of each
//! kind from an account in a region.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::client::Nas;
use super::error::NasError;
use super::flows::DataFlow;
use super::tasks::Task;
use crate::lock::lock;

/// How old a description may be: less than the pause between two looks at a claim, so that each look
/// of one claim sees something new, and those of many claims the same.
const FRESH: Duration = Duration::from_secs(8);
/// How old it may be while a new one is on its way: an API that is slow holds up one look, not all.
const USABLE: Duration = Duration::from_secs(120);

/// The data flows of a file system, and the tasks of those that a controller has made.
#[derive(Debug, Default)]
pub(crate) struct Described {
    pub(crate) flows: Vec<DataFlow>,
    pub(crate) tasks: Vec<Task>,
}

type Answer = Result<Arc<Described>, NasError>;

/// An answer, when it was asked for, and when it came.
#[derive(Debug, Clone)]
struct Last {
    asked: Instant,
    came: Instant,
    answer: Answer,
}

#[derive(Debug, Default)]
struct Entry {
    /// Held by the one who asks.
    asking: tokio::sync::Mutex<()>,
    last: Mutex<Option<Last>>,
}

/// The last descriptions, by region and file system.
#[derive(Debug, Default)]
pub(crate) struct Descriptions(Mutex<HashMap<(String, String), Arc<Entry>>>);

impl Descriptions {
    /// What `file_system` has: by an answer of the last seconds, or `anew`. That there was no answer
    /// holds for as long, and for all who waited for it. `made` is how the descriptions of the
    /// controller's own data flows begin: the tasks of others' are not asked for, of which there may
    /// be thousands.
    ///
    /// # Errors
    /// Of the two calls.
    pub(crate) async fn of(
        &self,
        nas: &Nas,
        region: &str,
        file_system: &str,
        made: &str,
        anew: bool,
    ) -> Answer {
        let wanted = Instant::now();
        let entry = self.entry(region, file_system);
        let enough = |last: &Last| last.asked >= wanted || !anew && last.came.elapsed() < FRESH;
        if let Some(last) = entry.last().filter(enough) {
            return last.answer;
        }
        let _asking = match entry.asking.try_lock() {
            Ok(asking) => asking,
            Err(_) => {
                let usable = |last: &Last| !anew && last.came.elapsed() < USABLE;
                if let Some(last) = entry.last().filter(usable) {
                    return last.answer;
                }
                entry.asking.lock().await
            }
        };
        if let Some(last) = entry.last().filter(enough) {
            return last.answer;
        }
        let asked = Instant::now();
        let answer = describe(nas, region, file_system, made).await.map(Arc::new);
        let last = Last { asked, came: Instant::now(), answer: answer.clone() };
        *lock(&entry.last) = Some(last);
        answer
    }

    fn entry(&self, region: &str, file_system: &str) -> Arc<Entry> {
        let mut all = lock(&self.0);
        // nobody looks at those, and they are old
        all.retain(|_, entry| Arc::strong_count(entry) > 1 || entry.is_usable());
        all.entry((region.to_owned(), file_system.to_owned())).or_default().clone()
    }

    /// Something was done to `file_system`: the next one to look sees what.
    pub(crate) fn forget(&self, region: &str, file_system: &str) {
        let mut all = lock(&self.0);
        all.remove(&(region.to_owned(), file_system.to_owned()));
    }
}

impl Entry {
    fn last(&self) -> Option<Last> {
        lock(&self.last).clone()
    }

    fn is_usable(&self) -> bool {
        self.last().is_some_and(|last| last.came.elapsed() < USABLE)
    }
}

async fn describe(
    nas: &Nas,
    region: &str,
    file_system: &str,
    made: &str,
) -> Result<Described, NasError> {
    let flows = nas.describe_data_flows(region, file_system).await?;
    let ours = flows.iter().filter(|flow| flow.is_marked(made));
    let ids: Vec<&str> = ours.map(|flow| flow.id.as_str()).collect();
    let tasks = nas.describe_data_flow_tasks(region, file_system, &ids).await?;
    Ok(Described { flows, tasks })
}
