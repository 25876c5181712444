//! When to try again: pure, the caller brings the clock and the dice.

use std::time::Duration;

/// The client's patience; the default is for production, tests make it small.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Longest wait for a TCP connection to one address.
    pub connect_timeout: Duration,
    /// Longest wait for an answer's headers, connecting included.
    pub first_byte_timeout: Duration,
    /// Longest wait for the next byte of a body while somebody asks for it.
    pub stall_timeout: Duration,
    /// How long an answer or the next byte of an object is waited for before it is asked for over another
    /// connection as well.
    pub hedge_after: Duration,
    /// Upper end of the first jittered pause; each further one doubles it.
    pub backoff_first: Duration,
    /// Upper end of every jittered pause.
    pub backoff_max: Duration,
    /// Longest pause the source may ask for.
    pub server_delay_max: Duration,
    /// Attempts in a row without progress before giving up.
    pub attempts: u32,
    /// Time without progress before giving up on a source that has answered before; both this and
    /// `attempts` must be used up.
    pub patience: Duration,
    /// Whether patience is also for a source that has never answered.
    pub patient_from_start: bool,
    /// How long before their expiry credentials are fetched anew.
    pub refresh_ahead: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            // three SYNs (at 0, 1 and 3 s) and the time for the last one's answer
            connect_timeout: Duration::from_secs(5),
            // a listing of 1,000 keys takes OSS seconds at worst; 30 s is the SDKs' order of size
            first_byte_timeout: Duration::from_secs(30),
            // above TCP's recovery from a lost path (retransmissions at 0.2, 0.6, … 12.6, 25.4 s)
            stall_timeout: Duration::from_secs(30),
            // ten times what OSS takes for the first byte of a cold object, and longer than TCP takes
            // to send a lost segment again twice
            hedge_after: Duration::from_secs(1),
            // about one round trip between continents
            backoff_first: Duration::from_millis(100),
            // as the official SDK's maximum; a recovered source is noticed within 20 s
            backoff_max: Duration::from_secs(20),
            // OSS states its delays in milliseconds; a minute already means "not now"
            server_delay_max: Duration::from_secs(60),
            // a wrong endpoint fails after 0.1 + 0.2 + … + 6.4 s of pauses at most: 13 s
            attempts: 8,
            // longer than a load balancer's failover or a zone's DNS switch
            patience: Duration::from_secs(120),
            // a mistyped endpoint should say so at once
            patient_from_start: false,
            // RRSA and instance roles give an hour at least 15 minutes: time for many attempts
            refresh_ahead: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// With the caller's own patience: `timeout` for everything that is waited for, `retry_for` in
    /// place of attempts and patience.
    pub(super) fn within(mut self, timeout: Option<Duration>, retry_for: Option<Duration>) -> Self {
        if let Some(timeout) = timeout {
            self.connect_timeout = self.connect_timeout.min(timeout);
            self.first_byte_timeout = timeout;
            self.stall_timeout = timeout;
            self.server_delay_max = timeout.saturating_mul(2);
        }
        if let Some(retry_for) = retry_for {
            // one failure in a row is everyday life, and two happen
            self.attempts = 3;
            self.patience = retry_for;
            self.patient_from_start = true;
        }
        self
    }
}

/// Failures in a row without progress, and the repairs already tried since.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failed: u32,
    /// How often the pause was doubled.
    doublings: u32,
    /// How often the clock was corrected since the last progress.
    pub(super) clock_set: u32,
    /// Credentials were fetched anew since the last progress.
    pub(super) refreshed: bool,
}

impl Attempts {
    /// Bytes or an answer came: the budget is whole again.
    pub(super) fn progress(&mut self) {
        *self = Self::default();
    }

    /// Lets the next pause be as short as the first, and leaves the budget as it is.
    pub(super) fn hasten(&mut self) {
        self.doublings = 0;
    }

    /// How many attempts have failed since the last progress.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    /// The pause before the next attempt, or `None` if there is none.
    ///
    /// - `asked`: what the source asked for, if anything
    /// - `elapsed`: since the last progress
    /// - `patient`: whether the source has ever answered
    /// - `dice`: in `0.0..1.0`
    pub(crate) fn pause(
        &mut self,
        policy: &RetryPolicy,
        asked: Option<Duration>,
        elapsed: Duration,
        patient: bool,
        dice: f64,
    ) -> Option<Duration> {
        self.failed += 1;
        let patient = patient || policy.patient_from_start;
        if self.failed >= policy.attempts && !(patient && elapsed < policy.patience) {
            return None;
        }
        // 2^20 first pauses are far above any maximum
        let ceiling = policy.backoff_first.saturating_mul(1 << self.doublings.min(20));
        let ceiling = ceiling.min(policy.backoff_max);
        self.doublings += 1;
        let asked = asked.unwrap_or_default().min(policy.server_delay_max);
        Some(ceiling.mul_f64(dice.clamp(0.0, 1.0)).max(asked))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let policy = RetryPolicy { attempts: 100, ..RetryPolicy::default() };
        let mut attempts = Attempts::default();
        let pauses: Vec<u128> = (0..10)
            .map(|_| attempts.pause(&policy, None, SECOND, false, 1.0).unwrap().as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 20000, 20000]);
    }

    #[test]
    fn a_hastened_attempt_pauses_as_the_first_and_still_counts() {
        let policy = RetryPolicy::default();
        let mut attempts = Attempts::default();
        for _ in 1..policy.attempts {
            attempts.hasten();
            let pause = attempts.pause(&policy, None, SECOND, false, 1.0);
            assert_eq!(pause, Some(policy.backoff_first));
        }
        attempts.hasten();
        assert_eq!(attempts.pause(&policy, None, SECOND, false, 1.0), None);
    }

    #[test]
    fn the_source_may_ask_for_more_but_not_for_ever() {
        let policy = RetryPolicy::default();
        let ask = |seconds| {
            let asked = Some(Duration::from_secs(seconds));
            Attempts::default().pause(&policy, asked, SECOND, false, 0.5).unwrap()
        };
        assert_eq!(ask(0), Duration::from_millis(50));
        assert_eq!(ask(3), 3 * SECOND);
        assert_eq!(ask(3600), 60 * SECOND);
    }

    #[test]
    fn gives_up_after_attempts_and_patience() {
        let policy = RetryPolicy::default();
        let spent = |elapsed, patient| {
            let mut attempts = Attempts::default();
            (1..100).find(|_| attempts.pause(&policy, None, elapsed, patient, 0.0).is_none())
        };
        assert_eq!(spent(SECOND, false), Some(8));
        assert_eq!(spent(120 * SECOND, true), Some(8));
        assert_eq!(spent(SECOND, true), None);
    }

    #[test]
    fn the_caller_may_be_more_or_less_patient() {
        let spent = |policy: &RetryPolicy, elapsed| {
            let mut attempts = Attempts::default();
            (1..100).find(|_| attempts.pause(policy, None, elapsed, false, 0.0).is_none())
        };
        let hasty = RetryPolicy::default().within(Some(SECOND), Some(Duration::ZERO));
        assert_eq!(spent(&hasty, Duration::ZERO), Some(3));
        assert_eq!((hasty.stall_timeout, hasty.server_delay_max), (SECOND, 2 * SECOND));
        let patient = RetryPolicy::default().within(None, Some(60 * SECOND));
        assert_eq!(spent(&patient, 59 * SECOND), None);
        assert_eq!(spent(&patient, 60 * SECOND), Some(3));
        assert_eq!(patient.stall_timeout, 30 * SECOND);
    }

    #[test]
    fn progress_makes_the_budget_whole() {
        let policy = RetryPolicy::default();
        let mut attempts = Attempts::default();
        for _ in 0..1000 {
            assert!(attempts.pause(&policy, None, SECOND, false, 0.0).is_some());
            attempts.progress();
        }
    }
}
