//! Kind `travel-document-alert`: a travel document that must not be accepted. Working group
//! security. Fields as in INTERPOL's Stolen and Lost Travel Documents, machine readable zone as in
//! ICAO Doc 9303.

pub mod icao9303;

use icao9303::is_document_code;

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::body::line;
use crate::bulletin::countries::is_issuing_state;
use crate::bulletin::field::{FieldError, Report};
use crate::bulletin::rules::Rule;
use crate::bulletin::times::Date;
use crate::bulletin::vocabulary::{FraudType, MsgType};
use crate::limits::LINE_CHARS_MAX;
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "travel-document-alert",
    working_group: Some("security"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    node_only: false,
    labels: Labels {
        ar: "تنبيه بشأن وثيقة سفر", fr: "Alerte sur un document de voyage", en: "Travel document alert"
    },
    holds: |content| matches!(content, Content::TravelDocumentAlert(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/travel-document-alert.json"),
};

/// Longest document number: nine characters and the overflow of a TD1 zone (fifteen, less check
/// digit and filler).
const NUMBER_CHARS_MAX: usize = 22;

fn validate(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let Some(Content::TravelDocumentAlert(alert)) = &body.content else { return };
    let number = &alert.document_number;
    let upper = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    if !(1..=NUMBER_CHARS_MAX).contains(&number.len()) || !number.bytes().all(upper) {
        let rule = Rule::DocumentNumber { max: NUMBER_CHARS_MAX };
        report.add("body.travel_document_alert.document_number", number, rule);
    }
    if !is_issuing_state(&alert.issuing_state) {
        report.add("body.travel_document_alert.issuing_state", &alert.issuing_state, Rule::IssuingState);
    }
    if !is_document_code(&alert.document_type) {
        report.add("body.travel_document_alert.document_type", &alert.document_type, Rule::DocumentCode);
    }
    report.parse::<FraudType>("body.travel_document_alert.fraud_type", &alert.fraud_type);
    dates(alert, context, report);
    line("body.travel_document_alert.place_of_incident", &alert.place_of_incident, false, LINE_CHARS_MAX, report);
    if !alert.mrz.is_empty() {
        mrz(alert, context, report);
    }
}

fn dates(alert: &proto::TravelDocumentAlert, context: &Context<'_>, report: &mut Report) {
    let mut date = |field: &str, text: &str| -> Option<Date> {
        if text.is_empty() { None } else { report.parse(format_args!("body.travel_document_alert.{field}"), text) }
    };
    let issue = date("date_of_issue", &alert.date_of_issue);
    let expiry = date("date_of_expiry", &alert.date_of_expiry);
    let incident = date("date_of_incident", &alert.date_of_incident);
    if let (Some(issue), Some(expiry)) = (issue, expiry)
        && expiry < issue
    {
        report.add("body.travel_document_alert.date_of_expiry", expiry, Rule::IssueOrder { issue });
    }
    let today = context.latest_day();
    for (field, date) in [("date_of_issue", issue), ("date_of_incident", incident)] {
        if let Some(date) = date.filter(|date| *date > today) {
            report.add(format_args!("body.travel_document_alert.{field}"), date, Rule::DayPassed);
        }
    }
}

/// Checks that the zone is consistent, agrees with the fields beside it, and is marked as personal
/// data.
fn mrz(alert: &proto::TravelDocumentAlert, context: &Context<'_>, report: &mut Report) {
    if !context.header.handling.as_ref().is_some_and(|handling| handling.personal_data) {
        report.add("header.handling.personal_data", "false", Rule::ZonePersonalData);
    }
    let mrz = match zone(alert) {
        Ok(mrz) => mrz,
        // The zone of a falsified document is evidence: it is published as printed, and the faults
        // are shown to the reader.
        Err(_) if is_falsified(alert) && icao9303::check_print(&alert.mrz).is_ok() => return,
        Err(faults) => {
            return faults.into_iter().for_each(|fault| report.add(fault.field, fault.found, fault.rule));
        }
    };
    for (field, given, printed) in [
        ("document_number", &alert.document_number, &mrz.document_number),
        ("issuing_state", &alert.issuing_state, &mrz.issuing_state),
    ] {
        if given != printed {
            let rule = Rule::AsZone { value: printed.clone() };
            report.add(format_args!("body.travel_document_alert.{field}"), given, rule);
        }
    }
    if !mrz.document_code.starts_with(&alert.document_type) {
        let rule = Rule::AsZone { value: mrz.document_code.clone() };
        report.add("body.travel_document_alert.document_type", &alert.document_type, rule);
    }
    if let Ok(expiry) = alert.date_of_expiry.parse::<Date>()
        && !mrz.date_of_expiry.may_be(expiry)
    {
        let rule = Rule::ExpiryAsZone { date: mrz.date_of_expiry.as_str().to_owned() };
        report.add("body.travel_document_alert.date_of_expiry", expiry, rule);
    }
}

/// Returns the parsed zone if it is fully valid.
fn zone(alert: &proto::TravelDocumentAlert) -> Result<icao9303::Mrz, Vec<FieldError>> {
    let fault = |line: usize, rule: Rule| {
        let found = alert.mrz.get(line).map_or("", String::as_str);
        FieldError::new(format_args!("body.travel_document_alert.mrz[{line}]"), found, rule)
    };
    let mrz = icao9303::parse(&alert.mrz)
        .map_err(|faults| faults.into_iter().map(|of| fault(of.line, of.rule)).collect::<Vec<_>>())?;
    if !is_issuing_state(&mrz.issuing_state) {
        return Err(vec![fault(0, Rule::IssuingState)]);
    }
    if !is_issuing_state(&mrz.nationality) {
        return Err(vec![fault(1, Rule::ZoneNationality)]);
    }
    Ok(mrz)
}

fn is_falsified(alert: &proto::TravelDocumentAlert) -> bool {
    matches!(FraudType::read(&alert.fraud_type), Some(FraudType::Counterfeit | FraudType::Forged))
}

/// Returns the faults in the zone of a counterfeit or forged document, which is published as
/// printed.
#[must_use]
pub fn misfits(alert: &proto::TravelDocumentAlert) -> Vec<FieldError> {
    if alert.mrz.is_empty() || !is_falsified(alert) {
        return Vec::new();
    }
    zone(alert).err().unwrap_or_default()
}

/// Returns the search keys. A border check searches by issuing state and number, or by number alone
/// if the state is uncertain.
fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::TravelDocumentAlert(alert)) = &body.content else { return Vec::new() };
    vec![
        SearchKey::new("document", format!("{}/{}", alert.issuing_state, alert.document_number)),
        SearchKey::new("document_number", &alert.document_number),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare::tests::{faults, sample};

    fn with(change: impl FnOnce(&mut proto::TravelDocumentAlert)) -> Vec<String> {
        let mut draft = sample("travel-document-alert");
        match draft.body.as_mut().unwrap().content.as_mut().unwrap() {
            Content::TravelDocumentAlert(alert) => change(alert),
            _ => panic!("another kind"),
        }
        faults(&draft).into_iter().map(|path| path.replace("body.travel_document_alert.", "")).collect()
    }

    #[test]
    fn fields_agree_with_the_zone() {
        assert_eq!(with(|a| a.document_number = "10SP00043".to_owned()), ["document_number"]);
        assert_eq!(with(|a| a.issuing_state = "TUN".to_owned()), ["issuing_state"]);
        assert_eq!(with(|a| a.document_type = "I".to_owned()), ["document_type"]);
        assert_eq!(with(|a| a.date_of_expiry = "2029-07-01".to_owned()), ["date_of_expiry"]);
        assert!(with(|a| a.date_of_expiry.clear()).is_empty());
    }

    #[test]
    fn fault_in_zone_names_its_line() {
        assert_eq!(with(|a| a.mrz[1].replace_range(0..1, "2")), ["mrz[1]", "mrz[1]"]);
        assert_eq!(with(|a| a.mrz.truncate(1)), ["mrz[0]"]);
    }

    /// Returns the faults of the sample with another nationality in its zone and matching check
    /// digits.
    fn with_nationality(code: &str) -> Vec<String> {
        with(|alert| {
            let line = &mut alert.mrz[1];
            line.replace_range(10..13, code);
            let composite = icao9303::check_digit(&[&line[0..10], &line[13..20], &line[21..43]].concat());
            line.replace_range(43..44, &composite.to_string());
        })
    }

    #[test]
    fn the_nationality_in_a_zone_is_one_of_doc_9303() {
        for good in ["NER", "D<<", "GBN", "XXB", "UNO", "RKS", "XOM"] {
            assert!(with_nationality(good).is_empty(), "{good}");
        }
        for bad in ["QQQ", "XKX", "DE<", "<D<", "<<<", "N3R"] {
            assert_eq!(with_nationality(bad), ["mrz[1]"], "{bad}");
        }
    }

    #[test]
    fn zone_of_a_falsified_document_is_accepted_as_printed() {
        let falsified = |fraud: &str, change: fn(&mut proto::TravelDocumentAlert)| {
            with(|alert| {
                fraud.clone_into(&mut alert.fraud_type);
                change(alert);
            })
        };
        let wrong_digit = |alert: &mut proto::TravelDocumentAlert| alert.mrz[1].replace_range(19..20, "9");
        let wrong_day = |alert: &mut proto::TravelDocumentAlert| alert.mrz[1].replace_range(13..19, "740230");
        let strange_state = |alert: &mut proto::TravelDocumentAlert| alert.mrz[0].replace_range(2..5, "QQQ");
        let strange_nation = |alert: &mut proto::TravelDocumentAlert| alert.mrz[1].replace_range(10..13, "XKX");
        for change in [wrong_digit, wrong_day, strange_state, strange_nation] {
            for fraud in ["counterfeit", "forged"] {
                assert!(falsified(fraud, change).is_empty(), "{fraud}");
            }
            assert!(!falsified("lost", change).is_empty(), "a slip of the pen");
        }
        assert_eq!(falsified("counterfeit", |alert| alert.mrz[1].truncate(43)), ["mrz[1]"]);
        assert_eq!(falsified("counterfeit", |alert| alert.mrz[1].replace_range(0..1, "é")), ["mrz[1]"]);
        assert_eq!(
            falsified("forged", |alert| alert.document_number = "1".to_owned()),
            ["document_number"],
            "all fits but this"
        );

        let mut draft = sample("travel-document-alert");
        let Some(Content::TravelDocumentAlert(alert)) = draft.body.as_mut().unwrap().content.as_mut() else { panic!() };
        alert.fraud_type = "counterfeit".to_owned();
        assert!(misfits(alert).is_empty(), "all fits");
        wrong_digit(alert);
        let found: Vec<String> = misfits(alert).into_iter().map(|misfit| misfit.rule.to_string()).collect();
        assert!(found.iter().any(|misfit| misfit.contains("date of birth at position 20")), "{found:?}");
        alert.fraud_type = "lost".to_owned();
        assert!(misfits(alert).is_empty(), "the node has validated those of others");
    }

    #[test]
    fn date_is_compared_with_the_latest_day_on_earth() {
        // The node's time is 2025-11-23T19:44Z, which is already the 24th in Kiribati.
        let of = |field: fn(&mut proto::TravelDocumentAlert) -> &mut String, day: &str| {
            with(|alert| {
                alert.mrz.clear();
                day.clone_into(field(alert));
            })
        };
        for day in ["2025-11-23", "2025-11-24"] {
            assert!(of(|alert| &mut alert.date_of_incident, day).is_empty(), "{day}");
            assert!(of(|alert| &mut alert.date_of_issue, day).is_empty(), "{day}");
        }
        assert_eq!(of(|alert| &mut alert.date_of_incident, "2025-11-25"), ["date_of_incident"]);
        assert_eq!(of(|alert| &mut alert.date_of_issue, "2025-11-25"), ["date_of_issue"]);
    }

    #[test]
    fn a_zone_is_personal_data_and_a_bare_number_need_not_be() {
        let mut draft = sample("travel-document-alert");
        let header = draft.header.as_mut().unwrap();
        header.retain_until.clear();
        let handling = header.handling.as_mut().unwrap();
        (handling.personal_data, handling.purpose) = (false, String::new());
        assert_eq!(faults(&draft), ["header.handling.personal_data"]);
        if let Some(Content::TravelDocumentAlert(alert)) = draft.body.as_mut().unwrap().content.as_mut() {
            alert.mrz.clear();
        }
        assert!(faults(&draft).is_empty());
    }

    #[test]
    fn document_fields_accept_the_standard_codes_only() {
        let bare = |change: fn(&mut proto::TravelDocumentAlert)| {
            with(|alert| {
                alert.mrz.clear();
                change(alert);
            })
        };
        assert!(bare(|a| a.issuing_state = "D".to_owned()).is_empty(), "Germany has one letter");
        assert!(bare(|a| a.issuing_state = "XXB".to_owned()).is_empty());
        assert_eq!(bare(|a| a.issuing_state = "NE".to_owned()), ["issuing_state"]);
        assert_eq!(bare(|a| a.document_number = "10 SP<42".to_owned()), ["document_number"]);
        assert!(bare(|a| a.document_type = "AC".to_owned()).is_empty());
        for code in ["X", "AV", "IV", "CV", "P<"] {
            let faults = with(|alert| {
                alert.mrz.clear();
                code.clone_into(&mut alert.document_type);
            });
            assert_eq!(faults, ["document_type"], "{code}");
        }
        assert_eq!(bare(|a| a.issuing_state = "XKX".to_owned()), ["issuing_state"]);
        assert_eq!(bare(|a| a.issuing_state = "XAA".to_owned()), ["issuing_state"]);
        assert!(bare(|a| a.issuing_state = "RKS".to_owned()).is_empty());
        assert_eq!(bare(|a| a.fraud_type = "stolen".to_owned()), ["fraud_type"]);
        assert_eq!(bare(|a| a.date_of_issue = "2030-01-01".to_owned()), ["date_of_expiry", "date_of_issue"]);
        assert_eq!(bare(|a| a.date_of_incident = "2025-11-25".to_owned()), ["date_of_incident"]);
    }

    #[test]
    fn alert_is_found_by_issuing_state_and_number() {
        let keys = search_keys(&sample("travel-document-alert").body.unwrap());
        assert_eq!(keys[0], SearchKey::new("document", "NER/10SP00042"));
    }
}
