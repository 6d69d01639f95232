//! The plan of a run: the actions of members, and the faults. All of it is derived from the seed in
//! advance, so that any part can be left out to shrink a failing run.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk_space::Bound;
use crate::exchange::Exchange;
use crate::floods::Flood;
use crate::random::Random;

/// Until this time faults occur.
pub(crate) const TROUBLE: u64 = 2_000;

/// How a disk fails the next commit that writes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// The commit fails, and its record is not there after a restart.
    NotDurable,
    /// The commit fails, but its record is there after a restart.
    Durable,
    /// Power fails in the middle of the record.
    Torn,
    /// Power fails after the record and before the high-water mark.
    BeforeHighWaterMark,
    /// Power fails after the high-water mark and before any receipt is sent.
    BeforeRelease,
    /// The disk is full; the node continues.
    Full,
}

/// A planned event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planned {
    Publish {
        node: usize,
        id: u64,
    },
    /// Many bulletins at once.
    Burst {
        node: usize,
        first_id: u64,
        count: u64,
    },
    Crash {
        node: usize,
        long: u64,
    },
    Disk {
        node: usize,
        fault: DiskFault,
    },
    Backup {
        node: usize,
    },
    /// The store is replaced by its last backup, or by an empty one.
    Restore {
        node: usize,
        from_backup: bool,
        high_water_mark_lost: bool,
        long: u64,
    },
    /// The members are partitioned into two halves, derived from `halves`.
    Split {
        halves: u64,
        long: u64,
    },
    /// No frame passes in this direction.
    Cut {
        from: usize,
        to: usize,
        long: u64,
    },
    Roster {
        version: u64,
    },
    /// A node follows every topic from now on.
    Widen {
        node: usize,
    },
    /// A clock is set, in seconds from the correct time.
    Clock {
        node: usize,
        seconds: i64,
    },
    /// A member begins a second tree.
    Fork {
        node: usize,
    },
    Garbage {
        node: usize,
    },
    /// A member floods.
    Flood {
        node: usize,
        first_id: u64,
        count: u64,
        how: Flood,
        alert: bool,
    },
    /// Some pairs never reach each other again.
    Sever,
}

/// The plan in order of time, and the configuration of each node.
pub(crate) struct Plan {
    pub(crate) events: Vec<(u64, Planned)>,
    /// Nodes that follow the topics of one working group only.
    pub(crate) narrow: BTreeSet<usize>,
    /// Bulletins that must be urgent.
    pub(crate) alerts: BTreeSet<u64>,
    /// Nodes with bounded disks.
    pub(crate) bounds: BTreeMap<usize, Bound>,
}

impl Plan {
    pub(crate) fn new(seed: u64, exchange: &Exchange) -> Self {
        let random = &mut Random::new(seed, 2);
        let count = exchange.members.len();
        let mut plan =
            Self { events: Vec::new(), narrow: BTreeSet::new(), alerts: BTreeSet::new(), bounds: BTreeMap::new() };
        let mut ids = 0;
        // In a large exchange each member publishes less.
        let busy = (200 / count as u64).clamp(4, 25);
        for node in 0..count {
            plan.publishing(random, node, busy, &mut ids);
            plan.alerts(random, node, &mut ids);
            plan.machine(random, node, exchange);
        }
        for _ in 0..random.below(8) {
            let (from, to) = (random.index(count), random.index(count));
            let long = 50 + random.below(900);
            plan.at(random.below(TROUBLE), Planned::Cut { from, to, long });
        }
        for _ in 0..random.below(5) {
            let (halves, long) = (random.number(), 50 + random.below(700));
            plan.at(random.below(TROUBLE), Planned::Split { halves, long });
        }
        for version in 2..=exchange.last_version() {
            let span = TROUBLE / exchange.last_version();
            plan.at(span * (version - 1) + random.below(span / 2), Planned::Roster { version });
        }
        plan.floods(&mut Random::new(seed, 4), exchange, &mut ids);
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    fn publishing(&mut self, random: &mut Random, node: usize, busy: u64, ids: &mut u64) {
        for _ in 0..random.below(busy) {
            *ids += 1;
            self.at(random.below(TROUBLE), Planned::Publish { node, id: *ids });
        }
        if random.chance(8) {
            let count = 10 + random.below(40);
            self.at(random.below(TROUBLE), Planned::Burst { node, first_id: *ids + 1, count });
            if random.chance(30) {
                // A member calls everything urgent.
                self.alerts.extend(*ids + 1..=*ids + count);
            }
            *ids += count;
        }
    }

    /// A node that was down while others published returns after the trouble, and then alerts are
    /// published.
    fn alerts(&mut self, random: &mut Random, node: usize, ids: &mut u64) {
        if random.chance(15) {
            let long = 100 + random.below(900);
            let back = TROUBLE + 40 + random.below(80);
            self.at(back - long.max(back - TROUBLE + 1), Planned::Crash { node, long });
        }
        for _ in 0..random.below(3) {
            *ids += 1;
            self.alerts.insert(*ids);
            self.at(TROUBLE + 40 + random.below(160), Planned::Publish { node, id: *ids });
        }
    }

    fn machine(&mut self, random: &mut Random, node: usize, exchange: &Exchange) {
        let nature = &exchange.natures[node];
        for _ in 0..random.below(3) {
            let long = 1 + random.below(250);
            self.at(random.below(TROUBLE), Planned::Crash { node, long });
        }
        for _ in 0..random.below(3) {
            use DiskFault::{BeforeHighWaterMark, BeforeRelease, Durable, Full, NotDurable, Torn};
            let fault = *random.pick(&[NotDurable, Durable, Torn, BeforeHighWaterMark, BeforeRelease, Full]);
            self.at(random.below(TROUBLE), Planned::Disk { node, fault });
        }
        // Each restore uses up one epoch of those that the roster lists; the last one remains.
        if exchange.epochs[node] > 1 && nature.is_honest() {
            for _ in 0..random.below(u64::from(exchange.epochs[node])) {
                let at = random.below(TROUBLE);
                self.at(at, Planned::Backup { node });
                let at = (at + 1 + random.below(600)).min(TROUBLE - 1);
                let (from_backup, high_water_mark_lost) = (random.chance(75), random.chance(25));
                if random.chance(40) {
                    // The loss may have begun with a power cut.
                    let before = at.saturating_sub(70 + random.below(60));
                    self.at(before, Planned::Disk { node, fault: DiskFault::BeforeHighWaterMark });
                }
                self.at(at, Planned::Restore { node, from_backup, high_water_mark_lost, long: 1 + random.below(250) });
            }
        }
        if random.chance(20) {
            self.narrow.insert(node);
            if random.chance(60) {
                self.at(random.below(TROUBLE), Planned::Widen { node });
            }
        }
        for _ in 0..random.below(3) {
            // Up to a quarter of an hour: more than a witness tolerates.
            let seconds = i64::try_from(random.below(1_800)).unwrap_or_default() - 900;
            self.at(random.below(TROUBLE), Planned::Clock { node, seconds });
        }
        if nature.forks {
            for _ in 0..1 + random.below(3) {
                self.at(random.below(TROUBLE), Planned::Fork { node });
            }
        }
        if nature.garbage {
            for _ in 0..40 {
                // Also after the trouble.
                self.at(random.below(TROUBLE * 3 / 2), Planned::Garbage { node });
            }
        }
    }

    pub(crate) fn at(&mut self, at: u64, planned: Planned) {
        self.events.push((at, planned));
    }
}
