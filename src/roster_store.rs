//! Holds the current roster chain, shared by all code that needs the members.

use std::sync::Arc;

use arc_swap::ArcSwap;
use barid_core::roster::RosterChain;
use tokio::sync::watch;

/// The chain of verified rosters; replaced as a whole when a newer one is adopted. Cheap to clone.
#[derive(Clone)]
pub struct RosterStore {
    chain: Arc<ArcSwap<RosterChain>>,
    version: watch::Sender<u64>,
}

impl RosterStore {
    /// Creates the store with a verified chain.
    #[must_use]
    pub fn new(chain: RosterChain) -> Self {
        let version = watch::Sender::new(chain.newest().version());
        Self { chain: Arc::new(ArcSwap::from_pointee(chain)), version }
    }

    /// Returns the current chain.
    #[must_use]
    pub fn load(&self) -> Arc<RosterChain> {
        self.chain.load_full()
    }

    /// Replaces the chain. A chain that ends with an earlier version is ignored, so that an
    /// expelled member cannot come back.
    pub fn replace(&self, chain: RosterChain) {
        let chain = Arc::new(chain);
        let newer = |held: &RosterChain| chain.newest().version() >= held.newest().version();
        self.chain.rcu(|held| if newer(held) { Arc::clone(&chain) } else { Arc::clone(held) });
        // Two callers may reach this in any order: send the version of the current chain only.
        let in_force = self.load().newest().version();
        self.version.send_modify(|version| *version = in_force.max(*version));
    }

    /// Watches the version of the newest roster; it changes when a roster is adopted.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::feed::note::Note;
    use barid_core::roster::{Draft, Roster};

    use super::*;
    use crate::pki::{DevelopMember, DevelopOptions, develop};

    #[test]
    fn older_chain_does_not_replace_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let members = vec![DevelopMember::local("ma".parse().unwrap(), 7400)];
        develop(&DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members)).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let first = read("roster.note");
        let (roster, note) = Roster::read(first.as_bytes()).unwrap();
        let next = format!("version = 2\nprevious = \"{}\"", roster.text_hash());
        let text = note.text.replacen("version = 1", &next, 1);
        let mut draft = Draft::read(text.as_bytes()).unwrap();
        for n in [1, 2] {
            let key = barid_core::feed::note::SigningKey::from_text(&read(&format!("governors/{n}.key"))).unwrap();
            draft.sign(&key, Some(&roster), 0).unwrap();
        }
        let start = RosterChain::start(first.as_bytes()).unwrap();
        let mut longer = start.clone();
        longer.extend(&Note::to_bytes(draft.note())).unwrap();

        let rosters = RosterStore::new(start.clone());
        let mut watcher = rosters.watch();
        rosters.replace(longer);
        assert!(watcher.has_changed().unwrap() && *watcher.borrow_and_update() == 2);
        rosters.replace(start);
        assert_eq!((rosters.load().newest().version(), *rosters.watch().borrow()), (2, 2));
    }
}
