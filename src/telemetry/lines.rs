//! Writes all log lines, including those of libraries: as text or JSON, escaped, cut, and within a
//! budget of bytes.
//!
//! In scope: the format of a line, and how many bytes of lines one source may cause in a minute.
//! Code that logs need not consider either. Out of scope: which audit events are recorded singly
//! (`audit_limiter`), and which lines are wanted (the filter).

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::{Context, Layer};

use super::escape::{cut, escaped, needs_escape};
use crate::budgets::{Budget, Charge, Class, Owner};

/// Interval of the budget.
const INTERVAL: Duration = Duration::from_secs(60);
/// Fields that name the source of a line, in order of preference. A line without one is charged to
/// its place in the code.
const SOURCE_FIELDS: [&str; 6] = ["actor", "peer", "member", "subscriber", "from", "cosigner"];
/// Most sources over the budget whose dropped lines are counted separately; further ones share a
/// count.
const DROPPED_SOURCES_MAX: usize = 256;
/// Source of the shared count.
const OTHERS: &str = "others";

/// Budget of log lines, once the node has its budgets. Earlier lines are not caused by remote
/// parties.
static BUDGET: OnceLock<Budget> = OnceLock::new();

/// Charges all further log lines to this budget. Only the first call has an effect.
pub fn charge_lines_to(budget: Budget) {
    let _ = BUDGET.set(budget);
}

/// Writes every event that passes the filter to standard error.
pub(super) struct Lines {
    json: bool,
    quota: Mutex<Quota>,
}

impl Lines {
    pub(super) fn new(json: bool) -> Self {
        Self { json, quota: Mutex::new(Quota::new(Instant::now())) }
    }
}

/// A failure to log cannot be reported anywhere.
fn write(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        let text = line.to_text(self.json);
        if let Some(budget) = BUDGET.get() {
            let (fits, dropped) = self.quota.lock().charge(budget, &line, text.len(), Instant::now());
            dropped.iter().for_each(|line| write(&line.to_text(self.json)));
            if !fits {
                return;
            }
        }
        write(&text);
    }
}

/// One line before formatting. Every value is cut; none is escaped yet.
struct Line {
    level: Level,
    target: String,
    place: String,
    message: String,
    fields: Vec<(&'static str, FieldValue)>,
}

enum FieldValue {
    /// A string: always quoted.
    Text(String),
    /// A displayed value: quoted if it is ambiguous.
    Displayed(String),
    /// A number or boolean.
    Plain(Value),
}

impl Line {
    fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut line = Self {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            place: metadata.name().to_owned(),
            message: String::new(),
            fields: Vec::with_capacity(metadata.fields().len()),
        };
        event.record(&mut line);
        line
    }

    fn text_of(&self, field: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(name, _)| *name == field)?;
        match value {
            FieldValue::Text(text) | FieldValue::Displayed(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Returns the source: an address without its port, a name, or the place in the code.
    fn source(&self) -> Owner {
        let Some(named) = SOURCE_FIELDS.iter().find_map(|field| self.text_of(field)) else {
            return Owner::Identity(self.place.as_str().into());
        };
        match named.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| named.parse()) {
            Ok(IpAddr::V4(address)) => Owner::Address(address.to_string().into()),
            Ok(IpAddr::V6(address)) => {
                let [a, b, c, d, ..] = address.segments();
                Owner::Address(format!("{a:x}:{b:x}:{c:x}:{d:x}::").into())
            }
            Err(_) => Owner::Identity(named.into()),
        }
    }

    /// Alarms and errors may use the reserved part of the budget.
    fn class(&self) -> Class {
        let alarm = self.text_of("event") == Some("alarm");
        if alarm || self.level == Level::ERROR { Class::Reserved } else { Class::Ordinary }
    }

    /// Returns the line with its line break.
    fn to_text(&self, json: bool) -> String {
        let mut time = String::new();
        // Writing to a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let mut text = if json { self.json(time) } else { self.plain(&time) };
        text.push('\n');
        text
    }

    fn plain(&self, time: &str) -> String {
        let mut text = format!("{time} {:>5} {}:", self.level.as_str(), self.target);
        let _ = self.write_plain(&mut text);
        text
    }

    fn write_plain(&self, text: &mut String) -> fmt::Result {
        if !self.message.is_empty() {
            text.push(' ');
            escaped(text, &self.message)?;
        }
        for (name, value) in &self.fields {
            write!(text, " {name}=")?;
            match value {
                FieldValue::Plain(value) => write!(text, "{value}")?,
                FieldValue::Displayed(value) if is_unambiguous(value) => text.push_str(value),
                FieldValue::Text(value) | FieldValue::Displayed(value) => {
                    text.push('"');
                    escaped(text, &value.replace('\\', "\\\\").replace('"', "\\\""))?;
                    text.push('"');
                }
            }
        }
        Ok(())
    }

    /// Formats the line as JSON. Values are not escaped before: JSON has its own escapes.
    fn json(&self, time: String) -> String {
        let mut fields = serde_json::Map::new();
        if !self.message.is_empty() {
            fields.insert("message".to_owned(), self.message.clone().into());
        }
        fields.extend(self.fields.iter().map(|(name, value)| {
            let value = match value {
                FieldValue::Text(text) | FieldValue::Displayed(text) => Value::from(text.as_str()),
                FieldValue::Plain(value) => value.clone(),
            };
            ((*name).to_owned(), value)
        }));
        let mut line = serde_json::Map::new();
        line.insert("timestamp".to_owned(), time.into());
        line.insert("level".to_owned(), self.level.as_str().into());
        line.insert("fields".to_owned(), fields.into());
        line.insert("target".to_owned(), self.target.as_str().into());
        let written = Value::from(line).to_string();
        let mut text = String::with_capacity(written.len());
        // Hidden characters that JSON does not escape occur in strings only.
        for c in written.chars() {
            if needs_escape(c) {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(text, "\\u{unit:04x}"));
            } else {
                text.push(c);
            }
        }
        text
    }
}

/// Whether a value without quotes is clearly separated from what follows it.
fn is_unambiguous(value: &str) -> bool {
    !value.chars().any(|c| c.is_whitespace() || needs_escape(c) || matches!(c, '"' | '=' | '\\'))
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = cut(format_args!("{value:?}"));
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, FieldValue::Displayed(value))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let value = cut(format_args!("{value}"));
        match field.name() {
            "message" => self.message = value,
            // Lines of libraries that use the crate `log` carry their target in this field.
            "log.target" => self.target = value,
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, FieldValue::Text(value))),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain_value(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain_value(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.plain_value(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain_value(field, value.into());
    }
}

impl Line {
    fn plain_value(&mut self, field: &Field, value: Value) {
        if !field.name().starts_with("log.") {
            self.fields.push((field.name(), FieldValue::Plain(value)));
        }
    }
}

/// Bytes of lines by source in the current minute, and the dropped lines.
struct Quota {
    since: Instant,
    /// Released at the end of the minute.
    charges: HashMap<(Owner, bool), Charge>,
    /// Dropped lines and bytes by source.
    dropped: HashMap<String, (u64, u64)>,
}

impl Quota {
    fn new(since: Instant) -> Self {
        Self { since, charges: HashMap::new(), dropped: HashMap::new() }
    }

    /// Returns whether a line fits and, at the end of a minute, lines that report the dropped ones.
    /// DEBUG and TRACE lines, which only an operator's filter enables, always fit.
    fn charge(&mut self, budget: &Budget, line: &Line, bytes: usize, now: Instant) -> (bool, Vec<Line>) {
        let is_elapsed = now.saturating_duration_since(self.since) >= INTERVAL;
        let dropped = if is_elapsed { self.begin(now) } else { Vec::new() };
        if line.level > Level::INFO {
            return (true, dropped);
        }
        let (bytes, class) = (bytes as u64, line.class());
        let key = (line.source(), class == Class::Reserved);
        let fits = match self.charges.get_mut(&key) {
            Some(charge) => charge.grow(bytes).is_ok(),
            None => match budget.try_charge(&key.0, class, bytes) {
                Ok(charge) => {
                    self.charges.insert(key.clone(), charge);
                    true
                }
                Err(_) => false,
            },
        };
        if !fits {
            let source = key.0.to_string();
            let is_full = self.dropped.len() >= DROPPED_SOURCES_MAX && !self.dropped.contains_key(&source);
            let (lines, all) = self.dropped.entry(if is_full { OTHERS.to_owned() } else { source }).or_default();
            (*lines, *all) = (*lines + 1, *all + bytes);
        }
        (fits, dropped)
    }

    /// Starts a new minute. Returns the report of the last one.
    fn begin(&mut self, now: Instant) -> Vec<Line> {
        self.since = now;
        self.charges.clear();
        let mut dropped: Vec<_> = std::mem::take(&mut self.dropped).into_iter().collect();
        dropped.sort();
        let line = |(source, (lines, bytes)): (String, (u64, u64))| Line {
            level: Level::WARN,
            target: "barid::audit".to_owned(),
            place: String::new(),
            message: String::new(),
            fields: vec![
                ("event", FieldValue::Text("log-lines-dropped".to_owned())),
                ("reason", FieldValue::Text("over-budget".to_owned())),
                ("actor", FieldValue::Displayed(source)),
                ("resource", FieldValue::Displayed(String::new())),
                ("detail", FieldValue::Displayed(format!("{lines} log lines, {bytes} bytes within a minute"))),
            ],
        };
        dropped.into_iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budgets::table::LOG_BYTES;

    fn line(level: Level, actor: &str, detail: &str) -> Line {
        Line {
            level,
            target: "barid::audit".to_owned(),
            place: "event src/somewhere.rs:1".to_owned(),
            message: String::new(),
            fields: vec![
                ("event", FieldValue::Text("frame-rejected".to_owned())),
                ("actor", FieldValue::Displayed(actor.to_owned())),
                ("detail", FieldValue::Displayed(detail.to_owned())),
                ("attempt", FieldValue::Plain(7.into())),
            ],
        }
    }

    /// Returns whether it fits, and the report of earlier dropped lines.
    fn charge(quota: &mut Quota, budget: &Budget, line: &Line, now: Instant) -> (bool, Vec<Line>) {
        quota.charge(budget, line, line.to_text(false).len(), now)
    }

    const FORGED: &str =
        "x\n2026-11-29T00:00:00Z  INFO barid::audit: event=\"alarm\" \u{1b}[2J\u{9b}1m\u{202e}\u{2028}\\ \"actor=ma";

    #[test]
    fn event_is_one_line_and_values_cannot_forge_fields() {
        let text = line(Level::INFO, "ma", FORGED).to_text(false);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end_matches('\n').chars().any(needs_escape), "{text:?}");
        let unquoted: String = text.replace("\\\\", "").replace("\\\"", "").split('"').step_by(2).collect();
        assert!(unquoted.contains(" actor=ma detail=") && unquoted.ends_with(" attempt=7\n"), "{unquoted}");
        assert!(!unquoted.contains("alarm") && !unquoted.contains('['), "{unquoted}");
    }

    #[test]
    fn json_line_carries_the_value_escaped() {
        let text = line(Level::INFO, "ma", FORGED).to_text(true);
        assert!(!text.trim_end_matches('\n').chars().any(needs_escape), "{text:?}");
        let read: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!((&read["fields"]["detail"], &read["fields"]["attempt"]), (&FORGED.into(), &7.into()));
        assert_eq!(read["target"], "barid::audit");
    }

    #[test]
    fn lines_of_one_source_are_bounded_and_dropped_ones_counted() {
        let (budget, start) = (Budget::new(&LOG_BYTES), Instant::now());
        let mut quota = Quota::new(start);
        let flood = line(Level::WARN, "203.0.113.9:4711", &"y".repeat(900));
        let ports = (1..=u16::MAX).map(|port| line(Level::WARN, &format!("203.0.113.9:{port}"), &"y".repeat(900)));
        let passed = ports.take(5_000).filter(|line| charge(&mut quota, &budget, line, start).0).count();
        let len = flood.to_text(false).len() as u64;
        assert!(passed > 10 && passed as u64 * (len - 4) <= LOG_BYTES.bounds.per_owner, "{passed}");
        let (passes, dropped) = charge(&mut quota, &budget, &line(Level::INFO, "tn", "quiet"), start);
        assert!(passes && dropped.is_empty(), "other sources are not affected");
        let (passes, dropped) = charge(&mut quota, &budget, &flood, start + INTERVAL);
        assert!(passes, "a new minute begins");
        let lines_text: Vec<String> = dropped.iter().map(|line| line.to_text(false)).collect();
        let lines = 5_000 - passed;
        assert!(
            lines_text.len() == 1
                && lines_text[0].contains(&format!(" actor=203.0.113.9 resource= detail=\"{lines} log lines, ")),
            "{lines_text:?}"
        );
    }

    #[test]
    fn alarms_are_logged_when_the_ordinary_budget_is_full() {
        let (budget, start) = (Budget::new(&LOG_BYTES), Instant::now());
        let mut quota = Quota::new(start);
        let wide = "y".repeat(900);
        let mut all = 0;
        for n in 0..10_000 {
            let line = line(Level::WARN, &format!("agency/{n}"), &wide);
            all += if charge(&mut quota, &budget, &line, start).0 { line.to_text(false).len() as u64 } else { 0 };
        }
        assert!(all <= LOG_BYTES.bounds.total - LOG_BYTES.bounds.reserved);
        let mut alarm = line(Level::INFO, "agency/1", &wide);
        assert!(!charge(&mut quota, &budget, &alarm, start).0);
        alarm.fields[0].1 = FieldValue::Text("alarm".to_owned());
        assert!(charge(&mut quota, &budget, &alarm, start).0);
        assert!(charge(&mut quota, &budget, &line(Level::ERROR, "agency/2", &wide), start).0);
        let (_, dropped) = charge(&mut quota, &budget, &alarm, start + INTERVAL);
        assert_eq!(dropped.len(), DROPPED_SOURCES_MAX + 1, "further sources share one counter");
    }

    #[test]
    fn library_log_lines_have_the_same_format_and_bounds() {
        let written: std::sync::Arc<Mutex<Vec<Line>>> = std::sync::Arc::default();
        struct Capture(std::sync::Arc<Mutex<Vec<Line>>>);
        impl<S: Subscriber> Layer<S> for Capture {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().push(Line::of(event));
            }
        }
        use tracing_subscriber::layer::SubscriberExt as _;
        let registry = tracing_subscriber::registry().with(Capture(std::sync::Arc::clone(&written)));
        tracing::subscriber::with_default(registry, || {
            let long = "z".repeat(1 << 20);
            tracing::warn!(peer = %"ly", size = 5_u64, text = long, "said {}", FORGED);
        });
        let lines = written.lock();
        let text = lines[0].to_text(false);
        assert!(text.len() < 4_096 && text.matches('\n').count() == 1, "{text}");
        assert!(
            text.contains(" WARN barid::telemetry::lines::tests: said x\\n2026") && text.contains(" peer=ly size=5 "),
            "{text}"
        );
        assert_eq!(lines[0].source(), Owner::Identity("ly".into()));
    }
}
