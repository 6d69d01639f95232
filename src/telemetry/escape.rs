//! Escapes and cuts foreign text in records, log lines and alarms.
//!
//! In scope: which characters are escaped, and how much of a value is written. Out of scope: where
//! values are written (`lines`).

use std::fmt::{self, Write as _};

/// Most characters of a value that are written: a chain of causes, or some file names. Of the rest
/// only the length is written.
pub const VALUE_CHARS_MAX: usize = 1_000;

/// Formats foreign text for people: at most [`VALUE_CHARS_MAX`] characters, hidden ones escaped.
pub struct Foreign<'a>(pub &'a dyn fmt::Display);

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escaped(f, &cut(format_args!("{}", self.0)))
    }
}

/// Whether a character could mislead a terminal, a line parser or a person: controls (C0, DEL, C1),
/// line and paragraph separators, and characters that change the direction of text or are
/// invisible.
pub(super) fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Writes text with its hidden characters escaped.
pub(super) fn escaped(out: &mut impl fmt::Write, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if needs_escape(c) => write!(out, "\\u{{{:x}}}", u32::from(c)),
        c => out.write_char(c),
    })
}

/// Returns the beginning of a value, and its length if it was cut.
pub(super) fn cut(value: fmt::Arguments<'_>) -> String {
    let mut beginning = Beginning { text: String::new(), remaining: VALUE_CHARS_MAX, bytes: 0 };
    // If a value's formatter fails, write what it produced.
    let _ = beginning.write_fmt(value);
    let Beginning { mut text, bytes, .. } = beginning;
    if bytes > text.len() {
        let _ = write!(text, "… ({bytes} bytes)");
    }
    text
}

/// Accepts text of any length and stores the beginning.
struct Beginning {
    text: String,
    /// Characters that still fit.
    remaining: usize,
    /// Bytes received in total.
    bytes: usize,
}

impl fmt::Write for Beginning {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.bytes += part.len();
        for c in part.chars().take(self.remaining) {
            self.text.push(c);
            self.remaining -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped() {
        let unsafe_text =
            "a\nb\r\u{1b}[31m\u{9b}2J\u{85}\u{7f}\u{0}\u{2028}\u{2029}\u{202e}\u{2066}\u{200f}\u{feff}\u{e0041}z";
        let output = Foreign(&unsafe_text).to_string();
        assert!(!output.chars().any(needs_escape), "{output}");
        assert!(output.starts_with("a\\nb\\r\\u{1b}[31m\\u{9b}2J\\u{85}") && output.ends_with('z'), "{output}");
        assert_eq!(Foreign(&"حرس الحدود – Zürich").to_string(), "حرس الحدود – Zürich");
    }

    #[test]
    fn foreign_text_is_truncated_with_its_length() {
        assert_eq!(Foreign(&"x".repeat(VALUE_CHARS_MAX)).to_string(), "x".repeat(VALUE_CHARS_MAX));
        let output = Foreign(&"é".repeat(4 << 20)).to_string();
        assert_eq!(output, format!("{}… (8388608 bytes)", "é".repeat(VALUE_CHARS_MAX)));
    }
}
