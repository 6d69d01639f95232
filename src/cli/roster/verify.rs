//! `barid roster verify`: checks whether a roster follows from the trusted one, and shows its
//! signers.

use std::path::PathBuf;

use barid_core::roster::{ChainError, Draft, Roster, RosterChain, UnfitAuthority};
use clap::Args;
use owo_colors::Style;
use serde_json::{Value, json};

use super::{of_profile, read_file, signer_json, signer_lines};
use crate::cli::messages::Messages;
use crate::cli::{Context, Exit, Failure, localize, proof_errors};

/// The rosters to verify, and the trusted one.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Roster to verify; if there are versions between it and the trusted one, these first, in
    /// order.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Roster that you trust [default: the profile's].
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
}

/// Result of the verification.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It is the trusted roster.
    Same,
    /// It follows from the trusted roster.
    Follows,
    /// The trusted roster names it as the previous version.
    Before,
    /// Its own governors signed it, but nothing links it to a trusted roster.
    Untied(Option<Reason>),
    /// A second roster of a known version, with enough signatures.
    Fork(Reason),
    /// Signatures missing or invalid, not a roster, or no valid successor of the trusted one.
    Invalid(Option<Reason>),
}

/// Why it is not trusted.
#[derive(Debug, PartialEq, Eq)]
enum Reason {
    /// It does not extend a chain.
    Chain(Box<ChainError>),
    /// It adds authorities that are not fit.
    Authorities(Vec<UnfitAuthority>),
}

impl Reason {
    fn chain(error: ChainError) -> Self {
        Self::Chain(Box::new(error))
    }

    fn in_english(&self) -> String {
        match self {
            Self::Chain(error) => error.to_string(),
            Self::Authorities(unfit) => unfit.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    }

    fn localized(&self, messages: &Messages) -> String {
        let known = match self {
            Self::Chain(error) => proof_errors::chain(messages, error),
            Self::Authorities(_) => None,
        };
        known.map_or_else(|| messages.value(&self.in_english()), |text| messages.isolate(&text))
    }
}

impl Outcome {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Follows => "follows",
            Self::Before => "before",
            Self::Untied(_) => "untied",
            Self::Fork(_) => "fork",
            Self::Invalid(_) => "invalid",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Same | Self::Follows | Self::Before => Exit::Ok,
            Self::Untied(_) => Exit::SignedOnly,
            Self::Fork(_) => Exit::Disputed,
            Self::Invalid(_) => Exit::Invalid,
        }
    }

    fn why(&self) -> Option<&Reason> {
        match self {
            Self::Untied(why) | Self::Invalid(why) => why.as_ref(),
            Self::Fork(why) => Some(why),
            Self::Same | Self::Follows | Self::Before => None,
        }
    }
}

/// Result for the last file that was checked.
struct Finding {
    outcome: Outcome,
    draft: Option<Draft>,
    /// The previous version, if it is known.
    before: Option<Roster>,
    trusted: Option<u64>,
}

pub(super) fn run(context: &Context, args: &VerifyArgs) -> Result<Exit, Failure> {
    let trust = match &args.trust {
        Some(path) => Some(path.clone()),
        None => of_profile(context)?,
    };
    let trusted = trust.map(|path| {
        let unusable = |error: ChainError| Failure::usage("roster-unusable").path(&path).because(&error);
        RosterChain::start(&read_file(&path)?).map_err(unusable)
    });
    let trusted = trusted.transpose()?;
    let files = args.files.iter().map(|path| read_file(path)).collect::<Result<Vec<_>, _>>()?;
    let finding = judge(trusted, &files);
    let exit = finding.outcome.exit();
    if context.output.is_json() {
        context.output.json(&object(&finding))?;
    } else {
        context.output.lines(lines(context, &finding))?;
    }
    Ok(exit)
}

fn judge(trusted: Option<RosterChain>, files: &[Vec<u8>]) -> Finding {
    let version = trusted.as_ref().map(|chain| chain.newest().version());
    let mut chain = trusted;
    let mut finding = Finding { outcome: Outcome::Invalid(None), draft: None, before: None, trusted: version };
    for note in files {
        finding.draft = Draft::read(note).ok();
        let roster = finding.draft.as_ref().map(Draft::roster);
        finding.before = roster.and_then(|roster| chain.as_ref()?.at(roster.version().checked_sub(1)?)).cloned();
        finding.outcome = match &mut chain {
            Some(chain) => against(chain, note, version),
            None => match RosterChain::start(note) {
                Ok(own) => {
                    chain = Some(own);
                    Outcome::Untied(None)
                }
                Err(error) => Outcome::Invalid(Some(Reason::chain(error))),
            },
        };
        finding.check_authorities();
        let untied_from_the_start = version.is_none() && matches!(finding.outcome, Outcome::Untied(_));
        if finding.outcome.exit() != Exit::Ok && !untied_from_the_start {
            return finding;
        }
    }
    // Without a trusted roster nothing links the first file, so the others are not linked either.
    if version.is_none() {
        finding.outcome = Outcome::Untied(None);
    }
    finding
}

impl Finding {
    /// Rejects a roster that adds authorities that were not fit when it was issued: its signers
    /// made an error, or are dishonest.
    fn check_authorities(&mut self) {
        let adds = matches!(self.outcome, Outcome::Follows | Outcome::Untied(_));
        let Some(draft) = self.draft.as_ref().filter(|_| adds) else { return };
        let unfit = draft.roster().unfit_authorities(self.before.as_ref(), draft.roster().issued());
        if !unfit.is_empty() {
            self.outcome = Outcome::Invalid(Some(Reason::Authorities(unfit)));
        }
    }
}

fn against(chain: &mut RosterChain, note: &[u8], trusted: Option<u64>) -> Outcome {
    let newest = chain.newest_shared();
    match chain.extend(note) {
        Ok(true) => Outcome::Follows,
        Ok(false) if Some(newest.version()) == trusted => Outcome::Same,
        Ok(false) => Outcome::Follows,
        Err(error @ ChainError::Fork { .. }) => Outcome::Fork(Reason::chain(error)),
        Err(error @ ChainError::Gap { .. }) => match RosterChain::start(note) {
            Ok(own) if newest.previous() == Some(own.newest().text_hash()) => Outcome::Before,
            Ok(_) => Outcome::Untied(Some(Reason::chain(error))),
            Err(error) => Outcome::Invalid(Some(Reason::chain(error))),
        },
        Err(error) => Outcome::Invalid(Some(Reason::chain(error))),
    }
}

fn object(finding: &Finding) -> Value {
    let count = |by: &Roster, draft: &Draft| json!({"found": by.approvals(draft.note()), "needed": by.threshold()});
    let mut object = json!({
        "result": finding.outcome.as_str(),
        "exit": finding.outcome.exit() as u8,
        "reason": finding.outcome.why().map(Reason::in_english),
        "trustedVersion": finding.trusted,
    });
    if let Some(draft) = &finding.draft {
        let roster = draft.roster();
        object["exchange"] = roster.exchange().as_str().into();
        object["version"] = roster.version().into();
        object["textHash"] = roster.text_hash().to_string().into();
        object["ownGovernors"] = count(roster, draft);
        object["governorsBefore"] = finding.before.as_ref().map(|before| count(before, draft)).into();
        object["signatures"] = draft.signers(finding.before.as_ref()).iter().map(signer_json).collect();
    }
    object
}

fn lines(context: &Context, finding: &Finding) -> Vec<String> {
    let (messages, output) = (&context.messages, &context.output);
    let style = match finding.outcome.exit() {
        Exit::Ok => Style::new().green().bold(),
        Exit::SignedOnly => Style::new().yellow().bold(),
        _ => Style::new().red().bold(),
    };
    let version = finding.draft.as_ref().map_or(0, |draft| draft.roster().version());
    let trusted = finding.trusted.unwrap_or(0);
    let id = format!("roster-{}", finding.outcome.as_str());
    let mut lines = vec![output.paint(&localize!(messages, &id, nVersion = version, nTrusted = trusted), style)];
    if let Some(why) = finding.outcome.why() {
        lines.push(format!("  {} {}", messages.text("failure-why"), why.localized(messages)));
    }
    let Some(draft) = &finding.draft else { return lines };
    let (roster, before) = (draft.roster(), finding.before.as_ref());
    let of = |by: &Roster| {
        localize!(messages, "roster-count", nFound = by.approvals(draft.note()), nNeeded = by.threshold())
    };
    lines.extend(output.block(&[
        (messages.text("label-text-hash"), messages.value(&roster.text_hash().to_string())),
        (messages.text("label-own-governors"), of(roster)),
        (messages.text("label-governors-before"), before.map(of).unwrap_or_default()),
    ]));
    lines.extend(signer_lines(context, &draft.signers(before)));
    if let Some(next) = messages.find(&format!("{id}.next"), None) {
        lines.push(format!("  {} {next}", messages.text("failure-next")));
    }
    lines
}
