//! Standard output and error output: text for readers, or JSON for scripts.
//!
//! In scope: both outputs, colours, widths, tables. JSON is one object a line, in the protobuf JSON
//! mapping if the object is a message. Out of scope: localized text (`messages`), and the layout of
//! a bulletin (`render`).

use std::io::{self, Write};

use owo_colors::{OwoColorize, Stream, Style};
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::failure::Failure;

/// Narrowest width to which a table is fitted; a narrower terminal wraps lines.
const WIDTH_MIN: usize = 40;
/// Width without a terminal: lines in files and pipes are not cut.
const WIDTH_PIPE: usize = 100_000;

/// The two outputs and their format.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    colour: bool,
    colour_on_error: bool,
    width: usize,
    #[cfg(test)]
    captured: Option<Captured>,
}

/// Memory that receives both outputs of a test, in order.
#[cfg(test)]
pub(crate) type Captured = std::sync::Arc<parking_lot::Mutex<Vec<u8>>>;

impl Output {
    /// Detects the format from the environment: NO_COLOR, terminals, widths.
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

    /// Returns a text output without colours and without cutting.
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

    /// Returns a plain or JSON output into memory, for tests.
    #[cfg(test)]
    pub(crate) fn captured(json: bool) -> (Self, Captured) {
        let captured = Captured::default();
        (Self { json, captured: Some(captured.clone()), ..Self::plain() }, captured)
    }

    /// Returns whether the output is JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns the columns of the terminal, or a very large number if there is none.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns whether the error output shows colours.
    #[must_use]
    pub fn colour_on_error(&self) -> bool {
        self.colour_on_error
    }

    /// Returns `text` in a style, if standard output shows styles.
    #[must_use]
    pub fn paint(&self, text: &str, style: Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_owned() }
    }

    /// Returns `text` in a style, if the error output shows styles.
    #[must_use]
    pub fn paint_error(&self, text: &str, style: Style) -> String {
        if self.colour_on_error { text.style(style).to_string() } else { text.to_owned() }
    }

    /// Writes one line to standard output and flushes it, so that the reader of a pipe sees it at
    /// once.
    ///
    /// # Errors
    /// Returns [`Failure::closed_output`] if the reader has closed the pipe.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Writes lines to standard output.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn lines<T: AsRef<str>>(&self, lines: impl IntoIterator<Item = T>) -> Result<(), Failure> {
        lines.into_iter().try_for_each(|line| self.line(line.as_ref()))
    }

    /// Writes one object as a line of JSON to standard output.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json(&self, object: &Value) -> Result<(), Failure> {
        self.line(&escaped(object))
    }

    /// Writes one object as a line of JSON to the error output.
    pub fn error_json(&self, object: &Value) {
        self.error_line(&escaped(object));
    }

    /// Writes bytes unchanged to standard output and flushes them.
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

    /// Returns labels and values, one pair a line; pairs with an empty value are left out.
    #[must_use]
    pub fn block(&self, pairs: &[(String, String)]) -> Vec<String> {
        let nonempty: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
        let width = nonempty.iter().map(|(label, _)| label.width()).max().unwrap_or(0);
        let line = |(label, value): &&(String, String)| {
            let column_spacing = " ".repeat(width - label.width() + 2);
            format!("{}{column_spacing}{value}", self.paint(label, Style::new().dimmed()))
        };
        nonempty.iter().map(line).collect()
    }

    /// Writes one line to the error output. A failure to write there cannot be reported.
    pub fn error_line(&self, text: &str) {
        #[cfg(test)]
        if let Some(captured) = &self.captured {
            captured.lock().extend_from_slice(format!("{text}\n").as_bytes());
            return;
        }
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Returns an object as one line of JSON. Characters that drive terminals, change the direction of
/// text or are invisible are escaped; outside of strings JSON has none of them.
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

/// Returns whether `c` is a line separator, a direction mark, another format character, or a tag.
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

/// Text of a table cell, and its style. Widths count the text only.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Creates a cell with a style. The text must be one clean line (`messages::clean`).
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

/// Rows under headings. The last column is cut to fit the width.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Creates a table with headings.
    #[must_use]
    pub fn new(headings: impl IntoIterator<Item = String>) -> Self {
        let bold = Style::new().bold();
        Self { rows: vec![headings.into_iter().map(|text| Cell::styled(text, bold)).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns the lines of the table.
    #[must_use]
    pub fn lines(&self, output: &Output) -> Vec<String> {
        const COLUMN_SPACING: usize = 2;
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|n| self.rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.text.width()).max().unwrap_or(0))
            .collect();
        let before_last: usize = widths.iter().rev().skip(1).map(|width| width + COLUMN_SPACING).sum();
        let room = output.width().saturating_sub(before_last).max(WIDTH_MIN / 2);
        let line = |row: &Vec<Cell>| {
            let mut line = String::new();
            for (n, cell) in row.iter().enumerate() {
                let last = n + 1 == columns;
                let text = if last { cut(&cell.text, room) } else { cell.text.clone() };
                line.push_str(&output.paint(&text, cell.style));
                if !last {
                    line.extend(std::iter::repeat_n(' ', widths[n] - cell.text.width() + COLUMN_SPACING));
                }
            }
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// Returns `text` in at most `width` columns, with `…` at the end if it was cut. An open isolate is
/// closed.
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
