//! `barid evidence`: exports the file that proves a bulletin offline.
//!
//! In scope: requesting the file from the node, and writing it atomically. Out of scope: its
//! contents and what it proves (`verify`).

use std::io::Write;
use std::path::{Path, PathBuf};

use barid_core::ids::Member;
use barid_core::proto;
use clap::Args;
use serde_json::{Value, json};

use super::bulletin_ref::BulletinRef;
use super::client::Client;
use super::deadline::TimeoutArgs;
use super::render::Render;
use super::{Context, Exit, Failure, localize, message, show, times};

/// The bulletin, and where to write the file.
#[derive(Debug, Args)]
pub(super) struct EvidenceArgs {
    /// Bulletin: `ne/0197…`, the id alone, the beginning of either, or its offset: `7` or `'#7'`.
    #[arg(value_name = "MEMBER/ID")]
    bulletin: BulletinRef,
    /// Member that published it, if several have published one with this id.
    #[arg(long, value_name = "MEMBER")]
    member: Option<Member>,
    /// File to write; `-` writes to standard output [default: ID.barid].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) within: TimeoutArgs,
}

/// Exports the evidence.
pub(super) async fn run(context: &Context, args: &EvidenceArgs) -> Result<Exit, Failure> {
    let profile = context.profile()?;
    let client = Client::with_timeout(&profile, args.within.duration())?;
    let bulletin = args.bulletin.resolve(&client, args.member.as_ref()).await?;
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.barid", bulletin.id)));
    let to_stdout = path.as_os_str() == "-";
    if !to_stdout && !args.force && path.exists() {
        return Err(Failure::usage("file-exists").path(&path));
    }
    let (_, (summary, file)) = show::find(&profile, &bulletin, async |member, id| {
        client.export_evidence(proto::ExportEvidenceRequest { member: member.to_string(), id }).await
    })
    .await?;
    if to_stdout {
        context.output.bytes(&file)?;
        return Ok(Exit::Ok);
    }
    write(&path, &file, args.force).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::usage("file-exists").path(&path),
        _ => Failure::new("file-unwritable").path(&path).because(&error),
    })?;
    if context.output.is_json() {
        let mut object = json!({"file": path.display().to_string(), "bytes": file.len()});
        if let (Some(fields), Value::Object(summary)) = (object.as_object_mut(), message::json_of(&summary)) {
            fields.extend(summary);
        }
        context.output.json(&object)?;
        return Ok(Exit::Ok);
    }
    context.output.lines(summary_lines(context, &Render::new(context, profile.directory()), &path, &summary))?;
    Ok(Exit::Ok)
}

fn summary_lines(context: &Context, render: &Render<'_>, path: &Path, summary: &proto::EvidenceSummary) -> Vec<String> {
    let messages = &context.messages;
    let path = path.display().to_string();
    let members = |codes: &[String]| codes.iter().map(|code| render.member(code)).collect::<Vec<_>>().join(", ");
    let witnesses = localize!(
        messages,
        "evidence-witnesses",
        nWitnesses = summary.cosigners.len() as u64,
        nQuorum = u64::from(summary.quorum)
    );
    let mut lines = vec![localize!(messages, "evidence-written", path = &path, nBytes = summary.size)];
    lines.extend(render.block(&[
        render.pair("label-verdict", messages.term("verdict", &summary.outcome)),
        render.pair("label-witnesses", witnesses),
        render.pair("label-cosigners", members(&summary.cosigners)),
        render.pair("label-newest-cosignature", messages.value(&times::seconds(summary.newest_cosignature.as_ref()))),
        render.pair("label-custody", members(&summary.custody)),
    ]));
    lines.push(localize!(messages, "evidence-next", path = &path));
    lines
}

/// Writes a temporary file beside `path` and renames it: a reader finds the whole file or none.
/// Only its owner can read it, because it contains the bulletin.
fn write(path: &Path, bytes: &[u8], replace: bool) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    if replace {
        file.persist(path)?;
    } else {
        file.persist_noclobber(path)?;
    }
    Ok(())
}
