//! Nodes are killed at random moments while focal points publish. Every receipt stays valid, and no
//! entry exists twice.
//!
//! The publishers store receipts outside the nodes. A publisher without an answer sends the same
//! draft with the same id again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use barid_core::ids::Hash;

use crate::publishers::{DeliveryLog, Publisher, draft, history, tree_of};
use crate::world::{DEADLINE, MEMBERS, World, until};

/// Rounds of one test run; `BARID_KILL_ROUNDS` sets another number.
const ROUNDS: u64 = 6;
/// Bulletins that each member publishes in a round.
const PUBLISHED_A_ROUND: usize = 40;
/// Maximum number of unanswered bulletins of one publisher; each round draws another number.
const WINDOW_MAX: u64 = 24;
/// Longest random moment: long enough for a node to open its store and its links.
const MOMENT_MAX_MICROS: u64 = 300_000;

/// xorshift64*. The seed is printed, so that the choices of a run can be repeated; its timing
/// cannot.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn moment(&mut self) -> Duration {
        // Short moments are as likely as long ones, because much happens within a commit.
        let most = 1 << self.below(19);
        Duration::from_micros(self.below(MOMENT_MAX_MICROS.min(most)))
    }
}

#[test]
fn receipts_survive_kill_at_any_moment() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = number("BARID_KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("BARID_KILL_SEED").unwrap_or_else(random_seed);
    println!("{rounds} rounds, BARID_KILL_SEED={seed}");
    let mut random = Random(seed | 1);
    let mut world = World::logging("info");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let responses = Arc::new(AtomicUsize::new(0));
    let publishers: BTreeMap<&str, Arc<Publisher>> = MEMBERS
        .into_iter()
        .map(|member| (member, Arc::new(runtime.block_on(async { Publisher::new(&world, member, &responses) }))))
        .collect();
    let delivery_log = Arc::new(DeliveryLog::default());
    let subscriber = runtime.spawn(Arc::clone(&delivery_log).follow(publishers["tn"].channel.clone()));
    let (mut kills, mut rebuilt) = (0, 0);

    for round in 0..rounds {
        let before = responses.load(Ordering::SeqCst);
        let publishing: Vec<_> = publishers
            .values()
            .map(|publisher| {
                let drafts = (0..PUBLISHED_A_ROUND).map(|number| draft(publisher.member, round, number)).collect();
                let window = usize::try_from(1 + random.below(WINDOW_MAX)).unwrap();
                runtime.spawn(Arc::clone(publisher).publish(drafts, window))
            })
            .collect();
        let awaited = before + usize::try_from(random.below((PUBLISHED_A_ROUND * MEMBERS.len()) as u64)).unwrap();
        until("publishing continues", || responses.load(Ordering::SeqCst) >= awaited);
        std::thread::sleep(random.moment());

        let count = match random.below(10) {
            0 => 4,
            1..=3 => 2,
            _ => 1,
        };
        let mut victims = BTreeSet::new();
        while victims.len() < count {
            victims.insert(MEMBERS[usize::try_from(random.below(4)).unwrap()]);
        }
        for victim in &victims {
            world.kill(victim);
            kills += 1;
            if random.chance(20) {
                std::fs::remove_dir_all(world.folder(victim).join("data/db")).unwrap();
                rebuilt += 1;
            }
        }
        for victim in &victims {
            // Some are killed again while they start.
            while random.chance(30) {
                world.spawn(victim);
                std::thread::sleep(random.moment());
                world.kill(victim);
                kills += 1;
            }
            world.run(victim);
        }
        for done in publishing {
            runtime.block_on(async { tokio::time::timeout(DEADLINE, done).await.expect("published in time") }).unwrap();
        }
        for victim in victims {
            let publisher = &publishers[victim];
            let held = runtime.block_on(history(&publisher.channel, Some(victim)));
            publisher.still_true(&tree_of(&held, publisher), u64::MAX);
        }
    }

    let published = usize::try_from(rounds).unwrap() * PUBLISHED_A_ROUND;
    all_hold_the_same(&world, &runtime, &publishers, published);
    assert!(!subscriber.is_finished(), "the subscriber found something wrong");
    subscriber.abort();
    delivery_log.check(&runtime.block_on(history(&publishers["tn"].channel, None)));
    // The index database is derived data: without it nothing is missing.
    for member in MEMBERS {
        world.kill(member);
        std::fs::remove_dir_all(world.folder(member).join("data/db")).unwrap();
        world.run(member);
    }
    all_hold_the_same(&world, &runtime, &publishers, published);
    for publisher in publishers.values() {
        runtime.block_on(publisher.repeat_some());
    }
    println!("{kills} kills, {rebuilt} index databases deleted, {} receipts", published * MEMBERS.len());
}

pub(crate) fn random_seed() -> u64 {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    u64::from_le_bytes(seed)
}

/// Checks that all members hold the same feeds, with exactly the published bulletins, each once.
fn all_hold_the_same(
    world: &World,
    runtime: &tokio::runtime::Runtime,
    publishers: &BTreeMap<&str, Arc<Publisher>>,
    published: usize,
) {
    until("all feeds are equal and complete everywhere", || {
        let feeds = MEMBERS.map(|member| world.feeds(member));
        feeds[0].len() == MEMBERS.len()
            && feeds[0].values().all(|(size, _)| *size == published.to_string())
            && feeds.iter().all(|other| *other == feeds[0])
    });
    let feeds = world.feeds("ma");
    for at in publishers.values() {
        let deliveries = runtime.block_on(history(&at.channel, None));
        assert_eq!(deliveries.len(), published * MEMBERS.len(), "at {}", at.member);
        for publisher in publishers.values() {
            let tree = tree_of(&deliveries, publisher);
            publisher.still_true(&tree, u64::MAX);
            let (_, root) = &feeds[&format!("{}.{}/feed/1", publisher.member, publisher.roster.exchange())];
            let expected = tree.tree.root();
            assert_eq!(root_of(root), expected, "{} at {}", publisher.member, at.member);
        }
    }
}

fn root_of(text: &str) -> Hash {
    use base64::Engine as _;
    Hash(base64::engine::general_purpose::STANDARD.decode(text).unwrap().try_into().unwrap())
}
