//! `barid exchange init`: a development exchange in a folder.

use std::path::PathBuf;

use barid_core::names::{ExchangeName, Member};
use clap::{Args, Subcommand};

use super::{Context, Exit, Failure};
use crate::pki::{self, DevelopMember, DevelopOptions, WORKING_GROUPS};

/// What `exchange` is told.
#[derive(Debug, Args)]
pub(super) struct ExchangeArgs {
    #[command(subcommand)]
    command: ExchangeCommand,
}

/// What to do with an exchange.
#[derive(Debug, Subcommand)]
enum ExchangeCommand {
    /// Make roster, authorities, keys and configurations for development.
    Init(InitArgs),
}

/// What `exchange init` is told.
#[derive(Debug, Args)]
struct InitArgs {
    /// Folder to make it in.
    #[arg(long, value_name = "FOLDER", default_value = "certs")]
    dir: PathBuf,
    /// Name of the exchange.
    #[arg(long, default_value = "rabat.example")]
    exchange: ExchangeName,
    /// Members.
    #[arg(long, value_delimiter = ',', default_value = "ma,ly,tn,ne")]
    members: Vec<Member>,
    /// Port of the first member's exchange listener; its API is one higher, the next member ten.
    #[arg(long, value_name = "PORT", default_value_t = 7400)]
    base_port: u16,
    /// Address that the nodes listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: String,
    /// Host under which a member is reached; `CODE` stands for its code.
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
}

pub(super) fn run(context: &Context, args: &ExchangeArgs) -> Result<Exit, Failure> {
    let ExchangeCommand::Init(args) = &args.command;
    let ports = |n: usize| {
        let first = u16::try_from(n * 10).ok().and_then(|step| args.base_port.checked_add(step));
        first
            .filter(|port| *port < u16::MAX)
            .ok_or_else(|| Failure::usage("exchange-init").cause("the ports do not fit below 65,536"))
    };
    let member = |(n, code): (usize, &Member)| {
        let exchange_port = ports(n)?;
        Ok(DevelopMember {
            code: code.clone(),
            host: args.host.replace("CODE", code.as_str()),
            exchange_port,
            api_port: exchange_port + 1,
            working_groups: WORKING_GROUPS.map(str::to_owned).to_vec(),
        })
    };
    let options = DevelopOptions {
        dir: args.dir.clone(),
        exchange: args.exchange.clone(),
        members: args.members.iter().enumerate().map(member).collect::<Result<_, Failure>>()?,
        bind: args.bind.clone(),
        quorum: if args.members.len() > 2 { 2 } else { 1 },
    };
    pki::develop(&options).map_err(|error| Failure::new("exchange-init").because(&error))?;
    let dir = args.dir.display().to_string();
    context.output.line(&super::say!(context.messages, "exchange-made", dir = &dir))?;
    Ok(Exit::Ok)
}
