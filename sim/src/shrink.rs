//! Less of a run that fails: what it planned is left out piece by piece as long as it fails without.

use std::collections::BTreeSet;
use std::fmt;

use crate::exchange::{Exchange, is_member};
use crate::plan::{Plan, Planned};
use crate::random::Random;
use crate::world::World;
use crate::{Mutation, run_without};

/// Runs that shrinking may take.
const RUNS_MAX: u32 = 400;

/// What is left of a failing run.
#[derive(Clone, Debug)]
pub struct Shrunk {
    seed: u64,
    mutation: Option<Mutation>,
    without: BTreeSet<usize>,
    members: String,
    events: Vec<String>,
    planned: usize,
    /// What is broken.
    pub violations: Vec<String>,
}

/// Shrinks a seed that fails; `None` if it does not.
#[must_use]
pub fn shrink(seed: u64, mutation: Option<Mutation>) -> Option<Shrunk> {
    shrink_in(seed, mutation, RUNS_MAX)
}

/// A seed that fails, as it is; `None` if it does not.
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
            // What the exchange is in the end rests on its rosters.
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
    /// What happens in it, line by line.
    #[must_use]
    pub fn event_log(&self) -> Vec<String> {
        let mut world = World::new(self.seed, self.mutation, &self.without);
        world.event_log = Some(Vec::new());
        world.run();
        world.event_log.unwrap_or_default()
    }
}

/// What sort of promise is broken: its words, wherever and for whom it is.
#[must_use]
pub fn kind(violation: &str) -> String {
    let what = violation.rsplit(": ").next().unwrap_or(violation);
    let is_term = |term: &&str| term.chars().all(|c| c.is_alphabetic() || ",'".contains(c)) && !is_member(term);
    let terms: Vec<&str> = what.split(' ').filter(is_term).collect();
    terms.join(" ")
}

impl fmt::Display for Shrunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: `cargo run --release -p barid-sim -- 1 {}` repeats it", self.seed, self.seed)?;
        writeln!(f, "members:\n  {}", self.members)?;
        writeln!(f, "of {} planned events these suffice:\n  {}", self.planned, self.events.join("\n  "))?;
        writeln!(f, "broken:\n  {}", self.violations.join("\n  "))
    }
}
