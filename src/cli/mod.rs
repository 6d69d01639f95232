//! The command line: one file a command, words in three languages.
//!
//! In scope: arguments, talking to a node as one of its people, showing answers. Out of scope: everything a node does (`app`), and
//! what is true (`core`). Commands return [`Exit`] or [`Failure`]; nothing here panics on what it is given.
//!
//! Exit codes: 0 done, 1 failed or refused, 2 unusable command line or file, 3 not reached in time; `verify` and `roster verify` add
//! 10 signed only, 11 disputed, 12 invalid, 13 undecided, 14 two histories of one feed.

mod args;
mod bench;
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
pub mod failure;
mod feed;
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
mod publish;
mod recover;
mod render;
mod repair;
mod roster;
mod show;
mod state;
mod status;
mod subscriptions;
mod times;
mod tls;
mod verify;
mod watch;

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
    /// Write for machines: one JSON object a line.
    #[arg(long, global = true)]
    json: bool,
    /// Language of what is written for people [default: from the environment].
    // The environment is asked by `session_lang`: a locale there, or a language that we have not, is no fault of the command.
    #[arg(long, global = true, value_enum, ignore_case = true)]
    lang: Option<Lang>,
    /// Which node to talk to, and as whom [default: client.toml here or in the configuration folder].
    // `BARID_PROFILE` is asked below: one that is empty names none.
    #[arg(long, global = true, value_name = "FILE")]
    profile: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Publish a bulletin.
    Publish(publish::PublishArgs),
    /// Show bulletins as they arrive.
    Watch(watch::WatchArgs),
    /// Subscriptions that the node records under a name: list, remove.
    Subscriptions(subscriptions::SubscriptionsArgs),
    /// Show what has arrived, newest first.
    History(history::HistoryArgs),
    /// Show one bulletin and what became of it.
    Show(show::ShowArgs),
    /// Write the file that proves a bulletin offline.
    Evidence(evidence::EvidenceArgs),
    /// Verify such a file, without a node or a network.
    Verify(verify::VerifyArgs),
    /// Show how the node and its peers are.
    Status(status::StatusArgs),
    /// Ask whether the node serves; for containers.
    Health(health::HealthArgs),
    /// Run this member's node.
    Node(node::NodeArgs),
    /// Feeds of which two histories were seen: list, prove, follow again.
    Feed(feed::FeedArgs),
    /// Recover a feed that is in doubt into its next epoch, while the node is stopped.
    Recover(recover::RecoverArgs),
    /// Find damage in the store of a stopped node, and put back what was there.
    Repair(repair::RepairArgs),
    /// Make the key of an epoch to come, to be kept offline.
    Keys(keys::KeysArgs),
    /// Make a key and a request for a certificate, without a node or a network.
    Cert(cert_request::CertArgs),
    /// Show, verify and sign rosters, without a node or a network.
    Roster(roster::RosterArgs),
    /// Make a development exchange.
    Exchange(exchange::ExchangeArgs),
    /// Show the main job: four nodes on this machine, for some seconds.
    Demo(demo::DemoArgs),
    /// Measure what two nodes on this machine can do.
    Bench(bench::BenchArgs),
    /// Write completions for a shell.
    Completions(completions::CompletionsArgs),
}

/// What every command is given.
#[derive(Debug)]
pub struct Context {
    /// Words.
    pub messages: Messages,
    /// Where to write.
    pub output: Output,
    profile: Option<PathBuf>,
    /// What it says, once it was read: it may be a pipe.
    read: OnceLock<Profile>,
}

impl Context {
    fn new(messages: Messages, output: Output, profile: Option<PathBuf>) -> Self {
        Self { messages, output, profile, read: OnceLock::new() }
    }

    /// The profile that the command line or the environment chose.
    ///
    /// # Errors
    /// If there is none or it cannot be used.
    pub fn profile(&self) -> Result<Profile, Failure> {
        if let Some(profile) = self.read.get() {
            return Ok(profile.clone());
        }
        let profile = Profile::find(self.profile.as_deref())?;
        Ok(self.read.get_or_init(|| profile).clone())
    }

    /// Writes a warning on the error output: text for people, an object for machines.
    pub(crate) fn warn(&self, id: &str, text: &str) {
        if self.output.is_json() {
            let warning = serde_json::json!({"warning": {"id": id, "message": text}});
            self.output.error_line(&warning.to_string());
        } else {
            self.output.error_line(text);
        }
    }

    /// As [`Context::profile`], for those who can do without; `None` if nobody chose one and none is found.
    ///
    /// # Errors
    /// If there is one that cannot be used.
    pub fn profile_if_any(&self) -> Result<Option<Profile>, Failure> {
        match self.profile() {
            Ok(profile) => Ok(Some(profile)),
            Err(failure) if failure.id() == "no-profile" => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// Runs the program on the arguments and environment of this process.
#[must_use]
pub fn main() -> ExitCode {
    if process::is_node_command(std::env::args_os().skip(1)) {
        // Where it fails, the node says so when it listens for the signal.
        let _ = process::survive_hangup();
    }
    let lang = session_lang();
    let command = args::localize_help(Cli::command(), &Messages::new(lang));
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for; clap writes them where they belong.
            let (json, messages) = (args::requests_json(std::env::args_os().skip(1)), Messages::new(lang));
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
        // A system without it has no such dumps.
        let _ = process::forbid_dumps();
    }
    let named = || std::env::var_os("BARID_PROFILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let context = Context::new(Messages::new(lang), Output::new(cli.json), cli.profile.or_else(named));
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

/// The commands that speak to nodes.
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
        // A large file on a thin line takes as long as it takes, if nobody says otherwise.
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

/// Runs one client's work; a client needs one thread.
fn wait(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("internal").because(&error))?;
    let result = runtime.block_on(work);
    // A name that is still being looked up would hold the end up beyond its deadline.
    runtime.shutdown_background();
    result
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

/// The language before the arguments are read, for the help text: `--lang`, then the environment.
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
