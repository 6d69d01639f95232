//! Localized text of the program, in Arabic, French and English.
//!
//! In scope: choosing a language, the catalogues (Fluent), and inserting values safely into a line
//! of text. Out of scope: output for scripts, which is the same in every language (`output`); the
//! English texts of options, alarms and rules of fields, which are in the code.
//!
//! External values are cleaned before they are inserted. With control characters, or marks that
//! change the direction of text, a bulletin could rewrite other text on a terminal. In Arabic every
//! inserted value is put between U+2068 FIRST STRONG ISOLATE and U+2069 POP DIRECTIONAL ISOLATE, so
//! that codes, paths and numbers keep their own direction.

use std::fmt;
use std::str::FromStr;

use barid_core::ids::is_bidi_control;
use fluent_bundle::concurrent::FluentBundle;
use fluent_bundle::{FluentArgs, FluentResource, FluentValue};
use unic_langid::LanguageIdentifier;

/// U+2068 FIRST STRONG ISOLATE.
pub const FSI: char = '\u{2068}';
/// U+2069 POP DIRECTIONAL ISOLATE.
pub const PDI: char = '\u{2069}';

/// A language of the conference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lang {
    /// Arabic, written from right to left.
    #[value(help = "العربية")]
    Ar,
    /// French.
    #[value(help = "français")]
    Fr,
    /// English.
    #[value(help = "English")]
    En,
}

/// The catalogue of one language.
pub struct Messages {
    lang: Lang,
    bundle: FluentBundle<FluentResource>,
}

/// A text that names no supported language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of ar, fr, en")]
pub struct UnknownLang;

impl Lang {
    /// All languages.
    pub const ALL: [Self; 3] = [Self::Ar, Self::Fr, Self::En];

    /// Returns the ISO 639-1 code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Ar => "ar",
            Self::Fr => "fr",
            Self::En => "en",
        }
    }

    /// Returns the language of a session: the first of `candidates` (`--lang`, `BARID_LANG`,
    /// `LC_ALL`, `LC_MESSAGES`, `LANG`, in that order) that names a supported language, or else
    /// English.
    pub fn choose(candidates: impl IntoIterator<Item = Option<String>>) -> Self {
        candidates.into_iter().flatten().find_map(|text| text.parse().ok()).unwrap_or(Self::En)
    }

    fn source(self) -> &'static str {
        match self {
            Self::Ar => include_str!("ar.ftl"),
            Self::Fr => include_str!("fr.ftl"),
            Self::En => include_str!("en.ftl"),
        }
    }
}

impl FromStr for Lang {
    type Err = UnknownLang;

    /// Parses a code or a locale: `fr`, `fr_NE.UTF-8`, `ar-MA`.
    fn from_str(text: &str) -> Result<Self, UnknownLang> {
        let code = text.split(['_', '-', '.', '@']).next().unwrap_or_default();
        Self::ALL.into_iter().find(|lang| code.eq_ignore_ascii_case(lang.code())).ok_or(UnknownLang)
    }
}

impl Messages {
    /// Loads the catalogue of `lang`.
    #[must_use]
    pub fn new(lang: Lang) -> Self {
        // The catalogues are part of the program, and tests check that they parse. An invalid entry
        // would only be missing.
        let resource = FluentResource::try_new(lang.source().to_owned()).unwrap_or_else(|(partial, _)| partial);
        let identifier: LanguageIdentifier = lang.code().parse().unwrap_or_default();
        let mut bundle = FluentBundle::new_concurrent(vec![identifier]);
        bundle.set_use_isolating(lang == Lang::Ar);
        bundle.add_resource_overriding(resource);
        Self { lang, bundle }
    }

    /// Returns the language.
    #[must_use]
    pub fn lang(&self) -> Lang {
        self.lang
    }

    /// Returns the message `id` without values, or the id itself if there is no such message.
    #[must_use]
    pub fn text(&self, id: &str) -> String {
        self.find(id, None).unwrap_or_else(|| id.to_owned())
    }

    /// Returns the message `id` with values, or the id itself if there is no such message. Prefer
    /// [`localize!`](crate::cli::localize).
    #[must_use]
    pub fn with(&self, id: &str, args: &FluentArgs<'_>) -> String {
        self.find(id, Some(args)).unwrap_or_else(|| id.to_owned())
    }

    /// Returns the message `id`, or its attribute if written `id.attribute`; `None` if there is
    /// none.
    #[must_use]
    pub fn find(&self, id: &str, args: Option<&FluentArgs<'_>>) -> Option<String> {
        let (id, attribute) = id.split_once('.').map_or((id, None), |(id, attribute)| (id, Some(attribute)));
        let message = self.bundle.get_message(id)?;
        let pattern = match attribute {
            Some(name) => message.get_attribute(name)?.value(),
            None => message.value()?,
        };
        let mut errors = Vec::new();
        Some(self.bundle.format_pattern(pattern, args, &mut errors).into_owned())
    }

    /// Returns a vocabulary term (`severity`, `urgency`, ...) in this language, or the cleaned term
    /// itself if the catalogue lacks it.
    #[must_use]
    pub fn term(&self, vocabulary: &str, term: &str) -> String {
        let known = term.bytes().all(|b| b.is_ascii_alphanumeric() || b" -_".contains(&b));
        let id = format!("{vocabulary}-{}", term.to_ascii_lowercase().replace([' ', '_'], "-"));
        known.then(|| self.find(&id, None)).flatten().unwrap_or_else(|| self.value(term))
    }

    /// Returns an external value for use outside of a message: cleaned, and isolated in a
    /// right-to-left language. An empty value remains empty.
    #[must_use]
    pub fn value(&self, text: &str) -> String {
        self.isolate(&clean(text))
    }

    /// Returns `text`, isolated in a right-to-left language.
    #[must_use]
    pub fn isolate(&self, text: &str) -> String {
        if self.lang == Lang::Ar && !text.is_empty() { format!("{FSI}{text}{PDI}") } else { text.to_owned() }
    }

    /// Returns the name that is in this language.
    #[must_use]
    pub fn pick<'a>(&self, ar: &'a str, fr: &'a str, en: &'a str) -> &'a str {
        match self.lang {
            Lang::Ar => ar,
            Lang::Fr => fr,
            Lang::En => en,
        }
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").field("lang", &self.lang).finish_non_exhaustive()
    }
}

/// Returns `text` as one line that cannot affect the text around it. Control characters, which
/// drive terminals, become spaces or U+FFFD; marks that change direction become U+FFFD; isolates
/// are removed. The letters themselves have a direction.
#[must_use]
pub fn clean(text: &str) -> String {
    // Isolates come from other messages of this program that were inserted; the whole value is
    // isolated anyway.
    text.chars()
        .filter(|c| !matches!(*c, FSI | PDI))
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() || is_bidi_control(c) => '\u{FFFD}',
            c => c,
        })
        .collect()
}

/// A value that can be inserted into a message.
pub trait Arg {
    /// Converts to a Fluent value; text is cleaned.
    fn arg(self) -> FluentValue<'static>;
}

impl Arg for &str {
    fn arg(self) -> FluentValue<'static> {
        FluentValue::from(clean(self))
    }
}

impl Arg for &String {
    fn arg(self) -> FluentValue<'static> {
        self.as_str().arg()
    }
}

impl Arg for String {
    fn arg(self) -> FluentValue<'static> {
        self.as_str().arg()
    }
}

macro_rules! number_args {
    ($($number:ty),+) => {
        $(impl Arg for $number {
            fn arg(self) -> FluentValue<'static> {
                FluentValue::from(self)
            }
        })+
    };
}
number_args!(u8, u32, u64, usize, i64);

/// `localize!(messages, "id", name = value, ...)`: returns the message `id` with cleaned values.
#[macro_export]
macro_rules! localize {
    ($messages:expr, $id:expr $(, $name:ident = $value:expr)* $(,)?) => {{
        #[allow(unused_mut)]
        let mut args = ::fluent_bundle::FluentArgs::new();
        $(args.set(stringify!($name), $crate::cli::messages::Arg::arg($value));)*
        $messages.with($id, &args)
    }};
}
pub use localize;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use fluent_bundle::FluentError;

    use super::*;

    /// Returns the message and attribute ids with the variables that each uses.
    fn keys(lang: Lang) -> BTreeMap<String, BTreeSet<String>> {
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut message = String::new();
        let mut current = String::new();
        for line in lang.source().lines() {
            let start = line.split('=').next().unwrap().trim_end();
            let is_id = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if line.contains('=') && !line.starts_with(' ') && is_id(start) {
                message = start.to_owned();
                current = message.clone();
                assert!(found.insert(current.clone(), BTreeSet::new()).is_none(), "{lang:?}: {current} twice");
            } else if let Some(name) = start.trim_start().strip_prefix('.').filter(|name| is_id(name)) {
                current = format!("{message}.{name}");
                found.insert(current.clone(), BTreeSet::new());
            }
            if line.starts_with('#') {
                continue;
            }
            for (at, _) in line.match_indices('$') {
                let name: String = line[at + 1..].chars().take_while(char::is_ascii_alphanumeric).collect();
                found.get_mut(&current).unwrap().insert(name);
            }
        }
        found
    }

    #[test]
    fn catalogues_have_same_ids_and_variables() {
        let english = keys(Lang::En);
        assert!(english.len() > 100);
        for lang in [Lang::Fr, Lang::Ar] {
            // Their English texts are in the code.
            let in_code = |id: &str| ["help", "alarm-", "rule-"].iter().any(|prefix| id.starts_with(prefix));
            let required = |(id, _): &(&String, &BTreeSet<String>)| !in_code(id);
            let other = keys(lang);
            for (id, values) in &english {
                assert_eq!(Some(values), other.get(id), "{lang:?}: {id}");
            }
            for (id, _) in other.iter().filter(required) {
                assert!(english.contains_key(id), "{lang:?} has {id}, English has not");
            }
        }
    }

    #[test]
    fn every_catalogue_parses_and_formats() {
        for lang in Lang::ALL {
            FluentResource::try_new(lang.source().to_owned()).map_err(|(_, errors)| errors).unwrap();
            let messages = Messages::new(lang);
            for (id, values) in keys(lang) {
                for number in [0_u64, 1, 2, 3, 11, 100] {
                    let mut args = FluentArgs::new();
                    for name in &values {
                        args.set(name.clone(), if name.starts_with('n') { number.arg() } else { "ab/1".arg() });
                    }
                    let (message, attribute) = id.split_once('.').map_or((id.as_str(), None), |(m, a)| (m, Some(a)));
                    let message = messages.bundle.get_message(message).unwrap();
                    let pattern = match attribute {
                        Some(name) => message.get_attribute(name).unwrap().value(),
                        None => message.value().unwrap(),
                    };
                    let mut errors: Vec<FluentError> = Vec::new();
                    let text = messages.bundle.format_pattern(pattern, Some(&args), &mut errors);
                    assert!(errors.is_empty(), "{lang:?} {id}: {errors:?}");
                    assert!(!text.trim().is_empty() && !text.contains('{'), "{lang:?} {id}: {text}");
                }
            }
        }
    }

    #[test]
    fn only_arabic_isolates_inserted_values() {
        let arabic =
            localize!(Messages::new(Lang::Ar), "published-place", feed = "ma.rabat.example/feed/1", place = 7_u64);
        assert!(arabic.contains(&format!("{FSI}ma.rabat.example/feed/1{PDI}")), "{arabic}");
        assert!(arabic.contains(&format!("{FSI}7{PDI}")), "{arabic}");
        for lang in [Lang::Fr, Lang::En] {
            let text =
                localize!(Messages::new(lang), "published-place", feed = "ma.rabat.example/feed/1", place = 7_u64);
            assert!(!text.contains([FSI, PDI]), "{text}");
            assert!(text.contains("ma.rabat.example/feed/1"));
        }
    }

    #[test]
    fn inserted_value_cannot_break_line_or_isolate() {
        let hostile = "a\u{1b}[2J\u{202e}b\u{2069}c\nd\u{9b}e";
        let messages = Messages::new(Lang::Ar);
        let text = localize!(messages, "published-place", feed = hostile, place = 1_u64);
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\n', '\u{9b}']), "{text:?}");
        assert_eq!(text.matches(FSI).count(), text.matches(PDI).count());
        assert_eq!(clean("نص عربي"), "نص عربي");
    }

    #[test]
    fn first_known_locale_is_chosen() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(Lang::choose([None, some("fr_NE.UTF-8"), some("en")]), Lang::Fr);
        assert_eq!(Lang::choose([some("C"), some("ar_MA")]), Lang::Ar);
        assert_eq!(Lang::choose([some("de_DE"), None]), Lang::En);
        assert_eq!("AR-tn".parse(), Ok(Lang::Ar));
    }

    #[test]
    fn unknown_term_is_printed_verbatim() {
        let messages = Messages::new(Lang::Fr);
        assert_eq!(messages.term("severity", "Severe"), "grave");
        assert_eq!(messages.term("severity", "Cosmic"), "Cosmic");
        assert_eq!(messages.term("severity", "\u{1b}x"), "\u{FFFD}x");
        assert_eq!(clean(&format!("{FSI}tn{PDI} \u{202e}x")), "tn \u{FFFD}x", "isolates of ours leave no mark");
    }
}
