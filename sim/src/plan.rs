//! What is planned for a run: what members do, and what goes wrong. All of it comes from the seed before anything happens, so that any part of it
//! can be left out, and a failing run be shrunk to what it takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk_space::Bound;
use crate::exchange::Exchange;
use crate::floods::Flood;
use crate::random::Random;

/// Until then everything can go wrong.
pub(crate) const TROUBLE: u64 = 2_000;

/// How a disk fails the next commit that has something to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// It says no, and what was written is not there after a restart.
    NotDurable,
    /// It says no, and what was written is there after a restart.
    Durable,
    /// The power goes in the middle of the record.
    Torn,
    /// The power goes after the record and before the mark.
    BeforeHighWaterMark,
    /// The power goes after the mark and before anybody is answered.
    BeforeRelease,
    /// There is no room; the node goes on.
    Full,
}

/// Something that happens at a time, whatever else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planned {
    Publish {
        node: usize,
        id: u64,
    },
    /// Many at once.
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
    /// Members fall into two halves; who is where is drawn from `halves`.
    Split {
        halves: u64,
        long: u64,
    },
    /// From one to another nothing passes.
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
    /// A clock is set, in seconds from the right one.
    Clock {
        node: usize,
        seconds: i64,
    },
    /// A member begins a second history.
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
        urgent: bool,
    },
    /// Some pairs never reach each other again.
    Sever,
}

/// What is planned, in order, and what each node is told at its beginning.
pub(crate) struct Plan {
    pub(crate) events: Vec<(u64, Planned)>,
    /// Nodes that want the topics of one working group only.
    pub(crate) narrow: BTreeSet<usize>,
    /// Bulletins that are urgent at any rate.
    pub(crate) alerts: BTreeSet<u64>,
    /// Disks with bounds.
    pub(crate) bounds: BTreeMap<usize, Bound>,
}

impl Plan {
    pub(crate) fn new(seed: u64, exchange: &Exchange) -> Self {
        let random = &mut Random::new(seed, 2);
        let count = exchange.members.len();
        let mut plan =
            Self { events: Vec::new(), narrow: BTreeSet::new(), alerts: BTreeSet::new(), bounds: BTreeMap::new() };
        let mut ids = 0;
        // Large exchanges publish less each.
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
                // Somebody calls everything urgent.
                self.alerts.extend(*ids + 1..=*ids + count);
            }
            *ids += count;
        }
    }

    /// Who was down while others published comes back when all is well, and then there are alerts.
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
        // Each takes one epoch of those that the roster lists; the last one stays.
        if exchange.epochs[node] > 1 && nature.is_honest() {
            for _ in 0..random.below(u64::from(exchange.epochs[node])) {
                let at = random.below(TROUBLE);
                self.at(at, Planned::Backup { node });
                let at = (at + 1 + random.below(600)).min(TROUBLE - 1);
                let (from_backup, high_water_mark_lost) = (random.chance(75), random.chance(25));
                if random.chance(40) {
                    // What led to it may have begun with a power cut.
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
            // Up to a quarter of an hour: more than a witness bears.
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
                // Also when everything else is well.
                self.at(random.below(TROUBLE * 3 / 2), Planned::Garbage { node });
            }
        }
    }

    pub(crate) fn at(&mut self, at: u64, planned: Planned) {
        self.events.push((at, planned));
    }
}
