//! A seeded simulator over `barid-core`.
//!
//! It runs an exchange of two to fifty members. The network loses, delays, repeats, reorders and
//! damages messages; it partitions, also in one direction only, and some pairs never reach each
//! other. Nodes crash at every point of a commit; their disks fail, fill up or are bounded; their
//! stores are lost or restored from an old backup; their clocks jump. Rosters change. Some nodes
//! run a later version. Some members leak, withhold, stay silent, send garbage, sign two trees, or
//! flood the disks of others. Then everything heals, and the invariants are checked beside a
//! reference model that shares no decision with core.
//!
//! In scope: that following, serving, feeds, rosters, audiences and backfill together keep the
//! invariants ([`Outcome::violations`]). Out of scope: the node's own store, committer and links,
//! which simple models replace here. A seed gives the same run to the byte, and a failing run can
//! be shrunk by leaving out parts of its plan ([`shrink()`]).

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

/// The outcome of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// SHA-256 over all events, in order.
    pub trace: [u8; 32],
    /// Number of events.
    pub events: u64,
    /// Number of members.
    pub members: usize,
    /// Counters of what was reached.
    pub coverage: Coverage,
    /// Violated invariants; empty if there are none.
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
