//! Checks of texts by Unicode properties.
//!
//! In scope: whether a text is visible, is one line, holds no control characters, and leaves the
//! direction of the surrounding text unchanged. Out of scope: which field needs which check
//! (`body`, `header`, the kinds).

use std::ops::RangeInclusive;

/// Invisible characters besides `White_Space`, control characters and noncharacters. By code point:
/// `Default_Ignorable_Code_Point` (`DerivedCoreProperties.txt` of Unicode 17), General_Category
/// Format (`Cf`), characters whose glyph is blank (the braille pattern without dots, the blanks of
/// Egyptian hieroglyphs, the Khitan filler, the null notehead), the whole block of Egyptian
/// Hieroglyph Format Controls, and the object replacement character, which replaces an object that
/// text cannot hold.
const BLANK: &[RangeInclusive<char>] = &[
    '\u{AD}'..='\u{AD}',
    '\u{34F}'..='\u{34F}',
    '\u{600}'..='\u{605}',
    '\u{61C}'..='\u{61C}',
    '\u{6DD}'..='\u{6DD}',
    '\u{70F}'..='\u{70F}',
    '\u{890}'..='\u{891}',
    '\u{8E2}'..='\u{8E2}',
    '\u{115F}'..='\u{1160}',
    '\u{17B4}'..='\u{17B5}',
    '\u{180B}'..='\u{180F}',
    '\u{200B}'..='\u{200F}',
    '\u{202A}'..='\u{202E}',
    '\u{2060}'..='\u{206F}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{FE00}'..='\u{FE0F}',
    '\u{FEFF}'..='\u{FEFF}',
    '\u{FFA0}'..='\u{FFA0}',
    '\u{FFF0}'..='\u{FFFC}',
    '\u{110BD}'..='\u{110BD}',
    '\u{110CD}'..='\u{110CD}',
    '\u{13430}'..='\u{13455}',
    '\u{16FE4}'..='\u{16FE4}',
    '\u{1BCA0}'..='\u{1BCA3}',
    '\u{1D159}'..='\u{1D159}',
    '\u{1D173}'..='\u{1D17A}',
    '\u{E0000}'..='\u{E0FFF}',
];

/// Returns whether the text has at least one visible character.
#[must_use]
pub fn has_visible_text(text: &str) -> bool {
    text.chars().any(is_visible)
}

fn is_visible(c: char) -> bool {
    if c.is_ascii_graphic() {
        return true;
    }
    let noncharacter = matches!(c, '\u{FDD0}'..='\u{FDEF}') || u32::from(c) & 0xFFFE == 0xFFFE;
    let blank = BLANK.iter().any(|range| range.contains(&c));
    !(c.is_whitespace() || c.is_control() || noncharacter || blank)
}

/// Returns whether the text is one line without control characters. The mandatory breaks of Unicode
/// Standard Annex #14 are control characters, U+2028 and U+2029.
#[must_use]
pub fn is_one_line(text: &str) -> bool {
    let graphic = |byte: &u8| matches!(byte, b' '..=b'~');
    // Fast path: most texts are printable ASCII, and this byte loop is vectorized.
    text.as_bytes().iter().all(graphic) || !text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
}

/// Returns whether the text holds no control characters other than line feed and tab.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t');
    text.as_bytes().iter().all(plain) || !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
}

/// Returns whether each paragraph closes every embedding and isolate that it opens, and has no
/// overrides (Unicode Standard Annex #9). The surrounding text then keeps its direction, and every
/// character appears in its reading position. Marks (U+200E, U+200F, U+061C) are allowed.
#[must_use]
pub fn has_balanced_direction(text: &str) -> bool {
    // Fast path: UTF-8 encodes each of these characters with this first byte, and most texts have
    // none.
    text.is_ascii()
        || !text.as_bytes().contains(&0xE2)
        || text
            .split(['\n', '\r', '\u{B}', '\u{C}', '\u{1C}', '\u{1D}', '\u{1E}', '\u{85}', '\u{2029}'])
            .all(paragraph_is_balanced)
}

fn paragraph_is_balanced(paragraph: &str) -> bool {
    const EMBEDDING_END: char = '\u{202C}';
    const ISOLATE_END: char = '\u{2069}';
    let mut open = Vec::new();
    paragraph.chars().all(|c| match c {
        '\u{202A}' | '\u{202B}' => {
            open.push(EMBEDDING_END);
            true
        }
        '\u{2066}'..='\u{2068}' => {
            open.push(ISOLATE_END);
            true
        }
        EMBEDDING_END | ISOLATE_END => open.pop() == Some(c),
        '\u{202D}' | '\u{202E}' => false,
        _ => true,
    }) && open.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

    use super::*;
    use crate::bulletin::kinds;
    use crate::bulletin::prepare::tests::{faults, sample};
    use crate::json::descriptor;
    use crate::proto;

    #[test]
    fn text_of_blanks_is_invisible() {
        for blank in [
            "",
            " ",
            "\u{A0}",
            "\u{3000}",
            "\u{2003}\t",
            "\u{200B}",
            "\u{FEFF}",
            "\u{2060}",
            "\u{200D}",
            "\u{200E}",
            "\u{AD}",
            "\u{34F}",
            "\u{61C}",
            "\u{115F}",
            "\u{1160}",
            "\u{17B4}",
            "\u{180B}",
            "\u{180E}",
            "\u{202E}",
            "\u{2066}\u{2069}",
            "\u{2800}",
            "\u{3164}",
            "\u{FFA0}",
            "\u{FE0F}",
            "\u{FFF9}",
            "\u{FFFE}",
            "\u{FDD0}",
            "\u{1D159}",
            "\u{1D173}",
            "\u{16FE4}",
            "\u{E0001}",
            "\u{E0061}",
            "\u{E0100}",
            "\u{0}",
            "\u{7F}",
            "\u{85}",
            "\u{2028}",
            " \u{200B}\u{3164}\u{2800} ",
        ] {
            assert!(!has_visible_text(blank), "{}", blank.escape_unicode());
        }
        for text in [
            "a",
            ".",
            "\u{200B}a",
            "م",
            "\u{2801}",
            "\u{1100}",
            "\u{3131}",
            "\u{301}",
            "\u{FFFD}",
            "🙂",
            "\u{E000}",
            "\u{13000}",
            "\u{1342F}",
            "\u{13460}",
            "\u{1BC9F}",
        ] {
            assert!(has_visible_text(text), "{}", text.escape_unicode());
        }
    }

    #[test]
    fn ignorable_white_and_blank_code_points_are_invisible() {
        // DerivedCoreProperties.txt of Unicode 17.
        let default_ignorable = [
            '\u{AD}'..='\u{AD}',
            '\u{34F}'..='\u{34F}',
            '\u{61C}'..='\u{61C}',
            '\u{115F}'..='\u{1160}',
            '\u{17B4}'..='\u{17B5}',
            '\u{180B}'..='\u{180F}',
            '\u{200B}'..='\u{200F}',
            '\u{202A}'..='\u{202E}',
            '\u{2060}'..='\u{206F}',
            '\u{3164}'..='\u{3164}',
            '\u{FE00}'..='\u{FE0F}',
            '\u{FEFF}'..='\u{FEFF}',
            '\u{FFA0}'..='\u{FFA0}',
            '\u{FFF0}'..='\u{FFF8}',
            '\u{1BCA0}'..='\u{1BCA3}',
            '\u{1D173}'..='\u{1D17A}',
            '\u{E0000}'..='\u{E0FFF}',
        ];
        // PropList.txt of Unicode 17.
        let white_space = [
            '\u{9}'..='\u{D}',
            '\u{20}'..='\u{20}',
            '\u{85}'..='\u{85}',
            '\u{A0}'..='\u{A0}',
            '\u{1680}'..='\u{1680}',
            '\u{2000}'..='\u{200A}',
            '\u{2028}'..='\u{2029}',
            '\u{202F}'..='\u{202F}',
            '\u{205F}'..='\u{205F}',
            '\u{3000}'..='\u{3000}',
        ];
        let blank_glyphs = [
            '\u{2800}'..='\u{2800}',
            '\u{FFFC}'..='\u{FFFC}',
            '\u{13430}'..='\u{13455}',
            '\u{16FE4}'..='\u{16FE4}',
            '\u{1D159}'..='\u{1D159}',
        ];
        for c in default_ignorable.into_iter().chain(white_space).chain(blank_glyphs).flatten() {
            assert!(!is_visible(c), "{}", c.escape_unicode());
        }
    }

    #[test]
    fn lines_end_where_unicode_ends_them() {
        for broken in
            ["\n", "\u{B}", "\u{C}", "\r", "\u{85}", "\u{2028}", "\u{2029}", "\t", "\u{1B}", "\u{9B}", "\u{7F}"]
        {
            assert!(!is_one_line(&format!("a{broken}b")), "{}", broken.escape_unicode());
            let made_of_lines = matches!(broken, "\n" | "\t" | "\u{2028}" | "\u{2029}");
            assert_eq!(is_plain(&format!("a{broken}b")), made_of_lines, "{}", broken.escape_unicode());
        }
        assert!(is_one_line("أ\u{200F} b\u{A0}c"));
    }

    #[test]
    fn balanced_bidi_controls_are_accepted() {
        for good in [
            "a",
            "\u{200F}a\u{200E}",
            "\u{2067}a\u{2069}b",
            "\u{202B}a\u{2066}b\u{2069}c\u{202C}",
            "\u{2068}a\u{2069}\n\u{2068}b\u{2069}",
        ] {
            assert!(has_balanced_direction(good), "{}", good.escape_unicode());
        }
        for bad in [
            "\u{202E}a\u{202C}",
            "\u{202D}a\u{202C}",
            "\u{202A}a",
            "a\u{202C}",
            "\u{2066}a",
            "a\u{2069}",
            "\u{2066}a\u{202C}",
            "\u{202A}\u{2066}a\u{202C}\u{2069}",
            "\u{2066}a\nb\u{2069}",
            "\u{2067}a\u{2029}b\u{2069}",
        ] {
            assert!(!has_balanced_direction(bad), "{}", bad.escape_unicode());
        }
    }

    /// Fields of several lines. Every other text of a draft is one line or has a stricter form. If
    /// present, each must have visible text.
    const PARAGRAPHS: [&str; 6] = [
        "barid.v1.Handling.codes_note",
        "barid.v1.Text.description",
        "barid.v1.Text.instruction",
        "barid.v1.SituationReport.outlook",
        "barid.v1.SeizureReport.concealment",
        "barid.v1.PersonNotice.distinguishing_marks",
    ];

    /// Collects every text field of a draft, each with the fields that lead to it.
    fn texts(message: &MessageDescriptor, before: &[FieldDescriptor], found: &mut Vec<Vec<FieldDescriptor>>) {
        for field in message.fields() {
            let path = [before, std::slice::from_ref(&field)].concat();
            match field.kind() {
                Kind::String => found.push(path),
                Kind::Message(inner) if inner.package_name() == "barid.v1" => texts(&inner, &path, found),
                _ => {}
            }
        }
    }

    /// Sets the text at `path`, in the first item of every list on the way, and returns its path as
    /// a field error gives it.
    fn set(message: &mut DynamicMessage, path: &[FieldDescriptor], text: &str) -> String {
        let (field, rest) = path.split_first().unwrap();
        let value = message.get_field_mut(field);
        let place = if field.is_list() { "[0]" } else { "" };
        let name = format!("{}{place}", field.name());
        let value = match value {
            Value::List(items) => {
                if items.is_empty() {
                    items.push(Value::default_value(&field.kind()));
                }
                &mut items[0]
            }
            value => value,
        };
        if rest.is_empty() {
            *value = Value::String(text.to_owned());
            return name;
        }
        let Value::Message(inner) = value else { panic!("{name} is not a message") };
        format!("{name}.{}", set(inner, rest, text))
    }

    #[test]
    fn every_text_field_of_every_kind_is_validated() {
        let mut paths = Vec::new();
        texts(&descriptor("barid.v1.Draft"), &[], &mut paths);
        assert!(paths.len() > 60, "{}", paths.len());
        let lines = [
            "a\u{1}b",
            "a\u{1B}[31mb",
            "a\u{7F}b",
            "a\u{9B}b",
            "a\u{B}b",
            "a\rb",
            "a\nb",
            "a\tb",
            "a\u{85}b",
            "a\u{2028}b",
            "a\u{2029}b",
            "\u{202E}ab\u{202C}",
            "a\u{2067}b",
            "a\u{2069}b",
            " ",
            "\u{200B}",
            "\u{3164}",
            "\u{2800}",
            "\u{13441}",
        ];
        let paragraphs = [
            "a\u{1}b",
            "a\u{1B}[31mb",
            "a\u{7F}b",
            "a\u{9B}b",
            "a\u{B}b",
            "a\r\nb",
            "a\u{85}b",
            "\u{202E}ab\u{202C}",
            "a\u{2067}b",
            " ",
            "\n\t",
            "\u{200B}",
            "\u{3164}",
            "\u{2800}",
            "\u{13441}",
        ];
        let mut looked_at = 0;
        for kind in kinds::REGISTRY {
            let arm = kind.name.replace('-', "_");
            let encoded = prost::Message::encode_to_vec(&sample(kind.name));
            let of_kind = |path: &&Vec<FieldDescriptor>| {
                path.iter().all(|field| field.containing_oneof().is_none_or(|_| field.name() == arm || path.len() < 3))
            };
            for path in paths.iter().filter(of_kind) {
                let last = path.last().unwrap();
                let bad: &[&str] = if PARAGRAPHS.contains(&last.full_name()) { &paragraphs } else { &lines };
                for text in bad {
                    let mut draft = DynamicMessage::decode(descriptor("barid.v1.Draft"), encoded.as_slice()).unwrap();
                    let name = set(&mut draft, path, text);
                    let found = faults(&draft.transcode_to::<proto::Draft>().unwrap());
                    assert!(found.contains(&name), "{}: {name} takes {}: {found:?}", kind.name, text.escape_unicode());
                    looked_at += 1;
                }
            }
        }
        assert!(looked_at > 1_000, "{looked_at}");
    }
}
