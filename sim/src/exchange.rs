//! A made-up exchange: members, keys, and rosters that add, remove and move members between versions.

use barid_core::envelope::digest;
use barid_core::feed::note::{Algorithm, KeyError, Note, SigningKey};
use barid_core::names::{FeedId, Member};
use barid_core::roster::RosterChain;
use bytes::Bytes;

use crate::random::Random;

const NAME: &str = "rabat.example";
const CODES: [&str; 8] = ["dz", "eg", "ly", "ma", "ne", "td", "tn", "x-au"];
pub(crate) const GROUPS: [&str; 2] = ["customs", "security"];

/// The exchange as its governors know it.
pub(crate) struct Exchange {
    /// Two to eight.
    pub(crate) members: Vec<Member>,
    /// All versions.
    pub(crate) chain: RosterChain,
    /// Their notes, from version 1.
    pub(crate) notes: Vec<Bytes>,
}

impl Exchange {
    pub(crate) fn new(random: &mut Random) -> Self {
        let count = 2 + random.index(CODES.len() - 1);
        let mut codes = CODES.to_vec();
        while codes.len() > count {
            codes.remove(random.index(codes.len()));
        }
        let versions = 1 + random.below(3);
        // Indexes in `codes`: who is added by version 2, who is removed by version 3. The first two always stay.
        let late = (count > 2 && random.chance(50)).then(|| 2 + random.index(count - 2));
        let expelled =
            (count > 3 && random.chance(50)).then(|| 2 + random.index(count - 2)).filter(|n| Some(*n) != late);
        let mut chain: Option<RosterChain> = None;
        let mut notes = Vec::new();
        let governor = key("governors.example/one", Algorithm::Ed25519);
        for version in 1..=versions {
            let present = |n: usize| !(Some(n) == late && version < 2 || Some(n) == expelled && version > 2);
            let listed: Vec<&str> =
                codes.iter().enumerate().filter(|(n, _)| present(*n)).map(|(_, code)| *code).collect();
            let text = text(version, chain.as_ref(), &listed, &governor, random);
            let note: Bytes = Note::sign(&text, &governor).expect("the text is plain").to_bytes().into();
            match &mut chain {
                Some(chain) => drop(chain.extend(&note).expect("versions follow each other")),
                None => chain = Some(RosterChain::start(&note).expect("the roster makes sense")),
            }
            notes.push(note);
        }
        let members = codes.iter().map(|code| code.parse().expect("a member code")).collect();
        Self { members, chain: chain.expect("there is a version"), notes }
    }

    pub(crate) fn feed(&self, member: &Member) -> FeedId {
        FeedId::new(member.clone(), self.chain.newest().exchange().clone(), 1)
    }

    pub(crate) fn last_version(&self) -> u64 {
        self.chain.newest().version()
    }
}

/// The key with which a member signs its feed.
pub(crate) fn feed_key(feed: &FeedId) -> SigningKey {
    key(&feed.to_string(), Algorithm::Ed25519)
}

fn key(name: &str, algorithm: Algorithm) -> SigningKey {
    let key: Result<SigningKey, KeyError> = SigningKey::from_seed(name, algorithm, digest(name.as_bytes()).0);
    key.expect("the name is a key name")
}

fn text(
    version: u64,
    before: Option<&RosterChain>,
    listed: &[&str],
    governor: &SigningKey,
    random: &mut Random,
) -> String {
    let previous = before.map(|chain| format!("previous = \"{}\"\n", chain.newest().text_hash())).unwrap_or_default();
    let mut text = format!(
        "format = 1\nexchange = \"{NAME}\"\nversion = {version}\n{previous}issued = 2025-01-01T00:00:00Z\n\
         review_by = 2030-01-01T00:00:00Z\nquorum = 1\nworking_groups = [\"customs\", \"security\"]\n\
         [governors]\nthreshold = 1\nkeys = [\"{}\"]\n",
        governor.verifier()
    );
    for code in listed {
        let host = format!("{code}.{NAME}");
        let part = if code.starts_with("x-") {
            let ceiling = random.pick(&["TLP:CLEAR", "TLP:GREEN"]);
            format!("kind = \"observer\"\nceilings = {{ customs = \"{ceiling}\" }}\n")
        } else {
            let groups: Vec<String> =
                GROUPS.iter().filter(|_| random.chance(70)).map(|group| format!("\"{group}\"")).collect();
            format!("kind = \"full\"\nworking_groups = [{}]\n", groups.join(", "))
        };
        text += &format!(
            "[[members]]\ncode = \"{code}\"\n{part}names = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
             trust_domain = \"{host}\"\nca_certificates = [\"certificate of {code}\"]\n\
             keys = [{{ role = \"feed\", epoch = 1, key = \"{}\" }}, {{ role = \"mirror\", key = \"{}\" }}, \
             {{ role = \"custody\", key = \"{}\" }}]\n",
            key(&format!("{host}/feed/1"), Algorithm::Ed25519).verifier(),
            key(&format!("{host}/mirror"), Algorithm::CosignatureEd25519).verifier(),
            key(&format!("{host}/custody"), Algorithm::Ed25519).verifier(),
        );
    }
    text
}
