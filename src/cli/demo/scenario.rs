//! The steps of the demo. Each acts as one of a member's clients, and fails unless its result is as
//! described.

use std::collections::BTreeSet;
use std::time::Instant;

use barid_core::bulletin::kinds;
use futures::future::try_join_all;
use owo_colors::Style;
use serde_json::{Map, Value, json};

use super::exchange::{Exchange, MEMBERS, failed};
use super::{Failure, StepPrinter, localize};
use crate::cli::render::tlp_style;
use crate::cli::table::{Cell, Table};
use crate::cli::times;

/// Bulletins that the stopped member misses.
const MISSED: usize = 8;
/// Indentation of a table: less than that of other lines, so that it fits 80 columns.
const INDENT: &str = "  ";

const ALERT: &str = include_str!("../../../examples/bulletins/stolen-passport.fr.json");
const ACKNOWLEDGEMENT: &str = include_str!("../../../examples/bulletins/acknowledgement.json");
const SITUATION: &str = include_str!("../../../examples/bulletins/situation-report.json");
const SEIZURE: &str = include_str!("../../../examples/bulletins/seizure-report.json");
const PERSON: &str = include_str!("../../../examples/bulletins/person-notice.json");

/// A bulletin published by the scenario.
struct Bulletin {
    member: &'static str,
    /// The client that publishes it, and reads it at each member.
    client: &'static str,
    header: Value,
    receipt: Value,
    /// Members other than the publisher that may read it.
    readers: Vec<&'static str>,
}

/// What a member holds of a bulletin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visibility {
    Own,
    Content,
    Digest,
}

impl Visibility {
    fn id(self) -> &'static str {
        match self {
            Self::Own => "visibility-own",
            Self::Content => "visibility-content",
            Self::Digest => "visibility-digest",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Own => Style::new().bold(),
            Self::Content => Style::new().green(),
            Self::Digest => Style::new().dimmed(),
        }
    }
}

/// Runs all steps.
pub(super) async fn run(printer: &StepPrinter<'_>, exchange: &Exchange) -> Result<(), Failure> {
    let scenario = Scenario { printer, exchange };
    exchange.begin().await?;
    scenario.step("demo-begun")?;
    let alert = scenario.alert().await?;
    let acknowledgement = scenario.acknowledge(&alert).await?;
    scenario.step("demo-others")?;
    let situation = scenario.publish("ly", "situation-room", "situation-report.json", SITUATION, |_| ()).await?;
    let seizure = scenario.publish("tn", "customs-hq", "seizure-report.json", SEIZURE, |header| {
        header["handling"]["releasableTo"] = json!(["ma", "ly"]);
    });
    let seizure = seizure.await?;
    let person = scenario.publish("ma", "justice-hq", "person-notice.json", PERSON, |header| {
        header["handling"]["tlp"] = json!("TLP:RED");
        header["handling"]["releasableTo"] = json!(["tn"]);
    });
    let person = person.await?;
    let bulletins = [alert, acknowledgement, situation, seizure, person];
    scenario.visibilities(&bulletins).await?;
    scenario.receipts(&bulletins).await?;
    let [.., person] = &bulletins;
    scenario.proof(person).await?;
    scenario.cut_off().await
}

struct Scenario<'a> {
    printer: &'a StepPrinter<'a>,
    exchange: &'a Exchange,
}

impl Scenario<'_> {
    /// Niamey publishes in French and waits until Tunis has stored it; an officer in Tunis reads
    /// it.
    async fn alert(&self) -> Result<Bulletin, Failure> {
        self.step("demo-alert")?;
        let file = self.exchange.write("stolen-passport.fr.json", ALERT.as_bytes())?;
        let start = Instant::now();
        let output = self.exchange.run_client_ok("ne", "police-hq", &["publish", &file, "--wait-for", "tn"]).await?;
        let ms = start.elapsed().as_millis().to_string();
        check(output.first()["waitReached"] == true, "the alert is stored in Tunis")?;
        self.passed("demo-alert-stored", &localize!(self.messages(), "demo-alert-stored", ms = &ms))?;
        let receipt = output.first()["receipt"].clone();
        let read = self.exchange.run_client_ok("tn", "police-hq", &["show", &name("ne", &receipt)]).await?;
        let headline = read.first()["delivery"]["body"]["texts"][0]["headline"].as_str().unwrap_or_default();
        check(!headline.is_empty(), "an officer in Tunis reads the alert")?;
        self.passed("demo-alert-read", &localize!(self.messages(), "demo-alert-read", headline = headline))?;
        let header = draft(ALERT)?["header"].clone();
        Ok(Bulletin { member: "ne", client: "police-hq", header, receipt, readers: vec!["ma", "ly", "tn"] })
    }

    /// The officer acknowledges it: an acknowledgement is itself a bulletin, here for the publisher
    /// only.
    async fn acknowledge(&self, alert: &Bulletin) -> Result<Bulletin, Failure> {
        self.step("demo-ack")?;
        let mut draft = draft(ACKNOWLEDGEMENT)?;
        let header = &mut draft["header"];
        for field in ["topic", "handling", "retainUntil"] {
            header[field] = alert.header[field].clone();
        }
        header["handling"]["releasableTo"] = json!(["ne"]);
        let reference = json!({"member": "ne", "id": alert.receipt["id"], "digest": alert.receipt["digest"]});
        header["references"] = json!([reference]);
        let header = header.clone();
        let file = self.exchange.write("acknowledgement.json", draft.to_string().as_bytes())?;
        let output = self.exchange.run_client_ok("tn", "police-hq", &["publish", &file, "--wait-for", "ne"]).await?;
        check(output.first()["waitReached"] == true, "the acknowledgement is stored in Niamey")?;
        let displayed = self.exchange.run_client_ok("ne", "police-hq", &["show", &name("ne", &alert.receipt)]).await?;
        let acknowledgements = displayed.first()["state"]["acknowledgedBy"].as_array().map_or(0, Vec::len);
        check(acknowledgements == 1, "Niamey sees the acknowledgement with its alert")?;
        self.passed("demo-ack-seen", &self.messages().text("demo-ack-seen"))?;
        let receipt = output.first()["receipt"].clone();
        Ok(Bulletin { member: "tn", client: "police-hq", header, receipt, readers: vec!["ne"] })
    }

    /// Publishes an example bulletin and waits until all members that may read it have stored it.
    async fn publish(
        &self,
        member: &'static str,
        client: &'static str,
        file: &str,
        example: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Bulletin, Failure> {
        let mut draft = draft(example)?;
        change(&mut draft["header"]);
        let header = draft["header"].clone();
        let readers: Vec<&str> = match header["handling"]["releasableTo"].as_array() {
            Some(codes) => MEMBERS.into_iter().filter(|code| codes.iter().any(|one| one == code)).collect(),
            None => MEMBERS.into_iter().filter(|code| *code != member).collect(),
        };
        let file = self.exchange.write(file, draft.to_string().as_bytes())?;
        let start = Instant::now();
        let args = ["publish", &file, "--wait-for", &readers.join(",")];
        let output = self.exchange.run_client_ok(member, client, &args).await?;
        let ms = start.elapsed().as_millis().to_string();
        check(output.first()["waitReached"] == true, "all members that may read it hold it in full")?;
        let bulletin = Bulletin { member, client, header, receipt: output.first()["receipt"].clone(), readers };
        let line = localize!(
            self.messages(),
            "demo-published",
            city = self.city(member),
            bulletin = self.label(&bulletin),
            tlp = text(&bulletin.header["handling"]["tlp"]),
            readers = self.cities(&bulletin.readers),
            ms = &ms
        );
        self.passed("demo-published", &line)?;
        Ok(bulletin)
    }

    /// Checks at every member which bulletins it holds with content and which as a digest, and that
    /// all feeds are equal.
    async fn visibilities(&self, bulletins: &[Bulletin]) -> Result<(), Failure> {
        self.step("demo-visibility")?;
        self.exchange.equal().await?;
        let headings = [self.messages().text("column-bulletin"), self.messages().text("column-tlp")];
        let mut table = Table::new(headings.into_iter().chain(MEMBERS.map(|member| self.city(member))));
        for bulletin in bulletins {
            let visibilities = try_join_all(MEMBERS.map(|member| self.visibility(bulletin, member))).await?;
            let tlp = text(&bulletin.header["handling"]["tlp"]);
            if self.printer.context.output.is_json() {
                let names = MEMBERS.iter().zip(&visibilities).map(|(member, visibility)| {
                    ((*member).to_owned(), visibility.id().trim_start_matches("visibility-").into())
                });
                let names: Map<String, Value> = names.collect();
                let row = json!({"step": "demo-visibility-row", "bulletin": bulletin.name(), "tlp": tlp, "visibilities": names});
                self.printer.context.output.json(&row)?;
            }
            let cells = [Cell::from(self.title(bulletin)), Cell::styled(tlp, tlp_style(tlp))];
            let visibilities = visibilities
                .iter()
                .map(|visibility| Cell::styled(self.messages().text(visibility.id()), visibility.style()));
            table.row(cells.into_iter().chain(visibilities));
        }
        let output = &self.printer.context.output;
        let narrow = output.clone().with_width(output.width().saturating_sub(INDENT.len()));
        for line in table.lines(&narrow) {
            self.printer.line("", &format!("{INDENT}{line}"))?;
        }
        self.passed("demo-equal", &self.messages().text("demo-equal"))
    }

    /// Returns what a member holds of a bulletin. It is a failure if that does not follow its
    /// handling.
    async fn visibility(&self, bulletin: &Bulletin, member: &'static str) -> Result<Visibility, Failure> {
        let output = self.exchange.run_client(member, bulletin.client, &["show", &bulletin.name()]).await?;
        let readable = output.code == Some(0);
        let expected = match member {
            _ if member == bulletin.member => Visibility::Own,
            _ if bulletin.readers.contains(&member) => Visibility::Content,
            _ => Visibility::Digest,
        };
        let what = format!("the visibility of {} at {member} matches its handling", bulletin.name());
        check(readable == (expected != Visibility::Digest), &what)?;
        if expected == Visibility::Digest {
            let status = self.exchange.run_client_ok(member, "operator", &["status"]).await?;
            check(withheld(status.first(), bulletin), &what)?;
        }
        Ok(expected)
    }

    /// Checks that exactly the members that may read a bulletin have signed that they hold it.
    async fn receipts(&self, bulletins: &[Bulletin]) -> Result<(), Failure> {
        self.step("demo-receipts")?;
        for bulletin in bulletins {
            let displayed =
                self.exchange.run_client_ok(bulletin.member, bulletin.client, &["show", &bulletin.name()]).await?;
            let stored = displayed.first()["stored"].as_array().cloned().unwrap_or_default();
            let holder = |by: &Value| Some((text(&by["member"]).to_owned(), times::parse(text(&by["at"])).ok()));
            let holders: Vec<(String, Option<_>)> = stored.iter().filter_map(holder).collect();
            let who: BTreeSet<&str> = holders.iter().map(|(member, _)| member.as_str()).collect();
            let what = format!("exactly the members that may read {} signed custody notes", bulletin.name());
            check(who == bulletin.readers.iter().copied().collect(), &what)?;
            let holders =
                holders.iter().map(|(member, at)| format!("{} {}", self.city(member), times::seconds(at.as_ref())));
            let line = localize!(
                self.messages(),
                "demo-receipt",
                bulletin = self.title(bulletin),
                feed = text(&bulletin.receipt["feed"]),
                place = bulletin.place().to_string(),
                holders = holders.collect::<Vec<_>>().join(", ")
            );
            self.passed("demo-receipt", &line)?;
        }
        Ok(())
    }

    /// Tunis, which did not publish it, exports evidence. A verifier that has only the roster
    /// accepts it, and rejects a tampered copy.
    async fn proof(&self, bulletin: &Bulletin) -> Result<(), Failure> {
        self.step("demo-proof")?;
        let (file, roster) = (self.exchange.path("notice.barid"), self.exchange.path("roster.note"));
        self.exchange
            .until("enough members have cosigned", async || {
                let args = ["evidence", &bulletin.name(), "-o", &file, "--force"];
                let output = self.exchange.run_client_ok("tn", "auditor", &args).await?;
                Ok(output.first()["outcome"] == "witnessed")
            })
            .await?;
        let judged = self.exchange.run_command(&["verify", &file, "--roster", &roster]).await?;
        let counted = judged.first()["cosigners"].as_array().cloned().unwrap_or_default();
        let counted: Vec<&str> =
            counted.iter().filter(|one| one["counted"] == true).map(|one| text(&one["member"])).collect();
        check(judged.code == Some(0) && judged.first()["id"] == bulletin.receipt["id"], "the evidence is witnessed")?;
        let line = localize!(self.messages(), "demo-proof-witnessed", witnesses = self.cities(&counted));
        self.passed("demo-proof-witnessed", &line)?;
        let mut copy = self.exchange.read("notice.barid")?;
        let middle = copy.len() / 2;
        copy.get_mut(middle).into_iter().for_each(|byte| *byte ^= 1);
        let copy = self.exchange.write("tampered.barid", &copy)?;
        let judged = self.exchange.run_command(&["verify", &copy, "--roster", &roster]).await?;
        let rejected = judged.code == Some(12) && judged.first()["result"] == "invalid";
        check(rejected, "a tampered copy is rejected")?;
        self.passed("demo-proof-rejected", &self.messages().text("demo-proof-rejected"))
    }

    /// Tunis loses power, misses bulletins, and catches up.
    async fn cut_off(&self) -> Result<(), Failure> {
        self.step("demo-cut")?;
        self.exchange.cut("tn").await?;
        let file = self.exchange.path("stolen-passport.fr.json");
        for _ in 0..MISSED {
            self.exchange.run_client_ok("ne", "police-hq", &["publish", &file]).await?;
        }
        self.exchange.run("tn")?;
        let start = Instant::now();
        self.exchange.equal().await?;
        let ms = start.elapsed().as_millis().to_string();
        let alerts =
            self.exchange.run_client_ok("tn", "police-hq", &["history", "--member", "ne", "--limit", "100"]).await?;
        let ids: BTreeSet<&str> = alerts.lines.iter().map(|alert| text(&alert["header"]["id"])).collect();
        let nothing_twice = alerts.lines.len() == ids.len() && ids.len() == MISSED + 1;
        check(nothing_twice, "Tunis has each of Niamey's alerts once")?;
        let line = localize!(self.messages(), "demo-caught-up", nMissed = MISSED, ms = &ms);
        self.passed("demo-caught-up", &line)
    }

    fn step(&self, id: &str) -> Result<(), Failure> {
        self.printer.step(id, &self.messages().text(id))
    }

    fn passed(&self, id: &str, text: &str) -> Result<(), Failure> {
        self.printer.passed(id, text)
    }

    fn messages(&self) -> &crate::cli::Messages {
        &self.printer.context.messages
    }

    fn city(&self, member: &str) -> String {
        self.messages().text(&format!("city-{member}"))
    }

    fn cities(&self, members: &[&str]) -> String {
        members.iter().map(|member| self.city(member)).collect::<Vec<_>>().join(", ")
    }

    /// Returns the label of the bulletin's kind, and the publisher's city.
    fn title(&self, bulletin: &Bulletin) -> String {
        format!("{} ({})", self.label(bulletin), self.city(bulletin.member))
    }

    /// Returns the label of the bulletin's kind.
    fn label<'b>(&self, bulletin: &'b Bulletin) -> &'b str {
        let kind = text(&bulletin.header["kind"]);
        let labels = kinds::find(kind).map(|kind| kind.labels);
        labels.map_or(kind, |labels| self.messages().pick(labels.ar, labels.fr, labels.en))
    }
}

impl Bulletin {
    /// Returns member and id: `ne/0197…`.
    fn name(&self) -> String {
        name(self.member, &self.receipt)
    }

    /// Returns its index in its feed; absent in JSON if it is 0.
    fn place(&self) -> u64 {
        number(&self.receipt["index"])
    }
}

/// Returns whether a node's status reports that it holds this entry as a digest, because the
/// content was withheld from it.
fn withheld(status: &Value, bulletin: &Bulletin) -> bool {
    let place = bulletin.place();
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let peer = peers.iter().find(|peer| peer["member"] == bulletin.member);
    let ranges = peer.and_then(|peer| peer["undisclosedRanges"].as_array());
    ranges.is_some_and(|ranges| {
        ranges.iter().any(|one| {
            let range = number(&one["range"]["start"])..number(&one["range"]["end"]);
            one["reason"] == "withheld" && range.contains(&place)
        })
    })
}

fn name(member: &str, receipt: &Value) -> String {
    format!("{member}/{}", text(&receipt["id"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns a 64-bit number in the protobuf JSON mapping: a string, absent if it is 0.
fn number(value: &Value) -> u64 {
    text(value).parse().unwrap_or(0)
}

fn draft(example: &str) -> Result<Value, Failure> {
    serde_json::from_str(example).map_err(|error| failed(&error))
}

fn check(holds: bool, what: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::new("demo").cause(format!("check failed: {what}"))) }
}
