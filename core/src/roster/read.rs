//! Builds a valid [`Roster`] from a roster's text.
//!
//! In scope: every rule that can be checked on one roster alone; each error names the field. Out of
//! scope: signatures and the version before (`chain`, `invariants`).

use std::collections::{BTreeMap, BTreeSet};

use super::authority::{Authority, has_several};
use super::text::{ClosedFeedText, GovernorsText, KeyText, MemberText, NamesText, RosterText, unix_seconds};
use super::{ClosedFeed, MemberEntry, MemberKey, MemberKind, ROSTER_FORMAT, Role, Roster, RosterError};
use crate::bulletin::text::has_visible_text;
use crate::bulletin::vocabulary::Tlp;
use crate::feed::note::{Algorithm, VerifierKey};
use crate::feed::tree::TREE_SIZE_MAX;
use crate::ids::{ExchangeName, Hash, Member, is_bidi_control};
use crate::limits::{ENDPOINT_BYTES_MAX, FOUND_CHARS_MAX, GOVERNORS_MAX, LINE_CHARS_MAX};

/// Highest label that an observer or partner may be granted: AMBER and above are for full members.
const CEILING_MAX: Tlp = Tlp::Green;

pub(super) fn build(read: &RosterText, text_hash: Hash) -> Result<Roster, RosterError> {
    if read.format != ROSTER_FORMAT {
        return Err(field_error("format", read.format, "1"));
    }
    let exchange: ExchangeName =
        read.exchange.parse().map_err(|_| field_error("exchange", &read.exchange, "a DNS name in lower case"))?;
    if read.version == 0 {
        return Err(field_error("version", 0, "1 or more"));
    }
    let previous = match (&read.previous, read.version) {
        (None, 1) => None,
        (Some(text), version) if version > 1 => {
            Some(hash(text).ok_or_else(|| field_error("previous", text, "a SHA-256 in hex"))?)
        }
        (found, _) => {
            return Err(field_error(
                "previous",
                found.clone().unwrap_or_default(),
                "present exactly from version 2 on",
            ));
        }
    };
    let issued = time("issued", &read.issued)?;
    let review_by = time("review_by", &read.review_by)?;
    if review_by <= issued {
        return Err(field_error("review_by", read.review_by, "after `issued`"));
    }
    let mut unique = UniqueIndex::default();
    let governors = governors(&read.governors, &mut unique)?;
    let mut roster = Roster {
        exchange,
        version: read.version,
        previous,
        text_hash,
        issued,
        review_by,
        quorum: read.quorum as usize,
        threshold: read.governors.threshold as usize,
        governors,
        working_groups: labels("working_groups", &read.working_groups)?,
        members: BTreeMap::new(),
    };
    for (place, member) in read.members.iter().enumerate() {
        let field = format!("members[{place}].code");
        let code: Member = member.code.parse().map_err(|_| field_error(&field, &member.code, "a member code"))?;
        unique.insert("member", &code, field)?;
        let entry = MemberParser { roster: &roster, code, text: member }.entry(&mut unique)?;
        roster.members.insert(entry.code.clone(), entry);
    }
    let full = roster.full_members().count();
    if roster.quorum == 0 || roster.quorum >= full.max(2) {
        return Err(field_error("quorum", roster.quorum, "at least 1 and fewer than the full members"));
    }
    Ok(roster)
}

fn governors(read: &GovernorsText, unique: &mut UniqueIndex) -> Result<Vec<VerifierKey>, RosterError> {
    if read.keys.len() > GOVERNORS_MAX {
        return Err(field_error(
            "governors.keys",
            read.keys.len(),
            "at most 32 keys: those of two versions sign one note",
        ));
    }
    let mut found = Vec::new();
    for (place, text) in read.keys.iter().enumerate() {
        let field = format!("governors.keys[{place}]");
        let key = key(&field, text, |algorithm| algorithm == Algorithm::Ed25519)?;
        // Two keys with one name could belong to one person, but the threshold counts persons.
        unique.insert("governor", key.name(), field.clone())?;
        unique.insert_key(&key, field)?;
        found.push(key);
    }
    if read.threshold == 0 || read.threshold as usize > found.len() {
        return Err(field_error("governors.threshold", read.threshold, "between 1 and the number of keys"));
    }
    Ok(found)
}

/// Path of every value that must be unique.
#[derive(Default)]
struct UniqueIndex {
    things: BTreeMap<(&'static str, String), String>,
    keys: BTreeMap<Vec<u8>, String>,
    authorities: BTreeMap<Authority, String>,
}

impl UniqueIndex {
    fn insert(
        &mut self,
        what: &'static str,
        thing: &(impl ToString + ?Sized),
        field: String,
    ) -> Result<(), RosterError> {
        once(&mut self.things, (what, thing.to_string()), what, field)
    }

    /// Identifies a key by its public part alone. Under another name, for another role or as
    /// another signature type it is still the same key, and its holder could sign as the other.
    fn insert_key(&mut self, key: &VerifierKey, field: String) -> Result<(), RosterError> {
        once(&mut self.keys, key.public_bytes().to_vec(), "key", field.clone())?;
        // If two keys had the same name and id, a signature line would be ambiguous.
        self.insert("key id", &format!("{}+{}", key.name(), hex::encode(key.id())), field)
    }

    fn insert_authority(&mut self, pem: &str, field: String) -> Result<(), RosterError> {
        once(&mut self.authorities, Authority::read(pem), "authority", field)
    }
}

fn once<T: Ord>(
    held: &mut BTreeMap<T, String>,
    thing: T,
    what: &'static str,
    field: String,
) -> Result<(), RosterError> {
    match held.get(&thing) {
        Some(other) => Err(RosterError::Twice { field, other: other.clone(), what }),
        None => {
            held.insert(thing, field);
            Ok(())
        }
    }
}

/// The part of the text about one member.
struct MemberParser<'a> {
    /// The roster as parsed so far.
    roster: &'a Roster,
    code: Member,
    text: &'a MemberText,
}

impl MemberParser<'_> {
    fn path(&self, part: &str) -> String {
        format!("members.{}.{part}", self.code)
    }

    fn entry(&self, unique: &mut UniqueIndex) -> Result<MemberEntry, RosterError> {
        let read = self.text;
        let kind = MemberKind::ALL.into_iter().find(|(_, name)| *name == read.kind).map(|(kind, _)| kind);
        let kind = kind.ok_or_else(|| field_error(&self.path("kind"), &read.kind, "full, observer or partner"))?;
        self.names(&read.names)?;
        let trust_domain = format!("{}.{}", self.code, self.roster.exchange);
        if read.trust_domain != trust_domain {
            return Err(field_error(&self.path("trust_domain"), &read.trust_domain, "`<code>.<exchange>`"));
        }
        for (place, endpoint) in read.endpoints.iter().enumerate() {
            let field = self.path(&format!("endpoints[{place}]"));
            if !is_endpoint(endpoint) {
                return Err(field_error(&field, endpoint, "`host:port`, an IPv6 address in brackets"));
            }
            unique.insert("endpoint", &endpoint.to_ascii_lowercase(), field)?;
        }
        if read.ca_certificates.is_empty() {
            return Err(field_error(&self.path("ca_certificates"), "", "at least one certificate"));
        }
        for (place, pem) in read.ca_certificates.iter().enumerate() {
            let field = self.path(&format!("ca_certificates[{place}]"));
            if has_several(pem) {
                return Err(field_error(&field, "several PEM blocks", "one certificate in each list item"));
            }
            unique.insert_authority(pem, field)?;
        }
        let working_groups = self.working_groups(kind)?;
        let ceilings = self.ceilings(kind)?;
        let keys = self.keys(unique)?;
        let closed_feeds = self.closed_feeds(&keys)?;
        Ok(MemberEntry {
            code: self.code.clone(),
            kind,
            names: read.names.clone(),
            endpoints: read.endpoints.clone(),
            trust_domain,
            ca_certificates: read.ca_certificates.clone(),
            working_groups,
            ceilings,
            keys,
            closed_feeds,
        })
    }

    /// Checks the names. Every member displays them among those of other members, so each must be
    /// one line of plain text.
    fn names(&self, names: &NamesText) -> Result<(), RosterError> {
        for (language, name) in [("ar", &names.ar), ("fr", &names.fr), ("en", &names.en)] {
            let field = self.path(&format!("names.{language}"));
            if !has_visible_text(name) || name.chars().count() > LINE_CHARS_MAX {
                return Err(field_error(&field, name, "a name of 1 to 500 characters"));
            }
            if name.chars().any(unprintable) {
                return Err(field_error(
                    &field,
                    name,
                    "free of control characters and of marks that change the direction of text",
                ));
            }
        }
        Ok(())
    }

    fn working_groups(&self, kind: MemberKind) -> Result<BTreeSet<String>, RosterError> {
        let (field, read) = (self.path("working_groups"), &self.text.working_groups);
        if kind != MemberKind::Full && !read.is_empty() {
            return Err(field_error(&field, read.join(", "), "empty for an observer or partner, who has ceilings"));
        }
        if let Some(other) = read.iter().find(|group| !self.roster.working_groups.contains(*group)) {
            return Err(field_error(&field, other, "a working group of this roster"));
        }
        labels(&field, read)
    }

    fn ceilings(&self, kind: MemberKind) -> Result<BTreeMap<String, Tlp>, RosterError> {
        let mut ceilings = BTreeMap::new();
        for (group, label) in &self.text.ceilings {
            if kind == MemberKind::Full {
                return Err(field_error(&self.path("ceilings"), group, "empty for a full member"));
            }
            if !self.roster.working_groups.contains(group) {
                return Err(field_error(&self.path("ceilings"), group, "a working group of this roster"));
            }
            let field = self.path(&format!("ceilings.{group}"));
            let tlp = Tlp::read(label).ok_or_else(|| field_error(&field, label, "a TLP 2.0 label"))?;
            if tlp > CEILING_MAX {
                return Err(field_error(&field, label, "TLP:CLEAR or TLP:GREEN: the rest is for full members"));
            }
            ceilings.insert(group.clone(), tlp);
        }
        Ok(ceilings)
    }

    fn keys(&self, unique: &mut UniqueIndex) -> Result<Vec<MemberKey>, RosterError> {
        let mut keys = Vec::new();
        for (place, text) in self.text.keys.iter().enumerate() {
            let path = self.path(&format!("keys[{place}]"));
            let key = self.key(&path, text)?;
            unique.insert_key(&key.key, format!("{path}.key"))?;
            keys.push(key);
        }
        let field = self.path("keys");
        let in_force = |role| keys.iter().any(|key| key.role == role && key.from_version <= self.roster.version);
        if !in_force(Role::Mirror) {
            return Err(field_error(&field, "no mirror key", "with a mirror key that is valid for this version"));
        }
        if !in_force(Role::Custody) {
            return Err(field_error(&field, "no custody key", "with a custody key that is valid for this version"));
        }
        let mut epochs: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for key in &keys {
            let Role::Feed(epoch) = key.role else { continue };
            let (classical, post_quantum) = epochs.entry(epoch).or_default();
            *(if key.key.algorithm() == Algorithm::Ed25519 { classical } else { post_quantum }) += 1;
        }
        if let Some((epoch, (classical, post_quantum))) = epochs.iter().find(|(_, n)| n.0 != 1 || n.1 > 1) {
            let found = format!("epoch {epoch} with {classical} Ed25519 and {post_quantum} ML-DSA-44 keys");
            return Err(field_error(&field, found, "one Ed25519 key and at most one ML-DSA-44 key per epoch"));
        }
        Ok(keys)
    }

    fn key(&self, path: &str, read: &KeyText) -> Result<MemberKey, RosterError> {
        let host = format!("{}.{}", self.code, self.roster.exchange);
        let cosigning = |algorithm| matches!(algorithm, Algorithm::CosignatureEd25519 | Algorithm::CosignatureMlDsa44);
        let noting = |algorithm| algorithm == Algorithm::Ed25519;
        let log = |algorithm| matches!(algorithm, Algorithm::Ed25519 | Algorithm::CosignatureMlDsa44);
        let field = format!("{path}.key");
        let (role, name, parsed) = match (read.role.as_str(), read.epoch) {
            ("feed", Some(epoch)) if epoch > 0 => {
                (Role::Feed(epoch), format!("{host}/feed/{epoch}"), key(&field, &read.key, log)?)
            }
            ("mirror", None) => (Role::Mirror, format!("{host}/mirror"), key(&field, &read.key, cosigning)?),
            ("custody", None) => (Role::Custody, format!("{host}/custody"), key(&field, &read.key, noting)?),
            ("journal", None) => (Role::Journal, format!("{host}/journal"), key(&field, &read.key, log)?),
            ("witness", None) => (Role::Witness, format!("{host}/witness"), key(&field, &read.key, cosigning)?),
            _ => {
                let expected = "feed with an epoch from 1, or mirror, custody, journal or witness without one";
                return Err(field_error(&format!("{path}.role"), &read.role, expected));
            }
        };
        if parsed.name() != name {
            return Err(field_error(&field, parsed.name(), "named after its member, exchange and role"));
        }
        if read.from_version == Some(0) {
            return Err(field_error(&format!("{path}.from_version"), 0, "1 or more"));
        }
        let end = |part: &str, value: &Option<toml::value::Datetime>| {
            value.as_ref().map(|value| time(&format!("{path}.{part}"), value)).transpose()
        };
        let (retired, stolen) = (end("retired", &read.retired)?, end("compromised", &read.compromised)?);
        Ok(MemberKey {
            role,
            key: parsed,
            from_version: read.from_version.unwrap_or(0),
            until: retired.into_iter().chain(stolen).min(),
            compromised: stolen.is_some(),
            retired,
        })
    }

    fn closed_feeds(&self, keys: &[MemberKey]) -> Result<Vec<ClosedFeed>, RosterError> {
        let mut found: Vec<ClosedFeed> = Vec::new();
        for (place, read) in self.text.closed_feeds.iter().enumerate() {
            let path = |part: &str| self.path(&format!("closed_feeds[{place}].{part}"));
            let ClosedFeedText { epoch, size, root } = read;
            if !keys.iter().any(|key| key.role == Role::Feed(*epoch)) {
                return Err(field_error(&path("epoch"), epoch, "an epoch whose keys are listed"));
            }
            if let Some(other) = found.iter().position(|closed| closed.epoch == *epoch) {
                let other = self.path(&format!("closed_feeds[{other}].epoch"));
                return Err(RosterError::Twice { field: path("epoch"), other, what: "epoch" });
            }
            if *size > TREE_SIZE_MAX {
                return Err(field_error(&path("size"), size, "a size that a tree can have"));
            }
            let root = hash(root).ok_or_else(|| field_error(&path("root"), root, "a SHA-256 in hex"))?;
            found.push(ClosedFeed { epoch: *epoch, size: *size, root });
        }
        Ok(found)
    }
}

/// Parses the names of working groups, each of which must be unique.
fn labels(field: &str, names: &[String]) -> Result<BTreeSet<String>, RosterError> {
    let mut held = BTreeMap::new();
    for (place, name) in names.iter().enumerate() {
        let field = format!("{field}[{place}]");
        if !is_label(name) {
            return Err(field_error(&field, name, "1 to 32 lower-case letters, digits and hyphens"));
        }
        once(&mut held, name.clone(), "working group", field)?;
    }
    Ok(held.into_keys().collect())
}

fn is_label(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    let number: Option<u16> = port.parse().ok().filter(|number| *number > 0);
    host_fits && number.is_some_and(|number| number.to_string() == port) && text.len() <= ENDPOINT_BYTES_MAX
}

fn time(field: &str, value: &toml::value::Datetime) -> Result<i64, RosterError> {
    unix_seconds(value).ok_or_else(|| field_error(field, value, "a date and time with offset"))
}

fn unprintable(c: char) -> bool {
    c.is_control() || is_bidi_control(c)
}

/// Creates a field error. The text found is foreign, so it is cut and escaped; it cannot affect the
/// surrounding text.
fn field_error(field: &str, found: impl std::fmt::Display, expected: &'static str) -> RosterError {
    let mut printable = String::new();
    for c in found.to_string().chars().take(FOUND_CHARS_MAX) {
        if unprintable(c) { printable.extend(c.escape_unicode()) } else { printable.push(c) }
    }
    RosterError::Field { field: field.into(), found: printable, expected }
}

fn hash(text: &str) -> Option<Hash> {
    let bytes = hex::decode(text).ok().filter(|bytes| hex::encode(bytes) == *text)?;
    Some(Hash(bytes.try_into().ok()?))
}

fn key(field: &str, text: &str, fits: impl Fn(Algorithm) -> bool) -> Result<VerifierKey, RosterError> {
    let key: VerifierKey = text.parse().map_err(|_| field_error(field, text, "a C2SP verifier key"))?;
    if fits(key.algorithm()) {
        Ok(key)
    } else {
        Err(field_error(field, text, "a key of an algorithm that its role uses"))
    }
}
