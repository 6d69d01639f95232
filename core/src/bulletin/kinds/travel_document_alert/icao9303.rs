//! Machine readable zones of ICAO Doc 9303: TD1 (part 5), TD2 (part 6), TD3 (part 4), MRV-A and
//! MRV-B (part 7).
//!
//! In scope: layout, alphabet, document codes, check digits, the long document number, two-digit
//! years. Out of scope: chips, visual zones, and whether a state exists
//! ([`crate::bulletin::countries`]).

use crate::bulletin::rules::Rule;
use crate::bulletin::times::{Date, month_days};

/// The five layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Card, 3 lines of 30.
    Td1,
    /// Card, 2 lines of 36.
    Td2,
    /// Passport, 2 lines of 44.
    Td3,
    /// Visa, 2 lines of 44.
    MrvA,
    /// Visa, 2 lines of 36.
    MrvB,
}

/// Content of a zone, without fillers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mrz {
    /// Its layout.
    pub layout: Layout,
    /// Document code: `P`, `I`, `AC`, `V` …
    pub document_code: String,
    /// Issuing state or organisation: `NER`, `D`, `UTO`.
    pub issuing_state: String,
    /// The whole document number, including the part that does not fit in its field.
    pub document_number: String,
    /// Nationality.
    pub nationality: String,
    /// Primary identifier.
    pub family_name: String,
    /// Secondary identifiers.
    pub given_names: String,
    /// Date of birth, possibly partly unknown.
    pub date_of_birth: ShortDate,
    /// `M`, `F`, or `<` for unspecified.
    pub sex: char,
    /// Date of expiry; for a visa, the last day of validity.
    pub date_of_expiry: ShortDate,
    /// Content of the optional fields, without the overflow of the document number.
    pub optional: String,
}

/// A date as printed: `YYMMDD`, with `<` where unknown. The century is not printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortDate(String);

/// One fault in a zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {rule}")]
pub struct Fault {
    /// Line, from 0.
    pub line: usize,
    /// The rule that it breaks.
    pub rule: Rule,
}

/// Returns the check digit of Doc 9303-3 §4.9: weights 7, 3, 1; letters count from 10, fillers as
/// 0; modulo 10.
#[must_use]
pub fn check_digit(text: &str) -> char {
    check(text.bytes())
}

fn check(bytes: impl Iterator<Item = u8>) -> char {
    let value = |b: u8| match b {
        b'0'..=b'9' => u32::from(b - b'0'),
        b'A'..=b'Z' => u32::from(b - b'A') + 10,
        _ => 0,
    };
    let sum = bytes.zip([7u32, 3, 1].into_iter().cycle()).fold(0, |sum, (b, weight)| (sum + value(b) * weight) % 10);
    char::from_digit(sum, 10).unwrap_or('0')
}

/// Parses a zone.
///
/// # Errors
/// Every fault found. If the layout or the alphabet is invalid, nothing else is checked.
pub fn parse(lines: &[String]) -> Result<Mrz, Vec<Fault>> {
    check_print(lines)?;
    let layout = layout(lines)?;
    let mut faults = Vec::new();
    let zone = Zone { lines };
    let mrz = match layout {
        Layout::Td1 => td1(&zone, &mut faults),
        _ => two_lines(layout, &zone, &mut faults),
    };
    if faults.is_empty() { Ok(mrz) } else { Err(faults) }
}

/// Checks that the lines have the form of a zone, whatever their content: the number and length of
/// lines of one layout, and only its characters.
///
/// # Errors
/// Every fault found.
pub fn check_print(lines: &[String]) -> Result<(), Vec<Fault>> {
    let all = |count: usize, chars: usize| lines.len() == count && lines.iter().all(|line| line.len() == chars);
    if !(all(3, 30) || all(2, 44) || all(2, 36)) {
        let odd = lines.iter().position(|line| ![30, 36, 44].contains(&line.len())).unwrap_or(0);
        return Err(vec![Fault { line: odd, rule: Rule::ZoneLayout }]);
    }
    let strange = |line: &String| !line.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'<');
    let strange = lines.iter().enumerate().filter(|(_, line)| strange(line));
    let fault = |(line, _)| Fault { line, rule: Rule::ZoneAlphabet };
    let faults: Vec<Fault> = strange.map(fault).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Returns whether `code` can be a document code: a first letter that selects the layout, and a
/// second character at the issuer's discretion. On cards (Doc 9303-5 §4.2.2, 9303-6 §4.2.2) the
/// second character is not `V`, and `C` after `A` means a crew member certificate.
#[must_use]
pub fn is_document_code(code: &str) -> bool {
    let mut letters = code.chars();
    match (letters.next(), letters.next(), letters.next()) {
        (Some('P' | 'V' | 'A' | 'C' | 'I'), None, None) => true,
        (Some(first @ ('P' | 'V' | 'A' | 'C' | 'I')), Some(second), None) => {
            (second.is_ascii_uppercase() || second.is_ascii_digit()) && (matches!(first, 'P' | 'V') || second != 'V')
        }
        _ => false,
    }
}

fn layout(lines: &[String]) -> Result<Layout, Vec<Fault>> {
    let code = lines.first().and_then(|line| line.get(..2)).unwrap_or_default();
    let (layout, codes) = match (lines.len(), lines.first().map_or(0, String::len), code.starts_with('V')) {
        (3, ..) => (Layout::Td1, "ACI"),
        (_, 44, true) => (Layout::MrvA, "V"),
        (_, 44, false) => (Layout::Td3, "P"),
        (_, _, true) => (Layout::MrvB, "V"),
        (_, _, false) => (Layout::Td2, "ACI"),
    };
    let first = code.chars().next().is_some_and(|first| codes.contains(first));
    if first && is_document_code(code.strip_suffix('<').unwrap_or(code)) {
        Ok(layout)
    } else {
        let letters = codes.chars().map(String::from).collect::<Vec<_>>().join(", ");
        Err(vec![Fault { line: 0, rule: Rule::ZoneDocumentCode { letters } }])
    }
}

/// ASCII lines of known lengths. A range outside them reads as empty and never panics.
struct Zone<'a> {
    lines: &'a [String],
}

impl<'a> Zone<'a> {
    fn text(&self, line: usize, from: usize, to: usize) -> &'a str {
        self.lines.get(line).and_then(|text| text.get(from..to)).unwrap_or_default()
    }

    fn char(&self, line: usize, at: usize) -> char {
        self.text(line, at, at + 1).chars().next().unwrap_or('<')
    }

    /// Compares the character at `at` with the check digit of `text`.
    fn checked(&self, line: usize, at: usize, part: &'static str, text: &str, faults: &mut Vec<Fault>) {
        let digit = check_digit(text);
        if self.char(line, at) != digit {
            faults.push(Fault { line, rule: Rule::ZoneCheckDigit { digit, part, place: at + 1 } });
        }
    }

    fn date(&self, line: usize, from: usize, part: &'static str, faults: &mut Vec<Fault>) -> ShortDate {
        let text = self.text(line, from, from + 6);
        self.checked(line, from + 6, part, text, faults);
        let date = ShortDate(text.to_owned());
        if !date.is_plausible() {
            faults.push(Fault { line, rule: Rule::ZoneDate { part, place: from + 1 } });
        }
        date
    }

    fn sex(&self, line: usize, at: usize, faults: &mut Vec<Fault>) -> char {
        let sex = self.char(line, at);
        if !matches!(sex, 'M' | 'F' | '<') {
            faults.push(Fault { line, rule: Rule::ZoneSex { place: at + 1 } });
        }
        sex
    }
}

/// Returns the document number that begins at `from` and the optional field of the same line. The
/// check digit follows the number's nine characters.
///
/// A longer number (TD1 and TD2 only) has `<` in place of its check digit and continues in the
/// optional field, followed there by its check digit and a filler. The check digit covers the nine
/// characters and the rest, without that `<` (Doc 9303-5 §4.2.2 note j).
fn number(
    zone: &Zone<'_>,
    line: usize,
    from: usize,
    optional: &str,
    may_overflow: bool,
    faults: &mut Vec<Fault>,
) -> (String, String) {
    let places = zone.text(line, from, from + 9);
    if zone.char(line, from + 9) != '<' || !may_overflow {
        zone.checked(line, from + 9, "document number", places, faults);
        if places.starts_with('<') {
            faults.push(Fault { line, rule: Rule::ZoneNumber { place: from + 1 } });
        }
        return (without_fillers(places), trimmed(optional));
    }
    let (overflow, rest) = optional.split_once('<').unwrap_or((optional, ""));
    let (tail, digit) = overflow.split_at(overflow.len().saturating_sub(1));
    if places.contains('<') || tail.is_empty() {
        faults.push(Fault { line, rule: Rule::ZoneNumberOrOverflow { place: from + 10 } });
    } else {
        let expected = check(places.bytes().chain(tail.bytes()));
        if !digit.starts_with(expected) {
            faults.push(Fault { line, rule: Rule::ZoneOverflowDigit { digit: expected } });
        }
    }
    (format!("{places}{tail}"), trimmed(rest))
}

fn td1(zone: &Zone<'_>, faults: &mut Vec<Fault>) -> Mrz {
    let (document_number, mut optional) = number(zone, 0, 5, zone.text(0, 15, 30), true, faults);
    let second = trimmed(zone.text(1, 18, 29));
    if !second.is_empty() {
        optional = if optional.is_empty() { second } else { format!("{optional} {second}") };
    }
    let date_of_birth = zone.date(1, 0, "date of birth", faults);
    let date_of_expiry = zone.date(1, 8, "date of expiry", faults);
    let composite = [zone.text(0, 5, 30), zone.text(1, 0, 7), zone.text(1, 8, 15), zone.text(1, 18, 29)].concat();
    zone.checked(1, 29, "whole zone", &composite, faults);
    let (family_name, given_names) = names(zone.text(2, 0, 30), 2, faults);
    Mrz {
        layout: Layout::Td1,
        document_code: trimmed(zone.text(0, 0, 2)),
        issuing_state: trimmed(zone.text(0, 2, 5)),
        document_number,
        nationality: trimmed(zone.text(1, 15, 18)),
        family_name,
        given_names,
        date_of_birth,
        sex: zone.sex(1, 7, faults),
        date_of_expiry,
        optional,
    }
}

fn two_lines(layout: Layout, zone: &Zone<'_>, faults: &mut Vec<Fault>) -> Mrz {
    let width = if matches!(layout, Layout::Td3 | Layout::MrvA) { 44 } else { 36 };
    let optional_end = match layout {
        Layout::Td3 => 42,
        Layout::Td2 => 35,
        _ => width,
    };
    let (document_number, optional) = number(zone, 1, 0, zone.text(1, 28, optional_end), layout == Layout::Td2, faults);
    let date_of_birth = zone.date(1, 13, "date of birth", faults);
    let date_of_expiry = zone.date(1, 21, "date of expiry", faults);
    if layout == Layout::Td3 {
        let personal_number = zone.text(1, 28, 42);
        // An empty personal number may leave its check digit empty too (Doc 9303-4 §4.2.2.2).
        if !(trimmed(personal_number).is_empty() && zone.char(1, 42) == '<') {
            zone.checked(1, 42, "personal number", personal_number, faults);
        }
    }
    if matches!(layout, Layout::Td2 | Layout::Td3) {
        let composite = [zone.text(1, 0, 10), zone.text(1, 13, 20), zone.text(1, 21, width - 1)].concat();
        zone.checked(1, width - 1, "whole line", &composite, faults);
    }
    let (family_name, given_names) = names(zone.text(0, 5, width), 0, faults);
    Mrz {
        layout,
        document_code: trimmed(zone.text(0, 0, 2)),
        issuing_state: trimmed(zone.text(0, 2, 5)),
        document_number,
        nationality: trimmed(zone.text(1, 10, 13)),
        family_name,
        given_names,
        date_of_birth,
        sex: zone.sex(1, 20, faults),
        date_of_expiry,
        optional,
    }
}

/// Returns primary and secondary identifiers, Doc 9303-3 §4.6: two fillers between them, one filler
/// for a space. For a person with one name only, some issuers print it as the primary identifier,
/// others after the two fillers.
fn names(field: &str, line: usize, faults: &mut Vec<Fault>) -> (String, String) {
    let (family, given) = field.split_once("<<").unwrap_or((field, ""));
    let misplaced_filler = family.starts_with('<') || family.is_empty() && given.starts_with('<');
    if misplaced_filler || field.bytes().any(|b| b.is_ascii_digit()) {
        faults.push(Fault { line, rule: Rule::ZoneName });
    }
    (trimmed(family).replace('<', " "), trimmed(given).replace('<', " "))
}

fn trimmed(field: &str) -> String {
    field.trim_end_matches('<').to_owned()
}

/// Returns a document number in the form used for comparison. A printed space or hyphen is a filler
/// in the zone and is omitted elsewhere.
fn without_fillers(field: &str) -> String {
    field.replace('<', "")
}

impl ShortDate {
    /// Returns the date as printed: `YYMMDD`, `<` where unknown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the printed date can mean `date`. The century is not printed, and unknown
    /// characters match anything.
    #[must_use]
    pub fn may_be(&self, date: Date) -> bool {
        let (year, month, day) = date.parts();
        let text = format!("{:02}{month:02}{day:02}", year % 100);
        self.0.bytes().zip(text.bytes()).all(|(printed, known)| printed == b'<' || printed == known)
    }

    /// Returns the date as a date of birth: the latest that is not after `today`. `None` if a part
    /// is unknown.
    #[must_use]
    pub fn not_after(&self, today: Date) -> Option<Date> {
        self.in_century_of(today.parts().0, |date| date <= today)
    }

    /// Returns the date as a date of expiry: within fifty years of `today`. `None` if a part is
    /// unknown.
    #[must_use]
    pub fn near(&self, today: Date) -> Option<Date> {
        let latest = today.parts().0 + 50;
        self.in_century_of(latest, |date| date.parts().0 < latest)
    }

    /// Returns the latest date that `accept` accepts, in the century of `year` or the one before.
    fn in_century_of(&self, year: u16, accept: impl Fn(Date) -> bool) -> Option<Date> {
        let part = |from: usize| self.0.get(from..from + 2)?.parse::<u8>().ok();
        let (yy, month, day) = (part(0)?, part(2)?, part(4)?);
        let century = year / 100;
        (century.saturating_sub(1)..=century)
            .rev()
            .filter_map(|century| Date::new(century * 100 + u16::from(yy), month, day))
            .find(|date| accept(*date))
    }

    fn is_plausible(&self) -> bool {
        let part = |from: usize, range: std::ops::RangeInclusive<u8>| {
            let text = self.0.get(from..from + 2).unwrap_or_default();
            text == "<<" || text.parse::<u8>().is_ok_and(|number| range.contains(&number))
        };
        part(0, 0..=99) && part(2, 1..=12) && part(4, 1..=self.days_max())
    }

    /// Returns the number of days of the month, as far as month and year are known. The century is
    /// not known, so `00` may be a leap year.
    fn days_max(&self) -> u8 {
        let part = |from: usize| self.0.get(from..from + 2).and_then(|text| text.parse::<u8>().ok());
        part(2).map_or(31, |month| month_days(2_000 + u16::from(part(0).unwrap_or(0)), month))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> Result<Mrz, Vec<Fault>> {
        parse(&lines.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    const TD3: [&str; 2] =
        ["P<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<<", "L898902C36UTO7408122F1204159ZE184226B<<<<<10"];
    const TD2: [&str; 2] = ["I<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<", "D231458907UTO7408122F1204159<<<<<<<6"];
    const TD1: [&str; 3] =
        ["I<UTOD231458907<<<<<<<<<<<<<<<", "7408122F1204159UTO<<<<<<<<<<<6", "ERIKSSON<<ANNA<MARIA<<<<<<<<<<"];
    const MRV_A: [&str; 2] =
        ["V<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<<", "L8988901C4XXX4009078F96121096ZE184226B<<<<<<"];
    const MRV_B: [&str; 2] = ["V<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<", "L8988901C4XXX4009078F9612109<<<<<<<<"];

    #[test]
    fn check_digits_of_doc_9303_part_3() {
        assert_eq!(check_digit("520727"), '3');
        assert_eq!(check_digit("AB2134<<<"), '5');
        assert_eq!(check_digit("HA672242<658022549601086<<<<<<<<<<<<<<0"), '8');
    }

    #[test]
    fn published_examples_are_read() {
        let passport = read(&TD3).unwrap();
        assert_eq!(passport.layout, Layout::Td3);
        assert_eq!((passport.document_code.as_str(), passport.issuing_state.as_str()), ("P", "UTO"));
        assert_eq!(passport.document_number, "L898902C3");
        assert_eq!((passport.family_name.as_str(), passport.given_names.as_str()), ("ERIKSSON", "ANNA MARIA"));
        assert_eq!(
            (passport.date_of_birth.as_str(), passport.sex, passport.date_of_expiry.as_str()),
            ("740812", 'F', "120415")
        );
        assert_eq!(passport.optional, "ZE184226B");
        for (lines, layout) in [(&TD2[..], Layout::Td2), (&TD1[..], Layout::Td1)] {
            let card = read(lines).unwrap();
            assert_eq!(card.layout, layout);
            assert_eq!((card.document_number.as_str(), card.optional.as_str()), ("D23145890", ""));
            assert_eq!((card.nationality.as_str(), card.given_names.as_str()), ("UTO", "ANNA MARIA"));
        }
        let visa = read(&MRV_A).unwrap();
        assert_eq!(
            (visa.layout, visa.document_number.as_str(), visa.nationality.as_str()),
            (Layout::MrvA, "L8988901C", "XXX")
        );
        assert_eq!(visa.optional, "6ZE184226B");
        assert_eq!(read(&MRV_B).unwrap().layout, Layout::MrvB);
    }

    #[test]
    fn a_long_number_overflows_and_its_filler_is_not_counted() {
        let td1 = |number: &str, composite: char| {
            let first = format!("I<UTO{number}<<<<<<<<<<<");
            read(&[&first, &format!("3407127M9507122UTO<<<<<<<<<<<{composite}"), "STEVENSON<<PETER<JOHN<<<<<<<<<"])
        };
        let published = td1("D23145890<7349", '2').unwrap();
        assert_eq!(published.document_number, "D23145890734");
        assert_eq!(published.optional, "");
        assert_eq!(td1("D23145890<7350", '2').unwrap().document_number, "D23145890735", "0 without the filler");
        assert!(td1("D23145890<7356", '2').is_err(), "6 is what counting the filler gives");

        let td2 = |second: &str| read(&["I<UTOSTEVENSON<<PETER<JOHN<<<<<<<<<<", second]);
        assert_eq!(td2("D23145890<UTO3407127M95071227349<<<8").unwrap().document_number, "D23145890734");
        assert_eq!(td2("D23145890<UTO3407127M95071227350<<<6").unwrap().document_number, "D23145890735");
        let faults = td2("D23145890<UTO3407127M9507122<<<<<<<6").unwrap_err();
        assert_eq!(faults[0].rule, Rule::ZoneNumberOrOverflow { place: 10 }, "neither digit nor overflow");
    }

    #[test]
    fn a_passport_number_does_not_overflow() {
        let mut second = TD3[1].to_owned();
        second.replace_range(9..10, "<");
        assert!(read(&[TD3[0], &second]).is_err());
    }

    #[test]
    fn check_digits_detect_one_wrong_character() {
        let guarded = (0..10).chain(13..20).chain(21..44);
        for at in guarded {
            let mut second = TD3[1].to_owned();
            // Use a digit whose value is one higher: replacing Z with 5 would give the same check
            // digit, modulo 10.
            let old: u32 = check_digit(&second[at..=at]).to_digit(10).unwrap() * 3 % 10;
            second.replace_range(at..=at, &((old + 1) % 10).to_string());
            assert!(read(&[TD3[0], &second]).is_err(), "place {}", at + 1);
        }
    }

    #[test]
    fn zone_faults_name_line_and_place() {
        let faults = read(&[TD1[0], "7408123F1204159UTO<<<<<<<<<<<6", TD1[2]]).unwrap_err();
        let rule = Rule::ZoneCheckDigit { digit: '2', part: "date of birth", place: 7 };
        assert_eq!(faults[0], Fault { line: 1, rule });
        assert_eq!(faults.len(), 2, "the whole zone's digit covers it too");
        assert_eq!(read(&[TD3[0], "short"]).unwrap_err()[0].line, 1);
        assert_eq!(read(&[TD3[0], &TD3[1].to_lowercase()]).unwrap_err()[0].line, 1);
        assert!(read(&[]).is_err());
        assert!(read(&["X<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<", TD2[1]]).is_err());
        assert!(read(&["é".repeat(22).as_str(), TD3[1]]).is_err(), "44 bytes are not 44 characters");
    }

    #[test]
    fn an_empty_personal_number_needs_no_digit() {
        for digit in ["<", "0"] {
            let start = format!("L898902C36UTO7408122F1204159<<<<<<<<<<<<<<{digit}");
            let composite = check_digit(&[&start[0..10], &start[13..20], &start[21..43]].concat());
            assert!(read(&[TD3[0], &format!("{start}{composite}")]).is_ok());
        }
    }

    /// Builds a TD3 zone with valid check digits from these parts.
    fn passport(code: &str, name: &str, nationality: &str, birth: &str) -> Result<Mrz, Vec<Fault>> {
        let first = format!("{code:<<2}UTO{name:<<39}");
        let start = format!("L898902C36{nationality}{birth}{}F1204159{:<<14}0", check_digit(birth), "");
        let composite = check_digit(&[&start[0..10], &start[13..20], &start[21..43]].concat());
        read(&[&first, &format!("{start}{composite}")])
    }

    #[test]
    fn impossible_birth_dates_are_rejected() {
        let birth = |birth: &str| passport("P", "ERIKSSON<<ANNA", "UTO", birth).is_ok();
        for good in ["740812", "740228", "760229", "000229", "<<0229", "74<<31", "7402<<", "<<<<<<", "740430", "<<<<31"]
        {
            assert!(birth(good), "{good}");
        }
        for bad in [
            "740230", "740229", "<<0230", "740431", "740631", "741301", "740001", "740100", "740132", "74<<32",
            "7<0812", "74081<",
        ] {
            assert!(!birth(bad), "{bad}");
        }
    }

    #[test]
    fn a_person_may_have_one_name() {
        let name = |name: &str| passport("P", name, "UTO", "740812").map(|mrz| (mrz.family_name, mrz.given_names));
        let named = |family: &str, given: &str| Ok((family.to_owned(), given.to_owned()));
        assert_eq!(name("ARKFREITH"), named("ARKFREITH", ""));
        assert_eq!(name("VAN<DER<MUELLEN"), named("VAN DER MUELLEN", ""));
        assert_eq!(
            name("NILAVADHANANANDA<ARNPOL<PETCHCHARAT<KID"),
            named("NILAVADHANANANDA ARNPOL PETCHCHARAT KID", "")
        );
        assert_eq!(name("<<ANNA<MARIA"), named("", "ANNA MARIA"), "no primary identifier");
        for bad in ["", "<ANNA", "<<<ANNA", "ANNA<<M4RIA"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn document_codes_are_those_of_their_layout() {
        for good in ["P", "PD", "PV", "V", "VV", "VC", "I", "ID", "I1", "A", "AC", "C", "C1", "CR"] {
            assert!(is_document_code(good), "{good}");
        }
        for bad in ["", "X", "AV", "CV", "IV", "p", "P<", "<P", "PDD", "1P", "I ", "É"] {
            assert!(!is_document_code(bad), "{bad}");
        }
        let td1 = |code: &str| read(&[&TD1[0].replace("I<", code), TD1[1], TD1[2]]);
        let td2 = |code: &str| read(&[&TD2[0].replace("I<", code), TD2[1]]);
        let td3 = |code: &str| read(&[&TD3[0].replace("P<", code), TD3[1]]);
        for (read, good, bad) in [
            (&td1 as &dyn Fn(&str) -> _, ["I<", "ID", "AC", "C1"], ["AV", "IV", "CV", "P<", "V<", "<I", "<<"]),
            (&td2, ["I<", "ID", "AC", "C1"], ["AV", "IV", "CV", "P<", "<V", "<I", "<<"]),
            (&td3, ["P<", "PD", "PV", "PO"], ["I<", "A<", "C<", "<P", "<V", "X<", "<<"]),
        ] {
            for code in good {
                assert!(read(code).is_ok_and(|mrz: Mrz| mrz.document_code == code.trim_end_matches('<')), "{code}");
            }
            for code in bad {
                assert_eq!(read(code).unwrap_err()[0].line, 0, "{code}");
            }
        }
        for code in ["V<", "VC", "VV"] {
            assert!(read(&[&MRV_A[0].replace("V<", code), MRV_A[1]]).is_ok(), "{code}");
            assert!(read(&[&MRV_B[0].replace("V<", code), MRV_B[1]]).is_ok(), "{code}");
        }
    }

    #[test]
    fn two_digit_years_find_their_century() {
        let today: Date = "2025-11-23".parse().unwrap();
        let short = |text: &str| ShortDate(text.to_owned());
        let text = |date: Option<Date>| date.map(|date| date.to_string()).unwrap_or_default();
        assert_eq!(text(short("740812").not_after(today)), "1974-08-12");
        assert_eq!(text(short("251123").not_after(today)), "2025-11-23");
        assert_eq!(text(short("251124").not_after(today)), "1925-11-24", "nobody is born tomorrow");
        assert_eq!(text(short("000229").not_after(today)), "2000-02-29");
        assert_eq!(text(short("120415").near(today)), "2012-04-15");
        assert_eq!(text(short("740101").near(today)), "2074-01-01");
        assert_eq!(text(short("750101").near(today)), "1975-01-01");
        assert_eq!(short("74<<<<").not_after(today), None);
        assert!(short("74<<<<").may_be("1974-02-01".parse().unwrap()));
        assert!(!short("740812").may_be("1974-08-13".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(lines in prop::collection::vec("[A-Z0-9<é]{0,46}", 0..4)) {
            let _ = parse(&lines);
        }

        #[test]
        fn no_zone_of_right_size_makes_it_panic(lines in prop::collection::vec("[ACIPV][A-Z0-9<]{35}", 2)) {
            let _ = parse(&lines);
        }
    }
}
