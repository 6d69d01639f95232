//! `barid demo`: a throwaway exchange of four node processes on this machine, and a story told with the ordinary commands.
//!
//! In scope: starting, telling, checking, cleaning up. Out of scope: doing anything a member's people could not do: every step is
//! this same program with a client's certificate.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use barid_core::names::Member;
use serde_json::Value;

use super::{Context, Exit, Failure, say};
use crate::pki::{self, DevelopMember, DevelopOptions};

const MEMBERS: [&str; 4] = ["ma", "ly", "tn", "ne"];
/// The officer's alert, in French.
const ALERT: &str = include_str!("../../examples/bulletins/stolen-passport.fr.json");
/// Longest for one thing to come true.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

struct Demo<'a> {
    context: &'a Context,
    folder: tempfile::TempDir,
    program: PathBuf,
    nodes: Vec<(&'static str, Child)>,
    begun: Instant,
}

pub(super) fn run(context: &Context) -> Result<Exit, Failure> {
    let folder = tempfile::tempdir().map_err(|error| failed(&error))?;
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut demo = Demo { context, folder, program, nodes: Vec::new(), begun: Instant::now() };
    demo.begin()?;
    demo.alert()?;
    demo.need_to_know()?;
    demo.cut_off()?;
    let seconds = format!("{:.1}", demo.begun.elapsed().as_secs_f32());
    demo.say(&say!(context.messages, "demo-held", seconds = &seconds))?;
    Ok(Exit::Ok)
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new("demo").because(error)
}

impl Demo<'_> {
    fn begin(&mut self) -> Result<(), Failure> {
        let base = free_ports().ok_or_else(|| Failure::new("demo").cause("no free ports"))?;
        let member = |(n, code): (u16, &&str)| {
            let code: Member = code.parse().map_err(|error| failed(&error))?;
            Ok(DevelopMember::local(code, base + 2 * n))
        };
        let members = (0..).zip(&MEMBERS).map(member).collect::<Result<_, Failure>>()?;
        let exchange = "rabat.example".parse().map_err(|error| failed(&error))?;
        let options = DevelopOptions::new(self.folder.path().to_owned(), exchange, members);
        pki::develop(&options).map_err(|error| failed(&error))?;
        for member in MEMBERS {
            self.start(member)?;
        }
        for member in MEMBERS {
            self.until(|demo| demo.ask(member, "operator", &["status"]).is_some_and(|status| linked(&status) == 3))?;
        }
        self.say(&say!(self.context.messages, "demo-begun"))
    }

    /// Niamey publishes in French and sees when Tunis has it.
    fn alert(&self) -> Result<(), Failure> {
        let start = Instant::now();
        let draft = self.write("alert.json", ALERT)?;
        let answer = self.ask("ne", "police-hq", &["publish", &draft, "--wait-for", "tn"]);
        self.check(answer.is_some_and(|answer| answer["waitReached"] == true))?;
        let seen = self.ask("tn", "police-hq", &["history"]);
        self.check(seen.is_some_and(|seen| !seen.is_null()))?;
        let ms = start.elapsed().as_millis().to_string();
        self.say(&say!(self.context.messages, "demo-alert", ms = &ms))
    }

    /// Rabat writes to Tunis alone: the others hold a digest, and their trees still add up.
    fn need_to_know(&self) -> Result<(), Failure> {
        let mut draft: Value = serde_json::from_str(ALERT).map_err(|error| failed(&error))?;
        draft["header"]["handling"]["tlp"] = "TLP:RED".into();
        draft["header"]["handling"]["releasableTo"] = vec!["tn"].into();
        let draft = self.write("red.json", &draft.to_string())?;
        let answer = self.ask("ma", "police-hq", &["publish", &draft, "--wait-for", "tn"]);
        self.check(answer.is_some_and(|answer| answer["waitReached"] == true))?;
        self.check(self.ask("tn", "police-hq", &["history", "--member", "ma"]).is_some_and(|seen| !seen.is_null()))?;
        self.equal()?;
        for other in ["ly", "ne"] {
            self.check(
                self.ask(other, "police-hq", &["history", "--member", "ma"]).is_some_and(|seen| seen.is_null()),
            )?;
        }
        self.say(&say!(self.context.messages, "demo-red"))
    }

    /// Tunis loses power, misses a bulletin, and catches up.
    fn cut_off(&mut self) -> Result<(), Failure> {
        self.nodes.retain_mut(|(member, node)| {
            if *member == "tn" {
                let _ = node.kill();
                let _ = node.wait();
            }
            *member != "tn"
        });
        let draft = self.write("late.json", ALERT)?;
        self.check(self.ask("ne", "police-hq", &["publish", &draft]).is_some())?;
        self.start("tn")?;
        let start = Instant::now();
        self.equal()?;
        let ms = start.elapsed().as_millis().to_string();
        let alerts = self.ask_all("tn", "police-hq", &["history", "--member", "ne"]);
        self.check(alerts.is_some_and(|alerts| alerts.len() == 2))?;
        self.say(&say!(self.context.messages, "demo-caught-up", ms = &ms))
    }

    fn equal(&self) -> Result<(), Failure> {
        self.until(|demo| {
            let feeds = MEMBERS.map(|member| demo.ask(member, "operator", &["status"]).map(|status| roots(&status)));
            feeds[0].is_some() && feeds.iter().all(|other| *other == feeds[0])
        })
    }

    fn start(&mut self, member: &'static str) -> Result<(), Failure> {
        let folder = self.folder.path().join(member);
        let log =
            File::options().create(true).append(true).open(folder.join("node.log")).map_err(|error| failed(&error))?;
        let node = Command::new(&self.program)
            .args(["node", "--first", "--config"])
            .arg(folder.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| failed(&error))?;
        self.nodes.push((member, node));
        self.until(|demo| demo.ask(member, "operator", &["health"]).is_some())
    }

    /// First JSON line of a command that succeeded (null if it said nothing); `None` if it failed.
    fn ask(&self, member: &str, client: &str, args: &[&str]) -> Option<Value> {
        self.ask_all(member, client, args).map(|lines| lines.into_iter().next().unwrap_or_default())
    }

    /// All JSON lines of a command that succeeded.
    fn ask_all(&self, member: &str, client: &str, args: &[&str]) -> Option<Vec<Value>> {
        let profile = self.folder.path().join(member).join("clients").join(client).join("client.toml");
        let output = Command::new(&self.program)
            .arg("--json")
            .arg("--profile")
            .arg(profile)
            .args(args)
            .stdin(Stdio::null())
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.lines().map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn write(&self, name: &str, text: &str) -> Result<String, Failure> {
        let path: &Path = &self.folder.path().join(name);
        fs::write(path, text).map_err(|error| failed(&error))?;
        Ok(path.display().to_string())
    }

    fn until(&self, come_true: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let start = Instant::now();
        while !come_true(self) {
            self.check(start.elapsed() < PATIENCE)?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn check(&self, held: bool) -> Result<(), Failure> {
        if held { Ok(()) } else { Err(Failure::new("demo").cause("a step of the story did not hold")) }
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        self.context.output.line(text)
    }
}

impl Drop for Demo<'_> {
    fn drop(&mut self) {
        for (_, node) in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn linked(status: &Value) -> usize {
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    peers.iter().filter(|peer| peer["linked"] == true).count()
}

/// Origin, size and root of every feed with entries.
fn roots(status: &Value) -> Vec<String> {
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let feeds = peers.iter().map(|peer| &peer["feed"]).chain([&status["own"]]).filter(|feed| feed["size"].is_string());
    let mut roots: Vec<_> = feeds.map(|feed| format!("{} {} {}", feed["feed"], feed["size"], feed["root"])).collect();
    roots.sort();
    roots
}

fn free_ports() -> Option<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (20_000..30_000_u16).step_by(16).find(|base| (0..8).all(|n| free(base + n)))
}
