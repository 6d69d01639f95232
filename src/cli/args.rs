//! Arguments that several commands share, and localized help.
//!
//! In scope: filters, translation of help and usage errors. English help is the documentation of
//! the argument types. French and Arabic help is in the catalogues under `help-<command>` and
//! `help-<command>-<argument>`. Out of scope: what a value must be (`expected`).

use std::ffi::OsString;
use std::path::Path;

use barid_core::bulletin::TopicFilter;
use barid_core::bulletin::vocabulary::Severity;
use barid_core::ids::Member;
use barid_core::proto;
use clap::{ArgAction, Args};
use fluent_bundle::FluentArgs;

use super::Failure;
use super::expected::{self, Expected};
use super::messages::{Arg, Lang, Messages};

/// Bulletins to select. A repeated option widens the selection; different options narrow it.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct FilterArgs {
    /// Topics, with wildcards: `customs.>`, `*.documents`.
    #[arg(long, value_name = "TOPIC", value_delimiter = ',')]
    pub(super) topic: Vec<TopicFilter>,
    /// Kinds: `seizure-report`.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub(super) kind: Vec<String>,
    /// Lowest severity: Minor, Moderate, Severe, Extreme.
    #[arg(long, value_name = "SEVERITY", value_parser = severity)]
    pub(super) min_severity: Option<Severity>,
    /// Publishing members: `ma`.
    #[arg(long, value_name = "MEMBER", value_delimiter = ',')]
    pub(super) member: Vec<Member>,
}

impl FilterArgs {
    /// Returns the filter as the node's API expects it.
    #[must_use]
    pub(super) fn to_proto(&self) -> proto::Filter {
        proto::Filter {
            topics: self.topic.iter().map(ToString::to_string).collect(),
            kinds: self.kind.clone(),
            min_severity: self.min_severity.map(|severity| severity.to_string()).unwrap_or_default(),
            members: self.member.iter().map(ToString::to_string).collect(),
        }
    }
}

fn severity(text: &str) -> Result<Severity, Expected> {
    let known = Severity::ALL.iter().find(|severity| severity.as_str().eq_ignore_ascii_case(text));
    known.copied().ok_or(Expected::Severity)
}

/// Returns whether the arguments request JSON output. They are not parsed: the result also decides
/// the form of a usage error.
pub(super) fn requests_json(args: impl IntoIterator<Item = OsString>) -> bool {
    args.into_iter().take_while(|arg| arg != "--").any(|arg| arg == "--json")
}

/// Returns the usage error in the reader's language, or `None` if the catalogue has no message for
/// it. clap itself has English messages only.
fn error_message(error: &clap::Error, messages: &Messages) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let value = |kind| {
        error.get(kind).and_then(|value| match value {
            ContextValue::String(text) => Some(text.clone()),
            ContextValue::Strings(texts) => Some(texts.join(", ")),
            ContextValue::Number(number) => Some(number.to_string()),
            _ => None,
        })
    };
    let mut args = FluentArgs::new();
    let expected = std::error::Error::source(error).and_then(|source| expected::localized(source, messages));
    if let Some(expected) = &expected {
        args.set("expected", expected.arg());
    }
    let mut given = |name: &'static str, kind| value(kind).map(|text| args.set(name, text.arg())).is_some();
    let (id, whole) = match error.kind() {
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let is_there = value(ContextKind::InvalidValue).is_some_and(|value| !value.is_empty());
            let known = given("option", ContextKind::InvalidArg);
            given("value", ContextKind::InvalidValue);
            match given("values", ContextKind::ValidValue) && error.kind() == ErrorKind::InvalidValue {
                true if is_there => ("argument-one-of", known),
                true => ("argument-needs-one-of", known),
                false if is_there && expected.is_some() => ("argument-value-expected", known),
                false if is_there => ("argument-value", known),
                false => ("argument-no-value", known),
            }
        }
        ErrorKind::UnknownArgument => ("argument-unknown", given("option", ContextKind::InvalidArg)),
        ErrorKind::InvalidSubcommand => ("argument-command", given("value", ContextKind::InvalidSubcommand)),
        ErrorKind::MissingSubcommand => ("argument-no-command", given("values", ContextKind::ValidSubcommand)),
        ErrorKind::TooManyValues => ("argument-surplus", given("value", ContextKind::InvalidValue)),
        ErrorKind::InvalidUtf8 => ("argument-not-utf8", true),
        ErrorKind::MissingRequiredArgument => ("argument-missing", given("option", ContextKind::InvalidArg)),
        ErrorKind::ArgumentConflict => {
            let both = given("option", ContextKind::InvalidArg) && given("other", ContextKind::PriorArg);
            ("argument-conflict", both)
        }
        _ => return None,
    };
    messages.find(id, Some(&args)).filter(|_| whole)
}

/// Returns whether the catalogue has this error in the reader's language. English errors are clap's
/// own, with the usage.
pub(super) fn has_translation(error: &clap::Error, messages: &Messages) -> bool {
    messages.lang() != Lang::En && error_message(error, messages).is_some()
}

/// Converts a usage error of clap into a [`Failure`].
pub(super) fn unusable(error: &clap::Error, messages: &Messages) -> Failure {
    if let Some(error_message) = error_message(error, messages).filter(|_| messages.lang() != Lang::En) {
        return Failure::usage("arguments").cause(error_message);
    }
    let text = error.render().to_string();
    let error_message = text.split("\n\nUsage:").next().unwrap_or_default();
    let error_message = error_message.split("\n\nFor more information").next().unwrap_or_default();
    let error_message = error_message.strip_prefix("error: ").unwrap_or(error_message);
    let lines = error_message.lines().map(str::trim).filter(|line| !line.is_empty());
    Failure::usage("arguments").cause(lines.collect::<Vec<_>>().join(" "))
}

/// Returns the beginning of a command line to run again: `barid --profile …`.
pub(super) fn program(profile: Option<&Path>) -> String {
    match profile {
        Some(profile) => format!("barid --profile {}", shell_quoted(&profile.display().to_string())),
        None => "barid".to_owned(),
    }
}

/// Quotes one argument for a POSIX shell.
pub(super) fn shell_quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:@".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) { arg.to_owned() } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

/// Returns `command` with its help in the language of `messages`, where the catalogue has it.
#[must_use]
pub(super) fn localize_help(command: clap::Command, messages: &Messages) -> clap::Command {
    localize_help_under(command, messages, "help")
}

fn localize_help_under(mut command: clap::Command, messages: &Messages, id: &str) -> clap::Command {
    if let Some(about) = messages.find(id, None) {
        // A long text would change the layout of all options.
        if command.get_long_about().is_some() {
            command = command.long_about(about.clone());
        }
        command = command.about(about);
    }
    if let Some(after) = messages.find(&format!("{id}.after"), None) {
        command = command.after_help(after);
    }
    command = headings(command, messages, id == "help");
    command = command.mut_args(|arg| match help(messages, id, &arg) {
        Some(help) => {
            let (help, arg) = with_values(help, messages, arg);
            let arg = if arg.get_long_help().is_some() { arg.long_help(help.clone()) } else { arg };
            arg.help(help)
        }
        None => arg,
    });
    command.mut_subcommands(|sub| {
        let id = format!("{id}-{}", sub.get_name());
        localize_help_under(sub, messages, &id)
    })
}

/// Adds the default and the possible values to an argument's help, in the place of clap, whose
/// labels for them are English.
fn with_values(mut help: String, messages: &Messages, arg: clap::Arg) -> (String, clap::Arg) {
    let label = |name: &str| messages.find(&format!("help-heading-{name}"), None);
    let (Some(default), Some(values)) = (label("default"), label("values")) else { return (help, arg) };
    if !arg.get_action().takes_values() {
        return (help, arg);
    }
    let possible: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let defaults: Vec<String> = arg.get_default_values().iter().map(|value| value.display().to_string()).collect();
    for (label, given) in [(values, possible), (default, defaults)] {
        let given = given.join(", ");
        if !given.is_empty() {
            help.push_str(&format!(" [{label} {given}]"));
        }
    }
    (help, arg.hide_possible_values(true).hide_default_value(true))
}

/// Translates the parts that clap generates: headings, `--help` and `--version`.
fn headings(mut command: clap::Command, messages: &Messages, is_root: bool) -> clap::Command {
    let heading = |name: &str| messages.find(&format!("help-heading-{name}"), None);
    if let Some(usage) = heading("usage") {
        command = command.help_template(format!(
            "{{before-help}}{{about-with-newline}}\n{usage} {{usage}}\n\n{{all-args}}{{after-help}}"
        ));
    }
    if let Some(commands) = heading("commands") {
        command = command.subcommand_help_heading(commands);
    }
    if let Some(value) = heading("command") {
        command = command.subcommand_value_name(value);
    }
    if let (Some(options), Some(arguments)) = (heading("options"), heading("arguments")) {
        if let Some(text) = heading("help") {
            let help = clap::Arg::new("help").short('h').long("help").action(ArgAction::Help).help(text);
            command = command.disable_help_flag(true).arg(help);
        }
        if let Some(text) = heading("version").filter(|_| is_root) {
            let version = clap::Arg::new("version").short('V').long("version").action(ArgAction::Version).help(text);
            command = command.disable_version_flag(true).arg(version);
        }
        command = command.mut_args(|arg| {
            let heading = if arg.is_positional() { &arguments } else { &options };
            arg.help_heading(heading.clone())
        });
    }
    command
}

/// Returns the help of this command's own argument, or else of an argument that means the same in
/// every command.
fn help(messages: &Messages, id: &str, arg: &clap::Arg) -> Option<String> {
    let own = messages.find(&format!("{id}-{}", arg_id(arg)), None);
    own.or_else(|| messages.find(&format!("help-any-{}", arg_id(arg)), None))
}

fn arg_id(arg: &clap::Arg) -> String {
    arg.get_id().as_str().replace('_', "-")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;
    use crate::cli::messages::Lang;

    fn helped(command: &clap::Command, id: &str, ids: &mut Vec<String>) {
        ids.push(id.to_owned());
        for arg in command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            ids.push(format!("{id}-{}", arg_id(arg)));
        }
        for sub in command.get_subcommands() {
            helped(sub, &format!("{id}-{}", sub.get_name()), ids);
        }
    }

    #[test]
    fn help_exists_for_every_command_and_option_in_french_and_arabic() {
        let mut ids = Vec::new();
        helped(&Cli::command(), "help", &mut ids);
        for lang in [Lang::Fr, Lang::Ar] {
            let messages = Messages::new(lang);
            let shared =
                |id: &str| id.rsplit('-').next().and_then(|last| messages.find(&format!("help-any-{last}"), None));
            let found = |id: &str| messages.find(id, None).or_else(|| shared(id)).is_some();
            let missing: Vec<&String> = ids.iter().filter(|id| !found(id)).collect();
            assert!(missing.is_empty(), "{lang:?} lacks {missing:?}");
        }
    }

    #[test]
    fn help_is_localized() {
        let command = localize_help(Cli::command(), &Messages::new(Lang::Fr));
        let about = command.find_subcommand("publish").unwrap().get_about().unwrap().to_string();
        assert!(about.contains("Publier"), "{about}");
        for lang in [Lang::Fr, Lang::Ar] {
            for args in [&["barid", "--help"][..], &["barid", "publish", "--help"], &["barid", "feed", "--help"]] {
                let output =
                    localize_help(Cli::command(), &Messages::new(lang)).try_get_matches_from(args).unwrap_err();
                assert_eq!(output.kind(), clap::error::ErrorKind::DisplayHelp);
                let text = output.to_string();
                for english in [
                    "Usage:",
                    "Commands:",
                    "Options:",
                    "Arguments:",
                    "Print help",
                    "Print version",
                    "Possible values",
                    "possible values",
                    "default:",
                    "COMMAND>",
                ] {
                    assert!(!text.contains(english), "{english}: {text}");
                }
            }
            let values = localize_help(Cli::command(), &Messages::new(lang));
            let values = values.try_get_matches_from(["barid", "history", "--help"]).unwrap_err().to_string();
            let values = values.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(values.contains("ar, fr, en]") && values.contains(" 50]"), "{values}");
        }
    }

    #[test]
    fn usage_error_is_reported_as_json_failure() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(requests_json(args("history --limit x --json")));
        assert!(!requests_json(args("publish -- --json")));
        let error = <Cli as clap::Parser>::try_parse_from(args("barid history --json --limit x")).unwrap_err();
        let failure = unusable(&error, &Messages::new(Lang::En));
        assert_eq!((failure.id(), failure.exit_code()), ("arguments", crate::cli::Exit::Usage));
        assert!(failure.to_string().contains("'x'"), "{failure}");
        assert!(!failure.to_string().contains("Usage") && !failure.to_string().contains("--help"), "{failure}");
    }

    #[test]
    fn usage_error_is_localized() {
        for lang in [Lang::Fr, Lang::Ar] {
            let messages = Messages::new(lang);
            let ids = BTreeSet::from([
                ("history --limit x", "--limit <N>"),
                ("publish a.json --wait-for 0", "--wait-for"),
                ("history --since foo", "2026-11-23T20:05:11Z"),
                ("history --limit", "--limit <N>"),
                ("history --lang xx", "--lang"),
                ("history --nothing", "--nothing"),
                ("histori", "histori"),
                ("show", "MEMBER/ID"),
                ("exchange init --count 2 --members ma", "--members"),
                ("watch --from 42", "--from"),
                ("history --member XX", "alpha-2"),
                ("history --topic BAD", "customs.>"),
                ("history --min-severity bad", "Extreme"),
                ("history --limit 0", "--limit <N>"),
                ("health --timeout 601", "600"),
                ("publish a.json --id 0197", "UUIDv7"),
                ("show 0197ABCD", "MEMBER/ID"),
                ("exchange init --exchange x", "rabat.example"),
                ("feed resume x", "/feed/1"),
                ("feed --json", "forks"),
            ]);
            for (line, named) in ids {
                let args = std::iter::once("barid").chain(line.split(' '));
                let error = localize_help(Cli::command(), &messages).try_get_matches_from(args).unwrap_err();
                assert!(has_translation(&error, &messages), "{lang:?} {line}: {error}");
                let text = unusable(&error, &messages).to_string();
                assert!(text.contains(named), "{lang:?} {line}: {text}");
                for english in ["invalid", "required", "error", "found", "cannot", "write", "one of", "is not"] {
                    assert!(!text.contains(english), "{lang:?} {line}: {text}");
                }
            }
        }
    }

    #[test]
    fn argument_with_spaces_is_shell_quoted() {
        assert_eq!(shell_quoted("/my exchange/it's"), r"'/my exchange/it'\''s'");
        assert_eq!((shell_quoted("security.>"), shell_quoted("ne/1")), ("'security.>'".to_owned(), "ne/1".to_owned()));
    }

    #[test]
    fn severity_parses_case_insensitively() {
        assert_eq!(severity("severe").unwrap(), Severity::Severe);
        assert!(severity("bad").is_err());
    }
}
