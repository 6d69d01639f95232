//! Repairs the commit log of a stopped node, with content from its peers. Damage that cannot be
//! repaired is only reported.
//!
//! In scope: which peers to ask for content, over links of a stopped node. Out of scope: finding
//! damage and what counts as repaired (`store::repair`), and texts for people (`cli`).

use std::collections::BTreeMap;

use barid_core::ids::{FeedId, Member};
use bytes::Bytes;

use super::{AppError, Dialer, chain, check_user, crls, high_water_mark_path, with_current_epoch};
use crate::committer::{StartError, read_high_water_size};
use crate::config::NodeConfig;
use crate::exchange::{self, Dial as _};
use crate::roster_store::RosterStore;
use crate::store::disk::DiskOptions;
use crate::store::repair::{Damage, Repair};
use crate::transport::{Connections, Connector, Credentials, CrlStore, Policy, Trust, Verifier};

/// Result of a repair.
#[derive(Clone, Debug)]
pub struct RepairOutcome {
    /// All damage, in the order of the log.
    pub damage: Vec<Damage>,
    /// There is more damage than is listed: repair again afterwards.
    pub more: bool,
    /// Newest commit that could be read.
    pub newest_commit: u64,
    /// Entries of the node's own feed that the high-water mark covers and the log lacks: the end of
    /// the log is missing.
    pub missing: u64,
    /// Peers that could not be asked, and why.
    pub unreached: BTreeMap<Member, String>,
}

impl RepairOutcome {
    /// Whether the log is as it was written, as far as can be detected.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.missing == 0 && !self.more && self.damage.iter().all(|damage| damage.repaired)
    }
}

/// Looks for damage in the store of a stopped node and, unless `check_only`, repairs what it can.
///
/// # Errors
/// See [`AppError`]. Repairs made by then remain.
pub async fn repair(config: &NodeConfig, check_only: bool) -> Result<RepairOutcome, AppError> {
    let config = &with_current_epoch(config)?;
    if !check_only {
        check_user(config)?;
    }
    let options = DiskOptions::new(config.feed.member.clone(), config.feed.exchange.clone());
    let mut repair = Repair::open(&config.text.data, &options)?;
    let promised = read_high_water_size(&high_water_mark_path(config)).map_err(StartError::from)?;
    // A truncated scan does not show what is missing.
    let missing =
        if repair.is_truncated() { 0 } else { promised.unwrap_or(0).saturating_sub(repair.size(&config.feed)) };
    let mut unreached = BTreeMap::new();
    if !check_only {
        repair.correct_bits()?;
        if !repair.damaged_entries().is_empty() {
            unreached = ask_peers(config, &mut repair).await?;
        }
    }
    let (damage, more) = (repair.damage().collect(), repair.is_truncated());
    Ok(RepairOutcome { damage, more, newest_commit: repair.newest_commit(), missing, unreached })
}

/// Requests the content still needed from one peer after the other.
async fn ask_peers(config: &NodeConfig, repair: &mut Repair) -> Result<BTreeMap<Member, String>, AppError> {
    let rosters = RosterStore::new(chain(config, repair.rosters())?);
    let roster = rosters.load().newest_shared();
    let own = roster.member(&config.feed.member).ok_or_else(|| AppError::NotListed(config.feed.member.to_string()))?;
    let trust = Trust::of(&roster);
    let credentials = Credentials::load(&config.text.certificate, &config.text.private_key)
        .map_err(|error| AppError::Transport(error.to_string()))?;
    let revoked = CrlStore::default();
    for (_, list) in crls::read_files(&config.text.crls, &trust)? {
        revoked.accept(&list);
    }
    let grace_seconds = i64::from(config.text.crl_grace_days) * 86_400;
    let connector = Connector {
        verifier: Verifier::new(trust, revoked, Policy::Peers(own.trust_domain.clone()), grace_seconds),
        credentials,
        connections: Connections::default(),
        compress: config.text.compress,
        on_rejected: std::sync::Arc::new(|_| ()),
    };
    let dialer = Dialer { connector, rosters: rosters.clone(), endpoints: config.endpoints.clone() };
    let mut unreached = BTreeMap::new();
    for peer in roster.entries().filter(|entry| entry.code != config.feed.member) {
        let wanted = repair.damaged_entries();
        if wanted.is_empty() {
            break;
        }
        let mut failure = "the roster lists no endpoint of this peer".to_owned();
        for endpoint in &peer.endpoints {
            let channel = match dialer.dial(&peer.code, endpoint).await {
                Ok(channel) => channel,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            let exchange = config.feed.exchange.to_string();
            let mut stored = Ok(());
            let take = |feed: &FeedId, index, envelope: Bytes| {
                if stored.is_ok() {
                    stored = repair.restore_envelope(feed, index, &envelope).map(|_| ());
                }
            };
            let fetched = exchange::fetch(channel, exchange, roster.version(), &wanted, take).await;
            stored?;
            match fetched {
                Ok(()) => {
                    failure.clear();
                    break;
                }
                Err(error) => failure = error,
            }
        }
        if !failure.is_empty() {
            unreached.insert(peer.code.clone(), failure);
        }
    }
    Ok(unreached)
}
