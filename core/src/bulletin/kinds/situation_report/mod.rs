//! Kind `situation-report`: events observed over a period, and an outlook. Working group
//! information.

use prost_types::Timestamp;

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::body::{line, paragraph};
use crate::bulletin::field::Report;
use crate::bulletin::header::time;
use crate::bulletin::rules::Rule;
use crate::bulletin::vocabulary::MsgType;
use crate::limits::{HEADLINE_CHARS_MAX, LINE_CHARS_MAX, LIST_MAX};
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "situation-report",
    working_group: Some("information"),
    msg_types: &[MsgType::Alert, MsgType::Update],
    informs: true,
    node_only: false,
    labels: Labels { ar: "تقرير عن الوضع", fr: "Rapport de situation", en: "Situation report" },
    holds: |content| matches!(content, Content::SituationReport(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/situation-report.json"),
};

fn validate(body: &proto::Body, _context: &Context<'_>, report: &mut Report) {
    let Some(Content::SituationReport(situation)) = &body.content else { return };
    let mut instant = |field: &str, timestamp: Option<&Timestamp>| {
        if timestamp.is_none() {
            report.missing(field, Rule::Instant);
        }
        time(field, timestamp, report)
    };
    let start = instant("body.situation_report.period_start", situation.period_start.as_ref());
    let end = instant("body.situation_report.period_end", situation.period_end.as_ref());
    if let (Some(start), Some(end)) = (start, end)
        && end < start
    {
        report.add("body.situation_report.period_end", end, Rule::PeriodOrder { start });
    }
    let field = "body.situation_report.observations";
    if situation.observations.is_empty() {
        report.missing(field, Rule::ObservationNeeded);
    }
    for (n, observation) in report.bounded(field, &situation.observations, LIST_MAX).iter().enumerate() {
        line(format_args!("{field}[{n}].subject"), &observation.subject, true, HEADLINE_CHARS_MAX, report);
        let counted = observation.count.is_some();
        line(format_args!("{field}[{n}].remark"), &observation.remark, !counted, LINE_CHARS_MAX, report);
    }
    paragraph("body.situation_report.outlook", &situation.outlook, report);
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::SituationReport(situation)) = &body.content else { return Vec::new() };
    situation.observations.iter().map(|seen| SearchKey::new("subject", seen.subject.to_lowercase())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare::tests::{faults, sample};

    fn with(change: impl FnOnce(&mut proto::SituationReport)) -> Vec<String> {
        let mut draft = sample("situation-report");
        match draft.body.as_mut().unwrap().content.as_mut().unwrap() {
            Content::SituationReport(situation) => change(situation),
            _ => panic!("another kind"),
        }
        faults(&draft)
    }

    #[test]
    fn a_period_ends_after_it_starts() {
        assert_eq!(with(|s| s.period_end = s.period_start), Vec::<String>::new());
        assert_eq!(
            with(|s| std::mem::swap(&mut s.period_start, &mut s.period_end)),
            ["body.situation_report.period_end"]
        );
        assert_eq!(with(|s| s.period_start = None), ["body.situation_report.period_start"]);
    }

    #[test]
    fn an_observation_has_a_count_or_a_text() {
        let silent = proto::Observation { subject: "crossings".to_owned(), count: None, remark: String::new() };
        assert_eq!(with(|s| s.observations = vec![silent.clone()]), ["body.situation_report.observations[0].remark"]);
        let counted = proto::Observation { count: Some(0), ..silent };
        assert!(with(|s| s.observations = vec![counted]).is_empty());
        assert_eq!(with(|s| s.observations.clear()), ["body.situation_report.observations"]);
        let many = with(|s| s.observations = vec![proto::Observation::default(); 100_000]);
        assert_eq!(many.first().unwrap(), "body.situation_report.observations");
        assert!(many.len() <= crate::limits::FIELD_ERRORS_MAX);
    }
}
