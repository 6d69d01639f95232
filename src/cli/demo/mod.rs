//! `barid demo`: a scenario with the ordinary commands, in a throwaway exchange of four node
//! processes on this machine.
//!
//! In scope: printing the steps, stopping and cleaning up. The steps are in `scenario` and the
//! processes in `exchange`. Out of scope: anything that a member's clients could not do. Every step
//! runs this same program with a client's certificate and checks its result.

mod exchange;
mod scenario;

use std::time::Instant;

use clap::Args;
use owo_colors::Style;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::args::shell_quoted;
use super::{Context, Exit, Failure, localize, wrap};
use exchange::Exchange;

/// Arguments of `barid demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave the nodes running after the demo until Ctrl-C, and show how to use them from another
    /// terminal.
    #[arg(long)]
    keep: bool,
    /// First of the eight ports to use [default: eight free ports].
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
}

/// Runs the scenario. It succeeds only if every check passed. Ctrl-C and SIGTERM end it early;
/// nodes and folder are removed in any case.
pub(super) async fn run(context: &Context, args: &DemoArgs) -> Result<Exit, Failure> {
    let internal = |error: std::io::Error| Failure::new("internal").because(&error);
    let mut interrupted = signal(SignalKind::interrupt()).map_err(internal)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(internal)?;
    let exchange = Exchange::make(args.base_port)?;
    let printer = StepPrinter { context, begun: Instant::now() };
    let mut completed = false;
    let result = tokio::select! {
        result = run_scenario(&printer, &exchange, args.keep, &mut completed) => result,
        _ = interrupted.recv() => Err(Failure::new("demo-stopped")),
        _ = terminated.recv() => Err(Failure::new("demo-stopped")),
    };
    exchange.end().await;
    match result {
        Err(failure) if completed && failure.id() == "demo-stopped" => {
            printer.line("demo-ended", &context.messages.text("demo-ended"))?;
            Ok(Exit::Ok)
        }
        other => other.map(|()| Exit::Ok),
    }
}

async fn run_scenario(
    printer: &StepPrinter<'_>,
    exchange: &Exchange,
    keep: bool,
    completed: &mut bool,
) -> Result<(), Failure> {
    scenario::run(printer, exchange).await?;
    *completed = true;
    let seconds = printer.seconds();
    let passed = localize!(printer.context.messages, "demo-passed", seconds = &seconds);
    printer.line("", "")?;
    printer.line("demo-passed", &printer.context.output.paint(&passed, Style::new().green().bold()))?;
    if keep {
        printer.next_steps(exchange)?;
        return Err(exchange.first_to_end().await);
    }
    Ok(())
}

/// Prints the steps as they happen.
struct StepPrinter<'a> {
    context: &'a Context,
    begun: Instant,
}

impl StepPrinter<'_> {
    /// Returns the seconds since the start: `3.2`.
    fn seconds(&self) -> String {
        format!("{:.1}", self.begun.elapsed().as_secs_f32())
    }

    /// Prints a step with its time.
    fn step(&self, id: &str, text: &str) -> Result<(), Failure> {
        let output = &self.context.output;
        if output.is_json() {
            return self.line(id, text);
        }
        let time = output.paint(&format!("{:>5} s", self.seconds()), Style::new().dimmed());
        output.line("")?;
        self.hanging(&format!("{time}  "), &output.paint(text, Style::new().bold()))
    }

    /// Prints a check that passed.
    fn passed(&self, id: &str, text: &str) -> Result<(), Failure> {
        let symbol = self.context.output.paint("✓", Style::new().green().bold());
        if self.context.output.is_json() {
            self.line(id, text)
        } else {
            self.hanging(&format!("         {symbol} "), text)
        }
    }

    /// Prints a text after a prefix; its further lines begin below its first.
    fn hanging(&self, prefix: &str, text: &str) -> Result<(), Failure> {
        let output = &self.context.output;
        wrap::hanging(prefix, text, output.width()).iter().try_for_each(|line| output.verbatim(line))
    }

    /// Prints a line. In JSON it is an object with its id; a line without an id is left out.
    fn line(&self, id: &str, text: &str) -> Result<(), Failure> {
        let output = &self.context.output;
        match (output.is_json(), id.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => output.json(&json!({"step": id, "seconds": self.seconds(), "text": text})),
            (false, _) => output.line(text),
        }
    }

    /// Prints how to use the running nodes from another terminal.
    fn next_steps(&self, exchange: &Exchange) -> Result<(), Failure> {
        let messages = &self.context.messages;
        self.line("", "")?;
        self.line("demo-keep", &messages.text("demo-keep"))?;
        let draft = exchange.path("stolen-passport.fr.json");
        for (id, member, client, command) in [
            ("demo-keep-watch", "tn", "police-hq", "watch --topic 'security.>'".to_owned()),
            ("demo-keep-publish", "ne", "police-hq", format!("publish {} --wait-for 3", shell_quoted(&draft))),
            ("demo-keep-status", "ma", "operator", "status".to_owned()),
        ] {
            let (program, profile) =
                (shell_quoted(&exchange.program()), shell_quoted(&exchange.profile(member, client)));
            self.line(id, &format!("  {}", messages.text(id)))?;
            let command = format!("    {program} --profile {profile} {command}");
            if self.context.output.is_json() {
                self.line(id, &command)?;
            } else {
                // The whole line is to be copied.
                self.context.output.verbatim(&command)?;
            }
        }
        let logs = exchange.path("*/node.log");
        self.line("demo-keep-logs", &format!("  {}", localize!(messages, "demo-keep-logs", path = &logs)))
    }
}
