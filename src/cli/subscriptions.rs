//! `barid subscriptions`: manages the named subscriptions whose cursors the node stores.
//!
//! In scope: listing and removing one's own. Out of scope: reading with one (`watch`).

use barid_core::proto;
use clap::{Args, Subcommand};
use serde_json::json;

use super::client::Client;
use super::deadline::TimeoutArgs;
use super::table::Table;
use super::{Context, Exit, Failure, localize, message, times};

/// Arguments of `barid subscriptions`.
#[derive(Debug, Args)]
pub(super) struct SubscriptionsArgs {
    #[command(subcommand)]
    command: SubscriptionsCommand,
    #[command(flatten)]
    pub(super) within: TimeoutArgs,
}

#[derive(Debug, Subcommand)]
enum SubscriptionsCommand {
    /// List subscriptions with filter, progress and expiry.
    List,
    /// Remove a subscription.
    Remove {
        /// Name of the subscription.
        name: String,
    },
}

/// Lists or removes subscriptions.
pub(super) async fn run(context: &Context, args: &SubscriptionsArgs) -> Result<Exit, Failure> {
    let profile = context.profile()?;
    let client = Client::with_timeout(&profile, args.within.duration())?;
    match &args.command {
        SubscriptionsCommand::List => list(context, &client).await,
        SubscriptionsCommand::Remove { name } => {
            let removed =
                client.delete_subscription(proto::DeleteSubscriptionRequest { subscription: name.clone() }).await;
            removed.map_err(|failure| match failure.id() {
                "unknown-subscription" => failure.with_id("no-subscription"),
                _ => failure,
            })?;
            if context.output.is_json() {
                context.output.json(&json!({"removed": name}))?;
            } else {
                context.output.line(&localize!(context.messages, "subscription-removed", name = name))?;
            }
            Ok(Exit::Ok)
        }
    }
}

async fn list(context: &Context, client: &Client) -> Result<Exit, Failure> {
    let (messages, output) = (&context.messages, &context.output);
    let heading = |name: &str| messages.text(&format!("subscription-{name}"));
    let columns = ["name", "behind", "used", "expires", "state", "filter"];
    let mut table = Table::new(columns.map(heading));
    let (mut page_token, mut any) = (String::new(), false);
    loop {
        let request = proto::ListSubscriptionsRequest { page_token, ..proto::ListSubscriptionsRequest::default() };
        let page = client.list_subscriptions(request).await?;
        for subscription in page.subscriptions {
            any = true;
            if output.is_json() {
                output.json(&message::json_of(&subscription))?;
                continue;
            }
            let at = |at: &Option<prost_types::Timestamp>| at.as_ref().map(times::rfc3339).unwrap_or_default();
            let state = if subscription.stale { "subscription-stale" } else { "subscription-current" };
            let filter = subscription.filter.as_ref().map(described);
            table.row([
                messages.value(&subscription.name).into(),
                page.newest_offset.saturating_sub(subscription.offset).to_string().into(),
                at(&subscription.used_at).into(),
                at(&subscription.expires_at).into(),
                messages.text(state).into(),
                messages.value(&filter.unwrap_or_default()).into(),
            ]);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match (output.is_json(), any) {
        (true, _) => {}
        (false, false) => output.line(&messages.text("subscriptions-none"))?,
        (false, true) => output.lines(table.lines(output))?,
    }
    Ok(Exit::Ok)
}

/// Returns a filter as the command-line options that select it.
fn described(filter: &proto::Filter) -> String {
    let severity = Some(filter.min_severity.clone()).filter(|severity| !severity.is_empty());
    let options = [
        ("--topic", filter.topics.join(",")),
        ("--kind", filter.kinds.join(",")),
        ("--min-severity", severity.unwrap_or_default()),
        ("--member", filter.members.join(",")),
    ];
    let options = options.iter().filter(|(_, values)| !values.is_empty());
    options.map(|(option, values)| format!("{option} {values}")).collect::<Vec<_>>().join(" ")
}
