//! The controller: a claim that names an `OSSVolumePopulator` gets a volume that a worker has filled,
//! or CPFS, by a data flow that the controller asks it for (`cpfs`).
//!
//! One pass over one claim (`pass`) is a line of steps, each in its own file:
//!
//! | step | file | what |
//! |---|---|---|
//! | observe | `observe`, `observed` | what is there for the claim, reduced to facts |
//! | decide | `decide`, `policy`, `words` | pure: the next action, and what users are told |
//! | show | `status`, `events` | the resource's status, and events on claim and resource |
//! | apply | `apply`, `build` | at most one change, conditional on what was seen |
//!
//! Nothing is remembered between passes but what was told already. Whatever a pass decides to do from
//! the caches is decided again from what the API server says, and only then done.

mod apply;
mod build;
mod cpfs;
pub mod crd;
mod decide;
mod error;
mod events;
mod lead;
mod manifests;
mod metrics;
mod names;
mod observe;
mod observed;
mod pass;
mod policy;
mod serve;
mod settings;
mod status;
mod watches;
mod words;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::controller;
use kube::{Client, Config, ResourceExt};
use tokio::net::TcpListener;

use self::cpfs::{Descriptions, Nas};
pub use self::error::{Answer, Error};
use self::events::Recorder;
pub use self::manifests::{ManifestsArgs, manifests};
use self::metrics::Metrics;
use self::observe::Observer;
use self::pass::{Context, reconcile, review};
use self::serve::Health;
pub use self::settings::{ControllerArgs, Gates, Security, Settings, SettingsError};
pub use self::words::in_resource_terms;
use crate::aside::Aside;

/// Claims that are looked at at once. A pass is a few requests, most of them for one claim in
/// progress every ten seconds; the API server's own priority and fairness bounds the rest.
const AT_ONCE: u16 = 16;
/// How often what is remembered of claims and resources that are gone is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// How long a connection may be silent: longer than a watch, which the API server ends within 290
/// seconds.
const SILENCE: Duration = Duration::from_secs(295);

/// Runs until `stop`: waits to lead, then fills volumes.
///
/// # Errors
/// What keeps the process from working at all; what concerns one claim is told there and tried again.
pub async fn run(settings: Settings, stop: impl Future<Output = ()> + Send) -> Result<(), Error> {
    let mut stop = std::pin::pin!(stop);
    let address = settings.listen;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| Error::Listen { address, source })?;
    // port 0 is any
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "serving metrics and health");
    let health = Arc::new(Health { metrics: Metrics::new(), ready: AtomicBool::new(false) });
    let _serving = Aside::spawn(serve::serve(listener, health.clone()));

    let nas = Nas::from_env(settings.vpc)?;
    let client = connect().await?;
    health.ready.store(true, Ordering::Relaxed);
    if settings.gates.volume_populator {
        let identity = lead::identity();
        let won = tokio::select! {
            () = stop.as_mut() => None,
            won = lead::win(&client, &settings, &identity) => Some(won?),
        };
        match won {
            None => Ok(()),
            Some(mut lease) => {
                health.metrics.leads(true);
                let result = tokio::select! {
                    () = stop => Ok(()),
                    () = work(client, nas, settings, identity, health.clone()) => Err(Error::Ended),
                    () = lease.lost() => Err(Error::Deposed),
                };
                lease.release().await;
                result
            }
        }
    } else {
        tracing::info!("the feature gate VolumePopulator is off: nothing is served");
        stop.await;
        Ok(())
    }
}

async fn connect() -> Result<Client, Error> {
    let mut config = Config::infer().await.map_err(|error| Error::Client(error.into()))?;
    config.read_timeout = Some(SILENCE);
    let client = Client::try_from(config).map_err(|error| Error::Client(error.into()))?;
    let version = client.apiserver_version().await;
    let version = version.map_err(|error| Error::Client(error.into()))?;
    tracing::info!(version = version.git_version, "the API server answers");
    Ok(client)
}

async fn work(client: Client, nas: Nas, settings: Settings, identity: String, health: Arc<Health>) {
    lead::register(&client).await;
    let (caches, claims, sources) = watches::start(&client, &settings);
    let (claim_store, source_store) = (caches.claims.clone(), caches.sources.clone());
    let recorder = Recorder::new(client.clone(), identity);
    let observer = Observer {
        client: client.clone(),
        nas,
        descriptions: Descriptions::default(),
        caches,
        settings,
    };
    let context = Arc::new(Context::new(client, observer, recorder, health));
    let forgetful = context.clone();
    // a pass waits for caches to be full: what is missing in them would look deleted
    context.observer.caches.wait().await;
    let config = controller::Config::default().concurrency(AT_ONCE);
    let volumes = controller::applier(
        |claim, context| Box::pin(reconcile(claim, context)),
        |claim, error, context| context.try_again(&claim.uid().unwrap_or_default(), error),
        context.clone(),
        claim_store,
        claims,
        config.clone(),
    );
    let resources = controller::applier(
        |source, context| Box::pin(review(source, context)),
        |source, error, context| context.try_again(&source.uid().unwrap_or_default(), error),
        context,
        source_store,
        sources,
        config,
    );
    let forget = async {
        loop {
            tokio::time::sleep(FORGET).await;
            forgetful.forget();
        }
    };
    let log = |result: Result<(), controller::Error<Error, kube::runtime::watcher::Error>>| async {
        use kube::runtime::controller::Error::{ObjectNotFound, QueueError, ReconcilerFailed};
        match result {
            // it is gone, and so is what was made for it; or the pass said so itself
            Ok(()) | Err(ObjectNotFound(_) | ReconcilerFailed(..)) => {}
            Err(QueueError(error)) => tracing::warn!(%error, "a watch broke; starting it again"),
            Err(error) => tracing::warn!(%error, "a pass could not be made"),
        }
    };
    let volumes = volumes.map(|result| result.map(drop)).for_each(log);
    let resources = resources.map(|result| result.map(drop)).for_each(log);
    tokio::select! {
        () = volumes => {}
        () = resources => {}
        () = forget => {}
    }
}
