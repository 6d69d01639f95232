//! Renders the state of a bulletin and of the bulletins that it refers to.
//!
//! In scope: text for both, as the node found them. Out of scope: how the node finds them (`api`).

use barid_core::proto;
use owo_colors::Style;

use super::bulletin_ref::short;
use super::localize;
use super::messages::clean;
use super::render::{Reading, Render, headline_in};

impl Render<'_> {
    /// Returns the state as text: `cancelled (recovered) by ne/0197…`.
    #[must_use]
    pub(super) fn state(&self, state: Option<&proto::State>) -> String {
        let messages = self.messages();
        let Some(state) = state.filter(|state| !state.state.is_empty()) else { return messages.text("state-unknown") };
        let term = messages.term("state", &state.state);
        let by = state.by.as_ref().map(name).unwrap_or_default();
        let text = match (by.as_str(), state.reason.as_str()) {
            ("", _) => term,
            (by, "") => localize!(messages, "state-by", state = term, by = by),
            (by, reason) => {
                let reason = messages.term("reason", reason);
                localize!(messages, "state-because", state = term, reason = reason, by = by)
            }
        };
        if state.partial { format!("{text} {}", messages.text("state-perhaps-newer")) } else { text }
    }

    /// Returns the state's term alone, for a column.
    #[must_use]
    pub(super) fn state_label(&self, state: Option<&proto::State>) -> String {
        let term = state.map(|state| state.state.as_str()).filter(|term| !term.is_empty());
        term.map_or_else(|| self.messages().text("state-unknown"), |term| self.messages().term("state", term))
    }

    /// Returns the bulletins that this one updates, cancels or acknowledges, one a line.
    #[must_use]
    pub(super) fn about(&self, reading: &Reading<'_>) -> Vec<String> {
        let messages = self.messages();
        let line = |about: &proto::Referenced| {
            let mut bulletin = about.reference.as_ref().map(name).unwrap_or_default();
            // The effect of this bulletin itself is clear from its type.
            let own = |state: &&proto::State| state.by.as_ref().is_some_and(|by| by.id == reading.id());
            let state = about.state.as_ref().filter(|state| state.state != "active").filter(|state| !own(state));
            if state.is_some() {
                bulletin = format!("{bulletin} ({})", self.state_label(state));
            }
            let headline = headline_in(&about.headlines, messages.lang().code()).unwrap_or_default();
            let id = match reading.msg_type() {
                _ if !about.held => "about-not-held",
                "Cancel" if about.changes_state => "about-cancel",
                "Update" if about.changes_state => "about-update",
                "Cancel" | "Update" => "about-no-effect",
                "Ack" => "about-ack",
                _ => "about-other",
            };
            localize!(messages, id, bulletin = &bulletin, headline = headline)
        };
        reading.referenced().iter().map(line).collect()
    }
}

/// Returns the style of a state: a bulletin that is no longer valid must not look like a valid one.
pub(super) fn style(state: Option<&proto::State>) -> Style {
    match state.map(|state| state.state.as_str()) {
        Some("cancelled") => Style::new().red().bold(),
        Some("superseded" | "expired") => Style::new().yellow(),
        Some("active") => Style::new().green(),
        _ => Style::new().bold(),
    }
}

/// Returns member and short id: `ne/01976f6e-7c00`.
pub(super) fn name(reference: &proto::Reference) -> String {
    clean(&format!("{}/{}", reference.member, short(&reference.id)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::bulletin::kinds;
    use barid_core::envelope;

    use super::*;
    use crate::cli::Context;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;
    use crate::cli::profile::Directory;

    const BY: &str = "01976f6e-7d00-7000-8000-00000000000c";
    const SHORT: &str = "01976f6e-7d00";

    fn delivery(kind: &str, state: Option<proto::State>, referenced: Vec<proto::Referenced>) -> proto::Delivery {
        let draft = kinds::find(kind).unwrap().sample().unwrap();
        let envelope = envelope::encode(draft.header.as_ref().unwrap(), draft.body.as_ref().unwrap(), [7; 16]);
        proto::Delivery { offset: 7, envelope, state, referenced, ..Default::default() }
    }

    fn state(term: &str, reason: &str, partial: bool) -> proto::State {
        let by = proto::Reference { member: "ne".into(), id: BY.into(), ..Default::default() };
        let by = ["cancelled", "superseded"].contains(&term).then_some(by);
        proto::State { state: term.into(), by, reason: reason.into(), partial, ..Default::default() }
    }

    fn referenced(held: bool, changes_state: bool) -> proto::Referenced {
        let reference = Some(proto::Reference { member: "ne".into(), id: BY.into(), ..Default::default() });
        let headlines = [("FR-ne", "Passeport volé"), ("EN", "Passport\u{1b}[2J stolen"), ("Ar", "جواز")];
        let headlines = headlines.map(|(language, headline)| proto::Text {
            language: language.into(),
            headline: headline.into(),
            ..Default::default()
        });
        let headlines = if held { headlines.to_vec() } else { Vec::new() };
        proto::Referenced { reference, held, changes_state, headlines, state: None }
    }

    /// Returns the forms in which a bulletin is shown, each as one text.
    fn surfaces(lang: Lang, delivery: &proto::Delivery) -> [String; 2] {
        let context = Context::new(Messages::new(lang), Output::plain(), None);
        let render = Render::new(&context, Directory::of("ne".parse().unwrap()));
        let reading = Reading::new(delivery);
        [render.brief(&reading), render.list(std::slice::from_ref(&reading))].map(|lines| lines.join("\n"))
    }

    #[test]
    fn inactive_state_is_marked_in_every_format_and_language() {
        for (lang, terms) in [
            (Lang::Ar, ["سارية", "ملغاة", "مستبدلة", "منتهية"]),
            (Lang::Fr, ["actif", "annulé", "remplacé", "expiré"]),
            (Lang::En, ["active", "cancelled", "superseded", "expired"]),
        ] {
            let messages = Messages::new(lang);
            let states = ["active", "cancelled", "superseded", "expired"];
            for (name, _) in states.into_iter().zip(terms) {
                let term = messages.term("state", name);
                assert_ne!((term.as_str(), lang == Lang::En), (name, false), "{lang:?} has its own text");
                let held = delivery("situation-report", Some(state(name, "", false)), Vec::new());
                for text in surfaces(lang, &held) {
                    assert!(text.contains(&term), "{lang:?} {name}: {text}");
                    assert_eq!(text.contains(SHORT), ["cancelled", "superseded"].contains(&name), "{text}");
                    assert!(!text.contains(BY), "{text}");
                }
            }
            let cancelled = delivery("situation-report", Some(state("cancelled", "recovered", true)), Vec::new());
            for text in surfaces(lang, &cancelled) {
                assert!(text.contains(&messages.term("reason", "recovered")), "{lang:?} states the reason: {text}");
                assert!(text.contains(&messages.text("state-perhaps-newer")), "{lang:?}: {text}");
            }
            for text in surfaces(lang, &delivery("situation-report", None, Vec::new())) {
                assert!(text.contains(&messages.text("state-unknown")), "a node that reports no state: {text}");
            }
        }
    }

    #[test]
    fn cancellation_names_its_target_or_has_no_effect() {
        let english =
            |about| surfaces(Lang::En, &delivery("cancellation", Some(state("active", "", false)), vec![about]));
        for (about, expected) in [
            (referenced(true, true), format!("Cancels ne/{SHORT}: Passport\u{fffd}[2J stolen")),
            (referenced(true, false), format!("Has no effect on ne/{SHORT}: Passport")),
            (referenced(false, false), format!("Refers to ne/{SHORT}, which is not stored here")),
        ] {
            for text in english(about) {
                assert!(text.contains(&expected), "{expected}: {text}");
            }
        }
        let about = vec![referenced(true, true)];
        let french = surfaces(Lang::Fr, &delivery("cancellation", None, about.clone()));
        assert!(
            french.iter().all(|text| text.contains("Passeport volé")),
            "language tags differ in case only: {french:?}"
        );
        let object = Reading::new(&delivery("cancellation", Some(state("active", "", false)), about)).json();
        assert_eq!(object["referenced"][0]["changesState"], true);
        assert_eq!(
            (&object["referenced"][0]["reference"]["id"], &object["state"]["state"]),
            (&BY.into(), &"active".into())
        );
    }
}
