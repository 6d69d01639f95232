//! `barid evidence`: the file that proves a bulletin offline.
//!
//! In scope: asking the node and writing the file whole or not at all. Out of scope: what is in it and what it proves (`verify`).

use std::io::Write;
use std::path::{Path, PathBuf};

use barid_core::proto;
use clap::Args;
use serde_json::json;

use super::args::BulletinRef;
use super::client::Client;
use super::render::Render;
use super::{Context, Exit, Failure, say, show, times};

/// Which bulletin, and where to.
#[derive(Debug, Args)]
pub(super) struct EvidenceArgs {
    /// Bulletin: `ne/0197…`, or the id alone.
    #[arg(value_name = "MEMBER/ID")]
    bulletin: BulletinRef,
    /// File to write; `-` writes to standard output [default: ID.barid].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
}

/// Writes it.
pub(super) async fn run(context: &Context, args: &EvidenceArgs) -> Result<Exit, Failure> {
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.barid", args.bulletin.id)));
    let to_stdout = path.as_os_str() == "-";
    if !to_stdout && !args.force && path.exists() {
        return Err(Failure::usage("file-exists").path(&path));
    }
    let profile = context.profile()?;
    let client = Client::open(&profile)?;
    let (_, answer) = show::find(&profile, &args.bulletin, async |member, id| {
        client.export_evidence(proto::ExportEvidenceRequest { member: member.to_string(), id }).await
    })
    .await?;
    if to_stdout {
        context.output.bytes(&answer.evidence)?;
        return Ok(Exit::Ok);
    }
    write(&path, &answer.evidence).map_err(|error| Failure::new("file-unwritable").path(&path).because(&error))?;
    if context.output.is_json() {
        context.output.json(&json!({
            "file": path.display().to_string(),
            "bytes": answer.evidence.len(),
            "cosigners": answer.cosigners,
            "newestCosignature": answer.newest_cosignature,
        }))?;
        return Ok(Exit::Ok);
    }
    let messages = &context.messages;
    let render = Render::new(context, profile.directory());
    context.output.line(&say!(messages, "evidence-written", path = path.display().to_string()))?;
    let cosigners: Vec<String> = answer.cosigners.iter().map(|code| render.member(code)).collect();
    context.output.lines(render.block(&[
        render.pair("label-cosigners", cosigners.join(", ")),
        render.pair("label-newest-cosignature", messages.value(&times::seconds(answer.newest_cosignature.as_ref()))),
    ]))?;
    context.output.line(&say!(messages, "evidence-next", path = path.display().to_string()))?;
    Ok(Exit::Ok)
}

/// Writes beside the place and moves there: a reader finds the whole file or none.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
