//! Parser of `strace` output.
//!
//! In scope: the text. Out of scope: the meaning of the calls (`disk`). A line that cannot be
//! parsed fails the test, because it could be a write.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// One system call.
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) args: Vec<Arg>,
    /// Return value; `None` if the call failed or never returned.
    pub(crate) returned: Option<i64>,
}

/// One argument, as far as it is needed.
pub(crate) enum Arg {
    Number(i64),
    Bytes(Vec<u8>),
    /// An array of buffers, concatenated.
    Buffers(Vec<u8>),
    Symbol(String),
}

impl Call {
    pub(crate) fn number(&self, place: usize) -> i64 {
        let Some(Arg::Number(number)) = self.args.get(place) else { panic!("{}: argument {place}", self.name) };
        *number
    }

    pub(crate) fn bytes(&self, place: usize) -> &[u8] {
        let Some(Arg::Bytes(bytes) | Arg::Buffers(bytes)) = self.args.get(place) else {
            panic!("{}: argument {place}", self.name)
        };
        bytes
    }

    pub(crate) fn symbol(&self, place: usize) -> &str {
        match self.args.get(place) {
            Some(Arg::Symbol(symbol)) => symbol,
            _ => "",
        }
    }
}

/// Start or end of a call.
pub(crate) enum Moment {
    /// The call started: from here on it may have had its effect.
    Begun,
    /// The call returned.
    Done,
}

/// A call at a moment, in ns since 1970. Moments are in the order of the trace.
pub(crate) struct Seen {
    pub(crate) at_ns: u64,
    pub(crate) call: usize,
    pub(crate) moment: Moment,
}

/// Calls of one process.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) calls: Vec<Call>,
    pub(crate) seen: Vec<Seen>,
}

impl Trace {
    /// Reads a complete trace.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        let mut trace = Self::default();
        let mut open: HashMap<&str, (usize, String)> = HashMap::new();
        let mut latest = 0;
        for line in text.lines() {
            let (thread, line) = line.split_once(' ').unwrap();
            let (at, line) = line.trim_start().split_once(' ').unwrap();
            let at = stamp(at);
            if line.starts_with("+++") || line.starts_with("---") {
                continue;
            }
            // Durations and times come from different clocks, so a later moment must not get an
            // earlier time.
            let mut see = |call, moment, at_ns: u64| {
                latest = at_ns.max(latest);
                trace.seen.push(Seen { at_ns: latest, call, moment });
            };
            if let Some(resumed) = line.strip_prefix("<... ") {
                let (name, rest) = resumed.split_once(" resumed>").unwrap();
                let (call, mut begun) = open.remove(thread).unwrap();
                let (more, returned, _) = ending(rest);
                begun.push_str(more);
                trace.calls[call] = Call { name: name.to_owned(), args: arguments(&begun), returned };
                see(call, Moment::Done, at);
                continue;
            }
            let (name, rest) = line.split_once('(').unwrap_or_else(|| panic!("not understood: {line:.200}"));
            let call = trace.calls.len();
            see(call, Moment::Begun, at);
            if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
                let args = if begun.is_empty() { Vec::new() } else { arguments(begun) };
                open.insert(thread, (call, begun.to_owned()));
                trace.calls.push(Call { name: name.to_owned(), args, returned: None });
                continue;
            }
            let (args, returned, duration_ns) = ending(rest);
            trace.calls.push(Call { name: name.to_owned(), args: arguments(args), returned });
            // A call that the end of the process interrupted never returned.
            if let Some(duration_ns) = duration_ns {
                see(call, Moment::Done, at + duration_ns);
            }
        }
        trace
    }
}

/// Parses `1795756829.952960730` to ns.
fn stamp(text: &str) -> u64 {
    let (seconds, fraction) = text.split_once('.').unwrap();
    seconds.parse::<u64>().unwrap() * 1_000_000_000 + fraction.parse::<u64>().unwrap()
}

/// Splits the end of a line: arguments, return value, duration.
fn ending(rest: &str) -> (&str, Option<i64>, Option<u64>) {
    let (args, ending) = rest.rsplit_once(" = ").unwrap_or_else(|| panic!("not understood: {rest:.200}"));
    let args = args.trim_end().strip_suffix(')').unwrap_or_else(|| panic!("not understood: {rest:.200}"));
    let returned = ending.split(' ').next().and_then(|token| token.parse::<i64>().ok()).filter(|value| *value >= 0);
    let duration_ns = ending.rsplit_once('<').and_then(|(_, duration_ns)| duration_ns.strip_suffix('>')).map(stamp);
    (args, returned, duration_ns)
}

fn arguments(text: &str) -> Vec<Arg> {
    let (mut args, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if rest.is_empty() {
            return args;
        }
        let arg = if rest.starts_with('"') {
            Arg::Bytes(string(&mut rest))
        } else if rest.starts_with("[{iov_base=") {
            Arg::Buffers(buffers(&mut rest))
        } else {
            let end = rest.find(", ").unwrap_or(rest.len());
            let token = &rest[..end];
            rest = &rest[end..];
            token.parse().map_or_else(|_| Arg::Symbol(token.to_owned()), Arg::Number)
        };
        args.push(arg);
    }
}

/// Parses `[{iov_base="…", iov_len=4}, …]`.
fn buffers(rest: &mut &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(next) = rest.trim_start_matches(['[', ',', ' ']).strip_prefix("{iov_base=") {
        *rest = next;
        let buffer = string(rest);
        let (len, after) = rest.strip_prefix(", iov_len=").unwrap().split_once('}').unwrap();
        assert_eq!(len.parse(), Ok(buffer.len()), "a buffer was written down in part");
        bytes.extend(buffer);
        *rest = after;
    }
    *rest = rest.strip_prefix(']').unwrap();
    bytes
}

/// New segments are written with zeros, which are most of a trace.
const MANY_ZEROS: &[u8] = &{
    let mut zeros = [b'0'; 128];
    let mut at = 0;
    while at < zeros.len() {
        zeros[at] = b'\\';
        at += 2;
    }
    zeros
};

/// Parses a string in double quotes, with C escapes.
fn string(rest: &mut &str) -> Vec<u8> {
    let source = rest.as_bytes();
    let (mut bytes, mut at) = (Vec::new(), 1);
    loop {
        // The last zero could be the beginning of `\000`.
        while source[at..].starts_with(MANY_ZEROS) {
            let len = MANY_ZEROS.len() / 2 - 1;
            bytes.resize(bytes.len() + len, 0);
            at += 2 * len;
        }
        match source[at] {
            b'"' => break,
            b'\\' => {
                at += 1;
                let plain = match source[at] {
                    b'n' => Some(b'\n'),
                    b't' => Some(b'\t'),
                    b'r' => Some(b'\r'),
                    b'v' => Some(0x0b),
                    b'f' => Some(0x0c),
                    b'"' | b'\\' => Some(source[at]),
                    _ => None,
                };
                if let Some(plain) = plain {
                    bytes.push(plain);
                    at += 1;
                    continue;
                }
                let mut value = 0_u32;
                let digits = source[at..].iter().take(3).take_while(|digit| (b'0'..=b'7').contains(*digit));
                let digits = digits.map(|digit| value = value * 8 + u32::from(digit - b'0')).count();
                assert!(digits > 0, "an escape that is not known");
                bytes.push(u8::try_from(value).unwrap());
                at += digits;
            }
            _ => {
                let plain = source[at..].iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap();
                bytes.extend_from_slice(&source[at..at + plain]);
                at += plain;
            }
        }
    }
    *rest = &rest[at + 1..];
    assert!(!rest.starts_with("..."), "a string was written down in part");
    bytes
}

#[test]
fn strace_output_is_parsed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let text = concat!(
        "7 100.000000010 openat(AT_FDCWD, \"/x/y\", O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 3 <0.000000005>\n",
        "7 100.000000020 pwritev(3, [{iov_base=\"\\0\\0011\\377\", iov_len=4}, {iov_base=\"a\\\"\\n\", iov_len=3}], 2, 10) = 7 ",
        "<0.000000004>\n",
        "7 100.000000030 write(3, \"\\1\", 1 <unfinished ...>\n",
        "8 100.000000031 fsync(3 <unfinished ...>\n",
        "7 100.000000032 <... write resumed>) = 1 <0.000000002>\n",
        "8 100.000000033 <... fsync resumed>) = -1 EIO (Input/output error) <0.000000002>\n",
        "8 100.000000034 fsync(3) = ?\n",
        "7 100.000000035 +++ killed by SIGKILL +++\n",
    );
    fs::write(&path, text).unwrap();
    let trace = Trace::read(&path);
    let names: Vec<_> = trace.calls.iter().map(|call| (call.name.as_str(), call.returned)).collect();
    let expected = [("openat", Some(3)), ("pwritev", Some(7)), ("write", Some(1)), ("fsync", None), ("fsync", None)];
    assert_eq!(names, expected);
    assert_eq!(trace.calls[0].bytes(1), b"/x/y");
    assert_eq!(trace.calls[1].bytes(1), b"\0\x011\xffa\"\n");
    assert_eq!(trace.calls[1].number(3), 10);
    let order: Vec<_> =
        trace.seen.iter().map(|seen| (seen.call, matches!(seen.moment, Moment::Done), seen.at_ns % 100)).collect();
    let expected = [(0, false, 10), (0, true, 15), (1, false, 20), (1, true, 24), (2, false, 30), (3, false, 31)];
    assert_eq!(order[..6], expected);
    assert_eq!(order[6..], [(2, true, 32), (3, true, 33), (4, false, 34)]);
}
