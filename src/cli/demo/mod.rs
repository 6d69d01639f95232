//! `barid demo`: a throwaway exchange of four node processes on this machine, and a story told with the ordinary commands.
//!
//! In scope: the order of the story, its words, stopping and cleaning up. Out of scope: doing anything that a member's people could
//! not do: every step is this same program with a client's certificate (`exchange`), and each step checks what it claims (`story`).

mod exchange;
mod story;

use std::time::Instant;

use clap::Args;
use owo_colors::Style;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::args::quoted;
use super::{Context, Exit, Failure, say};
use exchange::Exchange;

/// How to show it.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave the nodes running after the story, until Ctrl-C, and say how to use them from another terminal.
    #[arg(long)]
    keep: bool,
    /// First of the eight ports to use [default: eight that are free].
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
}

/// Tells the story; ends well only if everything held. Ctrl-C and SIGTERM end it early; nodes and folder are gone afterwards in any
/// case.
pub(super) async fn run(context: &Context, args: &DemoArgs) -> Result<Exit, Failure> {
    let internal = |error: std::io::Error| Failure::new("internal").because(&error);
    let mut interrupted = signal(SignalKind::interrupt()).map_err(internal)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(internal)?;
    let exchange = Exchange::make(args.base_port)?;
    let teller = Teller { context, begun: Instant::now() };
    let mut story_told = false;
    let result = tokio::select! {
        result = tell(&teller, &exchange, args.keep, &mut story_told) => result,
        _ = interrupted.recv() => Err(Failure::new("demo-stopped")),
        _ = terminated.recv() => Err(Failure::new("demo-stopped")),
    };
    exchange.end().await;
    match result {
        Err(failure) if story_told && failure.id() == "demo-stopped" => {
            teller.line("demo-ended", &context.messages.text("demo-ended"))?;
            Ok(Exit::Ok)
        }
        other => other.map(|()| Exit::Ok),
    }
}

async fn tell(teller: &Teller<'_>, exchange: &Exchange, keep: bool, told: &mut bool) -> Result<(), Failure> {
    story::tell(teller, exchange).await?;
    *told = true;
    let seconds = teller.seconds();
    let held = say!(teller.context.messages, "demo-held", seconds = &seconds);
    teller.line("", "")?;
    teller.line("demo-held", &teller.context.output.paint(&held, Style::new().green().bold()))?;
    if keep {
        teller.keep(exchange)?;
        return Err(exchange.first_to_end().await);
    }
    Ok(())
}

/// Writes the story down as it happens.
struct Teller<'a> {
    context: &'a Context,
    begun: Instant,
}

impl Teller<'_> {
    /// Since the beginning: `3.2`.
    fn seconds(&self) -> String {
        format!("{:.1}", self.begun.elapsed().as_secs_f32())
    }

    /// A step of the story, with the time.
    fn step(&self, id: &str, text: &str) -> Result<(), Failure> {
        if self.context.output.is_json() {
            return self.line(id, text);
        }
        let time = self.context.output.paint(&format!("{:>5} s", self.seconds()), Style::new().dimmed());
        self.context.output.line("")?;
        self.context.output.line(&format!("{time}  {}", self.context.output.paint(text, Style::new().bold())))
    }

    /// Something that was checked and held.
    fn held(&self, id: &str, text: &str) -> Result<(), Failure> {
        let mark = self.context.output.paint("✓", Style::new().green().bold());
        if self.context.output.is_json() {
            self.line(id, text)
        } else {
            self.line(id, &format!("         {mark} {text}"))
        }
    }

    /// A line; for machines an object with its id, unless it is only there for the eye.
    fn line(&self, id: &str, text: &str) -> Result<(), Failure> {
        let output = &self.context.output;
        match (output.is_json(), id.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => output.json(&json!({"step": id, "seconds": self.seconds(), "text": text})),
            (false, _) => output.line(text),
        }
    }

    /// How to go on from another terminal.
    fn keep(&self, exchange: &Exchange) -> Result<(), Failure> {
        let messages = &self.context.messages;
        self.line("", "")?;
        self.line("demo-keep", &messages.text("demo-keep"))?;
        let draft = exchange.path("stolen-passport.fr.json");
        for (id, member, client, words) in [
            ("demo-keep-watch", "tn", "police-hq", "watch --topic 'security.>'".to_owned()),
            ("demo-keep-publish", "ne", "police-hq", format!("publish {} --wait-for 3", quoted(&draft))),
            ("demo-keep-status", "ma", "operator", "status".to_owned()),
        ] {
            let (program, profile) = (quoted(&exchange.program()), quoted(&exchange.profile(member, client)));
            self.line(id, &format!("  {}", messages.text(id)))?;
            self.line(id, &format!("    {program} --profile {profile} {words}"))?;
        }
        let logs = exchange.path("*/node.log");
        self.line("demo-keep-logs", &format!("  {}", say!(messages, "demo-keep-logs", path = &logs)))
    }
}
