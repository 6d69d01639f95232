//! The one place where log lines are written, those of libraries included: text or JSON, escaped, cut, and within a budget of bytes.
//!
//! In scope: the form of a line, and how many bytes of lines one source may cause a minute. Whoever logs need not think of either. Out of
//! scope: which records are made one by one (`refusals`), and which lines are wanted (the filter).

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

use super::escape::{cut, escaped, is_hidden};
use crate::budgets::{Budget, Charge, Class, Owner};

/// Lines are counted by the minute.
const INTERVAL: Duration = Duration::from_secs(60);
/// Fields that name who caused a line, the best first. A line without one is charged to the place in the code that makes it.
const SOURCE_FIELDS: [&str; 6] = ["who", "peer", "member", "subscriber", "from", "cosigner"];
/// Sources whose lines are counted apart once they are over the budget; further ones are counted together.
const LEFT_OUT_MAX: usize = 256;
/// What those are called.
const OTHERS: &str = "others";

/// What log lines are charged to, once the node has its budgets. What is logged before is caused by nobody outside.
static BUDGET: OnceLock<Budget> = OnceLock::new();

/// Charges all log lines from now on to this budget. Of several the first one counts.
pub fn charge_lines_to(budget: Budget) {
    let _ = BUDGET.set(budget);
}

/// Writes every event that the filter lets pass to standard error.
pub(super) struct Lines {
    json: bool,
    quota: Mutex<Quota>,
}

impl Lines {
    pub(super) fn new(json: bool) -> Self {
        Self { json, quota: Mutex::new(Quota::new(Instant::now())) }
    }
}

/// There is nobody to whom a failure to log could be reported.
fn write(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        let text = line.to_text(self.json);
        if let Some(budget) = BUDGET.get() {
            let (fits, left_out) = self.quota.lock().charge(budget, &line, text.len(), Instant::now());
            left_out.iter().for_each(|line| write(&line.to_text(self.json)));
            if !fits {
                return;
            }
        }
        write(&text);
    }
}

/// One line before it has a form. Every value is cut; none is escaped yet.
struct Line {
    level: Level,
    target: String,
    place: String,
    message: String,
    fields: Vec<(&'static str, Shown)>,
}

enum Shown {
    /// A string: always in quotes.
    Text(String),
    /// Displayed: in quotes where it could be misread.
    Displayed(String),
    /// A number or truth value.
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
        let (_, shown) = self.fields.iter().find(|(name, _)| *name == field)?;
        match shown {
            Shown::Text(text) | Shown::Displayed(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Who caused it: an address without its port, a name, or the place in the code.
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

    /// Alarms and errors find room when other lines do not.
    fn class(&self) -> Class {
        let alarm = self.text_of("what") == Some("alarm");
        if alarm || self.level == Level::ERROR { Class::Reserved } else { Class::Ordinary }
    }

    /// The line, with its end.
    fn to_text(&self, json: bool) -> String {
        let mut time = String::new();
        // Writing into a string does not fail.
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
        for (name, shown) in &self.fields {
            write!(text, " {name}=")?;
            match shown {
                Shown::Plain(value) => write!(text, "{value}")?,
                Shown::Displayed(value) if stands_alone(value) => text.push_str(value),
                Shown::Text(value) | Shown::Displayed(value) => {
                    text.push('"');
                    escaped(text, &value.replace('\\', "\\\\").replace('"', "\\\""))?;
                    text.push('"');
                }
            }
        }
        Ok(())
    }

    /// Values as they are: JSON has escapes of its own.
    fn json(&self, time: String) -> String {
        let mut fields = serde_json::Map::new();
        if !self.message.is_empty() {
            fields.insert("message".to_owned(), self.message.clone().into());
        }
        fields.extend(self.fields.iter().map(|(name, shown)| {
            let value = match shown {
                Shown::Text(text) | Shown::Displayed(text) => Value::from(text.as_str()),
                Shown::Plain(value) => value.clone(),
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
        // What is hidden and not escaped yet stands within a string.
        for c in written.chars() {
            if is_hidden(c) {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(text, "\\u{unit:04x}"));
            } else {
                text.push(c);
            }
        }
        text
    }
}

/// Whether a value can be told from what follows it without quotes.
fn stands_alone(value: &str) -> bool {
    !value.chars().any(|c| c.is_whitespace() || is_hidden(c) || matches!(c, '"' | '=' | '\\'))
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = cut(format_args!("{value:?}"));
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, Shown::Displayed(value))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let value = cut(format_args!("{value}"));
        match field.name() {
            "message" => self.message = value,
            // Lines of libraries that log by the crate `log` carry their own target so.
            "log.target" => self.target = value,
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, Shown::Text(value))),
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
            self.fields.push((field.name(), Shown::Plain(value)));
        }
    }
}

/// Bytes of lines by source in the current minute, and what was left out.
struct Quota {
    since: Instant,
    /// Given back when the minute is over.
    charges: HashMap<(Owner, bool), Charge>,
    /// Lines and bytes by source.
    left_out: HashMap<String, (u64, u64)>,
}

impl Quota {
    fn new(since: Instant) -> Self {
        Self { since, charges: HashMap::new(), left_out: HashMap::new() }
    }

    /// Whether a line fits; and when a minute is over, lines that say what did not. What only an operator's filter lets pass always fits.
    fn charge(&mut self, budget: &Budget, line: &Line, bytes: usize, now: Instant) -> (bool, Vec<Line>) {
        let over = now.saturating_duration_since(self.since) >= INTERVAL;
        let left_out = if over { self.begin(now) } else { Vec::new() };
        if line.level > Level::INFO {
            return (true, left_out);
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
            let crowded = self.left_out.len() >= LEFT_OUT_MAX && !self.left_out.contains_key(&source);
            let (lines, all) = self.left_out.entry(if crowded { OTHERS.to_owned() } else { source }).or_default();
            (*lines, *all) = (*lines + 1, *all + bytes);
        }
        (fits, left_out)
    }

    /// Begins a minute.
    fn begin(&mut self, now: Instant) -> Vec<Line> {
        self.since = now;
        self.charges.clear();
        let mut left_out: Vec<_> = std::mem::take(&mut self.left_out).into_iter().collect();
        left_out.sort();
        let line = |(source, (lines, bytes)): (String, (u64, u64))| Line {
            level: Level::WARN,
            target: "barid::audit".to_owned(),
            place: String::new(),
            message: String::new(),
            fields: vec![
                ("what", Shown::Text("lines-left-out".to_owned())),
                ("reason", Shown::Text("over-budget".to_owned())),
                ("who", Shown::Displayed(source)),
                ("subject", Shown::Displayed(String::new())),
                ("detail", Shown::Displayed(format!("{lines} log lines, {bytes} bytes within a minute"))),
            ],
        };
        left_out.into_iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budgets::table::LOG_BYTES;

    fn line(level: Level, who: &str, detail: &str) -> Line {
        Line {
            level,
            target: "barid::audit".to_owned(),
            place: "event src/somewhere.rs:1".to_owned(),
            message: String::new(),
            fields: vec![
                ("what", Shown::Text("refused-frame".to_owned())),
                ("who", Shown::Displayed(who.to_owned())),
                ("detail", Shown::Displayed(detail.to_owned())),
                ("attempt", Shown::Plain(7.into())),
            ],
        }
    }

    /// Whether it fits, and what is said of earlier ones.
    fn charge(quota: &mut Quota, budget: &Budget, line: &Line, now: Instant) -> (bool, Vec<Line>) {
        quota.charge(budget, line, line.to_text(false).len(), now)
    }

    const FORGED: &str =
        "x\n2026-11-29T00:00:00Z  INFO barid::audit: what=\"alarm\" \u{1b}[2J\u{9b}1m\u{202e}\u{2028}\\ \"who=ma";

    #[test]
    fn one_event_is_one_line_and_a_value_cannot_pass_for_a_field() {
        let text = line(Level::INFO, "ma", FORGED).to_text(false);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end_matches('\n').chars().any(is_hidden), "{text:?}");
        let unquoted: String = text.replace("\\\\", "").replace("\\\"", "").split('"').step_by(2).collect();
        assert!(unquoted.contains(" who=ma detail=") && unquoted.ends_with(" attempt=7\n"), "{unquoted}");
        assert!(!unquoted.contains("alarm") && !unquoted.contains('['), "{unquoted}");
    }

    #[test]
    fn json_lines_carry_the_value_and_show_nothing_hidden() {
        let text = line(Level::INFO, "ma", FORGED).to_text(true);
        assert!(!text.trim_end_matches('\n').chars().any(is_hidden), "{text:?}");
        let read: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!((&read["fields"]["detail"], &read["fields"]["attempt"]), (&FORGED.into(), &7.into()));
        assert_eq!(read["target"], "barid::audit");
    }

    #[test]
    fn lines_of_one_source_are_bounded_and_what_is_left_out_is_counted() {
        let (budget, begun) = (Budget::new(&LOG_BYTES), Instant::now());
        let mut quota = Quota::new(begun);
        let flood = line(Level::WARN, "203.0.113.9:4711", &"y".repeat(900));
        let ports = (1..=u16::MAX).map(|port| line(Level::WARN, &format!("203.0.113.9:{port}"), &"y".repeat(900)));
        let passed = ports.take(5_000).filter(|line| charge(&mut quota, &budget, line, begun).0).count();
        let len = flood.to_text(false).len() as u64;
        assert!(passed > 10 && passed as u64 * (len - 4) <= LOG_BYTES.bounds.per_owner, "{passed}");
        let (passes, left_out) = charge(&mut quota, &budget, &line(Level::INFO, "tn", "quiet"), begun);
        assert!(passes && left_out.is_empty(), "others are not concerned");
        let (passes, left_out) = charge(&mut quota, &budget, &flood, begun + INTERVAL);
        assert!(passes, "a new minute begins");
        let told: Vec<String> = left_out.iter().map(|line| line.to_text(false)).collect();
        let lines = 5_000 - passed;
        assert!(
            told.len() == 1 && told[0].contains(&format!(" who=203.0.113.9 subject= detail=\"{lines} log lines, ")),
            "{told:?}"
        );
    }

    #[test]
    fn alarms_find_room_when_all_others_have_filled_it() {
        let (budget, begun) = (Budget::new(&LOG_BYTES), Instant::now());
        let mut quota = Quota::new(begun);
        let wide = "y".repeat(900);
        let mut all = 0;
        for n in 0..10_000 {
            let line = line(Level::WARN, &format!("agency/{n}"), &wide);
            all += if charge(&mut quota, &budget, &line, begun).0 { line.to_text(false).len() as u64 } else { 0 };
        }
        assert!(all <= LOG_BYTES.bounds.total - LOG_BYTES.bounds.reserved);
        let mut alarm = line(Level::INFO, "agency/1", &wide);
        assert!(!charge(&mut quota, &budget, &alarm, begun).0);
        alarm.fields[0].1 = Shown::Text("alarm".to_owned());
        assert!(charge(&mut quota, &budget, &alarm, begun).0);
        assert!(charge(&mut quota, &budget, &line(Level::ERROR, "agency/2", &wide), begun).0);
        let (_, left_out) = charge(&mut quota, &budget, &alarm, begun + INTERVAL);
        assert_eq!(left_out.len(), LEFT_OUT_MAX + 1, "those that are not counted apart are counted together");
    }

    #[test]
    fn what_libraries_log_has_the_same_form_and_bounds() {
        let written: std::sync::Arc<Mutex<Vec<Line>>> = std::sync::Arc::default();
        struct Keeping(std::sync::Arc<Mutex<Vec<Line>>>);
        impl<S: Subscriber> Layer<S> for Keeping {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().push(Line::of(event));
            }
        }
        use tracing_subscriber::layer::SubscriberExt as _;
        let registry = tracing_subscriber::registry().with(Keeping(std::sync::Arc::clone(&written)));
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
