//! A development exchange in a folder: governors, a roster, and for each member an authority, certificates, keys and configuration.
//!
//! In scope: everything needed to run an exchange on one machine or in containers, and to test what is refused. Out of scope: how a
//! real authority keeps its key. Nothing here is fit for anything but development and exercises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use barid_core::bulletin::vocabulary::Tlp;
use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::names::{ExchangeName, FeedId, Member};
use barid_core::roster::text::{GovernorsText, KeyText, MemberText, NamesText, RosterText};
use barid_core::roster::{MemberKind, Roster, RosterError};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::access::{AccessText, GrantText, LimitsText, Role};
use crate::config::NodeText;
use crate::transport::Compress;

/// The declaration's working groups.
pub const WORKING_GROUPS: [&str; 4] = ["security", "information", "customs", "justice"];
/// How long development certificates last.
const VALID: Duration = Duration::from_secs(365 * 24 * 3_600);
/// How long a development revocation list lasts: as its certificates, since nobody renews it.
const LIST_VALID: Duration = VALID;

/// What to make.
#[derive(Clone, Debug)]
pub struct DevelopOptions {
    /// Where to. Each member's folder in it is complete in itself: its node needs nothing from outside.
    pub dir: PathBuf,
    /// Where to put what no node needs (keys of governors, of authorities and of the next epoch), if not in `governors` and each
    /// member's `offline` in `dir`.
    pub offline: Option<PathBuf>,
    /// Exchange name.
    pub exchange: ExchangeName,
    /// Members.
    pub members: Vec<DevelopMember>,
    /// Cosigners that make a bulletin witnessed.
    pub quorum: u32,
    /// Whose the members' folders shall be, if not of whom makes them.
    pub owner: Option<Owner>,
}

impl DevelopOptions {
    /// An exchange of these members in a folder; two cosigners make a witnessed bulletin where there are three full members.
    #[must_use]
    pub fn new(dir: PathBuf, exchange: ExchangeName, members: Vec<DevelopMember>) -> Self {
        let full = members.iter().filter(|member| member.kind == MemberKind::Full).count();
        let quorum = if full > 2 { 2 } else { 1 };
        Self { dir, offline: None, exchange, members, quorum, owner: None }
    }

    /// Finds what the roster would be refused for before anything is written.
    fn check(&self) -> Result<(), PkiError> {
        let (mut codes, mut endpoints) = (BTreeSet::new(), BTreeSet::new());
        for member in &self.members {
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

    /// Where its roster stands, which is written last: where it is, everything is.
    #[must_use]
    pub fn roster(&self) -> PathBuf {
        self.dir.join("roster.note")
    }
}

/// One member of a development exchange.
#[derive(Clone, Debug)]
pub struct DevelopMember {
    /// Code.
    pub code: Member,
    /// For the other members.
    pub exchange: Place,
    /// For its own people.
    pub api: Place,
    /// What it is.
    pub kind: MemberKind,
    /// Working groups of a full member; the others have none.
    pub working_groups: Vec<String>,
}

impl DevelopMember {
    /// A full member of all working groups on this machine; its API is one port higher than its exchange listener.
    #[must_use]
    pub fn local(code: Member, exchange_port: u16) -> Self {
        let place = |port| Place { bind: "127.0.0.1".into(), host: "127.0.0.1".into(), port };
        let working_groups = WORKING_GROUPS.map(str::to_owned).to_vec();
        let (exchange, api) = (place(exchange_port), place(exchange_port.saturating_add(1)));
        Self { code, exchange, api, kind: MemberKind::Full, working_groups }
    }

    /// The same as an observer, who is granted TLP:GREEN in the working group `information`, or as a partner, who is in all of them.
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

/// Where a node listens.
#[derive(Clone, Debug)]
pub struct Place {
    /// Address, or a name of it, that the node binds.
    pub bind: String,
    /// Host under which it is reached.
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

/// A user and a group of this system, by number.
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

/// Why an exchange was not made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The folder holds an exchange already.
    #[error("{0} exists already; choose another folder or remove it")]
    Exists(PathBuf),
    /// A file could not be written.
    #[error("{path} cannot be written")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A code or an endpoint that several members would have.
    #[error("two members have {0}")]
    Twice(String),
    /// What was asked for makes no roster.
    #[error("these members make no roster")]
    Roster(#[from] RosterError),
    /// A certificate could not be made.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// A key or text could not be made.
    #[error("{0}")]
    Text(String),
}

/// A member's authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    trust_domain: String,
}

/// A certificate with its key.
pub struct Issued {
    /// PEM certificate.
    pub certificate: String,
    /// PEM private key.
    pub key: String,
    /// Serial number.
    pub serial: Vec<u8>,
}

impl Authority {
    /// A new authority for a trust domain.
    ///
    /// # Errors
    /// If the key cannot be made.
    pub fn new(trust_domain: &str) -> Result<Self, PkiError> {
        Self::of(trust_domain, KeyPair::generate()?)
    }

    /// An authority for a trust domain with a key that there is already, PEM: also one that must be refused.
    ///
    /// # Errors
    /// If the key cannot be read.
    pub fn with_key(trust_domain: &str, key: &str) -> Result<Self, PkiError> {
        Self::of(trust_domain, KeyPair::from_pem(key)?)
    }

    /// The authority of a trust domain again, from its certificate and key, PEM.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn load(trust_domain: &str, certificate: &str, key: &str) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, certificate: certificate.to_owned(), trust_domain: trust_domain.to_owned() })
    }

    fn of(trust_domain: &str, key: KeyPair) -> Result<Self, PkiError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} (exercise)"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = span(10 * VALID);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, trust_domain: trust_domain.to_owned() })
    }

    /// Its own certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.certificate.clone()
    }

    /// Its private key, PEM.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for a path in its own trust domain: `node`, `focal-point/police-hq`. `hosts` are DNS names or addresses.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn issue(&self, path: &str, hosts: &[String]) -> Result<Issued, PkiError> {
        self.issue_for(&[&format!("spiffe://{}/{path}", self.trust_domain)], hosts, span(VALID))
    }

    /// A certificate for any URIs and validity: also for what must be refused.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn issue_for(
        &self,
        uris: &[&str],
        hosts: &[String],
        (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    ) -> Result<Issued, PkiError> {
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "exercise");
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
        }
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|error| PkiError::Text(error.to_string()))?;
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = (not_before, not_after);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem(), serial: serial.to_vec() })
    }

    /// A revocation list, DER, that names these serial numbers.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn revoke(&self, serials: &[Vec<u8>], number: u64) -> Result<Vec<u8>, PkiError> {
        self.revoke_for(serials, number, span(LIST_VALID))
    }

    /// The same for any time.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn revoke_for(
        &self,
        serials: &[Vec<u8>],
        number: u64,
        (this_update, next_update): (OffsetDateTime, OffsetDateTime),
    ) -> Result<Vec<u8>, PkiError> {
        let revoked = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.der().to_vec())
    }
}

/// From an hour ago on, for so long.
fn span(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let from = OffsetDateTime::now_utc() - Duration::from_secs(3_600);
    (from, from + length)
}

/// The people and systems of each development member: SPIFFE path, role, working groups (empty: the member's own).
const CLIENTS: [(&str, Role, &[&str]); 7] = [
    ("focal-point/police-hq", Role::FocalPoint, &["security"]),
    ("focal-point/situation-room", Role::FocalPoint, &["information"]),
    ("focal-point/customs-hq", Role::FocalPoint, &["customs"]),
    ("focal-point/justice-hq", Role::FocalPoint, &["justice"]),
    ("agency/border-post", Role::Agency, &WORKING_GROUPS),
    ("operator/operator", Role::Operator, &[]),
    ("auditor/auditor", Role::Auditor, &WORKING_GROUPS),
];

/// Makes the exchange. The folder may exist, an exchange in it may not.
///
/// # Errors
/// See [`PkiError`].
pub fn develop(options: &DevelopOptions) -> Result<(), PkiError> {
    let roster_path = options.roster();
    if roster_path.exists() {
        return Err(PkiError::Exists(roster_path));
    }
    options.check()?;
    let governors = (1..=3)
        .map(|n| signing_key(&format!("{}/governor/{n}", options.exchange), Algorithm::Ed25519))
        .collect::<Result<Vec<_>, _>>()?;
    for (n, governor) in (1..).zip(&governors) {
        let folder = options.offline.as_ref().unwrap_or(&options.dir).join("governors");
        secret(&folder.join(format!("{n}.key")), &governor.to_text())?;
    }
    let members = options.members.iter().map(|member| one_member(options, member)).collect::<Result<_, _>>()?;
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
    let mut note = Note::sign(&text, &governors[0]).map_err(|error| PkiError::Text(error.to_string()))?;
    note.signatures.push(governors[1].sign_text(&text).map_err(|error| PkiError::Text(error.to_string()))?);
    for member in &options.members {
        let folder = options.dir.join(member.code.as_str());
        write(&folder.join("roster.note"), &note.to_bytes())?;
        if let Some(owner) = options.owner {
            hand_over(&folder, owner)?;
        }
    }
    write(&roster_path, &note.to_bytes())
}

fn one_member(options: &DevelopOptions, member: &DevelopMember) -> Result<MemberText, PkiError> {
    let DevelopMember { code, exchange, api, kind, working_groups } = member;
    let dir = options.dir.join(code.as_str());
    let offline = options.offline.as_ref().map_or_else(|| dir.join("offline"), |offline| offline.join(code.as_str()));
    let trust_domain = format!("{code}.{}", options.exchange);
    let authority = Authority::new(&trust_domain)?;
    write(&dir.join("tls/ca.pem"), authority.certificate().as_bytes())?;
    secret(&offline.join("ca.key"), &authority.key())?;
    write(&dir.join("tls/ca.crl"), &authority.revoke(&[], 1)?)?;
    let hosts = BTreeSet::from(["localhost", "127.0.0.1", code.as_str(), &exchange.host, &api.host]);
    let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
    let node = authority.issue("node", &hosts)?;
    write(&dir.join("tls/node.pem"), node.certificate.as_bytes())?;
    secret(&dir.join("tls/node.key"), &node.key)?;

    private_folder(&dir.join("keys"))?;
    let key = |role: &str, file: PathBuf, algorithm| -> Result<String, PkiError> {
        let key = signing_key(&format!("{trust_domain}/{role}"), algorithm)?;
        secret(&file, &key.to_text())?;
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
        write(&folder.join("client.pem"), issued.certificate.as_bytes())?;
        secret(&folder.join("client.key"), &issued.key)?;
        let profile = BTreeMap::from([
            ("exchange", options.exchange.to_string()),
            ("member", code.to_string()),
            ("endpoint", api.endpoint()),
            ("certificate", "client.pem".into()),
            ("key", "client.key".into()),
            ("ca", "../../tls/ca.pem".into()),
            ("roster", "../../roster.note".into()),
        ]);
        write_toml(&folder.join("client.toml"), &profile)?;
        grants.push(GrantText {
            path: path.into(),
            roles: [role].into(),
            working_groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            limits: LimitsText::default(),
        });
    }
    write_toml(&dir.join("access.toml"), &AccessText { limits: LimitsText::default(), grants })?;
    write_toml(
        &dir.join("node.toml"),
        &NodeText {
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
            share_history: false,
            compress: Compress::Auto,
            crl_grace_days: 30,
            lone_start_seconds: 10,
            reserve_mib: 512,
            memory_mib: 1_024,
            log: "info".into(),
            log_json: false,
            metrics: None,
        },
    )?;
    let names = NamesText { ar: code.to_string(), fr: code.to_string(), en: code.to_string() };
    Ok(MemberText {
        code: code.to_string(),
        kind: kind.word().into(),
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

/// The name of a member's feed in its first epoch.
#[must_use]
pub fn first_feed(code: &Member, exchange: &ExchangeName) -> FeedId {
    FeedId::new(code.clone(), exchange.clone(), 1)
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
    text.parse().map_err(|_| PkiError::Text(format!("`{text}` is no time")))
}

fn write_toml(path: &Path, value: &impl serde::Serialize) -> Result<(), PkiError> {
    let text = toml::to_string(value).map_err(|error| PkiError::Text(error.to_string()))?;
    write(path, text.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    put(path, bytes, 0o644)
}

/// A folder for nobody but its owner: what a node keeps beside its keys is nobody else's business either.
fn private_folder(path: &Path) -> Result<(), PkiError> {
    let io = |source| PkiError::File { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io)
        }
        made => made.map_err(io),
    }
}

/// Keys are for their owner's eyes only.
fn secret(path: &Path, text: &str) -> Result<(), PkiError> {
    put(path, text.as_bytes(), 0o600)
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let io = |source| PkiError::File { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(io)?;
    file.write_all(bytes).map_err(io)
}

/// Gives a folder and everything in it to its owner, the folder itself last: a run that was cut off can be seen.
fn hand_over(path: &Path, owner: Owner) -> Result<(), PkiError> {
    let io = |source| PkiError::File { path: path.to_owned(), source };
    if fs::symlink_metadata(path).map_err(io)?.is_dir() {
        for entry in fs::read_dir(path).map_err(io)? {
            hand_over(&entry.map_err(io)?.path(), owner)?;
        }
    }
    lchown(path, Some(owner.user), Some(owner.group)).map_err(io)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use barid_core::roster::RosterChain;

    use super::*;
    use crate::access::Access;
    use crate::cli::Profile;
    use crate::config::NodeConfig;

    #[test]
    fn a_development_exchange_fits_together() {
        let folder = tempfile::tempdir().unwrap();
        let member = |code: &str, port| DevelopMember::local(code.parse().unwrap(), port);
        let members = vec![member("ma", 7400), member("tn", 7410)];
        let options = DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members);
        develop(&options).unwrap();
        let chain = RosterChain::start(&fs::read(folder.path().join("roster.note")).unwrap()).unwrap();
        for code in ["ma", "tn"] {
            let config = NodeConfig::load(&folder.path().join(code).join("node.toml")).unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
            assert_eq!(mode(&config.text.keys), 0o700);
            for key in fs::read_dir(&config.text.keys).unwrap() {
                assert_eq!(mode(&key.unwrap().path()), 0o600);
            }
            let keys = chain.newest().feed_keys(&config.feed);
            let held = SigningKey::from_text(&fs::read_to_string(config.text.keys.join("feed.key")).unwrap()).unwrap();
            assert_eq!(keys, [held.verifier().clone()]);
            let access = Access::load(&config.text.access).unwrap();
            assert!(access.grant("focal-point/police-hq").unwrap().may_publish_in("security"));
            let profile = Profile::read(&folder.path().join(code).join("clients/police-hq/client.toml")).unwrap();
            assert!(profile.certificate.is_file() && profile.ca.is_file() && profile.roster.unwrap().is_file());
        }
        assert!(matches!(develop(&options), Err(PkiError::Exists(_))));
    }
    #[test]
    fn a_members_folder_is_complete_and_holds_no_key_that_its_node_does_not_need() {
        let (made, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = |name: &str, port| Place { bind: name.into(), host: name.into(), port };
        let member = |code: &str| DevelopMember {
            exchange: place(&format!("{code}.rabat.example"), 7400),
            api: place(&format!("api.{code}.rabat.example"), 7401),
            ..DevelopMember::local(code.parse().unwrap(), 0)
        };
        let own = fs::metadata(made.path()).unwrap();
        let owner = Owner { user: own.uid(), group: own.gid() };
        let members = vec![member("ma"), member("tn")];
        develop(&DevelopOptions {
            offline: Some(made.path().join("offline")),
            owner: Some(owner),
            ..DevelopOptions::new(made.path().to_owned(), "rabat.example".parse().unwrap(), members)
        })
        .unwrap();
        for kept in ["governors/1.key", "tn/ca.key", "tn/feed-2.key"] {
            assert!(made.path().join("offline").join(kept).is_file(), "{kept}");
        }

        // Tunis takes its folder home.
        let home = elsewhere.path().join("barid");
        fs::rename(made.path().join("tn"), &home).unwrap();
        assert!(!home.join("offline").exists());
        let config = NodeConfig::load(&home.join("node.toml")).unwrap();
        assert_eq!(config.text.listen_exchange.as_deref(), Some("tn.rabat.example:7400"));
        assert_eq!(config.text.listen_api, "api.tn.rabat.example:7401");
        let chain = RosterChain::start(&fs::read(&config.text.roster).unwrap()).unwrap();
        let listed = chain.newest().member(&"tn".parse().unwrap()).unwrap();
        assert_eq!(listed.endpoints, ["tn.rabat.example:7400"]);
        let profile = Profile::read(&home.join("clients/operator/client.toml")).unwrap();
        assert_eq!(profile.endpoint, "api.tn.rabat.example:7401");
        assert_eq!(fs::read(profile.roster.unwrap()).unwrap(), fs::read(&config.text.roster).unwrap());
    }

    #[test]
    fn an_owner_is_two_numbers() {
        assert_eq!("65532:0".parse(), Ok(Owner { user: 65_532, group: 0 }));
        for wrong in ["", "65532", "nobody:nogroup", "1:2:3", "-1:0"] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn observers_and_partners_are_granted_little_and_make_no_quorum() {
        let folder = tempfile::tempdir().unwrap();
        let member = |code: &str, port, kind| DevelopMember::local(code.parse().unwrap(), port).of_kind(kind);
        let members = vec![
            member("ma", 7400, MemberKind::Full),
            member("x-au", 7410, MemberKind::Observer),
            member("x-partner", 7420, MemberKind::Partner),
        ];
        let options = DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members);
        assert_eq!(options.quorum, 1);
        develop(&options).unwrap();
        let chain = RosterChain::start(&fs::read(options.roster()).unwrap()).unwrap();
        let granted = |code: &str| chain.newest().member(&code.parse().unwrap()).unwrap().ceilings.len();
        assert_eq!((granted("ma"), granted("x-au"), granted("x-partner")), (0, 1, WORKING_GROUPS.len()));
        assert_eq!(chain.newest().unfit_authorities(None, OffsetDateTime::now_utc().unix_timestamp()), []);
    }

    #[test]
    fn what_the_roster_would_be_refused_for_is_found_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let member = |code: &str, port| DevelopMember::local(code.parse().unwrap(), port);
        for (second, twice) in [(member("ma", 7410), "ma"), (member("tn", 7400), "127.0.0.1:7400")] {
            let members = vec![member("ma", 7400), second];
            let options = DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members);
            assert!(matches!(develop(&options), Err(PkiError::Twice(found)) if found == twice));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
