//! The rosters in force, shared by everything that asks who is a member.

use std::sync::Arc;

use arc_swap::ArcSwap;
use barid_core::roster::RosterChain;
use tokio::sync::watch;

/// The chain of verified rosters; replaced whole when a newer one is adopted. Cheap to clone.
#[derive(Clone)]
pub struct Rosters {
    chain: Arc<ArcSwap<RosterChain>>,
    version: watch::Sender<u64>,
}

impl Rosters {
    /// Starts with a verified chain.
    #[must_use]
    pub fn new(chain: RosterChain) -> Self {
        let version = watch::Sender::new(chain.newest().version());
        Self { chain: Arc::new(ArcSwap::from_pointee(chain)), version }
    }

    /// The chain now.
    #[must_use]
    pub fn load(&self) -> Arc<RosterChain> {
        self.chain.load_full()
    }

    /// Puts a longer chain in force.
    pub fn replace(&self, chain: RosterChain) {
        let version = chain.newest().version();
        self.chain.store(Arc::new(chain));
        self.version.send_replace(version);
    }

    /// Newest version in force; changes when a roster is adopted.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
