//! Validates the parts of a body that all kinds share.
//!
//! In scope: texts, areas, attachments, grading and CAP's fields about the event. Out of scope: the
//! content of each kind ([`super::kinds`]).

use std::collections::BTreeSet;

use oxilangtag::LanguageTag;

use super::field::Report;
use super::geo::{Circle, Locode, Polygon};
use super::header::time;
use super::kinds::Context;
use super::rules::Rule;
use super::text::{has_balanced_direction, has_visible_text, is_one_line, is_plain};
use super::times::Time;
use super::vocabulary::{Category, Certainty, GradingScheme};
use crate::limits::{ATTACHMENT_BYTES_MAX, HEADLINE_CHARS_MAX, LINE_CHARS_MAX, LIST_MAX, NAME_BYTES_MAX, TEXTS_MAX};
use crate::proto;

/// Checks the common parts of a body. `informs` is whether the kind carries information of its own,
/// as an alert does and an acknowledgement does not; a text and a certainty are then required.
pub(super) fn check(body: &proto::Body, informs: bool, context: &Context<'_>, report: &mut Report) {
    categories(&body.categories, report);
    if informs || !body.certainty.is_empty() {
        report.parse::<Certainty>("body.certainty", &body.certainty);
    }
    onset(body, context, report);
    texts(&body.texts, informs, report);
    for (n, area) in report.bounded("body.areas", &body.areas, LIST_MAX).iter().enumerate() {
        self::area(n, area, report);
    }
    for (n, attachment) in report.bounded("body.attachments", &body.attachments, LIST_MAX).iter().enumerate() {
        self::attachment(n, attachment, report);
    }
    if let Some(grading) = &body.grading {
        self::grading(grading, report);
    }
}

/// Checks a text field of one line. It may be absent unless it is `needed`.
pub(super) fn line(field: impl std::fmt::Display, text: &str, needed: bool, chars_max: usize, report: &mut Report) {
    if !has_visible_text(text) {
        if needed || !text.is_empty() {
            report.add(field, text, Rule::LineNeeded { max: chars_max });
        }
    } else if !is_one_line(text) || (text.len() > chars_max && text.chars().count() > chars_max) {
        report.add(field, text, Rule::Line { max: chars_max });
    } else {
        direction(field, text, report);
    }
}

/// Checks a text field of several lines. It may be absent; if present, it must have visible text.
pub(super) fn paragraph(field: impl std::fmt::Display, text: &str, report: &mut Report) {
    if text.is_empty() {
        return;
    }
    if !has_visible_text(text) {
        report.add(field, text, Rule::ParagraphVisible);
    } else if is_plain(text) {
        direction(field, text, report);
    } else {
        report.add(field, text, Rule::Paragraph);
    }
}

fn direction(field: impl std::fmt::Display, text: &str, report: &mut Report) {
    if !has_balanced_direction(text) {
        report.add(field, text, Rule::Direction);
    }
}

/// Returns whether `text` is a valid language tag as far as the tag alone can show (RFC 5646
/// §2.2.9): well formed, with no duplicate variant and no duplicate extension.
fn is_language_tag(text: &str) -> bool {
    let Ok(tag) = LanguageTag::parse(text) else { return false };
    let (mut variants, mut singletons) = (BTreeSet::new(), BTreeSet::new());
    tag.variant_subtags().all(|variant| variants.insert(variant.to_ascii_lowercase()))
        && tag.extension_subtags().all(|(singleton, _)| singletons.insert(singleton.to_ascii_lowercase()))
}

fn categories(categories: &[String], report: &mut Report) {
    let mut seen = 0u32;
    for (n, code) in report.bounded("body.categories", categories, Category::ALL.len()).iter().enumerate() {
        let Some(category) = report.parse::<Category>(format_args!("body.categories[{n}]"), code) else { continue };
        if seen & (1 << category as u32) != 0 {
            report.add(format_args!("body.categories[{n}]"), code, Rule::Once);
        }
        seen |= 1 << category as u32;
    }
}

fn onset(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let Some(onset) = time("body.onset", body.onset.as_ref(), report) else { return };
    let header = context.header;
    if let Some(effective) = header.effective.as_ref().and_then(Time::from_proto)
        && onset < effective
    {
        report.add("body.onset", onset, Rule::EffectiveOrder { effective });
    }
    if let Some(expires) = header.expires.as_ref().and_then(Time::from_proto)
        && onset > expires
    {
        report.add("body.onset", onset, Rule::ExpiresOrder { expires });
    }
}

fn texts(texts: &[proto::Text], needed: bool, report: &mut Report) {
    if needed && texts.is_empty() {
        report.missing("body.texts", Rule::TextNeeded);
    }
    let texts = report.bounded("body.texts", texts, TEXTS_MAX);
    for (n, text) in texts.iter().enumerate() {
        if text.language.len() > NAME_BYTES_MAX || !is_language_tag(&text.language) {
            report.add(format_args!("body.texts[{n}].language"), &text.language, Rule::Language);
        } else if texts.iter().take(n).any(|other| other.language.eq_ignore_ascii_case(&text.language)) {
            report.add(format_args!("body.texts[{n}].language"), &text.language, Rule::Once);
        }
        line(format_args!("body.texts[{n}].headline"), &text.headline, true, HEADLINE_CHARS_MAX, report);
        for (field, paragraph) in [("description", &text.description), ("instruction", &text.instruction)] {
            self::paragraph(format_args!("body.texts[{n}].{field}"), paragraph, report);
        }
    }
}

fn area(n: usize, area: &proto::Area, report: &mut Report) {
    line(format_args!("body.areas[{n}].area_desc"), &area.area_desc, true, LINE_CHARS_MAX, report);
    for (m, text) in
        report.bounded(format_args!("body.areas[{n}].polygons"), &area.polygons, LIST_MAX).iter().enumerate()
    {
        report.parse::<Polygon>(format_args!("body.areas[{n}].polygons[{m}]"), text);
    }
    for (m, text) in report.bounded(format_args!("body.areas[{n}].circles"), &area.circles, LIST_MAX).iter().enumerate()
    {
        report.parse::<Circle>(format_args!("body.areas[{n}].circles[{m}]"), text);
    }
    for (m, code) in
        report.bounded(format_args!("body.areas[{n}].geocodes"), &area.geocodes, LIST_MAX).iter().enumerate()
    {
        line(format_args!("body.areas[{n}].geocodes[{m}].name"), &code.name, true, NAME_BYTES_MAX, report);
        if code.name == "UN/LOCODE" {
            report.parse::<Locode>(format_args!("body.areas[{n}].geocodes[{m}].value"), &code.value);
        } else {
            line(format_args!("body.areas[{n}].geocodes[{m}].value"), &code.value, true, NAME_BYTES_MAX, report);
        }
    }
}

fn attachment(n: usize, attachment: &proto::Attachment, report: &mut Report) {
    // Restricted names of RFC 6838 §4.2.
    let token = |text: &str| {
        text.len() <= 127
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    if !attachment.media_type.split_once('/').is_some_and(|(kind, name)| token(kind) && token(name)) {
        report.add(format_args!("body.attachments[{n}].media_type"), &attachment.media_type, Rule::MediaType);
    }
    if !(1..=ATTACHMENT_BYTES_MAX).contains(&attachment.size) {
        report.add(
            format_args!("body.attachments[{n}].size"),
            attachment.size,
            Rule::SizeRange { max: ATTACHMENT_BYTES_MAX },
        );
    }
    if attachment.sha256.len() != 32 {
        report.add(
            format_args!("body.attachments[{n}].sha256"),
            format_args!("{} bytes", attachment.sha256.len()),
            Rule::Bytes32,
        );
    }
    line(format_args!("body.attachments[{n}].description"), &attachment.description, false, LINE_CHARS_MAX, report);
}

fn grading(grading: &proto::Grading, report: &mut Report) {
    let grades = [("body.grading.source", &grading.source), ("body.grading.information", &grading.information)];
    let Some(scheme) = report.parse::<GradingScheme>("body.grading.scheme", &grading.scheme) else {
        return grades.into_iter().for_each(|(field, found)| line(field, found, false, NAME_BYTES_MAX, report));
    };
    let (sources, information) = match scheme {
        GradingScheme::Admiralty => {
            (["A", "B", "C", "D", "E", "F"].as_slice(), ["1", "2", "3", "4", "5", "6"].as_slice())
        }
        GradingScheme::Europol4x4 => (["A", "B", "C", "X"].as_slice(), ["1", "2", "3", "4"].as_slice()),
        GradingScheme::FiveByFiveByFive => (["A", "B", "C", "D", "E"].as_slice(), ["1", "2", "3", "4", "5"].as_slice()),
    };
    for ((field, found), listed) in grades.into_iter().zip([sources, information]) {
        if !listed.contains(&found.as_str()) {
            let rule = Rule::GradeOfScheme { grades: listed.join(", "), scheme: scheme.as_str() };
            report.add(field, found, rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_named_as_rfc_6838_has_it() {
        let named = |media_type: &str| {
            let sha256 = vec![0; 32].into();
            let file = proto::Attachment { media_type: media_type.to_owned(), size: 1, sha256, ..Default::default() };
            let mut report = Report::default();
            attachment(0, &file, &mut report);
            report.is_empty()
        };
        for good in ["image/jpeg", "application/vnd.iso.39794-5+xml", "text/plain", "x/1"] {
            assert!(named(good), "{good}");
        }
        for bad in ["", "image", "image/", "/jpeg", "image/.x", "+a/b", "-/b", "a/b/c", "a/b;c=d", "a b/c", "é/x"] {
            assert!(!named(bad), "{bad}");
        }
    }

    #[test]
    fn language_tags_repeat_no_variant_and_no_extension() {
        for good in [
            "ar",
            "fr-NE",
            "zh-Hant-TW",
            "sl-rozaj-biske",
            "de-CH-1901-1996",
            "en-a-bbb-x-a-ccc",
            "de-u-co-phonebk-t-hi",
            "x-barid",
            "i-klingon",
            "en-x-a-a",
        ] {
            assert!(is_language_tag(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "français",
            "de-DE-1901-1901",
            "sl-rozaj-biske-ROZAJ",
            "en-a-bbb-a-ccc",
            "de-u-co-phonebk-U-nu-latn",
            "ar--EG",
            "ar-",
            "ar_EG",
            "en-a",
            "de-419-DE",
        ] {
            assert!(!is_language_tag(bad), "{bad}");
        }
    }
}
