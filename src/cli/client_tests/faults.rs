//! Tests that clock and `--wait-for` faults are not reported as faults of the bulletin or the
//! network.

use barid_core::bulletin::header::BulletinId;

use super::*;

/// Clock and roster of a node that rejects publications.
pub(super) struct Rejects {
    pub(super) now_unix_ms: u64,
    pub(super) members: &'static [&'static str],
}

impl Rejects {
    /// Rejects with the texts of a real node (`core::bulletin::prepare`, `api::stored`).
    pub(super) fn judge(&self, id: &str, wait_for: Option<&proto::WaitFor>) -> Result<(), Status> {
        let id: BulletinId = id.parse().unwrap();
        let clock = barid_core::bulletin::times::Time::from_unix_ms(self.now_unix_ms);
        if id.unix_ms() > self.now_unix_ms + 300_000 {
            let description = format!("`x`: expected at most 300 s ahead of this node's clock, {clock}");
            let rules = [("rule-0", "clock-ahead"), ("rule-0-1", "300"), ("rule-0-2", &*clock.to_string())];
            return Err(rejected("header.id", &description, &rules));
        }
        let unknown =
            wait_for.into_iter().flat_map(|wait| &wait.members).find(|member| !self.members.contains(&&***member));
        match unknown {
            Some(member) => {
                let description = format!("`{member}`: expected a member that the roster lists");
                let rules = [("rule-0", "listed-member"), ("found-0", member.as_str())];
                Err(rejected("wait_for.members[0]", &description, &rules))
            }
            None => Ok(()),
        }
    }
}

fn rejected(field: &str, description: &str, rules: &[(&str, &str)]) -> Status {
    let mut details = ErrorDetails::with_bad_request_violation(field, description);
    let rules = rules.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    details.set_error_info("FIELDS", "barid", rules.collect::<std::collections::HashMap<_, _>>());
    Status::with_error_details(tonic::Code::InvalidArgument, "invalid", details)
}

#[tokio::test]
async fn generated_id_ahead_of_node_clock_is_replaced_chosen_id_is_not() {
    let (node, folder) = node(NODE).await;
    // In 2020, so this machine's clock is ahead of the node's.
    let now_unix_ms = 1_600_000_000_000;
    *node.rejects.lock() = Some(Rejects { now_unix_ms, members: &["ma"] });
    let draft = draft(folder.path(), |_| {});
    let (result, text) = barid(folder.path(), Lang::En, &["publish", &draft]).await;
    assert_eq!(result.unwrap(), Exit::Ok, "{text}");
    assert!(text.contains("The clock of this machine is") && text.contains("ahead of the node's"), "{text}");
    assert!(!text.contains("header.id"), "{text}");
    let ids: Vec<BulletinId> = node.requests.lock().drain(..).map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[1].unix_ms(), now_unix_ms);
    assert!(text.contains(&ids[1].to_string()), "the receipt is of the second: {text}");

    let chosen = ids[0].to_string();
    let (result, text) = barid(folder.path(), Lang::En, &["publish", &draft, "--id", &chosen]).await;
    assert_eq!(result.unwrap_err().id(), "rejected-fields", "{text}");
    assert!(text.contains("header.id"), "{text}");
    assert_eq!(*node.requests.lock(), [chosen]);
}

#[tokio::test]
async fn wait_for_unknown_member_is_localized_usage_error() {
    let (node, folder) = node(NODE).await;
    let now_unix_ms = crate::clock::unix_ms();
    *node.rejects.lock() = Some(Rejects { now_unix_ms, members: &["ma"] });
    let draft = draft(folder.path(), |_| {});
    for lang in Lang::ALL {
        let (result, text) = barid(folder.path(), lang, &["publish", &draft, "--wait-for", "dz"]).await;
        let failure = result.unwrap_err();
        assert_eq!((failure.id(), failure.exit_code()), ("wait-for", Exit::Usage), "{text}");
        assert!(text.contains("--wait-for") && text.contains("dz") && !text.contains("wait_for"), "{text}");
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

#[tokio::test]
async fn untrusted_node_authority_is_explained_and_not_retried() {
    let (node, folder) = node(NODE).await;
    let other = crate::pki::Authority::new("ma.rabat.example").unwrap();
    write(folder.path(), "ca.pem", &other.certificate());
    let draft = draft(folder.path(), |_| {});
    for args in [&["history"][..], &["publish", &draft], &["watch"], &["health"]] {
        for lang in Lang::ALL {
            let (result, text) = barid(folder.path(), lang, args).await;
            let failure = result.unwrap_err();
            assert_eq!((failure.id(), failure.exit_code()), ("node-other-authority", Exit::Usage), "{text}");
            assert!(text.contains("ca.pem") && text.contains("127.0.0.1:"), "{text}");
        }
    }
    assert!(node.requests.lock().is_empty());
}

#[tokio::test]
async fn unusable_tls_files_are_rejected_before_connecting() {
    let (_node, folder) = node(NODE).await;
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let (ca, me, key) = (read("ca.pem"), read("me.pem"), read("me.key"));
    let other = crate::pki::Authority::new("ne.rabat.example").unwrap();
    let server_only = other.issue_changed("focal-point/police-niamey", |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let server_only = server_only.unwrap();
    let cases: [(&str, &str, &str, &str, &str); 6] = [
        ("ca.pem", &me, &me, &key, "CA true"),
        ("ca.pem", "no PEM", &me, &key, "no PEM certificate"),
        ("me.pem", &ca, &me, &other.key(), "KeyMismatch"),
        ("me.pem", &ca, &ca, &key, "CA true"),
        ("me.pem", &ca, &server_only.certificate, &server_only.key, "clientAuth"),
        ("me.key", &ca, &me, "no key", ""),
    ];
    for (file, ca, me, key, reason) in cases {
        write(folder.path(), "ca.pem", ca);
        write(folder.path(), "me.pem", me);
        write(folder.path(), "me.key", key);
        let (result, text) = barid(folder.path(), Lang::En, &["history"]).await;
        let failure = result.unwrap_err();
        assert_eq!((failure.id(), failure.exit_code()), ("identity-unusable", Exit::Usage), "{reason}: {text}");
        assert!(text.contains(reason) && text.contains(file), "{reason}: {text}");
    }
}

#[tokio::test]
async fn byte_order_mark_in_pem_and_toml_is_accepted() {
    let (_node, folder) = node(NODE).await;
    for name in ["ca.pem", "me.pem", "me.key", "client.toml"] {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        write(folder.path(), name, &format!("\u{feff}{text}"));
    }
    let (result, text) = barid(folder.path(), Lang::En, &["history"]).await;
    assert_eq!(result.unwrap(), Exit::Ok, "{text}");
}

#[tokio::test]
async fn plaintext_endpoint_is_reported() {
    let (_node, folder) = node(NODE).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    at_endpoint(folder.path(), listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let (result, text) = barid(folder.path(), Lang::En, &["history"]).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.id(), failure.exit_code()), ("node-no-tls", Exit::Usage), "{text}");
}

#[tokio::test]
async fn world_readable_key_is_warned_about() {
    let (_node, folder) = node(NODE).await;
    let key = folder.path().join("me.key");
    for (mode, warned) in [(0o600, false), (0o644, true)] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let (result, text) = barid(folder.path(), Lang::En, &["health"]).await;
        assert_eq!(result.unwrap(), Exit::Ok);
        assert_eq!(text.contains("chmod 600"), warned, "{mode:o}: {text}");
    }
}
