//! `barid cert check`: checks whether a certificate is fit for its use.
//!
//! In scope: the same checks that nodes and governors make (`core::certificate`, `transport`):
//! purpose, subject, whether the verifier can parse it, and validity period. Out of scope: whether
//! an authority of the roster signed it, and revocation. These depend on a roster and on CRLs.

use std::path::PathBuf;

use barid_core::certificate::{self, Purpose, Unfit, Validity};
use clap::{Args, ValueEnum};
use prost_types::Timestamp;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use x509_parser::error::X509Error;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::certificates;
use super::{Context, Exit, Failure, localize, times};
use crate::clock;
use crate::transport::{self, NO_URI, SpiffeId};

/// The certificate, and its use.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Certificate in PEM; of a chain the first one is checked.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Use of the certificate [default: derived from its SPIFFE ID; without one, an authority].
    #[arg(long = "for", value_name = "USE", value_enum)]
    purpose: Option<CertificateUse>,
}

/// Uses of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CertificateUse {
    Node,
    Person,
    Authority,
}

impl CertificateUse {
    fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Person => "person",
            Self::Authority => "authority",
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Self::Node => Purpose::Node,
            Self::Person => Purpose::Client,
            Self::Authority => Purpose::Authority,
        }
    }

    /// Derives the use from the SPIFFE ID. A certificate without a URI is an authority's.
    fn by_name(certificate: &CertificateDer<'_>) -> Self {
        match transport::named(certificate) {
            Ok(id) if id.is_node() => Self::Node,
            Err(rejection) if rejection.reason == NO_URI => Self::Authority,
            // A URI that is no SPIFFE ID, or a second URI, fits no use. The check of this use then
            // reports that fault.
            Ok(_) | Err(_) => Self::Person,
        }
    }
}

/// Why a certificate is not fit for its use.
#[derive(Debug, thiserror::Error)]
enum NotFit {
    /// Its contents do not fit the purpose.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Nodes cannot parse it, or it does not have exactly one SPIFFE ID.
    #[error("{0}")]
    Rejected(String),
    /// It names a person or system, not a node.
    #[error("it names {0}, not a node: a node's path is `node`")]
    NotNode(SpiffeId),
    /// It names a node, not a person or system.
    #[error("it names {0}, a node, not a person or system: their path is not `node`")]
    IsNode(SpiffeId),
}

/// Checks a certificate for one use. The caller checks the returned validity period.
fn judge(certificate: &CertificateDer<'_>, used: CertificateUse) -> Result<Validity, NotFit> {
    if used == CertificateUse::Authority {
        return judge_authority(certificate).map_err(NotFit::from);
    }
    let validity = certificate::check(certificate, used.purpose())?;
    let id = transport::examine(certificate).map_err(|rejection| NotFit::Rejected(rejection.detail))?;
    match used {
        CertificateUse::Node if !id.is_node() => Err(NotFit::NotNode(id)),
        CertificateUse::Person if id.is_node() => Err(NotFit::IsNode(id)),
        _ => Ok(validity),
    }
}

/// Checks an authority's certificate as governors do before they sign a roster that lists it. The
/// caller checks the returned validity period.
///
/// # Errors
/// Returns the first reason found, as [`Unfit`].
pub(super) fn judge_authority(certificate: &CertificateDer<'_>) -> Result<Validity, Unfit> {
    let validity = transport::examine_authority(certificate)?;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Unfit::Unreadable)?;
    match is_self_signed(&parsed).then(|| parsed.verify_signature(None)) {
        Some(Err(X509Error::SignatureVerificationError)) => Err(Unfit::OwnSignature),
        // A signature that cannot be verified here is not judged: nodes do not verify it either.
        _ => Ok(validity),
    }
}

/// Returns whether the certificate claims to be signed with its own key. When an authority's key
/// signs its successor key, subject and issuer are equal too (self-issued, RFC 5280 section 3.2),
/// but the key identifiers differ.
fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    let (mut own, mut issuer) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0),
            ParsedExtension::AuthorityKeyIdentifier(id) => issuer = id.key_identifier.as_ref().map(|id| id.0),
            _ => {}
        }
    }
    let by_another = own.zip(issuer).is_some_and(|(own, issuer)| own != issuer);
    certificate.subject().as_raw() == certificate.issuer().as_raw() && !by_another
}

pub(super) fn run(context: &Context, args: &CheckArgs) -> Result<Exit, Failure> {
    let chain = certificates(&args.file)?;
    let Some(certificate) = chain.first() else {
        return Err(Failure::usage("identity-unusable").path(&args.file));
    };
    let used = args.purpose.unwrap_or_else(|| CertificateUse::by_name(certificate));
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    let judged =
        judge(certificate, used).and_then(|validity| validity.at(now).map(|()| validity).map_err(NotFit::from));
    let purpose = context.messages.term("cert-use", used.as_str());
    let validity = judged
        .map_err(|unfit| Failure::new("cert-unfit").path(&args.file).with("purpose", &purpose).because(&unfit))?;
    let path = args.file.display().to_string();
    let written = |seconds| times::seconds(Some(&Timestamp { seconds, nanos: 0 }));
    if context.output.is_json() {
        let rfc3339 = |seconds| times::rfc3339(&Timestamp { seconds, nanos: 0 });
        context.output.json(&json!({
            "file": path,
            "use": used.as_str(),
            "notBefore": rfc3339(validity.not_before),
            "notAfter": rfc3339(validity.not_after),
        }))?;
    } else {
        let text =
            localize!(context.messages, "cert-fit", path = &path, purpose = &purpose, at = written(validity.not_after));
        context.output.line(&text)?;
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose, SanType,
    };

    use super::*;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;
    use crate::pki::Authority;

    /// Runs the command in one language. Returns its output or the text of the failure.
    fn checked(pem: &str, purpose: Option<CertificateUse>, lang: Lang) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.pem");
        std::fs::write(&file, pem).unwrap();
        let (output, captured) = Output::captured(false);
        let context = Context::new(Messages::new(lang), output, None);
        match run(&context, &CheckArgs { file, purpose }) {
            Ok(exit) => {
                assert_eq!(exit, Exit::Ok);
                let text = String::from_utf8(captured.lock().clone()).unwrap();
                assert!(text.contains("x.pem"), "{text}");
                Ok(text)
            }
            Err(failure) => {
                assert_eq!((failure.id(), failure.exit_code()), ("cert-unfit", Exit::Failure));
                Err(failure.to_string())
            }
        }
    }

    #[test]
    fn certificate_is_checked_for_its_identity_or_requested_purpose() {
        let authority = Authority::new("ma.rabat.example").unwrap();
        let server_only = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        let issue = |path: &str| authority.issue(path, &[]).unwrap().certificate;
        let unfit = authority.issue_changed("node", server_only).unwrap().certificate;
        let cases = [
            (authority.certificate(), None, Ok("authority")),
            (issue("node"), None, Ok("node")),
            (issue("focal-point/a"), None, Ok("person")),
            (issue("focal-point/node"), None, Ok("person")),
            (issue("node"), Some(CertificateUse::Node), Ok("node")),
            (issue("focal-point/a"), Some(CertificateUse::Person), Ok("person")),
            (issue("node"), Some(CertificateUse::Person), Err("spiffe://ma.rabat.example/node, a node")),
            (
                issue("focal-point/a"),
                Some(CertificateUse::Node),
                Err("spiffe://ma.rabat.example/focal-point/a, not a node"),
            ),
            (issue("node"), Some(CertificateUse::Authority), Err("CA true")),
            (authority.certificate(), Some(CertificateUse::Node), Err("CA true")),
            (unfit, None, Err("clientAuth")),
        ];
        for (pem, purpose, expected) in cases {
            for lang in Lang::ALL {
                match (checked(&pem, purpose, lang), expected) {
                    (Ok(text), Ok(used)) => {
                        let used = Messages::new(lang).text(&format!("cert-use-{used}"));
                        assert!(text.contains(&used), "{text}");
                    }
                    (Err(text), Err(reason)) => assert!(text.contains(reason), "{reason}: {text}"),
                    (found, expected) => panic!("{expected:?}: {found:?}"),
                }
            }
        }
    }

    type Change = Box<dyn FnOnce(&mut CertificateParams)>;

    fn extension(oid: &'static [u64], content: &'static [u8], critical: bool) -> Change {
        Box::new(move |params: &mut CertificateParams| {
            let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
            extension.set_criticality(critical);
            params.custom_extensions.push(extension);
        })
    }

    fn critical(oid: &'static [u64], content: &'static [u8]) -> Change {
        extension(oid, content, true)
    }

    /// DER of a NULL; certificatePolicies of 1.2.3; policyConstraints that require a policy; a TLS
    /// feature, status_request (RFC 7633).
    const UNKNOWN: (&[u64], &[u8]) = (&[1, 3, 6, 1, 4, 1, 99_999, 1], &[0x05, 0x00]);
    const POLICIES: (&[u64], &[u8]) = (&[2, 5, 29, 32], &[0x30, 0x06, 0x30, 0x04, 0x06, 0x02, 0x2a, 0x03]);
    const POLICY_CONSTRAINTS: (&[u64], &[u8]) = (&[2, 5, 29, 36], &[0x30, 0x03, 0x80, 0x01, 0x00]);
    const TLS_FEATURE: (&[u64], &[u8]) = (&[1, 3, 6, 1, 5, 5, 7, 1, 24], &[0x30, 0x03, 0x02, 0x01, 0x05]);

    fn named(uris: &'static [&'static str]) -> Change {
        Box::new(move |params: &mut CertificateParams| {
            params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        })
    }

    #[test]
    fn certificate_rejected_by_nodes_is_unfit() {
        let authority = Authority::new("ma.rabat.example").unwrap();
        let cases: [(Change, &str); 9] = [
            (critical(UNKNOWN.0, UNKNOWN.1), "1.3.6.1.4.1.99999.1 is critical"),
            (critical(POLICY_CONSTRAINTS.0, POLICY_CONSTRAINTS.1), "2.5.29.36 is critical"),
            (critical(POLICIES.0, POLICIES.1), "2.5.29.32 is critical"),
            (critical(TLS_FEATURE.0, TLS_FEATURE.1), "1.3.6.1.5.5.7.1.24 is critical"),
            (named(&[]), "names no SPIFFE ID"),
            (
                named(&["spiffe://ma.rabat.example/node", "spiffe://ma.rabat.example/focal-point/x"]),
                "more than one URI",
            ),
            (named(&["spiffe://ma.rabat.example/focal-point/x"]), "focal-point/x, not a node"),
            (named(&["https://ma.rabat.example/node"]), "`https://ma.rabat.example/node` is not a SPIFFE ID"),
            (named(&["spiffe://ma.rabat.example"]), "`spiffe://ma.rabat.example` is not a SPIFFE ID"),
        ];
        for (change, reason) in cases {
            let pem = authority.issue_changed("node", change).unwrap().certificate;
            let failure = checked(&pem, Some(CertificateUse::Node), Lang::En).unwrap_err();
            assert!(failure.contains(reason), "{reason}: {failure}");
        }
        let unknown = extension(UNKNOWN.0, UNKNOWN.1, false);
        let pem = authority.issue_changed("node", unknown).unwrap().certificate;
        assert!(checked(&pem, Some(CertificateUse::Node), Lang::En).is_ok());
        // The fault is reported without --for too.
        let pem = authority.issue_changed("node", named(&["https://ma.rabat.example/node"])).unwrap().certificate;
        assert!(checked(&pem, None, Lang::En).unwrap_err().contains("is not a SPIFFE ID"));
        let pem = authority.issue_changed("node", |_| ()).unwrap().certificate;
        assert!(checked(&pem, None, Lang::En).is_ok());
    }

    /// Returns the certificate with all occurrences of these bytes replaced in its DER.
    fn patched(pem: &str, from: &[u8], to: &[u8]) -> String {
        let mut der = certificate::first_der(pem).unwrap();
        let places: Vec<usize> = (0..der.len()).filter(|at| der[*at..].starts_with(from)).collect();
        assert!(!places.is_empty());
        for at in places {
            der[at..at + to.len()].copy_from_slice(to);
        }
        written(&der)
    }

    fn written(der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    #[test]
    fn certificate_with_unsupported_signature_algorithm_is_unfit() {
        // ecdsa-with-SHA256 and ecdsa-with-SHA224 (RFC 5758 section 3.2).
        let sha256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        let sha224 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01];
        let authority = Authority::new("ma.rabat.example").unwrap();
        for (path, used) in [("node", CertificateUse::Node), ("focal-point/a", CertificateUse::Person)] {
            let pem = patched(&authority.issue(path, &[]).unwrap().certificate, &sha256, &sha224);
            let failure = checked(&pem, Some(used), Lang::En).unwrap_err();
            assert!(failure.contains("signed with 1.2.840.10045.4.3.1"), "{failure}");
        }
        // Nodes do not verify the signature of an authority's certificate.
        let pem = patched(&authority.certificate(), &sha256, &sha224);
        assert!(checked(&pem, Some(CertificateUse::Authority), Lang::En).is_ok());
    }

    #[test]
    fn authority_check_matches_governor_check() {
        let changed = |change: Change| Authority::changed("ma.rabat.example", change).unwrap().certificate();
        for (oid, content) in [UNKNOWN, POLICIES, POLICY_CONSTRAINTS, TLS_FEATURE] {
            let failure =
                checked(&changed(critical(oid, content)), Some(CertificateUse::Authority), Lang::En).unwrap_err();
            assert!(failure.contains("is critical"), "{failure}");
            assert!(
                checked(&changed(extension(oid, content, false)), Some(CertificateUse::Authority), Lang::En).is_ok()
            );
        }
        let authority = Authority::new("ma.rabat.example").unwrap();
        let mut der = certificate::first_der(&authority.certificate()).unwrap();
        *der.last_mut().unwrap() ^= 1;
        let failure = checked(&written(&der), None, Lang::En).unwrap_err();
        assert!(failure.contains("its own key has not signed it"), "{failure}");
    }

    #[test]
    fn self_issued_authority_without_key_identifiers_is_unfit() {
        let params = |has_key_identifiers| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.use_authority_key_identifier_extension = has_key_identifiers;
            params
        };
        let key = || KeyPair::generate().unwrap();
        let by_another = |has_key_identifiers| {
            let issuer = Issuer::new(params(true), key());
            let pem = params(has_key_identifiers).signed_by(&key(), &issuer).unwrap().pem();
            checked(&pem, Some(CertificateUse::Authority), Lang::En)
        };
        assert!(by_another(true).is_ok());
        assert!(by_another(false).unwrap_err().contains("its own key has not signed it"));
    }
}
