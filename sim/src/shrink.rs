//! Shrinks a failing run: leaves out parts of its plan as long as it still fails.

use std::collections::BTreeSet;
use std::fmt;

use crate::exchange::{Exchange, is_member};
use crate::plan::{Plan, Planned};
use crate::random::Random;
use crate::world::World;
use crate::{Mutation, run_without};

/// Maximum number of runs of one shrink.
const RUNS_MAX: u32 = 400;

/// A failing run, shrunk.
#[derive(Clone, Debug)]
pub struct Shrunk {
    seed: u64,
    mutation: Option<Mutation>,
    without: BTreeSet<usize>,
    members: String,
    events: Vec<String>,
    planned: usize,
    /// The violated invariants.
    pub violations: Vec<String>,
}

/// Shrinks a failing seed; `None` if it does not fail.
#[must_use]
pub fn shrink(seed: u64, mutation: Option<Mutation>) -> Option<Shrunk> {
    shrink_in(seed, mutation, RUNS_MAX)
}

/// Returns a failing seed without shrinking; `None` if it does not fail.
#[must_use]
pub fn whole(seed: u64, mutation: Option<Mutation>) -> Option<Shrunk> {
    shrink_in(seed, mutation, 0)
}

fn shrink_in(seed: u64, mutation: Option<Mutation>, runs_max: u32) -> Option<Shrunk> {
    let exchange = Exchange::new(&mut Random::new(seed, 1));
    let plan = Plan::new(seed, &exchange);
    let mut without: BTreeSet<usize> = BTreeSet::new();
    let mut violations = run_without(seed, mutation, &without).violations;
    if violations.is_empty() {
        return None;
    }
    let mut runs = 0;
    let mut piece = plan.events.len().div_ceil(2).max(1);
    loop {
        let mut left_out = false;
        let mut start = 0;
        while start < plan.events.len() && runs < runs_max {
            // Rosters stay: the final checks depend on them.
            let rest = (start..(start + piece).min(plan.events.len()))
                .filter(|place| !matches!(plan.events[*place].1, Planned::Roster { .. }));
            let trial: BTreeSet<usize> = without.iter().copied().chain(rest).collect();
            start += piece;
            if trial.len() == without.len() {
                continue;
            }
            runs += 1;
            let found = run_without(seed, mutation, &trial).violations;
            if found.iter().any(|found| kind(found) == kind(&violations[0])) {
                (without, violations, left_out) = (trial, found, true);
            }
        }
        if piece == 1 && !left_out || runs >= runs_max {
            break;
        }
        piece = (piece / 2).max(1);
    }
    let left = plan.events.iter().enumerate().filter(|(place, _)| !without.contains(place));
    let events: Vec<String> = left.map(|(_, (at, planned))| format!("{at}: {planned:?}")).collect();
    let nature = |node: usize| format!("{node} {} {:?}", exchange.members[node], exchange.natures[node]);
    let members = (0..exchange.members.len()).map(nature).collect::<Vec<_>>().join("\n  ");
    Some(Shrunk { seed, mutation, without, members, events, planned: plan.events.len(), violations })
}

impl Shrunk {
    /// Returns the event log of the run.
    #[must_use]
    pub fn event_log(&self) -> Vec<String> {
        let mut world = World::new(self.seed, self.mutation, &self.without);
        world.event_log = Some(Vec::new());
        world.run();
        world.event_log.unwrap_or_default()
    }
}

/// Returns the kind of a violation: its message without members, feeds and numbers.
#[must_use]
pub fn kind(violation: &str) -> String {
    let what = violation.rsplit(": ").next().unwrap_or(violation);
    let is_term = |term: &&str| term.chars().all(|c| c.is_alphabetic() || ",'".contains(c)) && !is_member(term);
    let terms: Vec<&str> = what.split(' ').filter(is_term).collect();
    terms.join(" ")
}

impl fmt::Display for Shrunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: reproduce with `cargo run --release -p barid-sim -- 1 {}`", self.seed, self.seed)?;
        writeln!(f, "members:\n  {}", self.members)?;
        writeln!(f, "of {} planned events, these suffice:\n  {}", self.planned, self.events.join("\n  "))?;
        writeln!(f, "violations:\n  {}", self.violations.join("\n  "))
    }
}
