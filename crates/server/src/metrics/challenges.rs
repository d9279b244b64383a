//! Meters of challenges and their players.

use std::cmp::Reverse;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use stackd_core::challenge::Challenge;
use stackd_engine::Engine;

/// The most challenges that have a series of their own.
const MAX_CHALLENGES: usize = 100;
/// What the others are counted under; no slug can look like it.
const OTHERS: &str = "(others)";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Played {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// What players ask for, and how it goes.
#[derive(Default)]
pub(crate) struct PlayerMeters {
    requests: Family<Played, Counter>,
    refusals: Family<Reason, Counter>,
}

impl PlayerMeters {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Requests of players whose token was good";
        registry.register("stackd_player_requests", help, Family::clone(&self.requests));
        let help = "Requests of players that were refused for their token";
        registry.register("stackd_player_token_refusals", help, Family::clone(&self.refusals));
    }

    /// Counts a request whose token was good.
    pub(crate) fn answered(&self, operation: &'static str, outcome: &'static str) {
        self.requests.get_or_create(&Played { operation, outcome }).inc();
    }

    /// Counts a request that was refused for its token.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }
}

/// What the engine knows of challenges, read at each scrape.
pub(super) struct ChallengeCollector(pub(super) Engine);

impl fmt::Debug for ChallengeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChallengeCollector")
    }
}

const fn state(challenge: &Challenge) -> &'static str {
    match (challenge.definition.enabled, challenge.definition.stack_enabled) {
        (false, _) => "disabled",
        (true, false) => "no_stacks",
        (true, true) => "enabled",
    }
}

impl Collector for ChallengeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let challenges = self.0.challenges().list();
        let gauge = ConstGauge::new(0u64).metric_type();
        let mut family =
            encoder.encode_descriptor("stackd_challenges", "Challenges by state", None, gauge)?;
        for word in ["enabled", "no_stacks", "disabled"] {
            let count = challenges.iter().filter(|challenge| state(challenge) == word).count();
            let labels = [("state", word)];
            ConstGauge::new(count as u64).encode(family.encode_family(&labels)?)?;
        }

        let stats = self.0.stats();
        let active = &stats.active_by_challenge;
        let mut counts: Vec<(&str, u64)> = challenges
            .iter()
            .map(|one| (one.id().as_str(), active.get(&one.number).copied().unwrap_or_default()))
            .collect();
        counts.sort_by_key(|(_, count)| Reverse(*count));
        counts.truncate(MAX_CHALLENGES);
        let shown: u64 = counts.iter().map(|(_, count)| count).sum();
        let others = active.values().sum::<u64>().saturating_sub(shown);
        let help = "Players' stacks that are creating or running, by challenge";
        let mut family =
            encoder.encode_descriptor("stackd_challenge_active_stacks", help, None, gauge)?;
        for (challenge, count) in counts.into_iter().chain([(OTHERS, others)]) {
            let labels = [("challenge", challenge)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }

        let warmed = self.0.challenges().warmed();
        let counter = ConstCounter::new(0u64).metric_type();
        let help = "Images that were made ready ahead of need";
        let mut family = encoder.encode_descriptor("stackd_image_warmups", help, None, counter)?;
        for (outcome, count) in [("ready", warmed.ready), ("failed", warmed.failed)] {
            let labels = [("outcome", outcome)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Images that are being made ready ahead of need";
        let name = "stackd_image_warmups_in_progress";
        let metric = encoder.encode_descriptor(name, help, None, gauge)?;
        ConstGauge::new(warmed.pulling).encode(metric)
    }
}
