//! What became of a bulletin, and what it is about, in words.
//!
//! In scope: a state and the bulletins that another one refers to, as the node found them. Out of scope: how they are found (`api`).

use barid_core::proto;
use owo_colors::Style;

use super::messages::clean;
use super::render::{Reading, Render, headline_in};
use super::say;

impl Render<'_> {
    /// `cancelled (recovered) by ne/0197…`.
    #[must_use]
    pub(super) fn state(&self, state: Option<&proto::State>) -> String {
        let messages = self.messages();
        let Some(state) = state.filter(|state| !state.state.is_empty()) else { return messages.text("state-unknown") };
        let word = messages.word("state", &state.state);
        let by = state.by.as_ref().map(name).unwrap_or_default();
        let told = match (by.as_str(), state.reason.as_str()) {
            ("", _) => word,
            (by, "") => say!(messages, "state-by", state = word, by = by),
            (by, reason) => {
                let reason = messages.word("reason", reason);
                say!(messages, "state-because", state = word, reason = reason, by = by)
            }
        };
        if state.partial { format!("{told} {}", messages.text("state-perhaps-newer")) } else { told }
    }

    /// The word alone, for a column.
    #[must_use]
    pub(super) fn state_word(&self, state: Option<&proto::State>) -> String {
        let word = state.map(|state| state.state.as_str()).filter(|word| !word.is_empty());
        word.map_or_else(|| self.messages().text("state-unknown"), |word| self.messages().word("state", word))
    }

    /// What a bulletin updates, cancels or answers, one line each.
    #[must_use]
    pub(super) fn about(&self, reading: &Reading<'_>) -> Vec<String> {
        let messages = self.messages();
        let line = |about: &proto::Referenced| {
            let bulletin = about.reference.as_ref().map(name).unwrap_or_default();
            let headline = headline_in(&about.headlines, messages.lang().code()).unwrap_or_default();
            let id = match reading.msg_type() {
                _ if !about.held => "about-not-held",
                "Cancel" if about.changes_state => "about-cancel",
                "Update" if about.changes_state => "about-update",
                "Cancel" | "Update" => "about-no-effect",
                "Ack" => "about-ack",
                _ => "about-other",
            };
            say!(messages, id, bulletin = &bulletin, headline = headline)
        };
        reading.referenced().iter().map(line).collect()
    }
}

/// How a state is made visible: what no longer holds must not look as what does.
pub(super) fn style(state: Option<&proto::State>) -> Style {
    match state.map(|state| state.state.as_str()) {
        Some("cancelled") => Style::new().red().bold(),
        Some("superseded" | "expired") => Style::new().yellow(),
        Some("active") => Style::new().green(),
        _ => Style::new().bold(),
    }
}

/// `ne/0197…`.
pub(super) fn name(reference: &proto::Reference) -> String {
    clean(&format!("{}/{}", reference.member, reference.id))
}
