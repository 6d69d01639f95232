//! Widths of text on a terminal, and line breaks in prose.
//!
//! In scope: the columns of a text (wide characters, combining marks, styles), and breaking a text
//! so that every line fits. Out of scope: columns of a table (`table`), and what is printed.
//!
//! Lines are broken at spaces, and between wide characters, which are written without spaces. A
//! path, an address or a digest is never broken, and neither is a line that is a command: they are
//! copied.

use unicode_width::UnicodeWidthChar;

use super::messages::{FSI, PDI};

/// Separates the items of [`items`].
const SEPARATOR: &str = " · ";
/// Narrowest room for a text beside its prefix: the narrowest width, less a wide prefix.
const ROOM_MIN: usize = 16;
/// Symbols that begin an item of a list. Its further lines are indented as far as its text.
const BULLETS: [&str; 5] = ["• ", "✓ ", "✗ ", "⚠ ", "– "];
/// French puts a space before these, at which no line is broken.
const CLOSING: [char; 5] = [':', ';', '!', '?', '»'];
/// Wide punctuation that does not begin a line.
const NOT_FIRST: &str = "、。，．！？：；）］｝」』】〉》・ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ";
/// Wide punctuation that does not end a line.
const NOT_LAST: &str = "（［｛「『【〈《";
/// First part of a command to copy.
const PROGRAM: &str = "barid";

/// A part of a text that is not broken.
struct Piece<'a> {
    /// Spaces before it.
    spaces: usize,
    text: &'a str,
}

/// Returns the columns of a text on a terminal. Styles, isolates and combining marks have none.
///
/// Each character counts on its own: terminals give a cell to every letter, also where a font joins
/// two (Arabic lam and alef).
#[must_use]
pub(super) fn columns(text: &str) -> usize {
    visible(text).map(|(_, c)| c.width().unwrap_or(0)).sum()
}

/// Returns the columns of the widest part of a text that is not broken.
#[must_use]
pub(super) fn widest_part(text: &str) -> usize {
    text.split('\n').flat_map(pieces).map(|piece| columns(piece.text)).max().unwrap_or(0)
}

/// Returns the lines of a text in a width. Spaces and a bullet at its beginning indent all lines.
#[must_use]
pub(super) fn lines(text: &str, width: usize) -> Vec<String> {
    let spaces = text.len() - text.trim_start_matches(' ').len();
    let style = text[spaces..].strip_prefix('\u{1b}').and_then(|rest| rest.find('m')).map_or(0, |end| end + 2);
    let start = spaces + style;
    let bullet = BULLETS.iter().find(|bullet| text[start..].starts_with(**bullet)).map_or(0, |bullet| bullet.len());
    let (prefix, rest) = text.split_at(if bullet > 0 { start + bullet } else { spaces });
    hanging(prefix, rest, width)
}

/// Returns the lines of a text after a prefix. All lines begin at the same column.
#[must_use]
pub(super) fn hanging(prefix: &str, text: &str, width: usize) -> Vec<String> {
    indented(prefix, &" ".repeat(columns(prefix)), text, width)
}

/// Returns the lines of a text in a width; the first begins with `first`, the others with `others`.
#[must_use]
pub(super) fn indented(first: &str, others: &str, text: &str, width: usize) -> Vec<String> {
    let room = width.saturating_sub(columns(first).max(columns(others))).max(ROOM_MIN);
    let broken = text.split('\n').flat_map(|paragraph| broken(paragraph, room));
    let mut prefix = first;
    let mut lines = Vec::new();
    for line in broken {
        lines.push(format!("{prefix}{line}").trim_end().to_owned());
        prefix = others;
    }
    lines
}

/// Returns items on as few indented lines as possible. An item is broken only if it is wider than a
/// line; empty ones are left out.
#[must_use]
pub(super) fn items(indent: &str, items: impl IntoIterator<Item = String>, width: usize) -> Vec<String> {
    let room = width.saturating_sub(columns(indent)).max(ROOM_MIN);
    let mut joined: Vec<String> = Vec::new();
    for item in items.into_iter().filter(|item| !item.is_empty()) {
        match joined.last_mut() {
            Some(line) if columns(line) + columns(SEPARATOR) + columns(&item) <= room => {
                line.push_str(SEPARATOR);
                line.push_str(&item);
            }
            _ => joined.push(item),
        }
    }
    joined.iter().flat_map(|line| hanging(indent, line, width)).collect()
}

/// Breaks one paragraph. An isolate ends with its paragraph (UAX #9), and for a terminal every line
/// is one: it is closed at the end of a line and opened again on the next.
fn broken(paragraph: &str, room: usize) -> Vec<String> {
    if is_command(paragraph) {
        // Isolates would be copied with it, and a line without text of another direction needs none.
        return vec![paragraph.replace([FSI, PDI], "")];
    }
    let (mut lines, mut line) = (Vec::new(), String::new());
    let (mut used, mut open) = (0, 0_usize);
    for piece in pieces(paragraph) {
        let wide = columns(piece.text);
        if used > 0 && used + piece.spaces + wide > room {
            line.extend(std::iter::repeat_n(PDI, open));
            lines.push(std::mem::take(&mut line));
            line.extend(std::iter::repeat_n(FSI, open));
            used = 0;
        } else {
            line.extend(std::iter::repeat_n(' ', piece.spaces));
            used += piece.spaces;
        }
        line.push_str(piece.text);
        used += wide;
        open = piece.text.chars().fold(open, |open, c| match c {
            FSI => open + 1,
            PDI => open.saturating_sub(1),
            _ => open,
        });
    }
    lines.push(line);
    lines
}

/// Returns whether a line is a command to copy.
fn is_command(paragraph: &str) -> bool {
    let rest = paragraph.trim_start_matches([FSI, ' ']).strip_prefix(PROGRAM);
    rest.is_some_and(|rest| rest.starts_with(' '))
}

/// Splits a paragraph into the parts that are not broken.
fn pieces(paragraph: &str) -> Vec<Piece<'_>> {
    let (mut found, mut rest) = (Vec::new(), paragraph);
    loop {
        let part = rest.trim_start_matches(' ');
        if part.is_empty() {
            return found;
        }
        let mut spaces = rest.len() - part.len();
        let mut end = unspaced_len(part);
        while is_joined(&part[..end], &part[end..]) {
            let after = part[end..].trim_start_matches(' ');
            end = part.len() - after.len() + unspaced_len(after);
        }
        for text in split_wide(&part[..end]) {
            found.push(Piece { spaces, text });
            spaces = 0;
        }
        rest = &part[end..];
    }
}

fn unspaced_len(text: &str) -> usize {
    text.find(' ').unwrap_or(text.len())
}

/// Returns whether no line is broken at the spaces between two parts of a text.
fn is_joined(before: &str, after: &str) -> bool {
    let after = after.trim_start_matches([' ', FSI, PDI]);
    let last = before.rsplit(' ').next().unwrap_or_default().trim_matches([FSI, PDI, '`', '(']);
    !after.is_empty() && (after.starts_with(CLOSING) || last == PROGRAM || last.ends_with('«'))
}

/// Splits a part between its wide characters.
fn split_wide(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut before) = (Vec::new(), 0, None::<char>);
    for (at, c) in visible(text).filter(|(_, c)| c.width().is_some_and(|width| width > 0)) {
        let is_wide = |c: char| c.width() == Some(2);
        if before.is_some_and(|before| (is_wide(before) || is_wide(c)) && !NOT_LAST.contains(before))
            && !NOT_FIRST.contains(c)
        {
            parts.push(&text[start..at]);
            start = at;
        }
        before = Some(c);
    }
    parts.push(&text[start..]);
    parts
}

/// Returns the characters of a text, each with its byte offset, without styles (`ESC [ … m`).
fn visible(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut in_style = false;
    text.char_indices().filter(move |(_, c)| {
        let begins = *c == '\u{1b}';
        let is_part = in_style || begins;
        in_style = begins || in_style && *c != 'm';
        !is_part
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_counts_cells() {
        assert_eq!(columns("état"), 4);
        assert_eq!(columns("e\u{301}tat"), 4, "a combining accent");
        assert_eq!(columns("سَلَام"), 4, "marks above letters");
        assert_eq!(columns("الأعضاء"), 7, "lam and alef are two cells");
        assert_eq!(columns("東京"), 4);
        assert_eq!(columns(&format!("{FSI}ab{PDI}")), 2);
        assert_eq!(columns("\u{1b}[1;31mred\u{1b}[0m man"), 7);
    }

    #[test]
    fn prose_wraps_at_spaces() {
        let text = "The node rejected the content; nothing was stored.";
        assert_eq!(lines(text, 22), ["The node rejected the", "content; nothing was", "stored."]);
        for width in 16..60 {
            let lines = lines(text, width);
            assert!(lines.iter().all(|line| columns(line) <= width), "{width}: {lines:?}");
            assert_eq!(lines.join(" "), text);
        }
        assert_eq!(lines("", 40), [""]);
        assert_eq!(lines("one\ntwo three four five", 18), ["one", "two three four", "five"]);
    }

    #[test]
    fn indentation_and_bullets_hang() {
        assert_eq!(lines("  ✓ Tunis since today at noon", 24), ["  ✓ Tunis since today at", "    noon"]);
        let styled = "  \u{1b}[1m⚠ one two three four five\u{1b}[0m";
        assert_eq!(lines(styled, 20)[1], "    four five\u{1b}[0m");
        assert_eq!(hanging("  why: ", "one two three four", 25), ["  why: one two three four"]);
        assert_eq!(hanging("  why: ", "one two three four", 24), ["  why: one two three", "       four"]);
    }

    #[test]
    fn arabic_wraps_with_diacritics_and_balanced_isolates() {
        let text = format!("نشرها {FSI}ne.rabat.example/feed/1 in the feed of Niamey{PDI} في السِّجِلِّ الرئيسي للعضو");
        let lines = lines(&text, 30);
        assert!(lines.len() > 2, "{lines:?}");
        for line in &lines {
            assert!(columns(line) <= 30, "{line:?}");
            assert_eq!(line.matches(FSI).count(), line.matches(PDI).count(), "{line:?}");
            assert!(!line.starts_with('\u{651}'), "a mark stays with its letter: {line:?}");
        }
        let plain = |text: &str| text.replace([FSI, PDI], "");
        assert_eq!(plain(&lines.join(" ")), plain(&text));
    }

    #[test]
    fn wide_characters_wrap_without_spaces() {
        let text = "東京で旅券が盗まれた。注意せよ";
        let lines = lines(text, 16);
        assert_eq!(lines.concat(), text);
        assert!(lines.len() == 2 && lines.iter().all(|line| columns(line) <= 16), "{lines:?}");
        assert_eq!(super::lines("東京東京東京東京。", 16), ["東京東京東京東", "京。"], "a full stop begins no line");
    }

    #[test]
    fn digests_paths_and_commands_are_not_broken() {
        let digest = "a1".repeat(32);
        assert_eq!(lines(&format!("root {digest} of"), 40), ["root", digest.as_str(), "of"]);
        let command = format!("  barid --profile client.toml history --limit 50 --before {digest}");
        assert_eq!(lines(&command, 40), [command.as_str()]);
        assert_eq!(lines(&format!("{FSI}barid show ne/1{PDI}"), 40), ["barid show ne/1"], "to be copied");
        assert_eq!(lines("To list the commands: barid --help", 30), ["To list the commands:", "barid --help"]);
        assert_eq!(widest_part("to barid show 0197"), "barid show".len());
    }

    #[test]
    fn french_punctuation_stays_with_its_text() {
        assert_eq!(lines("que faire : « rien »", 11)[0], "que faire :");
        let broken = lines("Il est maintenant là : voyez « ceci » !", 20);
        assert_eq!(broken, ["Il est maintenant", "là : voyez", "« ceci » !"]);
    }

    #[test]
    fn items_are_joined_while_they_fit() {
        let items = |width| super::items("  ", ["ne (Niger)", "", "active", "TLP:GREEN"].map(str::to_owned), width);
        assert_eq!(items(80), ["  ne (Niger) · active · TLP:GREEN"]);
        assert_eq!(items(24), ["  ne (Niger) · active", "  TLP:GREEN"]);
    }
}
