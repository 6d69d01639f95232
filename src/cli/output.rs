//! Standard output and error output: text for readers, or JSON for scripts.
//!
//! In scope: both outputs, colours, the width, labels with values. Text is wrapped in the width. JSON
//! is one object a line, in the protobuf JSON mapping if the object is a message. Out of scope:
//! localized text (`messages`), where lines are broken (`wrap`), tables (`table`), and the layout of
//! a bulletin (`render`).

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use owo_colors::{OwoColorize, Stream, Style};
use serde_json::Value;

use super::failure::Failure;
use super::wrap::{self, columns};

/// Narrowest width in which text is laid out; a narrower terminal breaks its lines itself.
const WIDTH_MIN: usize = 40;
/// Width of a terminal that does not know its own.
const WIDTH_DEFAULT: usize = 80;
/// Width without a terminal: lines in files and pipes are not wrapped, so that other programs find
/// them whole.
const WIDTH_UNLIMITED: usize = 100_000;
/// Narrowest room for values beside their labels; with less, values are below.
const VALUES_MIN: usize = 20;
/// Indentation of a value below its label.
const VALUE_INDENT: &str = "  ";

/// The two outputs and their format.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    colour: bool,
    colour_on_error: bool,
    width: usize,
    error_width: usize,
    #[cfg(test)]
    captured: Option<Captured>,
}

/// Memory that receives both outputs of a test, in order.
#[cfg(test)]
pub(crate) type Captured = std::sync::Arc<parking_lot::Mutex<Vec<u8>>>;

impl Output {
    /// Detects the format from the environment: NO_COLOR, COLUMNS, terminals and their size.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let probe = |stream| "x".if_supports_color(stream, |text| text.bold()).to_string() != "x";
        let mut output = Self::plain();
        output.json = json;
        output.colour = !json && probe(Stream::Stdout);
        output.colour_on_error = probe(Stream::Stderr);
        output.width = stream_width(&io::stdout());
        output.error_width = stream_width(&io::stderr());
        output
    }

    /// Returns a text output without colours, in which no text is wrapped.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            json: false,
            colour: false,
            colour_on_error: false,
            width: WIDTH_UNLIMITED,
            error_width: WIDTH_UNLIMITED,
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

    /// Returns the columns in which text is laid out on standard output.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the columns in which text is laid out on the error output.
    #[must_use]
    pub fn error_width(&self) -> usize {
        self.error_width
    }

    /// Returns this output with another width.
    #[must_use]
    pub fn with_width(self, width: usize) -> Self {
        Self { width, error_width: width, ..self }
    }

    /// Returns whether the error output shows colours.
    #[must_use]
    pub fn colour_on_error(&self) -> bool {
        self.colour_on_error
    }

    /// Returns `text` in a style, if standard output shows styles.
    #[must_use]
    pub fn paint(&self, text: &str, style: Style) -> String {
        if self.colour && !text.is_empty() { text.style(style).to_string() } else { text.to_owned() }
    }

    /// Returns `text` in a style, if the error output shows styles.
    #[must_use]
    pub fn paint_error(&self, text: &str, style: Style) -> String {
        if self.colour_on_error && !text.is_empty() { text.style(style).to_string() } else { text.to_owned() }
    }

    /// Writes a text to standard output, wrapped in the width, and flushes it, so that the reader of
    /// a pipe sees it at once.
    ///
    /// # Errors
    /// Returns [`Failure::closed_output`] if the reader has closed the pipe.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        let mut lines = wrap::lines(text, self.width).join("\n");
        lines.push('\n');
        self.bytes(lines.as_bytes())
    }

    /// Writes texts to standard output, each as [`Output::line`] does.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn lines<T: AsRef<str>>(&self, lines: impl IntoIterator<Item = T>) -> Result<(), Failure> {
        lines.into_iter().try_for_each(|line| self.line(line.as_ref()))
    }

    /// Writes one line to standard output as it is, however long: it is to be copied.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn verbatim(&self, line: &str) -> Result<(), Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Writes one object as a line of JSON to standard output.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json(&self, object: &Value) -> Result<(), Failure> {
        self.verbatim(&escaped(object))
    }

    /// Writes one object as a line of JSON to the error output.
    pub fn error_json(&self, object: &Value) {
        self.error_verbatim(&escaped(object));
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

    /// Returns labels and values, each value beside its label; pairs with an empty value are left out.
    /// A value that does not fit there is below its label.
    #[must_use]
    pub fn block(&self, pairs: &[(String, String)]) -> Vec<String> {
        let nonempty: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
        let column = nonempty.iter().map(|(label, _)| columns(label)).max().unwrap_or(0) + VALUE_INDENT.len();
        let room = self.width.saturating_sub(column);
        let pair = |(label, value): &&(String, String)| {
            let painted = self.paint(label, Style::new().dimmed());
            if room < VALUES_MIN || wrap::widest_part(value) > room {
                return [vec![painted], wrap::hanging(VALUE_INDENT, value, self.width)].concat();
            }
            let spacing = " ".repeat(column - columns(label));
            wrap::hanging(&format!("{painted}{spacing}"), value, self.width)
        };
        nonempty.iter().flat_map(pair).collect()
    }

    /// Writes a text to the error output, wrapped in the width. A failure to write there cannot be
    /// reported.
    pub fn error_line(&self, text: &str) {
        wrap::lines(text, self.error_width).iter().for_each(|line| self.error_verbatim(line));
    }

    /// Writes one line to the error output as it is.
    pub fn error_verbatim(&self, line: &str) {
        #[cfg(test)]
        if let Some(captured) = &self.captured {
            captured.lock().extend_from_slice(format!("{line}\n").as_bytes());
            return;
        }
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}

/// Returns the width of text on a stream: that of the variable `COLUMNS`, or else of its terminal.
fn stream_width(stream: &(impl AsFd + IsTerminal)) -> usize {
    let terminal = stream.is_terminal().then(|| {
        let size = terminal_size::terminal_size_of(stream);
        size.map_or(0, |(width, _)| usize::from(width.0))
    });
    width_of(std::env::var("COLUMNS").ok().as_deref(), terminal)
}

/// As [`stream_width`], from the variable and the width of the terminal, if there is one.
fn width_of(variable: Option<&str>, terminal: Option<usize>) -> usize {
    let chosen = variable.and_then(|text| text.trim().parse::<usize>().ok()).filter(|width| *width > 0);
    let width = match (chosen, terminal) {
        (Some(width), _) => width,
        (None, Some(0)) => WIDTH_DEFAULT,
        (None, Some(width)) => width,
        (None, None) => WIDTH_UNLIMITED,
    };
    width.clamp(WIDTH_MIN, WIDTH_UNLIMITED)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn width_is_of_variable_terminal_or_default() {
        assert_eq!(width_of(Some("100"), Some(120)), 100);
        assert_eq!(width_of(None, Some(120)), 120);
        for unusable in [None, Some(""), Some("0"), Some("wide"), Some("-3")] {
            assert_eq!(width_of(unusable, None), WIDTH_UNLIMITED, "{unusable:?}: a file or a pipe");
            assert_eq!(width_of(unusable, Some(0)), 80, "a terminal that does not know its size");
        }
        assert_eq!((width_of(Some("80"), None), width_of(Some("10"), None)), (80, 40));
    }

    #[test]
    fn values_are_wrapped_beside_labels_or_below() {
        let digest = "a1".repeat(32);
        let pairs = [("Id", "0197"), ("Alarms", "the disk is full"), ("None", ""), ("Text (SHA-256)", digest.as_str())];
        let pairs = pairs.map(|(label, value)| (label.to_owned(), value.to_owned()));
        let lines = Output::plain().block(&pairs);
        assert_eq!(lines[0], "Id              0197");
        assert_eq!(lines[2], format!("Text (SHA-256)  {digest}"));
        let lines = Output::plain().with_width(40).block(&pairs[..2]);
        assert_eq!(lines, ["Id      0197", "Alarms  the disk is full"]);
        let narrow = Output::plain().with_width(70).block(&pairs);
        assert_eq!(narrow[2..], ["Text (SHA-256)".to_owned(), format!("  {digest}")]);
        let long = [("Alarms".to_owned(), "one two three four five six seven".to_owned())];
        let lines = Output::plain().with_width(40).block(&long);
        assert_eq!(lines, ["Alarms  one two three four five six", "        seven"]);
    }

    #[test]
    fn text_is_wrapped_and_json_is_not() {
        let (output, captured) = Output::captured(false);
        let output = output.with_width(40);
        output.line("  • header.topic: expected a dotted path of labels").unwrap();
        output.error_line("The node cannot be reached at its address.");
        output.verbatim(&"x ".repeat(30)).unwrap();
        output.json(&serde_json::json!({"text": "x ".repeat(30)})).unwrap();
        let text = String::from_utf8(captured.lock().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["  • header.topic: expected a dotted path", "    of labels"]);
        assert_eq!(lines[2..4], ["The node cannot be reached at its", "address."]);
        assert_eq!(lines.len(), 6, "{text}");
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
}
