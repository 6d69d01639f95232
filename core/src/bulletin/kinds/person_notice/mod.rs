//! Kind `person-notice`: a person sought, modelled on INTERPOL's notices. Working group justice.
//! Always personal data.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::body::{line, paragraph};
use crate::bulletin::countries::is_nationality;
use crate::bulletin::field::Report;
use crate::bulletin::rules::Rule;
use crate::bulletin::times::Date;
use crate::bulletin::vocabulary::{MsgType, NoticeColour, Sex};
use crate::limits::{LINE_CHARS_MAX, LIST_MAX};
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "person-notice",
    working_group: Some("justice"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    node_only: false,
    labels: Labels { ar: "نشرة بشأن شخص", fr: "Notice relative à une personne", en: "Person notice" },
    holds: |content| matches!(content, Content::PersonNotice(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/person-notice.json"),
};

fn validate(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let Some(Content::PersonNotice(notice)) = &body.content else { return };
    if !context.header.handling.as_ref().is_some_and(|handling| handling.personal_data) {
        report.add("header.handling.personal_data", "false", Rule::NoticePersonalData);
    }
    let colour = report.parse("body.person_notice.colour", &notice.colour);
    let wanted = colour == Some(NoticeColour::Red);
    let named = !notice.given_names.is_empty();
    line("body.person_notice.family_name", &notice.family_name, wanted && !named, LINE_CHARS_MAX, report);
    line("body.person_notice.given_names", &notice.given_names, false, LINE_CHARS_MAX, report);
    if !notice.date_of_birth.is_empty() {
        match partial_date(&notice.date_of_birth) {
            None => report.add("body.person_notice.date_of_birth", &notice.date_of_birth, Rule::Birth),
            Some(earliest) if earliest > context.latest_day() => {
                report.add("body.person_notice.date_of_birth", &notice.date_of_birth, Rule::DayPassed);
            }
            Some(_) => {}
        }
    }
    let field = "body.person_notice.nationalities";
    for (n, code) in report.bounded(field, &notice.nationalities, LIST_MAX).iter().enumerate() {
        if !is_nationality(code) {
            report.add(format_args!("{field}[{n}]"), code, Rule::Nationality);
        } else if notice.nationalities.iter().take(n).any(|other| other == code) {
            report.add(format_args!("{field}[{n}]"), code, Rule::Once);
        }
    }
    report.parse::<Sex>("body.person_notice.sex", &notice.sex);
    let field = "body.person_notice.charges";
    if wanted && notice.charges.is_empty() {
        report.missing(field, Rule::ChargeNeeded);
    }
    for (n, charge) in report.bounded(field, &notice.charges, LIST_MAX).iter().enumerate() {
        line(format_args!("{field}[{n}].offence"), &charge.offence, true, LINE_CHARS_MAX, report);
        line(format_args!("{field}[{n}].law"), &charge.law, false, LINE_CHARS_MAX, report);
        line(format_args!("{field}[{n}].warrant"), &charge.warrant, false, LINE_CHARS_MAX, report);
    }
    paragraph("body.person_notice.distinguishing_marks", &notice.distinguishing_marks, report);
}

/// Returns the earliest day that a full or partial date can mean.
fn partial_date(text: &str) -> Option<Date> {
    match text.len() {
        4 => format!("{text}-01-01").parse().ok(),
        7 => format!("{text}-01").parse().ok(),
        _ => text.parse().ok(),
    }
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::PersonNotice(notice)) = &body.content else { return Vec::new() };
    let normal = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_uppercase();
    let names = [("family_name", &notice.family_name), ("given_names", &notice.given_names)];
    let names =
        names.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| SearchKey::new(key, normal(text)));
    let born =
        Some(&notice.date_of_birth).filter(|date| !date.is_empty()).map(|date| SearchKey::new("date_of_birth", date));
    names.chain(born).chain([SearchKey::new("colour", &notice.colour)]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare::tests::{faults, sample};

    fn with(change: impl FnOnce(&mut proto::PersonNotice)) -> Vec<String> {
        let mut draft = sample("person-notice");
        match draft.body.as_mut().unwrap().content.as_mut().unwrap() {
            Content::PersonNotice(notice) => change(notice),
            _ => panic!("another kind"),
        }
        faults(&draft)
    }

    #[test]
    fn person_notice_must_be_marked_as_personal_data() {
        let mut draft = sample("person-notice");
        let header = draft.header.as_mut().unwrap();
        header.retain_until.clear();
        let handling = header.handling.as_mut().unwrap();
        (handling.personal_data, handling.purpose) = (false, String::new());
        assert_eq!(faults(&draft), ["header.handling.personal_data"]);
    }

    #[test]
    fn a_red_notice_names_and_charges() {
        assert_eq!(with(|n| n.charges.clear()), ["body.person_notice.charges"]);
        assert_eq!(with(|n| n.charges[0].offence.clear()), ["body.person_notice.charges[0].offence"]);
        let nameless = |n: &mut proto::PersonNotice| (n.family_name, n.given_names) = (String::new(), String::new());
        assert_eq!(with(nameless), ["body.person_notice.family_name"]);
        let unidentified = |n: &mut proto::PersonNotice| {
            nameless(n);
            n.colour = "Black".to_owned();
            n.charges.clear();
        };
        assert!(with(unidentified).is_empty(), "nobody knows the name of an unidentified body");
    }

    #[test]
    fn a_date_of_birth_may_be_partial() {
        // The node's time is 2025-11-23T19:44Z, which is already the 24th in Kiribati.
        for good in ["", "1979", "1979-08", "1979-08-31", "2025", "2025-11", "2025-11-24"] {
            assert!(with(|n| n.date_of_birth = good.to_owned()).is_empty(), "{good}");
        }
        for bad in ["79", "1979-13", "1979-8", "1979-02-30", "31.08.1979", "2025-11-25", "2026", "2025-12", "日本"] {
            assert_eq!(with(|n| n.date_of_birth = bad.to_owned()), ["body.person_notice.date_of_birth"], "{bad}");
        }
    }

    #[test]
    fn nationality_and_sex_are_coded() {
        let list = |codes: &[&str]| codes.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(with(|n| n.nationalities = list(&["TUN", "XXA"])).is_empty());
        assert!(with(|n| n.nationalities = list(&["GBN", "RKS", "UNK"])).is_empty());
        for code in ["TN", "XKX", "XPO", "QQQ"] {
            assert_eq!(with(|n| n.nationalities = list(&[code])), ["body.person_notice.nationalities[0]"], "{code}");
        }
        assert_eq!(with(|n| n.nationalities = list(&["TUN", "TUN"])), ["body.person_notice.nationalities[1]"]);
        assert_eq!(with(|n| n.sex = "M".to_owned()), ["body.person_notice.sex"]);
        assert_eq!(with(|n| n.colour = "red".to_owned()), ["body.person_notice.colour"]);
    }
}
