//! `barid roster sign`: adds a governor's signature to the exact text of a draft.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use barid_core::certificate::first_der;
use barid_core::feed::note::SigningKey;
use barid_core::roster::{Draft, Roster, RosterChain, SignError, UnfitAuthority};
use clap::Args;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::{read, read_file, signer_json, signer_lines};
use crate::cli::cert_check::judge_authority;
use crate::cli::failure::Field;
use crate::cli::{Context, Exit, Failure, localize};
use crate::clock;
use crate::files::{self, Guard};

/// File extension of a signed roster.
const ENDING: &str = "note";
/// Permissions of a new roster, less the process's umask: a roster is not secret.
const RIGHTS: u32 = 0o666;

/// What to sign, the keys, and where to write.
#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// Draft: the text, or the text with the signatures of other governors.
    #[arg(value_name = "DRAFT")]
    draft: PathBuf,
    /// A governor's private key; may be repeated.
    #[arg(long, value_name = "KEY", required = true)]
    key: Vec<PathBuf>,
    /// Previous version, which you trust: the draft must be a valid successor, and its governors
    /// may sign.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// File to write; `-` writes to standard output [default: the draft's name with the extension
    /// .note].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output if it exists; never the draft.
    #[arg(long)]
    force: bool,
    /// Write the signatures into the draft's own file.
    #[arg(long, conflicts_with_all = ["output", "force"])]
    in_place: bool,
}

pub(super) fn run(context: &Context, args: &SignArgs) -> Result<Exit, Failure> {
    let path = place(args)?;
    let mut draft = read(&args.draft)?;
    let before = args.trust.as_ref().map(|path| trusted(path)).transpose()?;
    for path in &args.key {
        draft
            .sign(&signing_key(path)?, before.as_ref(), i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX))
            .map_err(|error| sign_failure(args, &error))?;
    }
    // This check comes before anything is written.
    let unfit = unfit_authorities(draft.roster(), before.as_ref());
    if !unfit.is_empty() {
        return Err(sign_failure(args, &SignError::Authorities(unfit)));
    }
    let bytes = draft.note().to_bytes();
    let Some(path) = path else {
        context.output.bytes(&bytes)?;
        return Ok(Exit::Ok);
    };
    write(&path, &bytes).map_err(|error| Failure::new("file-unwritable").path(&path).because(&error))?;
    if context.output.is_json() {
        context.output.json(&object(&path, &draft, before.as_ref()))?;
    } else {
        context.output.lines(lines(context, &path, &draft, before.as_ref()))?;
    }
    Ok(Exit::Ok)
}

/// Returns where to write, or `None` for standard output. The draft is overwritten only with
/// `--in-place`.
fn place(args: &SignArgs) -> Result<Option<PathBuf>, Failure> {
    if args.in_place {
        return Ok(Some(args.draft.clone()));
    }
    let path = args.output.clone().unwrap_or_else(|| args.draft.with_extension(ENDING));
    if path.as_os_str() == "-" {
        return Ok(None);
    }
    let is_draft = match (path.canonicalize(), args.draft.canonicalize()) {
        (Ok(path), Ok(draft)) => path == draft,
        _ => path == args.draft,
    };
    if is_draft || (path.exists() && !args.force) {
        return Err(Failure::usage("roster-exists").path(&path));
    }
    Ok(Some(path))
}

fn trusted(path: &Path) -> Result<Roster, Failure> {
    let chain = RosterChain::start(&read_file(path)?);
    let chain = chain.map_err(|error| Failure::usage("roster-unusable").path(path).because(&error))?;
    Ok(chain.newest().clone())
}

fn signing_key(path: &Path) -> Result<SigningKey, Failure> {
    let text = files::read_text(path, Guard::Secret)
        .map_err(|error| Failure::usage("file-unreadable").path(path).because(&error))?;
    SigningKey::from_text(text.trim_end()).map_err(|error| Failure::usage("key-unusable").path(path).because(&error))
}

/// Returns new authorities that fail the checks that the draft cannot make: whether the verifier
/// can parse them, and their self-signature.
fn unfit_authorities(roster: &Roster, before: Option<&Roster>) -> Vec<UnfitAuthority> {
    let unfit = |(field, pem): (String, &str)| {
        let certificate = CertificateDer::from(first_der(pem)?);
        let reason = judge_authority(&certificate).err()?;
        Some(UnfitAuthority { field, reason })
    };
    roster.new_authorities(before).filter_map(unfit).collect()
}

fn sign_failure(args: &SignArgs, error: &SignError) -> Failure {
    let id = match error {
        SignError::NotGovernor(_) if args.trust.is_none() => "roster-unknown-signer",
        _ => "roster-not-signed",
    };
    let failure = Failure::new(id).path(&args.draft);
    match error {
        SignError::Authorities(unfit) => {
            failure.with_id("roster-authorities").fields(unfit.iter().map(field).collect())
        }
        _ => failure.because(error),
    }
}

fn field(unfit: &UnfitAuthority) -> Field {
    Field::new(&unfit.field, unfit.reason.to_string())
}

/// Writes a temporary file beside `path` and renames it: a reader finds the whole file or none. The
/// permissions of an existing file are preserved.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let rights = fs::Permissions::from_mode(RIGHTS);
    let mut file = tempfile::Builder::new().permissions(rights).tempfile_in(folder)?;
    if let Ok(held) = fs::metadata(path) {
        file.as_file().set_permissions(held.permissions())?;
    }
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Returns whether the known thresholds are reached: of the draft's own governors, and of the
/// previous version's if it is given.
fn complete(draft: &Draft, before: Option<&Roster>) -> bool {
    let enough = |by: &Roster| by.approvals(draft.note()) >= by.threshold();
    enough(draft.roster()) && before.is_none_or(enough)
}

fn object(path: &Path, draft: &Draft, before: Option<&Roster>) -> Value {
    let count = |by: &Roster| json!({"found": by.approvals(draft.note()), "needed": by.threshold()});
    json!({
        "file": path.display().to_string(),
        "version": draft.roster().version(),
        "textHash": draft.roster().text_hash().to_string(),
        "ownGovernors": count(draft.roster()),
        "governorsBefore": before.map(count),
        "complete": complete(draft, before),
        "signatures": draft.signers(before).iter().map(signer_json).collect::<Vec<_>>(),
    })
}

fn lines(context: &Context, path: &Path, draft: &Draft, before: Option<&Roster>) -> Vec<String> {
    let messages = &context.messages;
    let path = path.display().to_string();
    let of = |by: &Roster| {
        localize!(messages, "roster-count", nFound = by.approvals(draft.note()), nNeeded = by.threshold())
    };
    let mut lines = vec![localize!(messages, "roster-signed", path = &path, nVersion = draft.roster().version())];
    lines.extend(context.output.block(&[
        (messages.text("label-text-hash"), messages.value(&draft.roster().text_hash().to_string())),
        (messages.text("label-own-governors"), of(draft.roster())),
        (messages.text("label-governors-before"), before.map(of).unwrap_or_default()),
    ]));
    lines.extend(signer_lines(context, &draft.signers(before)));
    if draft.roster().version() > 1 && before.is_none() {
        lines.push(messages.text("roster-signed-alone"));
    }
    let id = if complete(draft, before) { "roster-signed-complete" } else { "roster-signed-more" };
    lines.push(localize!(messages, id, path = &path));
    lines
}
