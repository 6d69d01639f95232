//! A development exchange in a folder: governors, a roster, and for each member an authority, certificates, keys and configuration.
//!
//! In scope: everything needed to run an exchange on one machine or in containers, and to test what is refused. Out of scope: how a
//! real authority keeps its key. Nothing here is fit for anything but development and exercises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::names::{ExchangeName, FeedId, Member};
use barid_core::roster::text::{GovernorsText, KeyText, MemberText, NamesText, RosterText};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::access::{AccessText, GrantText, Role};
use crate::config::NodeText;

/// The declaration's working groups.
pub const WORKING_GROUPS: [&str; 4] = ["security", "information", "customs", "justice"];
/// How long development certificates last.
const VALID: Duration = Duration::from_secs(365 * 24 * 3_600);
/// How long a development revocation list lasts.
const LIST_VALID: Duration = Duration::from_secs(30 * 24 * 3_600);

/// What to make.
#[derive(Clone, Debug)]
pub struct DevelopOptions {
    /// Where to.
    pub dir: PathBuf,
    /// Exchange name.
    pub exchange: ExchangeName,
    /// Members.
    pub members: Vec<DevelopMember>,
    /// Address that nodes listen on.
    pub bind: String,
    /// Cosigners that make a bulletin witnessed.
    pub quorum: u32,
}

/// One member of a development exchange.
#[derive(Clone, Debug)]
pub struct DevelopMember {
    /// Code.
    pub code: Member,
    /// Host under which the others and clients reach it.
    pub host: String,
    /// Port of the exchange listener.
    pub exchange_port: u16,
    /// Port of the API listener.
    pub api_port: u16,
    /// Working groups; all are full members.
    pub working_groups: Vec<String>,
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
    /// A certificate could not be made.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// A key or text could not be made.
    #[error("{0}")]
    Text(String),
}

/// A member's authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
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
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} (exercise)"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = span(10 * VALID);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer, trust_domain: trust_domain.to_owned() })
    }

    /// Its own certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.issuer.pem()
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
        let (this_update, next_update) = span(LIST_VALID);
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
    let roster_path = options.dir.join("roster.note");
    if roster_path.exists() {
        return Err(PkiError::Exists(roster_path));
    }
    let governors = (1..=3)
        .map(|n| signing_key(&format!("{}/governor/{n}", options.exchange), Algorithm::Ed25519))
        .collect::<Result<Vec<_>, _>>()?;
    for (n, governor) in (1..).zip(&governors) {
        secret(&options.dir.join(format!("governors/{n}.key")), &governor.to_text())?;
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
    let mut note = Note::sign(&text, &governors[0]).map_err(|error| PkiError::Text(error.to_string()))?;
    note.signatures.push(governors[1].sign_text(&text).map_err(|error| PkiError::Text(error.to_string()))?);
    write(&roster_path, &note.to_bytes())
}

fn one_member(options: &DevelopOptions, member: &DevelopMember) -> Result<MemberText, PkiError> {
    let DevelopMember { code, host, exchange_port, api_port, working_groups } = member;
    let dir = options.dir.join(code.as_str());
    let trust_domain = format!("{code}.{}", options.exchange);
    let authority = Authority::new(&trust_domain)?;
    write(&dir.join("tls/ca.pem"), authority.certificate().as_bytes())?;
    secret(&dir.join("offline/ca.key"), &authority.key())?;
    write(&dir.join("tls/ca.crl"), &authority.revoke(&[], 1)?)?;
    let hosts = BTreeSet::from(["localhost", "127.0.0.1", code.as_str(), host]);
    let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
    let node = authority.issue("node", &hosts)?;
    write(&dir.join("tls/node.pem"), node.certificate.as_bytes())?;
    secret(&dir.join("tls/node.key"), &node.key)?;

    let key = |role: &str, file: &str, algorithm| -> Result<String, PkiError> {
        let key = signing_key(&format!("{trust_domain}/{role}"), algorithm)?;
        secret(&dir.join(file), &key.to_text())?;
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
        listed("feed", Some(1), key("feed/1", "keys/feed.key", Algorithm::Ed25519)?),
        listed("feed", Some(2), key("feed/2", "offline/feed-2.key", Algorithm::Ed25519)?),
        listed("mirror", None, key("mirror", "keys/mirror.key", Algorithm::CosignatureEd25519)?),
        listed("custody", None, key("custody", "keys/custody.key", Algorithm::Ed25519)?),
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
            ("endpoint", format!("{host}:{api_port}")),
            ("certificate", "client.pem".into()),
            ("key", "client.key".into()),
            ("ca", "../../tls/ca.pem".into()),
            ("roster", "../../../roster.note".into()),
        ]);
        write_toml(&folder.join("client.toml"), &profile)?;
        grants.push(GrantText {
            path: path.into(),
            roles: [role].into(),
            working_groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        });
    }
    write_toml(&dir.join("access.toml"), &AccessText { grants })?;
    write_toml(
        &dir.join("node.toml"),
        &NodeText {
            member: code.to_string(),
            exchange: options.exchange.to_string(),
            epoch: 1,
            data: "data".into(),
            keys: "keys".into(),
            roster: "../roster.note".into(),
            access: "access.toml".into(),
            certificate: "tls/node.pem".into(),
            private_key: "tls/node.key".into(),
            crls: vec!["tls/ca.crl".into()],
            listen_exchange: Some(format!("{}:{exchange_port}", options.bind)),
            listen_api: format!("{}:{api_port}", options.bind),
            endpoints: BTreeMap::new(),
            topics: Vec::new(),
            crl_grace_days: 30,
            lone_start_seconds: 10,
            reserve_mib: 512,
            log: "info".into(),
            log_json: false,
        },
    )?;
    let names = NamesText { ar: code.to_string(), fr: code.to_string(), en: code.to_string() };
    Ok(MemberText {
        code: code.to_string(),
        kind: "full".into(),
        names: known_names(code).unwrap_or(names),
        endpoints: vec![format!("{host}:{exchange_port}")],
        trust_domain,
        ca_certificates: vec![authority.certificate()],
        working_groups: working_groups.clone(),
        ceilings: BTreeMap::new(),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::roster::RosterChain;

    use super::*;
    use crate::access::Access;
    use crate::cli::Profile;
    use crate::config::NodeConfig;

    #[test]
    fn a_development_exchange_fits_together() {
        let folder = tempfile::tempdir().unwrap();
        let member = |code: &str, port| DevelopMember {
            code: code.parse().unwrap(),
            host: "127.0.0.1".into(),
            exchange_port: port,
            api_port: port + 1,
            working_groups: WORKING_GROUPS.map(str::to_owned).to_vec(),
        };
        let options = DevelopOptions {
            dir: folder.path().to_owned(),
            exchange: "rabat.example".parse().unwrap(),
            members: vec![member("ma", 7400), member("tn", 7410)],
            bind: "127.0.0.1".into(),
            quorum: 1,
        };
        develop(&options).unwrap();
        let chain = RosterChain::start(&fs::read(folder.path().join("roster.note")).unwrap()).unwrap();
        for code in ["ma", "tn"] {
            let config = NodeConfig::load(&folder.path().join(code).join("node.toml")).unwrap();
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
}
