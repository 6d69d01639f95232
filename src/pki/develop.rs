//! The files of a development exchange.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};

use barid_core::bulletin::vocabulary::Tlp;
use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::ids::{ExchangeName, Member};
use barid_core::limits::ROSTER_BYTES_MAX;
use barid_core::roster::text::{GovernorsText, KeyText, MemberText, NamesText, RosterText};
use barid_core::roster::{MemberKind, Roster};
use time::OffsetDateTime;

use super::folder::Files;
use super::{Authority, PkiError, VALID, is_host};
use crate::access::{AccessText, GrantText, LimitsText, Role};
use crate::config::NodeText;
use crate::transport::Compress;

/// The working groups named in the declaration.
pub const WORKING_GROUPS: [&str; 4] = ["security", "information", "customs", "justice"];
/// Most members: each takes some 1.7 KB of a roster, which has at most [`ROSTER_BYTES_MAX`].
pub const MEMBERS_MAX: usize = 512;
/// File that an unfinished run leaves in the folder until the next run removes it.
const UNFINISHED: &str = "exchange-init.unfinished";

/// Options of a development exchange.
#[derive(Clone, Debug)]
pub struct DevelopOptions {
    /// Target folder. Each member's folder in it is complete: its node needs nothing from outside.
    pub dir: PathBuf,
    /// Folder for files that no node needs (keys of governors, of authorities and of the next
    /// epoch), if not in `governors` and each member's `offline` in `dir`.
    pub offline: Option<PathBuf>,
    /// Exchange name.
    pub exchange: ExchangeName,
    /// Members.
    pub members: Vec<DevelopMember>,
    /// Number of cosigners that make a bulletin witnessed.
    pub quorum: u32,
    /// Owner of the members' folders, if not the user of this process.
    pub owner: Option<Owner>,
}

impl DevelopOptions {
    /// Returns the options for these members. Two cosigners make a bulletin witnessed if there are
    /// three full members.
    #[must_use]
    pub fn new(dir: PathBuf, exchange: ExchangeName, members: Vec<DevelopMember>) -> Self {
        let full = members.iter().filter(|member| member.kind == MemberKind::Full).count();
        let quorum = if full > 2 { 2 } else { 1 };
        Self { dir, offline: None, exchange, members, quorum, owner: None }
    }

    /// Checks, before anything is written, for what would make the roster invalid.
    fn check(&self) -> Result<(), PkiError> {
        if self.members.len() > MEMBERS_MAX {
            return Err(PkiError::TooMany(self.members.len()));
        }
        let (mut codes, mut endpoints) = (BTreeSet::new(), BTreeSet::new());
        for member in &self.members {
            let places = [&member.exchange, &member.api];
            let mut hosts = places.into_iter().flat_map(|place| [&place.host, &place.bind]);
            if let Some(host) = hosts.find(|host| !is_host(host)) {
                return Err(PkiError::Host(host.clone()));
            }
            let endpoint = member.exchange.endpoint();
            if !codes.insert(&member.code) {
                return Err(PkiError::Twice(member.code.to_string()));
            }
            if !endpoints.insert(endpoint.to_ascii_lowercase()) {
                return Err(PkiError::Twice(endpoint));
            }
        }
        Ok(())
    }

    /// Returns the path of its roster.
    #[must_use]
    pub fn roster(&self) -> PathBuf {
        self.dir.join("roster.note")
    }

    /// Whether the whole exchange exists.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.roster().exists() && !self.dir.join(UNFINISHED).exists()
    }
}

/// One member of a development exchange.
#[derive(Clone, Debug)]
pub struct DevelopMember {
    /// Code.
    pub code: Member,
    /// Exchange listener, for the other members.
    pub exchange: Place,
    /// API listener, for the member's own callers.
    pub api: Place,
    /// Its kind.
    pub kind: MemberKind,
    /// Working groups of a full member; the others have none.
    pub working_groups: Vec<String>,
}

impl DevelopMember {
    /// Returns a full member of all working groups on this machine. Its API is one port above its
    /// exchange listener.
    #[must_use]
    pub fn local(code: Member, exchange_port: u16) -> Self {
        let place = |port| Place { bind: "127.0.0.1".into(), host: "127.0.0.1".into(), port };
        let working_groups = WORKING_GROUPS.map(str::to_owned).to_vec();
        let (exchange, api) = (place(exchange_port), place(exchange_port.saturating_add(1)));
        Self { code, exchange, api, kind: MemberKind::Full, working_groups }
    }

    /// Returns the member as an observer, which is granted TLP:GREEN in the working group
    /// `information`, or as a partner, which is in all of them.
    #[must_use]
    pub fn of_kind(self, kind: MemberKind) -> Self {
        let working_groups = if kind == MemberKind::Full { self.working_groups } else { Vec::new() };
        Self { kind, working_groups, ..self }
    }

    fn ceilings(&self) -> BTreeMap<String, String> {
        let groups: &[&str] = match self.kind {
            MemberKind::Full => &[],
            MemberKind::Observer => &["information"],
            MemberKind::Partner => &WORKING_GROUPS,
        };
        groups.iter().map(|group| ((*group).to_owned(), Tlp::Green.as_str().to_owned())).collect()
    }
}

/// Address of a listener.
#[derive(Clone, Debug)]
pub struct Place {
    /// Address, or a name for it, to bind.
    pub bind: String,
    /// Host at which it is reached.
    pub host: String,
    /// Port of both.
    pub port: u16,
}

impl Place {
    /// `host:port`.
    fn endpoint(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// A user and a group of this system, by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
}

impl std::str::FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
        numbers.map(|(user, group)| Self { user, group }).ok_or_else(|| "write USER:GROUP as numbers, 1000:1000".into())
    }
}

/// The callers of each development member: SPIFFE path, role, working groups (empty: the member's
/// own).
const CLIENTS: [(&str, Role, &[&str]); 7] = [
    ("focal-point/police-hq", Role::FocalPoint, &["security"]),
    ("focal-point/situation-room", Role::FocalPoint, &["information"]),
    ("focal-point/customs-hq", Role::FocalPoint, &["customs"]),
    ("focal-point/justice-hq", Role::FocalPoint, &["justice"]),
    ("agency/border-post", Role::Agency, &WORKING_GROUPS),
    ("operator/operator", Role::Operator, &[]),
    ("auditor/auditor", Role::Auditor, &WORKING_GROUPS),
];

/// Creates the exchange. The folder may exist, an exchange in it may not. Everything is generated
/// before anything is written, and a failure leaves nothing behind.
///
/// # Errors
/// See [`PkiError`].
pub fn develop(options: &DevelopOptions) -> Result<(), PkiError> {
    let roster_path = options.roster();
    if options.is_made() {
        return Err(PkiError::Exists(roster_path));
    }
    options.check()?;
    let mut files = Files::new(options.dir.join(UNFINISHED));
    let governors = (1..=3)
        .map(|n| signing_key(&format!("{}/governor/{n}", options.exchange), Algorithm::Ed25519))
        .collect::<Result<Vec<_>, _>>()?;
    for (n, governor) in (1..).zip(&governors) {
        let folder = options.offline.as_ref().unwrap_or(&options.dir).join("governors");
        files.secret(folder.join(format!("{n}.key")), governor.to_text().to_string());
    }
    let members =
        options.members.iter().map(|member| one_member(&mut files, options, member)).collect::<Result<_, _>>()?;
    let note = signed_roster(options, members, &governors)?;
    for member in &options.members {
        files.public(options.dir.join(member.code.as_str()).join("roster.note"), note.clone());
    }
    files.public(roster_path, note);
    files.write(|| {
        let folders = options.members.iter().map(|member| options.dir.join(member.code.as_str()));
        options.owner.map_or(Ok(()), |owner| folders.into_iter().try_for_each(|folder| change_owner(&folder, owner)))
    })
}

fn signed_roster(
    options: &DevelopOptions,
    members: Vec<MemberText>,
    governors: &[SigningKey],
) -> Result<Vec<u8>, PkiError> {
    let text = RosterText {
        format: 1,
        exchange: options.exchange.to_string(),
        version: 1,
        previous: None,
        issued: toml_time(OffsetDateTime::now_utc())?,
        review_by: toml_time(OffsetDateTime::now_utc() + VALID)?,
        quorum: options.quorum,
        working_groups: WORKING_GROUPS.map(str::to_owned).to_vec(),
        governors: GovernorsText {
            threshold: 2,
            keys: governors.iter().map(|key| key.verifier().to_string()).collect(),
        },
        members,
    };
    let text = toml::to_string(&text).map_err(|error| PkiError::Text(error.to_string()))?;
    Roster::from_text(&text)?;
    let signatures = governors.iter().take(2).map(|governor| governor.sign_text(&text));
    let signatures = signatures.collect::<Result<_, _>>().map_err(|error| PkiError::Text(error.to_string()))?;
    let note = Note { text, signatures }.to_bytes();
    if note.len() > ROSTER_BYTES_MAX {
        return Err(PkiError::Text(format!("the roster has {} bytes, at most {ROSTER_BYTES_MAX}", note.len())));
    }
    Ok(note)
}

fn one_member(files: &mut Files, options: &DevelopOptions, member: &DevelopMember) -> Result<MemberText, PkiError> {
    let DevelopMember { code, exchange, api, kind, working_groups } = member;
    let dir = options.dir.join(code.as_str());
    let offline = options.offline.as_ref().map_or_else(|| dir.join("offline"), |offline| offline.join(code.as_str()));
    let trust_domain = format!("{code}.{}", options.exchange);
    let authority = Authority::new(&trust_domain)?;
    files.public(dir.join("tls/ca.pem"), authority.certificate());
    files.secret(offline.join("ca.key"), authority.key());
    files.public(dir.join("tls/ca.crl"), authority.revoke(&[], 1)?);
    let hosts = BTreeSet::from(["localhost", "127.0.0.1", code.as_str(), &exchange.host, &api.host]);
    let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
    let node = authority.issue("node", &hosts)?;
    files.public(dir.join("tls/node.pem"), node.certificate);
    files.secret(dir.join("tls/node.key"), node.key);

    files.private_folder(dir.join("keys"));
    let mut key = |role: &str, file: PathBuf, algorithm| -> Result<String, PkiError> {
        let key = signing_key(&format!("{trust_domain}/{role}"), algorithm)?;
        files.secret(file, key.to_text().to_string());
        Ok(key.verifier().to_string())
    };
    let listed = |role: &str, epoch, key| KeyText {
        role: role.into(),
        epoch,
        key,
        from_version: None,
        retired: None,
        compromised: None,
    };
    let keys = vec![
        listed("feed", Some(1), key("feed/1", dir.join("keys/feed.key"), Algorithm::Ed25519)?),
        listed("feed", Some(2), key("feed/2", offline.join("feed-2.key"), Algorithm::Ed25519)?),
        listed("mirror", None, key("mirror", dir.join("keys/mirror.key"), Algorithm::CosignatureEd25519)?),
        listed("custody", None, key("custody", dir.join("keys/custody.key"), Algorithm::Ed25519)?),
    ];

    let mut grants = Vec::new();
    for (path, role, groups) in CLIENTS {
        let name = path.rsplit('/').next().unwrap_or(path);
        let issued = authority.issue(path, &[])?;
        let folder = dir.join("clients").join(name);
        files.public(folder.join("client.pem"), issued.certificate);
        files.secret(folder.join("client.key"), issued.key);
        let profile = BTreeMap::from([
            ("exchange", options.exchange.to_string()),
            ("member", code.to_string()),
            ("endpoint", api.endpoint()),
            ("certificate", "client.pem".into()),
            ("key", "client.key".into()),
            ("ca", "../../tls/ca.pem".into()),
            ("roster", "../../roster.note".into()),
        ]);
        files.public(folder.join("client.toml"), toml_text(&profile)?);
        grants.push(GrantText {
            path: path.into(),
            roles: [role].into(),
            working_groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            limits: LimitsText::default(),
        });
    }
    files.secret(dir.join("access.toml"), toml_text(&AccessText { limits: LimitsText::default(), grants })?);
    files.public(
        dir.join("node.toml"),
        toml_text(&NodeText {
            member: code.to_string(),
            exchange: options.exchange.to_string(),
            epoch: 1,
            data: "data".into(),
            keys: "keys".into(),
            roster: "roster.note".into(),
            access: "access.toml".into(),
            certificate: "tls/node.pem".into(),
            private_key: "tls/node.key".into(),
            crls: vec!["tls/ca.crl".into()],
            listen_exchange: Some(format!("{}:{}", exchange.bind, exchange.port)),
            listen_api: format!("{}:{}", api.bind, api.port),
            endpoints: BTreeMap::new(),
            topics: Vec::new(),
            backfill_new_members: false,
            compress: Compress::Auto,
            crl_grace_days: 30,
            peer_wait_seconds: 10,
            min_free_disk_mib: 512,
            member_share_percent: barid_core::quota::SHARE_PERCENT,
            memory_mib: 2_048,
            log: "info".into(),
            log_json: false,
            metrics: None,
        })?,
    );
    let names = NamesText { ar: code.to_string(), fr: code.to_string(), en: code.to_string() };
    Ok(MemberText {
        code: code.to_string(),
        kind: kind.as_str().into(),
        names: known_names(code).unwrap_or(names),
        endpoints: vec![exchange.endpoint()],
        trust_domain,
        ca_certificates: vec![authority.certificate()],
        working_groups: working_groups.clone(),
        ceilings: member.ceilings(),
        keys,
        closed_feeds: Vec::new(),
    })
}

fn known_names(code: &Member) -> Option<NamesText> {
    let (ar, fr, en) = match code.as_str() {
        "ma" => ("المغرب", "Maroc", "Morocco"),
        "ly" => ("ليبيا", "Libye", "Libya"),
        "tn" => ("تونس", "Tunisie", "Tunisia"),
        "ne" => ("النيجر", "Niger", "Niger"),
        _ => return None,
    };
    Some(NamesText { ar: ar.into(), fr: fr.into(), en: en.into() })
}

fn signing_key(name: &str, algorithm: Algorithm) -> Result<SigningKey, PkiError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| PkiError::Text(error.to_string()))?;
    SigningKey::from_seed(name, algorithm, seed).map_err(|error| PkiError::Text(error.to_string()))
}

fn toml_time(time: OffsetDateTime) -> Result<toml::value::Datetime, PkiError> {
    let (date, clock) = (time.date(), time.time());
    let text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    );
    text.parse().map_err(|_| PkiError::Text(format!("`{text}` is not a time")))
}

fn toml_text(value: &impl serde::Serialize) -> Result<String, PkiError> {
    toml::to_string(value).map_err(|error| PkiError::Text(error.to_string()))
}

/// Changes the owner of a folder and its content, the folder itself last, so that an interrupted
/// run can be detected.
fn change_owner(path: &Path, owner: Owner) -> Result<(), PkiError> {
    let io = |source| PkiError::File { path: path.to_owned(), source };
    if fs::symlink_metadata(path).map_err(io)?.is_dir() {
        for entry in fs::read_dir(path).map_err(io)? {
            change_owner(&entry.map_err(io)?.path(), owner)?;
        }
    }
    lchown(path, Some(owner.user), Some(owner.group)).map_err(io)
}
