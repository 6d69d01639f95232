//! Whether the terminal implements the isolates of UAX #9 (U+2066 to U+2069).
//!
//! In scope: `BARID_BIDI=auto|on|off`, and terminals that are known. Out of scope: where isolates
//! are put (`messages`). A terminal cannot be asked; one that does not implement isolates shows them
//! as boxes, or gives them columns.

/// The variable that decides. Any other value, and none, is `auto`.
const VARIABLE: &str = "BARID_BIDI";
/// First version of VTE (GNOME Terminal and others) with bidirectional text: 0.58.
const VTE_VERSION_MIN: u32 = 5_800;
/// First version of mintty with bidirectional paragraphs and isolates.
const MINTTY_VERSION_MIN: u32 = 3;

/// Returns whether inserted values may be isolated in this session.
#[must_use]
pub(super) fn implements_isolates() -> bool {
    by_environment(|name| std::env::var(name).ok())
}

fn by_environment(variable: impl Fn(&str) -> Option<String>) -> bool {
    match variable(VARIABLE).map(|choice| choice.to_ascii_lowercase()).as_deref() {
        Some("on") => true,
        Some("off") => false,
        _ => is_known_terminal(variable),
    }
}

fn is_known_terminal(variable: impl Fn(&str) -> Option<String>) -> bool {
    let text = |name: &str| variable(name).unwrap_or_default();
    let terminal = text("TERM");
    // A multiplexer inherits the variables of the terminal around it, and lays out cells itself.
    let multiplexed = ["TMUX", "STY"].into_iter().any(|name| variable(name).is_some());
    if multiplexed || ["tmux", "screen", "dumb", "linux"].into_iter().any(|name| terminal.starts_with(name)) {
        return false;
    }
    let version = |name: &str| text(name).split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0_u32);
    terminal.starts_with("mlterm")
        || version("VTE_VERSION") >= VTE_VERSION_MIN
        || text("TERM_PROGRAM") == "mintty" && version("TERM_PROGRAM_VERSION") >= MINTTY_VERSION_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(variables: &[(&str, &str)]) -> bool {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        by_environment(|name| value(name).map(str::to_owned))
    }

    #[test]
    fn only_known_terminals_get_isolates() {
        for known in [
            &[("TERM", "xterm-256color"), ("VTE_VERSION", "5800")][..],
            &[("VTE_VERSION", "7600"), ("BARID_BIDI", "auto")],
            &[("TERM", "mlterm-256color")],
            &[("TERM_PROGRAM", "mintty"), ("TERM_PROGRAM_VERSION", "3.7.1")],
        ] {
            assert!(decided(known), "{known:?}");
        }
        for other in [
            &[][..],
            &[("TERM", "xterm-256color")],
            &[("VTE_VERSION", "5402")],
            &[("VTE_VERSION", "new")],
            &[("TERM_PROGRAM", "mintty"), ("TERM_PROGRAM_VERSION", "2.9.5")],
            &[("TERM_PROGRAM", "Apple_Terminal")],
            &[("TERM", "linux"), ("VTE_VERSION", "7600")],
            &[("TERM", "xterm-256color"), ("VTE_VERSION", "7600"), ("TMUX", "/tmp/tmux-0/default,1,0")],
            &[("TERM", "screen.xterm-256color"), ("VTE_VERSION", "7600")],
        ] {
            assert!(!decided(other), "{other:?}");
        }
    }

    #[test]
    fn variable_decides_for_any_terminal() {
        assert!(decided(&[("BARID_BIDI", "on")]));
        assert!(decided(&[("BARID_BIDI", "ON"), ("TERM", "screen")]));
        assert!(!decided(&[("BARID_BIDI", "off"), ("VTE_VERSION", "7600")]));
        assert!(decided(&[("BARID_BIDI", "perhaps"), ("VTE_VERSION", "7600")]));
    }
}
