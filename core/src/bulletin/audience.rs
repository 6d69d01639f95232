//! Computes who may read a bulletin: a pure function of its header and a roster.
//!
//! In scope: TLP, `releasable_to`, working groups, observers' ceilings, agencies. Out of scope:
//! which roster applies. The protocol applies the roster of the header's `roster_version`; a node
//! that discloses content also checks the newest one.
//!
//! Everything unknown closes. A header format, label, code, purpose or topic that this version
//! cannot read gives an empty audience. An empty audience contains nobody, not even the owner.

use std::collections::BTreeSet;

use super::header::HEADER_FORMAT;
use super::topic::working_group;
use super::vocabulary::{HandlingCode, Purpose, Tlp};
use crate::ids::Member;
use crate::proto;

/// Roster queries that the audience depends on.
pub trait Directory {
    /// Returns every member, of any kind, in any order.
    fn members(&self) -> Box<dyn Iterator<Item = &Member> + '_>;

    /// Returns whether `member` is listed, as any kind.
    fn is_member(&self, member: &Member) -> bool;

    /// Returns whether `member` is of kind `full`.
    fn is_full(&self, member: &Member) -> bool;

    /// Returns whether `member` belongs to `working_group`.
    fn in_group(&self, member: &Member, working_group: &str) -> bool;

    /// Returns the highest label that an observer or partner is granted in `working_group`, or
    /// `None` if it is granted nothing there. Not called for full members.
    fn tlp_ceiling(&self, member: &Member, working_group: &str) -> Option<Tlp>;
}

/// Returns whether `reader` may read the bulletin with this header under this roster.
#[must_use]
pub fn may_read(header: &proto::Header, reader: &Member, directory: &impl Directory) -> bool {
    Rule::of(header).is_some_and(|rule| rule.admits(reader, directory))
}

/// Returns the whole audience: the owner and every member that [`may_read`].
#[must_use]
pub fn audience(header: &proto::Header, directory: &impl Directory) -> BTreeSet<Member> {
    let Some(rule) = Rule::of(header) else { return BTreeSet::new() };
    let mut audience: BTreeSet<Member> =
        directory.members().filter(|member| rule.admits(member, directory)).cloned().collect();
    audience.extend(rule.owner.parse());
    audience
}

/// Returns whether a member in the audience may disclose the bulletin to its agencies, in addition
/// to its focal points.
#[must_use]
pub fn agencies_may_read(header: &proto::Header) -> bool {
    Rule::of(header).is_some_and(|rule| matches!(rule.tlp, Tlp::Clear | Tlp::Green | Tlp::Amber))
}

/// The header fields that decide the audience, all of them understood.
struct Rule<'a> {
    owner: &'a str,
    group: &'a str,
    tlp: Tlp,
    releasable_to: &'a [String],
}

impl<'a> Rule<'a> {
    /// Returns `None` for an empty audience.
    fn of(header: &'a proto::Header) -> Option<Self> {
        let handling = header.handling.as_ref()?;
        let tlp = Tlp::read(&handling.tlp)?;
        let codes_known = handling.codes.iter().all(|code| HandlingCode::read(code).is_some());
        let purpose_known = handling.purpose.is_empty() || Purpose::read(&handling.purpose).is_some();
        let names_somebody = tlp != Tlp::Red || !handling.releasable_to.is_empty();
        let owned = header.member.parse::<Member>().is_ok();
        let understood = header.format == HEADER_FORMAT && codes_known && purpose_known && names_somebody && owned;
        let group = working_group(&header.topic)?;
        understood.then_some(Self { owner: &header.member, group, tlp, releasable_to: &handling.releasable_to })
    }

    fn admits(&self, reader: &Member, directory: &impl Directory) -> bool {
        if reader.as_str() == self.owner {
            return true;
        }
        let named = self.releasable_to.iter().any(|code| code == reader.as_str());
        if !self.releasable_to.is_empty() && !named {
            return false;
        }
        match self.tlp {
            Tlp::Red => named && directory.is_member(reader),
            Tlp::Amber | Tlp::AmberStrict => directory.is_full(reader) && directory.in_group(reader, self.group),
            Tlp::Clear | Tlp::Green => {
                directory.is_full(reader)
                    || directory.tlp_ceiling(reader, self.group).is_some_and(|ceiling| ceiling >= self.tlp)
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Test roster. `ma`, `ly`, `tn` and `ne` are full members: `ma` and `tn` in security, `ly` in
    /// customs, `ne` in none. `x-au` observes security up to GREEN, `x-eu` is a partner in security
    /// up to CLEAR, `x-un` is granted RED there, `x-none` nothing.
    pub(in crate::bulletin) struct Table(Vec<Member>);

    impl Table {
        pub(in crate::bulletin) fn new() -> Self {
            Self(["ma", "ly", "tn", "ne", "x-au", "x-eu", "x-un", "x-none"].map(|code| code.parse().unwrap()).into())
        }
    }

    impl Directory for Table {
        fn members(&self) -> Box<dyn Iterator<Item = &Member> + '_> {
            Box::new(self.0.iter())
        }
        fn is_member(&self, member: &Member) -> bool {
            self.0.contains(member)
        }
        fn is_full(&self, member: &Member) -> bool {
            self.is_member(member) && !member.as_str().starts_with("x-")
        }
        fn in_group(&self, member: &Member, group: &str) -> bool {
            matches!((member.as_str(), group), ("ma" | "tn" | "x-au" | "x-eu" | "x-un", "security") | ("ly", "customs"))
        }
        fn tlp_ceiling(&self, member: &Member, group: &str) -> Option<Tlp> {
            match (member.as_str(), group) {
                ("x-au", "security") => Some(Tlp::Green),
                ("x-eu", "security") => Some(Tlp::Clear),
                ("x-un", "security") => Some(Tlp::Red),
                _ => None,
            }
        }
    }

    fn header(tlp: &str, topic: &str, releasable_to: &[&str]) -> proto::Header {
        proto::Header {
            format: 1,
            member: "ne".to_owned(),
            topic: topic.to_owned(),
            handling: Some(proto::Handling {
                tlp: tlp.to_owned(),
                releasable_to: releasable_to.iter().map(ToString::to_string).collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn readers(header: &proto::Header) -> String {
        let table = Table::new();
        let all = audience(header, &table);
        for member in &table.0 {
            assert_eq!(all.contains(member), may_read(header, member, &table), "{member} both ways");
        }
        all.iter().map(Member::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_label_in_every_group() {
        let security = [
            ("TLP:CLEAR", "ly ma ne tn x-au x-eu x-un"),
            ("TLP:WHITE", "ly ma ne tn x-au x-eu x-un"),
            ("TLP:GREEN", "ly ma ne tn x-au x-un"),
            ("TLP:AMBER", "ma ne tn"),
            ("TLP:AMBER+STRICT", "ma ne tn"),
        ];
        for (tlp, expected) in security {
            assert_eq!(readers(&header(tlp, "security.documents", &[])), expected, "{tlp}");
        }
        let customs = [
            ("TLP:CLEAR", "ly ma ne tn"),
            ("TLP:GREEN", "ly ma ne tn"),
            ("TLP:AMBER", "ly ne"),
            ("TLP:AMBER+STRICT", "ly ne"),
        ];
        for (tlp, expected) in customs {
            assert_eq!(readers(&header(tlp, "customs.seizures", &[])), expected, "{tlp}");
        }
        assert_eq!(readers(&header("TLP:AMBER", "unheard.of", &[])), "ne", "the owner reads its own");
    }

    #[test]
    fn red_goes_to_exactly_those_named() {
        assert_eq!(readers(&header("TLP:RED", "security.documents", &["tn"])), "ne tn");
        assert_eq!(
            readers(&header("TLP:RED", "security.documents", &["ly", "x-au"])),
            "ly ne x-au",
            "of any group and kind"
        );
        assert_eq!(readers(&header("TLP:RED", "security.documents", &["dz"])), "ne", "no member of this roster");
        assert_eq!(readers(&header("TLP:RED", "security.documents", &[])), "", "RED without recipients is invalid");
    }

    #[test]
    fn naming_members_narrows_and_never_widens() {
        assert_eq!(readers(&header("TLP:GREEN", "security.documents", &["tn", "x-eu"])), "ne tn");
        assert_eq!(readers(&header("TLP:AMBER", "security.documents", &["ly", "tn"])), "ne tn");
        assert_eq!(
            readers(&header("TLP:CLEAR", "security.documents", &["nonsense!"])),
            "ne",
            "not treated as unrestricted"
        );
    }

    #[test]
    fn header_not_understood_has_an_empty_audience() {
        let good = header("TLP:CLEAR", "security.documents", &[]);
        assert_ne!(readers(&good), "");
        let with = |change: fn(&mut proto::Header)| {
            let mut header = good.clone();
            change(&mut header);
            readers(&header)
        };
        assert_eq!(readers(&proto::Header::default()), "", "an empty header");
        assert_eq!(with(|h| h.format = 2), "", "a newer format");
        assert_eq!(with(|h| h.format = 0), "", "no format");
        assert_eq!(with(|h| h.handling = None), "", "no handling");
        assert_eq!(with(|h| h.member = "Morocco".to_owned()), "", "no owner");
        assert_eq!(with(|h| h.topic = "security".to_owned()), "", "no topic");
        let handling = |change: fn(&mut proto::Handling)| {
            let mut header = good.clone();
            change(header.handling.as_mut().unwrap());
            readers(&header)
        };
        assert_eq!(handling(|h| h.tlp = String::new()), "", "no label");
        assert_eq!(handling(|h| h.tlp = "TLP:BLUE".to_owned()), "", "a label of TLP 3");
        assert_eq!(handling(|h| h.tlp = "tlp:clear".to_owned()), "", "a label misspelt");
        assert_eq!(handling(|h| h.codes = vec!["H1".to_owned(), "H9".to_owned()]), "", "a newer code");
        assert_eq!(handling(|h| h.purpose = "Curiosity".to_owned()), "", "a newer purpose");
    }

    #[test]
    fn red_and_strict_stay_with_focal_points() {
        for (tlp, agencies) in [
            ("TLP:CLEAR", true),
            ("TLP:GREEN", true),
            ("TLP:AMBER", true),
            ("TLP:AMBER+STRICT", false),
            ("TLP:RED", false),
        ] {
            assert_eq!(agencies_may_read(&header(tlp, "security.documents", &["tn"])), agencies, "{tlp}");
        }
        assert!(!agencies_may_read(&proto::Header::default()));
    }
}
