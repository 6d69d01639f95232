//! `barid exchange init`: creates a development exchange in a folder.

use std::path::PathBuf;

use barid_core::ids::{ExchangeName, Member};
use barid_core::roster::MemberKind;
use clap::{Args, Subcommand};

use super::{Context, Exit, Failure};
use crate::pki::{self, DevelopMember, DevelopOptions, MEMBERS_MAX, Owner, PkiError, Place};

/// The demo's members.
const FULL_MEMBERS: &str = "ma,ly,tn,ne";

/// The limit on members, in the type of the argument parser.
const COUNT_MAX: i64 = MEMBERS_MAX as i64;

/// Arguments of `barid exchange`.
#[derive(Debug, Args)]
pub(super) struct ExchangeArgs {
    #[command(subcommand)]
    command: ExchangeCommand,
}

/// Subcommands of `barid exchange`.
#[derive(Debug, Subcommand)]
enum ExchangeCommand {
    /// Make roster, authorities, keys and configurations for development.
    Init(InitArgs),
}

/// Arguments of `barid exchange init`.
#[derive(Debug, Args)]
struct InitArgs {
    /// Folder to create the exchange in.
    #[arg(long, value_name = "FOLDER", default_value = "certs")]
    dir: PathBuf,
    /// Name of the exchange.
    #[arg(long, default_value = "rabat.example")]
    exchange: ExchangeName,
    /// Full members.
    #[arg(long, value_name = "CODE", value_delimiter = ',', default_value = FULL_MEMBERS)]
    members: Vec<Member>,
    /// Number of full members, instead of their codes: the four of the demo, then made-up
    /// organisations.
    #[arg(long, value_name = "N", conflicts_with = "members", value_parser = clap::value_parser!(u16).range(1..=COUNT_MAX))]
    count: Option<u16>,
    /// Observers: TLP:GREEN in the working group `information`.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    observers: Vec<Member>,
    /// Partners: TLP:GREEN in every working group.
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    partners: Vec<Member>,
    /// Port of the first member's exchange listener; its API port is one higher, the next member's
    /// ports ten higher.
    #[arg(long, value_name = "PORT", default_value_t = 7400)]
    base_port: u16,
    /// The same ports for every member: each node has a machine or a container of its own.
    #[arg(long)]
    same_ports: bool,
    /// Address, or a host name, that the nodes listen on; `CODE` is replaced by the member's code.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: String,
    /// The same for the API, which a member's own clients use [default: as --bind].
    #[arg(long, value_name = "ADDRESS")]
    bind_api: Option<String>,
    /// Host at which a member is reached; `CODE` is replaced by its code.
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Host at which a member's own clients reach the API; `CODE` is replaced by its code [default:
    /// as --host].
    #[arg(long, value_name = "HOST")]
    host_api: Option<String>,
    /// Folder for the keys that no node needs: of governors, authorities and the next epoch
    /// [default: beside the others].
    #[arg(long, value_name = "FOLDER")]
    offline: Option<PathBuf>,
    /// Numeric user and group that own the members' folders.
    #[arg(long, value_name = "USER:GROUP")]
    owner: Option<Owner>,
    /// Leave an existing exchange as it is, and exit with code 0.
    #[arg(long)]
    once: bool,
}

pub(super) fn run(context: &Context, args: &ExchangeArgs) -> Result<Exit, Failure> {
    let ExchangeCommand::Init(args) = &args.command;
    let members = args.kinds()?.into_iter().enumerate();
    let members = members.map(|(n, (code, kind))| Ok(args.member(n, &code)?.of_kind(kind)));
    let members = members.collect::<Result<_, Failure>>()?;
    let options = DevelopOptions {
        offline: args.offline.clone(),
        owner: args.owner,
        ..DevelopOptions::new(args.dir.clone(), args.exchange.clone(), members)
    };
    let dir = args.dir.display().to_string();
    if args.once && options.is_made() {
        context.output.line(&super::localize!(context.messages, "exchange-there", dir = &dir))?;
        return Ok(Exit::Ok);
    }
    pki::develop(&options).map_err(|error| {
        let usage = matches!(error, PkiError::Twice(_) | PkiError::Host(_) | PkiError::TooMany(_));
        let exit = if usage { Exit::Usage } else { Exit::Failure };
        Failure::new("exchange-init").exit(exit).because(&error)
    })?;
    context.output.line(&super::localize!(context.messages, "exchange-made", dir = &dir))?;
    Ok(Exit::Ok)
}

impl InitArgs {
    /// Returns the members with their kinds; full members first.
    fn kinds(&self) -> Result<Vec<(Member, MemberKind)>, Failure> {
        let full: Vec<Member> = match self.count {
            Some(count) => {
                let made_up = (1..).map(|n| format!("x-member-{n}"));
                let codes = FULL_MEMBERS.split(',').map(str::to_owned).chain(made_up).take(count.into());
                let codes = codes.map(|code| code.parse()).collect::<Result<_, _>>();
                codes.map_err(|error| Failure::usage("exchange-init").because(&error))?
            }
            None => self.members.clone(),
        };
        let of = |codes: &[Member], kind| codes.iter().map(move |code| (code.clone(), kind)).collect::<Vec<_>>();
        let all = full.iter().chain(&self.observers).chain(&self.partners);
        if let Some(code) = all.into_iter().find(|code| !code.is_assigned()) {
            let cause =
                format!("{code}: ISO 3166-1 does not assign this code; the code of an organisation is `x-` and a name");
            return Err(Failure::usage("exchange-init").cause(cause));
        }
        let guests = [of(&self.observers, MemberKind::Observer), of(&self.partners, MemberKind::Partner)];
        Ok(of(&full, MemberKind::Full).into_iter().chain(guests.concat()).collect())
    }

    fn member(&self, n: usize, code: &Member) -> Result<DevelopMember, Failure> {
        let step = if self.same_ports { 0 } else { n.saturating_mul(10) };
        let port = u16::try_from(step).ok().and_then(|step| self.base_port.checked_add(step));
        let port = port
            .filter(|port| *port < u16::MAX)
            .ok_or_else(|| Failure::usage("exchange-init").cause("the ports do not fit below 65,536"))?;
        let own = |template: &str| template.replace("CODE", code.as_str());
        let place = |bind: &str, host: &str, port| Place { bind: own(bind), host: own(host), port };
        let (bind_api, host_api) =
            (self.bind_api.as_ref().unwrap_or(&self.bind), self.host_api.as_ref().unwrap_or(&self.host));
        Ok(DevelopMember {
            exchange: place(&self.bind, &self.host, port),
            api: place(bind_api, host_api, port + 1),
            ..DevelopMember::local(code.clone(), port)
        })
    }
}
