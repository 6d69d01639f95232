//! Power failures at any instant. Five real nodes under load are recorded with every write and
//! every sync. Then, for many instants, each node's folder is built as its disk may contain it,
//! opened by the program, and compared with what clients and peers had received by then.
//!
//! The time of a receipt is not taken from the nodes, but from the publisher that received it.
//! Syncs recorded after that time cannot be the reason why the receipt is valid.

mod disk;
mod node_state;
mod trace;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use barid_core::ids::FeedId;
use barid_core::proto;

use self::disk::{Believed, Recording, Synced};
pub(crate) use self::node_state::NodeState;
use crate::kill::{Random, random_seed};
use crate::publishers::{DeliveryLog, Publisher, draft, history, tree_of};
use crate::world::{DEADLINE, World, text, until};

/// Power cuts of one test run; `BARID_POWER_CUTS` sets another number.
const CUTS: u64 = 50;
/// Power cuts of one recording; after that the nodes run again.
const CUTS_A_RECORDING: u64 = 500;
/// One cut in this many is of all nodes at one instant; the others are of one node.
const ONE_OF_ALL: u64 = 5;
/// Number of cuts in which a missing sync must be detected.
const NOTICED_WITHIN: u64 = 40;
/// Bulletins of each member, and bytes of padding in each: together more than the first segment of
/// the log holds.
const PUBLISHED: usize = 200;
const PADDING: usize = 3_500;
/// Unanswered bulletins of one publisher.
const WINDOW: usize = 12;
const FIVE: [&str; 5] = ["ma", "ly", "tn", "ne", "mr"];

/// Nodes that ran under load, their disks, and what clients received meanwhile.
struct Recorded {
    world: World,
    disks: BTreeMap<&'static str, Recording>,
    publishers: BTreeMap<&'static str, Arc<Publisher>>,
    delivery_logs: BTreeMap<&'static str, Arc<DeliveryLog>>,
}

/// Selects the syncs that are left out.
type IsLeftOut = fn(&Synced<'_>) -> bool;

#[test]
fn receipts_survive_power_loss_at_any_instant() {
    if !can_record() {
        println!("SKIPPED: strace cannot be run here, so nothing was tested");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let cuts = number("BARID_POWER_CUTS").unwrap_or(CUTS);
    let seed = number("BARID_POWER_SEED").unwrap_or_else(random_seed);
    println!("{cuts} cuts, BARID_POWER_SEED={seed}");
    let mut random = Random(seed | 1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut done, mut images) = (0, 0);
    while done < cuts {
        let mut recorded = Recorded::take(&runtime);
        if done == 0 {
            recorded.notices_what_is_not_synced(&mut random);
        }
        let until = cuts.min(done + CUTS_A_RECORDING);
        while done < until {
            let members: &[&str] = if done % ONE_OF_ALL == 0 { &FIVE } else { &[FIVE[pick(&mut random, FIVE.len())]] };
            let cut_ns = recorded.instant(members, &mut random);
            if let Err(violation) = recorded.cut(members, cut_ns, &|_| true, &mut random) {
                panic!("cut {done} at {cut_ns} of {members:?}: {violation}");
            }
            (done, images) = (done + 1, images + members.len());
        }
        recorded.comes_back(&runtime, &mut random);
    }
    println!("{done} cuts, {images} folders, nothing that was released was lost");
}

fn can_record() -> bool {
    let mut traced = Command::new("strace");
    traced.args(["-D", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    traced.status().is_ok_and(|status| status.success())
}

fn pick(random: &mut Random, count: usize) -> usize {
    usize::try_from(random.below(count as u64)).unwrap()
}

fn drafts(member: &str, round: u64, count: usize) -> Vec<proto::Draft> {
    let padded = |number| {
        let mut draft = draft(member, round, number);
        draft.body.as_mut().unwrap().texts[0].description = format!("EXERCICE {}", "بريد ".repeat(PADDING / 9));
        draft
    };
    (0..count).map(padded).collect()
}

impl Recorded {
    /// Runs five nodes under load; one is stopped and started meanwhile, another killed.
    fn take(runtime: &tokio::runtime::Runtime) -> Self {
        let mut world = World::prepared(&FIVE, "info", |_, config| config);
        let mut disks: BTreeMap<_, _> =
            FIVE.into_iter().map(|member| (member, Recording::of(&world.folder(member)))).collect();
        world.record();
        for member in FIVE {
            world.run(member);
        }
        let responses = Arc::new(AtomicUsize::new(0));
        let publishers: BTreeMap<_, _> = FIVE
            .into_iter()
            .map(|member| (member, Arc::new(runtime.block_on(async { Publisher::new(&world, member, &responses) }))))
            .collect();
        let delivery_logs: BTreeMap<_, _> =
            FIVE.into_iter().map(|member| (member, Arc::new(DeliveryLog::default()))).collect();
        let subscribers: Vec<_> = FIVE
            .into_iter()
            .map(|member| runtime.spawn(Arc::clone(&delivery_logs[member]).follow(publishers[member].channel.clone())))
            .collect();
        for round in 0..2 {
            let publishing: Vec<_> = publishers
                .values()
                .map(|publisher| {
                    let drafts = drafts(publisher.member, round, PUBLISHED / 2);
                    runtime.spawn(Arc::clone(publisher).publish(drafts, WINDOW))
                })
                .collect();
            let saved = |member: &str| publishers[member].saved.lock().unwrap().len();
            if round == 0 {
                until("some was published", || saved("ly") > PUBLISHED / 8 && saved("tn") > PUBLISHED / 8);
                world.stop("ly");
                world.run("ly");
                world.kill("tn");
                world.run("tn");
            }
            for done in publishing {
                runtime
                    .block_on(async { tokio::time::timeout(DEADLINE, done).await.expect("published in time") })
                    .unwrap();
            }
        }
        until("all hold all", || {
            let feeds = FIVE.map(|member| world.feeds(member));
            feeds[0].values().filter(|(size, _)| *size == PUBLISHED.to_string()).count() == FIVE.len()
                && feeds.iter().all(|other| *other == feeds[0])
        });
        subscribers.iter().for_each(tokio::task::JoinHandle::abort);
        for member in FIVE {
            world.kill(member);
            let traces = world.traces(member);
            until("the recording is complete", || traces.iter().all(|trace| is_complete(trace)));
            let disk = disks.get_mut(member).unwrap();
            disk.follow(&traces);
            traces.iter().for_each(|trace| fs::remove_file(trace).unwrap());
        }
        world.record_no_more();
        println!("recorded syncs: {:?}", disks.iter().map(|(member, disk)| (member, disk.syncs())).collect::<Vec<_>>());
        Self { world, disks, publishers, delivery_logs }
    }

    /// Returns a random instant of disk activity of one of these nodes; in half of the cases, of a
    /// sync.
    fn instant(&self, members: &[&str], random: &mut Random) -> u64 {
        let moments = self.disks[members[pick(random, members.len())]].moments();
        let syncs: Vec<_> = moments.iter().filter(|(_, sync)| *sync).collect();
        if random.chance(50) { syncs[pick(random, syncs.len())].0 } else { moments[pick(random, moments.len())].0 }
    }

    fn own(&self, member: &str) -> FeedId {
        format!("{member}.{}/feed/1", self.publishers[member].roster.exchange()).parse().unwrap()
    }

    /// Cuts the power of these nodes just before `cut_ns`. The error names a receipt, offset or
    /// attestation that is no longer valid.
    fn cut(&self, members: &[&str], cut_ns: u64, believed: Believed<'_>, random: &mut Random) -> Result<(), String> {
        let place = tempfile::tempdir_in(fast_folder()).unwrap();
        let mut node_states = Vec::new();
        for member in members {
            let folder = place.path().join(member);
            self.disks[member].build(&folder, cut_ns, believed, random);
            let publisher = &self.publishers[member];
            let named = |what: String| format!("{member}: {what}");
            let node_state = NodeState::read(&folder, &self.own(member), &publisher.roster).map_err(named)?;
            for saved in publisher.saved.lock().unwrap().iter().filter(|saved| saved.came_ns < cut_ns) {
                node_state.honors_receipt(saved).map_err(named)?;
            }
            for (offset, (feed, index, came_ns)) in self.delivery_logs[member].0.lock().unwrap().iter() {
                if *came_ns < cut_ns {
                    node_state.check_offset(*offset, feed, *index).map_err(named)?;
                }
            }
            node_states.push(node_state);
        }
        for speaker in &node_states {
            node_states.iter().try_for_each(|listener| speaker.honors_attestations(listener))?;
        }
        Ok(())
    }

    /// Tests the check itself: with one kind of sync left out of the recording, a loss must be
    /// detected.
    fn notices_what_is_not_synced(&self, random: &mut Random) {
        let sorts: [(&str, IsLeftOut); 4] = [
            ("the commit log's fdatasync", |sync| sync.call == "fdatasync" && sync.path.starts_with("data/log/")),
            ("the sync of the commit log's folder", |sync| sync.path == "data/log"),
            ("the sync of the data folder", |sync| sync.path == "data"),
            ("the sync of the folder of keys", |sync| sync.path == "keys"),
        ];
        for (what, left_out) in sorts {
            let believed = |sync: &Synced<'_>| !left_out(sync);
            let noticed = (0..NOTICED_WITHIN).find_map(|_| {
                let member = FIVE[pick(random, FIVE.len())];
                let cut_ns = self.instant(&[member], random);
                self.cut(&[member], cut_ns, &believed, random).err()
            });
            println!("without {what}: {}", noticed.as_deref().unwrap_or("nothing was detected"));
            assert!(noticed.is_some(), "{what} was left out and not detected");
        }
    }

    /// Cuts the power of all nodes at one instant and starts the real program on the result. All
    /// receipts are valid, and the nodes continue together.
    fn comes_back(&mut self, runtime: &tokio::runtime::Runtime, random: &mut Random) {
        let cut_ns = self.instant(&FIVE, random);
        for member in FIVE {
            let folder = self.world.folder(member);
            fs::remove_dir_all(&folder).unwrap();
            self.disks[member].build(&folder, cut_ns, &|_| true, random);
            node_state::rebooted(&folder);
        }
        for member in FIVE {
            self.world.run(member);
        }
        for (member, publisher) in &self.publishers {
            let held = runtime.block_on(history(&publisher.channel, Some(member)));
            publisher.still_true(&tree_of(&held, publisher), cut_ns);
            let more = Arc::clone(publisher).publish(drafts(member, 2, 3), 1);
            runtime.block_on(async { tokio::time::timeout(DEADLINE, more).await.expect("it publishes again") });
        }
        until("all hold the same again", || {
            let feeds = FIVE.map(|member| self.world.feeds(member));
            feeds[0].len() == FIVE.len() && feeds.iter().all(|other| *other == feeds[0])
        });
        for member in FIVE {
            self.world.kill(member);
        }
    }
}

/// Returns whether the traced process has ended: its first thread ends last.
fn is_complete(trace: &Path) -> bool {
    let mut file = fs::File::open(trace).unwrap();
    let mut first = [0; 8];
    file.read_exact(&mut first).unwrap();
    let len = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(len.saturating_sub(100))).unwrap();
    let mut end = Vec::new();
    file.read_to_end(&mut end).unwrap();
    let (first, end) = (text(&first), text(&end));
    let last = end.lines().last().unwrap_or_default();
    end.ends_with("+++\n") && last.split(' ').next() == first.split(' ').next()
}

/// Returns the folder for the images: in memory, if possible.
fn fast_folder() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}
