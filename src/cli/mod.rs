//! The command line: one module a command, with text in three languages.
//!
//! In scope: arguments, calling a node as one of its clients, showing results. Out of scope: the
//! node (`app`) and the protocol (`core`). Commands return [`Exit`] or [`Failure`]; no input makes
//! them panic.
//!
//! Exit codes: 0 success, 1 failed or rejected, 2 unusable command line or file, 3 not reached in
//! time. `verify` and `roster verify` add 10 signed only, 11 disputed, 12 invalid, 13 undecided, 14
//! equivocation.

mod args;
mod bench;
mod bidi;
mod bulletin_ref;
mod cert_check;
mod cert_request;
mod client;
mod client_certificate;
#[cfg(test)]
mod client_tests;
mod completions;
mod deadline;
mod demo;
mod evidence;
mod exchange;
mod expected;
pub mod failure;
mod feed;
mod field_path;
mod fields;
mod health;
mod history;
mod keys;
mod leap_second;
mod message;
pub mod messages;
mod node;
pub mod output;
mod process;
pub mod profile;
mod proof_errors;
mod publish;
mod recover;
mod render;
mod repair;
mod roster;
mod show;
mod state;
mod status;
mod subscriptions;
mod table;
mod times;
mod tls;
mod verify;
mod watch;
mod wrap;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use failure::{Exit, Failure};
pub use messages::{Lang, Messages, localize};
pub use output::Output;
pub use profile::{Directory, Profile};
pub use tls::channel;

/// Cross-border bulletins with proof: publish, read, verify.
#[derive(Debug, Parser)]
#[command(
    name = "barid",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed or denied, 2 unusable command line or file, 3 not reached in time; \
                  verify: 10 signed only, 11 disputed, 12 invalid, 13 undecided, 14 fork proven."
)]
pub struct Cli {
    /// Write one JSON object a line, for scripts.
    #[arg(long, global = true)]
    json: bool,
    /// Language of the output [default: from the environment].
    // `session_lang` reads the environment: a locale there, or an unsupported language, is no usage
    // error.
    #[arg(long, global = true, value_enum, ignore_case = true)]
    lang: Option<Lang>,
    /// Profile: the node to call, and the client's identity [default: client.toml here or in the
    /// configuration folder].
    // `main` reads `BARID_PROFILE`, so that an empty value counts as unset.
    #[arg(long, global = true, value_name = "FILE")]
    profile: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Publish a bulletin.
    Publish(publish::PublishArgs),
    /// Show bulletins as they arrive.
    Watch(watch::WatchArgs),
    /// Subscriptions that the node stores by name: list, remove.
    Subscriptions(subscriptions::SubscriptionsArgs),
    /// Show the bulletins that arrived, newest first.
    History(history::HistoryArgs),
    /// Show one bulletin and its state.
    Show(show::ShowArgs),
    /// Write the file that proves a bulletin offline.
    Evidence(evidence::EvidenceArgs),
    /// Verify such a file, without a node or a network.
    Verify(verify::VerifyArgs),
    /// Show the status of the node and its peers.
    Status(status::StatusArgs),
    /// Check whether the node serves; for containers.
    Health(health::HealthArgs),
    /// Run this member's node.
    Node(node::NodeArgs),
    /// Forked feeds: list, prove, follow again.
    Feed(feed::FeedArgs),
    /// Recover a feed that needs recovery into its next epoch, while the node is stopped.
    Recover(recover::RecoverArgs),
    /// Find and repair damage in the store of a stopped node.
    Repair(repair::RepairArgs),
    /// Make a signing key, above all that of a later epoch, to be stored offline.
    Keys(keys::KeysArgs),
    /// Make a key and a request for a certificate, or check a certificate, without a node or a
    /// network.
    Cert(cert_request::CertArgs),
    /// Show, verify and sign rosters, without a node or a network.
    Roster(roster::RosterArgs),
    /// Make a development exchange.
    Exchange(exchange::ExchangeArgs),
    /// Show the main use: four nodes on this machine, for some seconds.
    Demo(demo::DemoArgs),
    /// Measure two nodes on this machine.
    Bench(bench::BenchArgs),
    /// Write completions for a shell.
    Completions(completions::CompletionsArgs),
}

/// What every command needs.
#[derive(Debug)]
pub struct Context {
    /// Localized messages.
    pub messages: Messages,
    /// Standard output and error output.
    pub output: Output,
    profile: Option<PathBuf>,
    /// The profile, once it was read. It is read only once, because the file may be a pipe.
    read: OnceLock<Profile>,
}

impl Context {
    fn new(messages: Messages, output: Output, profile: Option<PathBuf>) -> Self {
        Self { messages, output, profile, read: OnceLock::new() }
    }

    /// Returns the profile that the command line or the environment selects.
    ///
    /// # Errors
    /// Returns an error if there is no profile or it cannot be used.
    pub fn profile(&self) -> Result<Profile, Failure> {
        if let Some(profile) = self.read.get() {
            return Ok(profile.clone());
        }
        let profile = Profile::find(self.profile.as_deref())?;
        Ok(self.read.get_or_init(|| profile).clone())
    }

    /// Writes a warning on the error output, as text or as a JSON object.
    pub(crate) fn warn(&self, id: &str, text: &str) {
        if self.output.is_json() {
            let warning = serde_json::json!({"warning": {"id": id, "message": text}});
            self.output.error_line(&warning.to_string());
        } else {
            self.output.error_line(text);
        }
    }

    /// As [`Context::profile`], for commands that do not need a profile. Returns `None` if none is
    /// selected and none is found.
    ///
    /// # Errors
    /// Returns an error if the profile cannot be used.
    pub fn profile_if_any(&self) -> Result<Option<Profile>, Failure> {
        match self.profile() {
            Ok(profile) => Ok(Some(profile)),
            Err(failure) if failure.id() == "no-profile" => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// Runs the program with the arguments and environment of this process.
#[must_use]
pub fn main() -> ExitCode {
    if process::is_node_command(std::env::args_os().skip(1)) {
        // A failure is reported when the node registers its own handler.
        let _ = process::survive_hangup();
    }
    let lang = session_lang();
    let isolates = bidi::implements_isolates();
    let command = args::localize_help(Cli::command(), &Messages::on_terminal(lang, isolates));
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap writes them to standard output.
            let json = args::requests_json(std::env::args_os().skip(1));
            let messages = Messages::on_terminal(lang, isolates);
            if error.use_stderr() && (json || args::has_translation(&error, &messages)) {
                let failure = args::unusable(&error, &messages);
                failure.show(&messages, &Output::new(json));
                return code(failure.exit_code());
            }
            let _ = error.print();
            return code(if error.use_stderr() { Exit::Usage } else { Exit::Ok });
        }
    };
    let lang = cli.lang.unwrap_or(lang);
    if !matches!(&cli.command, Command::Node(args) if args.allows_dumps()) {
        // A system without these calls has no such core dumps.
        let _ = process::forbid_dumps();
    }
    let named = || std::env::var_os("BARID_PROFILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let messages = Messages::on_terminal(lang, isolates);
    let context = Context::new(messages, Output::new(cli.json), cli.profile.or_else(named));
    match run(&context, cli.command) {
        Ok(exit) => code(exit),
        Err(failure) => {
            failure.show(&context.messages, &context.output);
            code(failure.exit_code())
        }
    }
}

fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Verify(args) => verify::run(context, &args),
        Command::Bench(args) => bench::run(context, &args),
        Command::Node(args) => node::run(context, &args),
        Command::Recover(args) => recover::run(context, &args),
        Command::Repair(args) => repair::run(context, &args),
        Command::Keys(args) => keys::run(context, &args),
        Command::Cert(args) => cert_request::run(context, &args),
        Command::Roster(args) => roster::run(context, &args),
        Command::Exchange(args) => exchange::run(context, &args),
        Command::Completions(args) => completions::run(context, &args),
        client_command => wait(run_client(context, client_command)),
    }
}

/// Runs the commands that call a node.
async fn run_client(context: &Context, command: Command) -> Result<Exit, Failure> {
    if !matches!(command, Command::Demo(_)) {
        client_certificate::warn(context);
    }
    match command {
        Command::Publish(args) => publish::run(context, &args).await,
        Command::Watch(args) => watch::run(context, &args).await,
        Command::History(args) => deadline::within(args.within.seconds(), history::run(context, &args)).await,
        Command::Subscriptions(args) => {
            deadline::within(args.within.seconds(), subscriptions::run(context, &args)).await
        }
        Command::Show(args) => deadline::within(args.within.seconds(), show::run(context, &args)).await,
        // A large file on a slow link takes long, so the default is no time limit.
        Command::Evidence(args) => match args.within.chosen() {
            Some(seconds) => deadline::within(seconds, evidence::run(context, &args)).await,
            None => evidence::run(context, &args).await,
        },
        Command::Status(args) => deadline::within(args.within.seconds(), status::run(context, &args)).await,
        Command::Health(args) => deadline::within(args.timeout, health::run(context, &args)).await,
        Command::Feed(args) => deadline::within(args.within.seconds(), feed::run(context, &args)).await,
        Command::Demo(args) => demo::run(context, &args).await,
        _ => Err(Failure::new("internal").cause("not a command that connects to a node")),
    }
}

/// Runs a client command on one thread.
fn wait(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("internal").because(&error))?;
    let result = runtime.block_on(work);
    // A pending name lookup would delay the exit beyond the time limit.
    runtime.shutdown_background();
    result
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

/// Returns the language for help and usage errors, before the arguments are parsed: `--lang`, then
/// the environment.
fn session_lang() -> Lang {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let requested = args.iter().enumerate().find_map(|(n, arg)| match arg.strip_prefix("--lang") {
        Some("") => args.get(n + 1).cloned(),
        Some(rest) => rest.strip_prefix('=').map(str::to_owned),
        None => None,
    });
    let variables = ["BARID_LANG", "LC_ALL", "LC_MESSAGES", "LANG"];
    Lang::choose(std::iter::once(requested).chain(variables.map(|name| std::env::var(name).ok())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_definition_passes_debug_assert() {
        Cli::command().debug_assert();
        for lang in Lang::ALL {
            args::localize_help(Cli::command(), &Messages::new(lang)).debug_assert();
        }
    }

    #[test]
    fn global_options_are_accepted_anywhere() {
        let cli = Cli::try_parse_from(["barid", "history", "--json", "--lang", "FR", "--profile", "x.toml"]);
        let cli = cli.expect("options after the command");
        assert!(cli.json);
        assert_eq!(cli.lang, Some(Lang::Fr));
        assert_eq!(cli.profile, Some(PathBuf::from("x.toml")));
    }

    #[test]
    fn profile_is_read_once_and_may_be_a_pipe() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text = "exchange = \"rabat.example\"\nmember = \"ne\"\nendpoint = \"node.ne.rabat.example:7443\"\n\
                    certificate = \"police-hq.pem\"\nkey = \"police-hq.key\"\nca = \"ca.pem\"\n";
        std::fs::write(file.path(), text).expect("written");
        let context = Context::new(Messages::new(Lang::En), Output::plain(), Some(file.path().to_owned()));
        let first = context.profile().expect("readable");
        std::fs::write(file.path(), "").expect("written");
        assert_eq!(context.profile().expect("still known").endpoint, first.endpoint);
    }
}
