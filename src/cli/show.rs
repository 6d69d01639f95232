//! `barid show`: shows one bulletin, its state, and the members that have stored it.
//!
//! In scope: finding a bulletin by id without its publishing member. Out of scope: finding the id
//! (`bulletin_ref`), proving it (`evidence`).

use barid_core::bulletin::kinds::travel_document_alert;
use barid_core::ids::Member;
use barid_core::proto::body::Content;
use barid_core::{envelope, proto};
use clap::Args;
use futures::future::join_all;
use serde_json::Value;

use super::bulletin_ref::{BulletinRef, WholeRef};
use super::client::Client;
use super::deadline::TimeoutArgs;
use super::failure::Field;
use super::render::{Reading, Render};
use super::{Context, Exit, Failure, Messages, Profile, localize, message};

/// Concurrent requests, one for each member: few enough for a caller's rate limit, and enough to
/// save round trips on a slow link.
const CONCURRENT_REQUESTS_MAX: usize = 8;

/// The bulletin.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Bulletin: `ne/0197…`, or the id alone, or the first characters of either; or its offset at
    /// this node, `7` or `'#7'`.
    #[arg(value_name = "MEMBER/ID")]
    bulletin: BulletinRef,
    /// Member that published it, if several have published one with this id.
    #[arg(long, value_name = "MEMBER")]
    member: Option<Member>,
    #[command(flatten)]
    pub(super) within: TimeoutArgs,
}

/// Shows the bulletin.
pub(super) async fn run(context: &Context, args: &ShowArgs) -> Result<Exit, Failure> {
    let profile = context.profile()?;
    let client = Client::with_timeout(&profile, args.within.duration())?;
    let bulletin = args.bulletin.resolve(&client, args.member.as_ref()).await?;
    let (_, response) = find(&profile, &bulletin, async |member, id| {
        client.get(proto::GetRequest { member: member.to_string(), id }).await
    })
    .await?;
    let delivery = response.delivery.clone().unwrap_or_default();
    let reading = Reading::new(&delivery);
    if context.output.is_json() {
        let mut object = message::json_of(&response);
        if let Value::Object(fields) = &mut object {
            fields.insert("delivery".to_owned(), reading.json());
        }
        context.output.json(&object)?;
        return Ok(Exit::Ok);
    }
    let render = Render::new(context, profile.directory());
    context.output.lines(render.full(&reading))?;
    context.output.lines(misfits(&context.messages, &delivery))?;
    context.output.lines(state_lines(context, &render, &response))?;
    Ok(Exit::Ok)
}

/// Returns what is inconsistent in the machine readable zone of a falsified document.
fn misfits(messages: &Messages, delivery: &proto::Delivery) -> Vec<String> {
    let content = envelope::body_of(&delivery.envelope).ok().and_then(|body| body.content);
    let Some(Content::TravelDocumentAlert(alert)) = content else { return Vec::new() };
    let misfits: Vec<String> =
        travel_document_alert::misfits(&alert).iter().map(|misfit| Field::of(misfit).localize(messages)).collect();
    if misfits.is_empty() { misfits } else { [vec![messages.text("zone-as-printed")], misfits].concat() }
}

fn state_lines(context: &Context, render: &Render<'_>, response: &proto::GetResponse) -> Vec<String> {
    let messages = &context.messages;
    let state = response.state.clone().unwrap_or_default();
    let acknowledged: Vec<String> =
        state.acknowledged_by.iter().map(|by| messages.isolate(&super::state::name(by))).collect();
    let left_out = state.acknowledgements.saturating_sub(acknowledged.len() as u64);
    let mut acknowledged = acknowledged.join(", ");
    if left_out > 0 {
        acknowledged = format!("{acknowledged} {}", localize!(messages, "acknowledged-more", nMore = left_out));
    }
    let mut lines = render.block(&[
        render.pair("label-state", render.state(Some(&state))),
        render.pair("label-acknowledged", acknowledged.trim_start()),
    ]);
    if state.partial {
        lines.push(messages.text("state-partial"));
    }
    if !response.stored.is_empty() {
        lines.push(messages.text("stored-heading"));
        lines.extend(render.stored(&response.stored));
    }
    lines
}

/// Requests a bulletin of its member, or else of every known member. Ids are unique only within a
/// member: if several members have this id, the user must name one.
pub(super) async fn find<T>(
    profile: &Profile,
    bulletin: &WholeRef,
    request: impl AsyncFn(&Member, String) -> Result<T, Failure>,
) -> Result<(Member, T), Failure> {
    let id = bulletin.id.to_string();
    let members = match &bulletin.member {
        Some(member) => vec![member.clone()],
        None => profile.directory().publishers(),
    };
    let mut found = Vec::new();
    for some in members.chunks(CONCURRENT_REQUESTS_MAX) {
        let responses = join_all(some.iter().map(|member| request(member, id.clone()))).await;
        for (member, response) in some.iter().zip(responses) {
            match response {
                Ok(response) => found.push((member.clone(), response)),
                Err(failure) if failure.id() == "not-found" => {}
                Err(failure) => return Err(failure),
            }
        }
    }
    if found.len() > 1 {
        let members: Vec<&str> = found.iter().map(|(member, _)| member.as_str()).collect();
        let failure = Failure::usage("several-bulletins").with("id", &id).with("members", &members.join(", "));
        return Err(failure.with("first", members.first().copied().unwrap_or_default()));
    }
    let name = bulletin.member.as_ref().map_or(id.clone(), |member| format!("{member}/{id}"));
    found.pop().ok_or_else(|| Failure::new("no-such-bulletin").with("bulletin", &name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;
    use crate::cli::profile::Directory;
    use crate::cli::times;

    #[test]
    fn mrz_mismatches_of_counterfeit_are_listed() {
        let mut draft = barid_core::bulletin::kinds::find("travel-document-alert").unwrap().sample().unwrap();
        let lines = |draft: &proto::Draft, lang| {
            let envelope = envelope::encode(draft.header.as_ref().unwrap(), draft.body.as_ref().unwrap(), [7; 16]);
            misfits(&Messages::new(lang), &proto::Delivery { envelope, ..Default::default() })
        };
        let change = |draft: &mut proto::Draft, change: fn(&mut proto::TravelDocumentAlert)| match draft
            .body
            .as_mut()
            .unwrap()
            .content
            .as_mut()
            .unwrap()
        {
            Content::TravelDocumentAlert(alert) => change(alert),
            _ => panic!("another kind"),
        };
        change(&mut draft, |alert| alert.fraud_type = "counterfeit".to_owned());
        assert!(lines(&draft, Lang::En).is_empty());
        change(&mut draft, |alert| alert.mrz[1].replace_range(19..20, "9"));
        let text = lines(&draft, Lang::En).join("\n");
        assert!(text.contains("as it was printed") && text.contains("check digit"), "{text}");
        assert!(lines(&draft, Lang::Fr).join("\n").contains("chiffre de contrôle"));
        assert!(lines(&draft, Lang::Ar)[0].contains("مزو"));
    }

    #[test]
    fn bulletin_state_is_localized() {
        let by = proto::Reference { member: "ne".into(), id: "0197".into(), ..Default::default() };
        let response = proto::GetResponse {
            delivery: None,
            state: Some(proto::State { state: "cancelled".into(), by: Some(by), partial: true, ..Default::default() }),
            stored: vec![proto::StoredBy { member: "tn".into(), at: Some(times::parse("2026-11-23").unwrap()) }],
        };
        let context = Context::new(Messages::new(Lang::Fr), Output::plain(), None);
        let render = Render::new(&context, Directory::of("ne".parse().unwrap()));
        let text = state_lines(&context, &render, &response).join("\n");
        for part in ["annulé", "d'autres accusés de réception", "ne/0197", "tn", "2026-11-23 00:00:00 UTC"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
