//! Seeded simulator over `barid-core`: an exchange of two to fifty members on a network that loses, delays, repeats, reorders and
//! damages messages and falls apart, one way too, and on which some pairs never reach each other; nodes that crash at every point of a
//! commit, whose disks fail, are full or have bounds, whose stores are lost or come back from an old backup, whose clocks jump; rosters that change;
//! nodes of a later version; members that leak, withhold, say nothing, send garbage or sign two histories, or flood the disks of others. Then everything heals, and
//! what must hold is checked, beside a reference model that shares no decision with core.
//!
//! In scope: that follower, provider, feeds, rosters, audience and what is asked for later together keep the promises
//! ([`Outcome::violations`]). Out of scope: the node's own store, committer and links, whose place simple models take here. A seed gives
//! the same run to the byte; what it planned can be left out piece by piece ([`shrink()`]).

mod backfill;
mod bulletins;
mod byzantine;
mod check;
mod commits;
mod coverage;
mod defects;
mod disk_space;
mod epochs;
mod exchange;
mod floods;
mod forks;
mod future_version;
mod live;
mod model;
mod mutation;
mod network;
mod node;
mod plan;
mod priority;
mod random;
mod replication;
mod serve;
mod shrink;
#[cfg(test)]
mod tests;
mod world;

use std::collections::BTreeSet;

pub use coverage::{Coverage, MUST_BE_REACHED};
pub use mutation::Mutation;
pub use shrink::{Shrunk, kind, shrink, whole};

/// What became of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// SHA-256 over everything that happened, in order.
    pub trace: [u8; 32],
    /// Events that happened.
    pub events: u64,
    /// Members.
    pub members: usize,
    /// How often what was reached.
    pub coverage: Coverage,
    /// Promises that were broken; empty if all is well.
    pub violations: Vec<String>,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, mutation: Option<Mutation>) -> Outcome {
    run_without(seed, mutation, &BTreeSet::new())
}

fn run_without(seed: u64, mutation: Option<Mutation>, without: &BTreeSet<usize>) -> Outcome {
    let mut world = world::World::new(seed, mutation, without);
    world.run();
    outcome(world)
}

fn outcome(world: world::World) -> Outcome {
    Outcome {
        trace: world.trace,
        events: world.events,
        members: world.exchange.members.len(),
        coverage: world.coverage,
        violations: world.violations,
    }
}
