//! A generated exchange: members, their natures, keys, and rosters that add, remove, re-admit and
//! move members between versions.
//!
//! In scope: the governors' view of it, both in the model's own terms ([`Listed`]) and as signed
//! rosters for the nodes.

use std::collections::BTreeMap;

use barid_core::envelope::digest;
use barid_core::feed::note::{Algorithm, KeyError, Note, SigningKey};
use barid_core::ids::{FeedId, Member};
use barid_core::roster::RosterChain;
use bytes::Bytes;

use crate::random::Random;

const NAME: &str = "rabat.example";
/// Codes of states, then of observing organisations.
const CODES: [&str; 50] = [
    "ae", "bf", "bh", "bj", "cd", "cf", "cg", "ci", "cm", "cv", "dj", "dz", "eg", "er", "et", "ga", "gh", "gm", "gn",
    "gw", "iq", "jo", "ke", "km", "kw", "lb", "lr", "ly", "ma", "ml", "mr", "ne", "ng", "om", "ps", "qa", "sa", "sd",
    "sl", "sn", "so", "ss", "td", "tg", "tn", "x-au", "x-eu", "x-igad", "x-las", "x-un",
];
/// Number of states among them.
const STATES: usize = 45;
pub(crate) const GROUPS: [&str; 2] = ["customs", "security"];

/// Whether `code` is a member's code.
pub(crate) fn is_member(code: &str) -> bool {
    CODES.contains(&code)
}

/// How a member is listed in one version.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) full: bool,
    /// The [`GROUPS`] that a full member belongs to.
    pub(crate) groups: [bool; 2],
    /// The highest label that an observer may read in each of [`GROUPS`]: 0 CLEAR, 1 GREEN.
    pub(crate) ceilings: [Option<u8>; 2],
}

/// The behaviour of a member's node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nature {
    /// Sends every entry in full to every peer.
    pub(crate) leaky: bool,
    /// Sends and publishes as a later version might.
    pub(crate) newer: bool,
    /// Sends garbage.
    pub(crate) garbage: bool,
    /// Signs two trees.
    pub(crate) forks: bool,
    /// Announces what it holds, but reports all content as withheld.
    pub(crate) withholds: bool,
    /// Announces what it holds, but serves nothing.
    pub(crate) mute: bool,
}

impl Nature {
    /// Whether it follows the protocol, at least as far as other members depend on it.
    pub(crate) fn is_honest(&self) -> bool {
        !(self.garbage || self.forks || self.withholds || self.mute)
    }
}

/// The exchange as its governors know it.
pub(crate) struct Exchange {
    /// Two to fifty, by code.
    pub(crate) members: Vec<Member>,
    pub(crate) natures: Vec<Nature>,
    /// Number of epochs whose keys the roster lists, by member.
    pub(crate) epochs: Vec<u32>,
    /// By version from 1: how each member is listed.
    pub(crate) listed: Vec<BTreeMap<usize, Listed>>,
    /// All versions.
    pub(crate) chain: RosterChain,
    /// Their notes, from version 1.
    pub(crate) notes: Vec<Bytes>,
}

impl Exchange {
    pub(crate) fn new(random: &mut Random) -> Self {
        let count = match random.below(100) {
            0..=1 => 20 + random.index(31),
            2..=9 => 9 + random.index(11),
            _ => 2 + random.index(7),
        };
        let mut codes: Vec<(usize, &str)> = CODES.iter().copied().enumerate().collect();
        while codes.len() > count {
            let at = random.index(codes.len());
            // At least two states, which can cosign each other.
            let states = codes.iter().filter(|(place, _)| *place < STATES).count();
            if codes[at].0 >= STATES || states > 2 {
                codes.remove(at);
            }
        }
        let codes: Vec<(bool, &str)> = codes.into_iter().map(|(place, code)| (place < STATES, code)).collect();
        let natures = natures(random, count);
        // Members whose store may be lost. Large exchanges have few, since every key costs every
        // node.
        let lossy = if count > 8 { 20 } else { 60 };
        let epochs: Vec<u32> = (0..count).map(|_| if random.chance(lossy) { 4 } else { 1 }).collect();
        let listed = versions(random, &codes);

        let keys: Vec<String> = codes.iter().zip(&epochs).map(|((_, code), epochs)| keys(code, *epochs)).collect();
        let governor = key("governors.example/one", Algorithm::Ed25519);
        let mut chain: Option<RosterChain> = None;
        let mut notes = Vec::new();
        for (version, listed) in (1_u64..).zip(&listed) {
            let text = text(version, chain.as_ref(), &codes, listed, &keys, &governor);
            let note: Bytes = Note::sign(&text, &governor).expect("the text is plain").to_bytes().into();
            match &mut chain {
                Some(chain) => drop(chain.extend(&note).expect("versions follow each other")),
                None => chain = Some(RosterChain::start(&note).expect("the roster makes sense")),
            }
            notes.push(note);
        }
        let members = codes.iter().map(|(_, code)| code.parse().expect("a member code")).collect();
        Self { members, natures, epochs, listed, chain: chain.expect("there is a version"), notes }
    }

    pub(crate) fn feed(&self, member: usize, epoch: u32) -> FeedId {
        FeedId::new(self.members[member].clone(), self.chain.newest().exchange().clone(), epoch)
    }

    pub(crate) fn position(&self, member: &Member) -> Option<usize> {
        self.members.binary_search(member).ok()
    }

    pub(crate) fn last_version(&self) -> u64 {
        self.chain.newest().version()
    }

    pub(crate) fn is_listed(&self, member: usize, version: u64) -> bool {
        self.at(version).is_some_and(|listed| listed.contains_key(&member))
    }

    /// Returns how members are listed in a version.
    pub(crate) fn at(&self, version: u64) -> Option<&BTreeMap<usize, Listed>> {
        self.listed.get(usize::try_from(version).ok()?.checked_sub(1)?)
    }
}

/// Most members follow the protocol. Of four or more, some do not, but never most of them, and
/// never the first two.
fn natures(random: &mut Random, count: usize) -> Vec<Nature> {
    let mut natures: Vec<Nature> = (0..count)
        .map(|_| Nature { leaky: random.chance(15), newer: random.chance(25), ..Nature::default() })
        .collect();
    let liars = if count >= 4 && random.chance(55) { 1 + random.index(1 + count / 6) } else { 0 };
    for _ in 0..liars {
        let member = 2 + random.index(count - 2);
        let nature = &mut natures[member];
        match random.below(4) {
            0 => nature.garbage = true,
            1 => nature.forks = true,
            2 => nature.withholds = true,
            _ => nature.mute = true,
        }
    }
    natures
}

/// The first two states are in every version.
fn versions(random: &mut Random, codes: &[(bool, &str)]) -> Vec<BTreeMap<usize, Listed>> {
    let count = codes.len();
    let mut listed: Vec<BTreeMap<usize, Listed>> = Vec::new();
    let some = |random: &mut Random, at_least: usize| -> Vec<usize> {
        let mut some = Vec::new();
        for _ in 0..=count / 12 {
            if count > at_least && random.chance(50) {
                some.push(2 + random.index(count - 2));
            }
        }
        some
    };
    let (late, expelled) = (some(random, 2), some(random, 3));
    let returns = random.chance(40);
    for version in 1..=1 + random.below(4) {
        let before = listed.last().cloned().unwrap_or_default();
        let mut now = BTreeMap::new();
        for (member, (state, _)) in codes.iter().enumerate() {
            let joined = !late.contains(&member) || version >= 2;
            let gone = expelled.contains(&member) && (version == 3 || version > 3 && !returns);
            if !joined || gone && member >= 2 {
                continue;
            }
            // In a large exchange few listings change.
            let stays = before.get(&member).filter(|_| random.chance(if count > 8 { 90 } else { 40 }));
            now.insert(member, stays.cloned().unwrap_or_else(|| listing(random, *state)));
        }
        listed.push(now);
    }
    listed
}

fn listing(random: &mut Random, state: bool) -> Listed {
    let groups = [(); 2].map(|()| state && random.chance(70));
    let ceilings = [(); 2].map(|()| (!state && random.chance(60)).then(|| u8::from(random.chance(50))));
    Listed { full: state, groups, ceilings }
}

/// The key with which a member signs a feed.
pub(crate) fn feed_key(feed: &FeedId) -> SigningKey {
    key(&feed.to_string(), Algorithm::Ed25519)
}

/// The key with which its owner cosigns.
pub(crate) fn mirror_key(feed: &FeedId) -> SigningKey {
    key(&FeedId::mirror_key_name(&feed.member, &feed.exchange), Algorithm::CosignatureEd25519)
}

fn key(name: &str, algorithm: Algorithm) -> SigningKey {
    let key: Result<SigningKey, KeyError> = SigningKey::from_seed(name, algorithm, digest(name.as_bytes()).0);
    key.expect("the name is a key name")
}

fn keys(code: &str, epochs: u32) -> String {
    let host = format!("{code}.{NAME}");
    let mut text = String::new();
    for epoch in 1..=epochs {
        let key = key(&format!("{host}/feed/{epoch}"), Algorithm::Ed25519);
        text += &format!("{{ role = \"feed\", epoch = {epoch}, key = \"{}\" }}, ", key.verifier());
    }
    text + &format!(
        "{{ role = \"mirror\", key = \"{}\" }}, {{ role = \"custody\", key = \"{}\" }}",
        key(&format!("{host}/mirror"), Algorithm::CosignatureEd25519).verifier(),
        key(&format!("{host}/custody"), Algorithm::Ed25519).verifier(),
    )
}

fn text(
    version: u64,
    before: Option<&RosterChain>,
    codes: &[(bool, &str)],
    listed: &BTreeMap<usize, Listed>,
    keys: &[String],
    governor: &SigningKey,
) -> String {
    let previous = before.map(|chain| format!("previous = \"{}\"\n", chain.newest().text_hash())).unwrap_or_default();
    let mut text = format!(
        "format = 1\nexchange = \"{NAME}\"\nversion = {version}\n{previous}issued = 2025-01-01T00:00:00Z\n\
         review_by = 2030-01-01T00:00:00Z\nquorum = 1\nworking_groups = [\"customs\", \"security\"]\n\
         [governors]\nthreshold = 1\nkeys = [\"{}\"]\n",
        governor.verifier()
    );
    for (member, listing) in listed {
        let (_, code) = codes[*member];
        let part = if listing.full {
            let groups = GROUPS.iter().zip(listing.groups).filter(|(_, in_it)| *in_it);
            let groups: Vec<String> = groups.map(|(group, _)| format!("\"{group}\"")).collect();
            format!("kind = \"full\"\nworking_groups = [{}]\n", groups.join(", "))
        } else {
            let label = |ceiling: u8| if ceiling == 0 { "TLP:CLEAR" } else { "TLP:GREEN" };
            let ceilings = GROUPS.iter().zip(listing.ceilings);
            let ceilings: Vec<String> =
                ceilings.filter_map(|(group, ceiling)| Some(format!("{group} = \"{}\"", label(ceiling?)))).collect();
            format!("kind = \"observer\"\nceilings = {{ {} }}\n", ceilings.join(", "))
        };
        text += &format!(
            "[[members]]\ncode = \"{code}\"\n{part}names = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
             trust_domain = \"{code}.{NAME}\"\nca_certificates = [\"certificate of {code}\"]\nkeys = [{}]\n",
            keys[*member]
        );
    }
    text
}
