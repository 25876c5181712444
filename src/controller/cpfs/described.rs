//! What file systems have, described once for all claims: the API takes 120 calls a minute of each
//! kind from an account in a region.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::client::Nas;
use super::error::NasError;
use super::flows::DataFlow;
use super::tasks::Task;

/// How old a description may be: less than the pause between two looks at a claim, so that each look
/// of one claim sees something new, and those of many claims the same.
const FRESH: Duration = Duration::from_secs(8);

/// The data flows of a file system, and their tasks.
#[derive(Debug, Default)]
pub(crate) struct Described {
    pub(crate) flows: Vec<DataFlow>,
    pub(crate) tasks: Vec<Task>,
}

type Answer = Result<Arc<Described>, NasError>;
/// For one caller at a time.
type Last = Arc<tokio::sync::Mutex<Option<(Instant, Answer)>>>;

/// The last descriptions, by region and file system.
#[derive(Debug, Default)]
pub(crate) struct Descriptions(Mutex<HashMap<(String, String), Last>>);

impl Descriptions {
    /// What `file_system` has: by an answer of the last seconds, or `anew`. That there was no answer
    /// holds for as long, and for all who waited for it.
    ///
    /// # Errors
    /// Of the two calls.
    pub(crate) async fn of(
        &self,
        nas: &Nas,
        region: &str,
        file_system: &str,
        anew: bool,
    ) -> Answer {
        let asked = Instant::now();
        let last = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // nobody waits for those, and they are old
            all.retain(|_, last| Arc::strong_count(last) > 1 || !is_old(last));
            all.entry((region.to_owned(), file_system.to_owned())).or_default().clone()
        };
        let mut last = last.lock().await;
        if let Some((when, answer)) = &*last
            && (*when >= asked || !anew && when.elapsed() < FRESH)
        {
            return answer.clone();
        }
        let begun = Instant::now();
        let answer = describe(nas, region, file_system).await.map(Arc::new);
        *last = Some((begun, answer.clone()));
        answer
    }

    /// Something was done to `file_system`: the next one to look sees what.
    pub(crate) fn forget(&self, region: &str, file_system: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(region.to_owned(), file_system.to_owned()));
    }
}

fn is_old(last: &Last) -> bool {
    last.try_lock().is_ok_and(|last| last.as_ref().is_none_or(|(when, _)| when.elapsed() > FRESH))
}

async fn describe(nas: &Nas, region: &str, file_system: &str) -> Result<Described, NasError> {
    let flows = nas.describe_data_flows(region, file_system).await?;
    let ids: Vec<&str> = flows.iter().map(|flow| flow.id.as_str()).collect();
    let tasks = nas.describe_data_flow_tasks(region, file_system, &ids).await?;
    Ok(Described { flows, tasks })
}
