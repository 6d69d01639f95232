//! A node and an officer with certificates from an external authority, by the recipe of the
//! tutorial, renewed and revoked by the operator's guide.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::world::{DEADLINE, MEMBERS, World, barid, example, text, until};

/// The tutorial and the operator's guide; they have the commands in blocks.
const RECIPE: &str = concat!(include_str!("../../docs/tutorial.md"), include_str!("../../docs/operator.md"));

/// Runs a block of the recipe in a shell in `folder`.
fn recipe(folder: &Path, begins: &str) -> String {
    let mut blocks = RECIPE.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = blocks.find(|block| block.starts_with(begins)).unwrap_or_else(|| panic!("no block begins {begins}"));
    let program = Path::new(env!("CARGO_BIN_EXE_barid")).parent().unwrap().display().to_string();
    let path = format!("{program}:{}", std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-euc", block]).current_dir(folder).env("PATH", path).env("CA_PASSWORD", "exercise");
    let run = shell.env("BARID_LANG", "en").env_remove("BARID_PROFILE").output().unwrap();
    assert!(run.status.success(), "{block}\n{}{}", text(&run.stdout), text(&run.stderr));
    text(&run.stdout)
}

/// Adds the authority to the initial roster of all members, beside the authority created with the
/// exchange.
fn add_authority(world: &World, authority: &str) {
    let folder = world.roster().parent().unwrap().to_owned();
    let note = fs::read_to_string(world.roster()).unwrap();
    let mut draft: toml::Table = note.split_once("\n\n— ").unwrap().0.parse().unwrap();
    let members = draft["members"].as_array_mut().unwrap();
    let ma = members.iter_mut().find(|member| member["code"].as_str() == Some("ma")).unwrap();
    ma["ca_certificates"].as_array_mut().unwrap().push(authority.into());
    let file = |name: &str| folder.join(name).display().to_string();
    fs::write(file("listed.toml"), draft.to_string()).unwrap();
    let (one, two) = (file("governors/1.key"), file("governors/2.key"));
    let signed = barid(&["roster", "sign", &file("listed.toml"), "--key", &one, "--key", &two]);
    assert!(signed.status.success(), "{}", text(&signed.stderr));
    for member in ["ma", "tn"] {
        fs::copy(file("listed.note"), world.folder(member).join("roster.note")).unwrap();
    }
}

#[test]
fn external_authority_certificates_are_renewed_and_revoked_without_restart() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: there is no `openssl` here, so the recipe of docs/tutorial.md was not tried");
        return;
    }
    let mut world = World::prepared(&MEMBERS, "info", |_, config| config);
    let home = world.folder("ma");
    recipe(&home, "umask 077");
    let authority = fs::read_to_string(home.join("ca/ca.pem")).unwrap();
    add_authority(&world, &authority);

    // Keys and requests are created where they are used; the authority checks what it signs.
    let request_output = recipe(&home, "barid cert request node");
    assert!(!request_output.contains("PRIVATE"), "{request_output}");
    let seen = recipe(&home, "cd ca\nopenssl req");
    assert!(seen.contains("URI:spiffe://ma.rabat.example/node"), "{seen}");
    let numbers: Vec<&str> = request_output.split_whitespace().filter(|token| token.len() == 64).collect();
    assert!(numbers.iter().any(|number| seen.contains(number)), "{numbers:?} {seen}");
    for (from, to) in [("node.key", "tls/node.key"), ("node.pem", "tls/node.pem"), ("ca.crl", "tls/ca.crl")] {
        fs::copy(home.join(from), home.join(to)).unwrap();
    }
    let both = fs::read_to_string(home.join("tls/ca.pem")).unwrap() + &authority;
    fs::write(home.join("tls/ca.pem"), both).unwrap();
    let officer = home.join("clients/customs-hq");
    fs::copy(home.join("customs-hq.key"), officer.join("client.key")).unwrap();
    fs::copy(home.join("customs-hq.pem"), officer.join("client.pem")).unwrap();
    world.run("ma");
    world.run("tn");
    until("the two are linked", || world.linked(&["ma", "tn"]));

    // The officer watches while Tunis publishes.
    let profile = officer.join("client.toml");
    let mut watching = Command::new(env!("CARGO_BIN_EXE_barid"))
        .args(["--json", "--lang", "fr", "--profile", profile.to_str().unwrap(), "watch", "--from", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let (seen, received) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| seen.send(line)));
    let report = || {
        let draft = world.draft("seizure.json", &example("seizure-report.json", |_| ()));
        let json = world.json("tn", "customs-hq", &["publish", &draft, "--wait-for", "ma"]);
        let id = json[0]["receipt"]["id"].as_str().unwrap().to_owned();
        let line = received.recv_timeout(DEADLINE).unwrap();
        assert!(line.contains(&id), "{line}");
    };
    report();

    // After a SIGHUP the node presents its next certificate, with its next key; no connection is
    // closed.
    recipe(
        &home,
        "barid cert request node --trust-domain ma.rabat.example --host node.ma.rabat.example --key node-next.key",
    );
    let endpoint: toml::Table = fs::read_to_string(&profile).unwrap().parse().unwrap();
    let endpoint = endpoint["endpoint"].as_str().unwrap().to_owned();
    let shows = |name: &str| {
        let ask = format!(
            "openssl s_client -connect {endpoint} -cert customs-hq.pem -key customs-hq.key </dev/null 2>/dev/null \
             | openssl x509 -noout -serial; openssl x509 -noout -serial -in {name}"
        );
        let output = Command::new("sh").args(["-c", &ask]).current_dir(&home).output().unwrap();
        let output = text(&output.stdout);
        let serials: Vec<&str> = output.lines().collect();
        serials.len() == 2 && serials[0] == serials[1]
    };
    assert!(shows("node.pem") && !shows("node-next.pem"));
    fs::copy(home.join("node-next.key"), home.join("tls/node.key")).unwrap();
    fs::copy(home.join("node-next.pem"), home.join("tls/node.pem")).unwrap();
    world.hang_up("ma");
    until("the new certificate is presented", || shows("node-next.pem"));
    report();
    assert!(world.linked(&["ma", "tn"]) && watching.try_wait().unwrap().is_none());

    // The officer's key was stolen: the stream ends, and the error states the reason in her
    // language.
    recipe(&home, "cd ca\nopenssl ca -config ca.cnf -passin env:CA_PASSWORD -revoke");
    fs::copy(home.join("ca.crl"), home.join("tls/ca.crl")).unwrap();
    world.hang_up("ma");
    until("the officer's watch has ended", || watching.try_wait().unwrap().is_some());
    let mut output = String::new();
    watching.stderr.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(watching.wait().unwrap().code(), Some(1), "{output}");
    let json: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!(json["error"]["id"], "certificate-revoked", "{output}");
    assert!(json["error"]["message"].as_str().unwrap().contains("révoqué"), "{json}");
    assert!(world.runs("ma") && world.linked(&["ma", "tn"]), "other connections are unaffected");
}
