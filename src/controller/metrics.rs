//! What Prometheus reads.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::crd::Phase;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAction {
    action: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPhase {
    phase: String,
}

/// The controller's figures.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// From the worker's Job, or the plan of a data flow, to the end, by how it ended.
    populations: Family<ByResult, Histogram>,
    bytes: Counter,
    objects: Counter,
    passes: Family<ByResult, Counter>,
    actions: Family<ByAction, Counter>,
    claims: Family<ByPhase, Gauge>,
    leading: Gauge,
}

const PHASES: [Phase; 7] = [
    Phase::Finished,
    Phase::Deleting,
    Phase::Waiting,
    Phase::Provisioning,
    Phase::Populating,
    Phase::Rebinding,
    Phase::Failed,
];

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let populations = Family::<ByResult, Histogram>::new_with_constructor(|| {
            // 1 s to 18 hours
            Histogram::new(exponential_buckets(1.0, 2.0, 17))
        });
        let metrics = Self {
            populations: populations.clone(),
            bytes: Counter::default(),
            objects: Counter::default(),
            passes: Family::default(),
            actions: Family::default(),
            claims: Family::default(),
            leading: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register_with_unit(
            "ossvp_population",
            "From the start of a worker or a data flow to the end of the population, by how it ended",
            Unit::Seconds,
            populations,
        );
        registry.register(
            "ossvp_populated_bytes",
            "Bytes of volumes that were handed over",
            metrics.bytes.clone(),
        );
        registry.register(
            "ossvp_populated_objects",
            "Objects of volumes that were handed over",
            metrics.objects.clone(),
        );
        registry.register("ossvp_passes", "Looks at a claim, by result", metrics.passes.clone());
        registry.register(
            "ossvp_actions",
            "Changes asked of the API server, by kind and result",
            metrics.actions.clone(),
        );
        registry.register("ossvp_claims", "Claims in each phase", metrics.claims.clone());
        registry.register("ossvp_leading", "1 for the replica that leads", metrics.leading.clone());
        // `increase` does not see the first of a series that begins with it
        for result in [true, false].map(result) {
            drop(metrics.populations.get_or_create(&ByResult { result }));
        }
        Self { registry, ..metrics }
    }

    pub(super) fn passed(&self, ok: bool) {
        self.passes.get_or_create(&ByResult { result: result(ok) }).inc();
    }

    pub(super) fn acted(&self, action: &'static str, ok: bool) {
        self.actions.get_or_create(&ByAction { action, result: result(ok) }).inc();
    }

    pub(super) fn ended(&self, ok: bool, took: Option<Duration>, figures: Option<(u64, u64)>) {
        if let Some(took) = took {
            let ended = ByResult { result: result(ok) };
            self.populations.get_or_create(&ended).observe(took.as_secs_f64());
        }
        if let (true, Some((objects, bytes))) = (ok, figures) {
            self.objects.inc_by(objects);
            self.bytes.inc_by(bytes);
        }
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leading.set(leads.into());
    }

    /// How many claims are in each phase.
    pub(super) fn claims(&self, phases: impl Iterator<Item = Phase>) {
        let mut counts = [0; PHASES.len()];
        phases
            .for_each(|phase| counts[PHASES.iter().position(|it| *it == phase).unwrap_or(0)] += 1);
        for (phase, count) in PHASES.iter().zip(counts) {
            let phase = ByPhase { phase: format!("{phase:?}") };
            self.claims.get_or_create(&phase).set(count);
        }
    }

    /// In OpenMetrics' text format.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}

fn result(ok: bool) -> &'static str {
    if ok { "success" } else { "error" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn populations_are_counted_from_none_on() {
        let metrics = Metrics::new();
        let count = |result: &str, count: u32| {
            let line = format!("ossvp_population_seconds_count{{result=\"{result}\"}} {count}\n");
            assert!(metrics.text().contains(&line), "{line}{}", metrics.text());
        };
        count("success", 0);
        count("error", 0);
        metrics.ended(false, Some(Duration::from_secs(3)), None);
        count("error", 1);
        count("success", 0);
    }
}
