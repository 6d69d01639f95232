//! Where the program writes: one form for people, one for machines.
//!
//! In scope: standard output and error, colours, widths, tables. Out of scope: words (`messages`) and what a bulletin looks like
//! (`render`). For machines: one JSON object a line, in the protobuf JSON mapping where the object is a message.

use std::io::{self, Write};

use owo_colors::{OwoColorize, Stream, Style};
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::failure::Failure;

/// Narrowest line that a table is fitted to; below it terminals may wrap.
const WIDTH_MIN: usize = 40;
/// Width where no terminal tells one: files and pipes are not cut.
const WIDTH_PIPE: usize = 100_000;

/// The two outputs and how to write on them.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    colour: bool,
    colour_on_error: bool,
    width: usize,
    #[cfg(test)]
    captured: Option<Captured>,
}

/// What a test sees in place of the process's own outputs, both in order.
#[cfg(test)]
pub(crate) type Captured = std::sync::Arc<parking_lot::Mutex<Vec<u8>>>;

impl Output {
    /// As the environment asks: NO_COLOR, terminals, widths.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let probe = |stream| "x".if_supports_color(stream, |text| text.bold()).to_string() != "x";
        let width = terminal_size::terminal_size().map_or(WIDTH_PIPE, |(width, _)| usize::from(width.0).max(WIDTH_MIN));
        let mut output = Self::plain();
        output.json = json;
        output.colour = !json && probe(Stream::Stdout);
        output.colour_on_error = probe(Stream::Stderr);
        output.width = width;
        output
    }

    /// For people, without colours, never cut.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            json: false,
            colour: false,
            colour_on_error: false,
            width: WIDTH_PIPE,
            #[cfg(test)]
            captured: None,
        }
    }

    /// For tests: plain or JSON, into memory.
    #[cfg(test)]
    pub(crate) fn captured(json: bool) -> (Self, Captured) {
        let captured = Captured::default();
        (Self { json, captured: Some(captured.clone()), ..Self::plain() }, captured)
    }

    /// Whether machines read.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Columns of the terminal; very many if there is none.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether the error output shows colours.
    #[must_use]
    pub fn colour_on_error(&self) -> bool {
        self.colour_on_error
    }

    /// `text` in a style, if standard output shows styles.
    #[must_use]
    pub fn paint(&self, text: &str, style: Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_owned() }
    }

    /// `text` in a style, if the error output shows styles.
    #[must_use]
    pub fn paint_error(&self, text: &str, style: Style) -> String {
        if self.colour_on_error { text.style(style).to_string() } else { text.to_owned() }
    }

    /// One line on standard output, flushed: a reader at the other end of a pipe sees it at once.
    ///
    /// # Errors
    /// [`Failure::closed_output`] if nobody reads any more.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Lines on standard output.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn lines<T: AsRef<str>>(&self, lines: impl IntoIterator<Item = T>) -> Result<(), Failure> {
        lines.into_iter().try_for_each(|line| self.line(line.as_ref()))
    }

    /// One object as one line of JSON on standard output.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json(&self, object: &Value) -> Result<(), Failure> {
        self.line(&escaped(object))
    }

    /// One object as one line of JSON on the error output.
    pub fn error_json(&self, object: &Value) {
        self.error_line(&escaped(object));
    }

    /// Bytes as they are on standard output, flushed.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        #[cfg(test)]
        if let Some(captured) = &self.captured {
            captured.lock().extend_from_slice(bytes);
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| failed(&error))
    }

    /// Labels and values, one pair a line; pairs with an empty value are left out.
    #[must_use]
    pub fn block(&self, pairs: &[(String, String)]) -> Vec<String> {
        let nonempty: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
        let width = nonempty.iter().map(|(label, _)| label.width()).max().unwrap_or(0);
        let line = |(label, value): &&(String, String)| {
            let column_gap = " ".repeat(width - label.width() + 2);
            format!("{}{column_gap}{value}", self.paint(label, Style::new().dimmed()))
        };
        nonempty.iter().map(line).collect()
    }

    /// One line on the error output. What cannot be written there cannot be told anywhere.
    pub fn error_line(&self, text: &str) {
        #[cfg(test)]
        if let Some(captured) = &self.captured {
            captured.lock().extend_from_slice(format!("{text}\n").as_bytes());
            return;
        }
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// An object as JSON in one line, in which every character is escaped that drives terminals, changes the direction of text or shows nothing.
/// Outside of strings JSON has none of them.
fn escaped(object: &Value) -> String {
    let mut line = String::new();
    for c in object.to_string().chars() {
        if c.is_control() || changes_lines(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| line.push_str(&format!("\\u{unit:04x}")));
        } else {
            line.push(c);
        }
    }
    line
}

/// Whether `c` is a separator of lines, a mark of direction, another format character, or a tag.
fn changes_lines(c: char) -> bool {
    let format = ['\u{ad}', '\u{61c}', '\u{180e}', '\u{feff}'].contains(&c);
    let ranges = ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2060}'..='\u{206f}', '\u{fff9}'..='\u{fffb}'];
    format || ranges.iter().any(|range| range.contains(&c)) || ('\u{e0000}'..='\u{e007f}').contains(&c)
}

fn failed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::closed_output(),
        _ => Failure::new("output").because(error),
    }
}

/// Text in a table, and how to paint it. Widths count the text only.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Text in a style. The text must be one clean line (`messages::clean`).
    #[must_use]
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// Rows under headings, fitted to the width by cutting the last column.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With headings.
    #[must_use]
    pub fn new(headings: impl IntoIterator<Item = String>) -> Self {
        let bold = Style::new().bold();
        Self { rows: vec![headings.into_iter().map(|text| Cell::styled(text, bold)).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self, output: &Output) -> Vec<String> {
        const COLUMN_GAP: usize = 2;
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|n| self.rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.text.width()).max().unwrap_or(0))
            .collect();
        let before_last: usize = widths.iter().rev().skip(1).map(|width| width + COLUMN_GAP).sum();
        let room = output.width().saturating_sub(before_last).max(WIDTH_MIN / 2);
        let line = |row: &Vec<Cell>| {
            let mut line = String::new();
            for (n, cell) in row.iter().enumerate() {
                let last = n + 1 == columns;
                let text = if last { cut(&cell.text, room) } else { cell.text.clone() };
                line.push_str(&output.paint(&text, cell.style));
                if !last {
                    line.extend(std::iter::repeat_n(' ', widths[n] - cell.text.width() + COLUMN_GAP));
                }
            }
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// `text` in at most `width` columns, ended by `…` if it was cut. An open isolate is closed again.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut columns = 0;
    let mut truncated = String::new();
    for c in text.chars() {
        columns += c.width().unwrap_or(0);
        if columns > width.saturating_sub(1) {
            break;
        }
        truncated.push(c);
    }
    truncated.push('…');
    let open =
        truncated.matches(super::messages::FSI).count().saturating_sub(truncated.matches(super::messages::PDI).count());
    truncated.extend(std::iter::repeat_n(super::messages::PDI, open));
    truncated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::messages::{FSI, PDI};

    #[test]
    fn table_aligns_columns_and_truncates_last() {
        let mut table = Table::new(["a".to_owned(), "b".to_owned()]);
        table.row(["long cell".into(), "x".repeat(60).into()]);
        let narrow = Output { width: 50, ..Output::plain() };
        let lines = table.lines(&narrow);
        assert_eq!(lines[0], "a          b");
        assert_eq!(lines[1].width(), 50);
        assert!(lines[1].ends_with('…'));
        assert!(!table.lines(&Output::plain())[1].ends_with('…'));
    }

    #[test]
    fn json_escapes_control_characters_and_round_trips() {
        let text = "\u{1b}[2J \u{7f}\u{9b}31m \u{202e}x\u{2066}y\u{2069} \u{61c}\u{200f}\u{2028} \u{e0041} \u{10ffff} نص é \"\\";
        let object = serde_json::json!({"a": text, "b\u{85}": [text]});
        let line = escaped(&object);
        assert!(line.chars().all(|c| !c.is_control() && !changes_lines(c)), "{line:?}");
        assert!(line.contains("\\u007f\\u009b31m \\u202ex") && line.contains("\\udb40\\udc41"), "{line}");
        assert!(line.contains("نص é"), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON"), object);
    }

    #[test]
    fn isolates_have_zero_width_and_stay_balanced() {
        let text = format!("{FSI}{}{PDI}", "ب".repeat(30));
        assert_eq!(cut(&text, 30), text);
        let cut = cut(&text, 10);
        assert!(cut.ends_with(PDI) && cut.contains('…'));
    }
}
