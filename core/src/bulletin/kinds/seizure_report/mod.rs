//! Kind `seizure-report`: goods seized by customs. Working group customs. Following the practice of
//! WCO CEN, it names no person.

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::body::{line, paragraph};
use crate::bulletin::countries::is_alpha2;
use crate::bulletin::field::Report;
use crate::bulletin::geo::{Locode, Point, decimal};
use crate::bulletin::header::time;
use crate::bulletin::rules::Rule;
use crate::bulletin::times::digits;
use crate::bulletin::vocabulary::{Conveyance, MsgType};
use crate::limits::{LINE_CHARS_MAX, LIST_MAX};
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "seizure-report",
    working_group: Some("customs"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    node_only: false,
    labels: Labels { ar: "تقرير ضبط", fr: "Rapport de saisie", en: "Seizure report" },
    holds: |content| matches!(content, Content::SeizureReport(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/seizure-report.json"),
};

fn validate(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let Some(Content::SeizureReport(seizure)) = &body.content else { return };
    if context.header.handling.as_ref().is_some_and(|handling| handling.personal_data) {
        report.add("header.handling.personal_data", "true", Rule::SeizurePersonalData);
    }
    match time("body.seizure_report.seized_at", seizure.seized_at.as_ref(), report) {
        Some(seized_at) if seized_at > context.latest() => {
            report.add("body.seizure_report.seized_at", seized_at, Rule::InstantPassed);
        }
        None if seizure.seized_at.is_none() => report.missing("body.seizure_report.seized_at", Rule::Instant),
        _ => {}
    }
    if seizure.locode.is_empty() && seizure.coordinates.is_empty() {
        report.missing("body.seizure_report.locode", Rule::LocodeOrPoint);
    }
    if !seizure.locode.is_empty() {
        report.parse::<Locode>("body.seizure_report.locode", &seizure.locode);
    }
    if !seizure.coordinates.is_empty() {
        report.parse::<Point>("body.seizure_report.coordinates", &seizure.coordinates);
    }
    if seizure.goods.is_empty() {
        report.missing("body.seizure_report.goods", Rule::GoodsNeeded);
    }
    for (n, goods) in report.bounded("body.seizure_report.goods", &seizure.goods, LIST_MAX).iter().enumerate() {
        self::goods(n, goods, report);
    }
    report.parse::<Conveyance>("body.seizure_report.conveyance", &seizure.conveyance);
    for (n, place) in report.bounded("body.seizure_report.route", &seizure.route, LIST_MAX).iter().enumerate() {
        if !is_alpha2(place) && place.parse::<Locode>().is_err() {
            report.add(format_args!("body.seizure_report.route[{n}]"), place, Rule::LocodeOrCountry);
        }
    }
    paragraph("body.seizure_report.concealment", &seizure.concealment, report);
}

fn goods(n: usize, goods: &proto::Goods, report: &mut Report) {
    let field = |name: &'static str| format!("body.seizure_report.goods[{n}].{name}");
    if !is_hs_code(&goods.hs_code) {
        report.add(field("hs_code"), &goods.hs_code, Rule::HsCode);
    }
    line(format_args!("body.seizure_report.goods[{n}].description"), &goods.description, true, LINE_CHARS_MAX, report);
    if !decimal(&goods.quantity).is_some_and(|quantity| quantity > 0.0) {
        report.add(field("quantity"), &goods.quantity, Rule::Quantity);
    }
    if !is_unit(&goods.unit) {
        report.add(field("unit"), &goods.unit, Rule::Unit);
    }
}

/// Returns whether `code` is a WCO Harmonized System chapter, heading or subheading. Chapter 77 is
/// reserved; 98 and 99 are for national use.
fn is_hs_code(code: &str) -> bool {
    let chapter = code.get(..2).and_then(|chapter| digits(chapter, 2));
    matches!(code.len(), 2 | 4 | 6)
        && code.bytes().all(|b| b.is_ascii_digit())
        && chapter.is_some_and(|chapter| (1..=97).contains(&chapter) && chapter != 77)
}

/// Returns whether `code` has the form of a UN/CEFACT Recommendation 20 common code: two or three
/// of `A`–`Z` and digits. The list itself is not checked: it grows twice a year, and a node with an
/// older list would reject newer codes.
fn is_unit(code: &str) -> bool {
    (2..=3).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::SeizureReport(seizure)) = &body.content else { return Vec::new() };
    let goods = seizure.goods.iter().map(|goods| SearchKey::new("hs", &goods.hs_code));
    let places = std::iter::once(&seizure.locode).chain(&seizure.route).filter(|place| !place.is_empty());
    goods.chain(places.map(|place| SearchKey::new("place", place))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare::tests::{faults, sample};

    fn with(change: impl FnOnce(&mut proto::SeizureReport)) -> Vec<String> {
        let mut draft = sample("seizure-report");
        match draft.body.as_mut().unwrap().content.as_mut().unwrap() {
            Content::SeizureReport(seizure) => change(seizure),
            _ => panic!("another kind"),
        }
        faults(&draft)
    }

    #[test]
    fn seizure_report_with_personal_data_is_rejected() {
        let mut draft = sample("seizure-report");
        let header = draft.header.as_mut().unwrap();
        header.retain_until = "2030-01-01".to_owned();
        let handling = header.handling.as_mut().unwrap();
        (handling.personal_data, handling.purpose) = (true, "CustomsOperation".to_owned());
        assert_eq!(faults(&draft), ["header.handling.personal_data"]);
    }

    #[test]
    fn a_place_is_a_code_or_a_point() {
        assert_eq!(with(|s| s.locode.clear()), ["body.seizure_report.locode"]);
        assert!(with(|s| (s.locode, s.coordinates) = (String::new(), "33.1,11.2".to_owned())).is_empty());
        assert_eq!(with(|s| s.coordinates = "north".to_owned()), ["body.seizure_report.coordinates"]);
        assert_eq!(with(|s| s.route[1] = "Misrata".to_owned()), ["body.seizure_report.route[1]"]);
        assert!(with(|s| s.route[1] = "LY".to_owned()).is_empty());
    }

    #[test]
    fn goods_are_coded_and_counted() {
        for code in ["24", "2402", "240220", "970600"] {
            assert!(is_hs_code(code), "{code}");
        }
        for code in ["", "2", "240", "24022", "2402200", "00", "77", "98", "99", "24022O", "é4"] {
            assert!(!is_hs_code(code), "{code}");
        }
        for quantity in ["", "0", "-1", "1e3", "1,5", "many", "0.000"] {
            assert_eq!(with(|s| s.goods[1].quantity = quantity.to_owned()), ["body.seizure_report.goods[1].quantity"]);
        }
        for unit in ["", "kg", "K", "KILO"] {
            assert_eq!(with(|s| s.goods[0].unit = unit.to_owned()), ["body.seizure_report.goods[0].unit"]);
        }
        assert_eq!(with(|s| s.goods.clear()), ["body.seizure_report.goods"]);
    }

    #[test]
    fn a_seizure_has_happened() {
        let later = |s: &mut proto::SeizureReport| s.seized_at.as_mut().unwrap().seconds = 4_000_000_000;
        assert_eq!(with(later), ["body.seizure_report.seized_at"]);
        assert_eq!(with(|s| s.seized_at = None), ["body.seizure_report.seized_at"]);
    }
}
