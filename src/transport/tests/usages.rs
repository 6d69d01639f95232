//! Certificates with one defect: they are not made for their use.

use barid_core::certificate::{self, Purpose};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::pki_types::UnixTime;

use super::super::{Compress, Connections, Connector, Policy, SpiffeId, Trust, UNSUITABLE};
use super::sockets::{Served, credentials, recorded};
use super::world::{World, der, roster};
use crate::pki::Authority;

type Change = fn(&mut CertificateParams);

/// A change to a leaf certificate, and the text that its rejection must contain.
const LEAVES: [(&str, &str, Change); 9] = [
    ("node", "clientAuth", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
    ("node", "serverAuth", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
    ("node", "clientAuth", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
    ("node", "keyCertSign", |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
    ("node", "cRLSign", |params| params.key_usages.push(KeyUsagePurpose::CrlSign)),
    ("node", "digitalSignature", |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
    ("node", "CA true", |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ("focal-point/a", "clientAuth", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
    ("node", "1.3.6.1.4.1.99999.1 is critical", |params| {
        let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![0x05, 0x00]);
        unknown.set_criticality(true);
        params.custom_extensions.push(unknown);
    }),
];

#[test]
fn certificate_unfit_for_any_of_its_uses_is_rejected_with_the_reason() {
    let world = World::new();
    for (path, expected, change) in LEAVES {
        let issued = world.ly.issue_changed(path, change).unwrap();
        let id = |path: &str| SpiffeId { trust_domain: "ly.rabat.example".into(), path: path.into() };
        let policies = match path {
            "node" => vec![Policy::Peers("ma.rabat.example".into()), Policy::Exactly(id(path))],
            _ => vec![Policy::OwnClients("ly.rabat.example".into())],
        };
        for policy in policies {
            let rejected = world.verifier(policy.clone()).identify(&der(&issued), UnixTime::now()).unwrap_err();
            assert_eq!(rejected.reason, UNSUITABLE, "{expected} {policy:?}: {rejected}");
            assert!(rejected.detail.contains(expected), "{expected} {policy:?}: {rejected}");
        }
    }
}

#[test]
fn usages_that_are_absent_restrict_nothing() {
    let world = World::new();
    let bare = world.ly.issue_changed("node", |params| {
        (params.key_usages, params.extended_key_usages) = (Vec::new(), Vec::new());
        params.is_ca = IsCa::NoCa;
    });
    assert_eq!(world.at_ma(&bare.unwrap()), Ok("ly".into()));
    // A client certificate needs no server use.
    let person = world.ly.issue_changed("focal-point/a", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert_eq!(world.at(Policy::OwnClients("ly.rabat.example".into()), &person.unwrap(), 0), Ok("ly".into()));
}

fn constrained(permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>) -> Option<NameConstraints> {
    Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded })
}

fn directory() -> GeneralSubtree {
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::OrganizationName, "Barid");
    GeneralSubtree::DirectoryName(name)
}

#[test]
fn authority_check_agrees_with_path_verification() {
    let fits: [(bool, Change); 9] = [
        (true, |_| ()),
        (true, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        (true, |params| {
            params.name_constraints = constrained(vec![GeneralSubtree::DnsName("ly.example".into())], vec![]);
        }),
        (true, |params| {
            params.name_constraints = constrained(vec![], vec![GeneralSubtree::DnsName("ma.example".into())]);
        }),
        (true, |params| {
            let subnet = CidrSubnet::from_v4_prefix([192, 0, 2, 0], 24);
            params.name_constraints = constrained(vec![GeneralSubtree::IpAddress(subnet)], vec![]);
        }),
        (true, |params| {
            params.name_constraints = constrained(vec![GeneralSubtree::Rfc822Name("ly.example".into())], vec![]);
        }),
        (false, |params| params.name_constraints = constrained(vec![directory()], vec![])),
        (false, |params| params.name_constraints = constrained(vec![], vec![directory()])),
        (true, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
    ];
    for (n, (fit, change)) in fits.into_iter().enumerate() {
        let authority = Authority::changed("ly.rabat.example", change).unwrap();
        let checked = certificate::check_pem(&authority.certificate(), Purpose::Authority);
        assert_eq!(checked.is_ok(), fit, "{n}: {checked:?}");
        // The verifier itself, which checks only the authority's constraints.
        let pem = authority.certificate();
        let anchor_der = rustls::pki_types::CertificateDer::from(certificate::first_der(&pem).unwrap());
        let anchor = webpki::anchor_from_trusted_cert(&anchor_der).unwrap();
        let issued = authority.issue_changed("node", |_| ()).unwrap();
        let leaf = der(&issued);
        let (leaf, anchors) = (webpki::EndEntityCert::try_from(&leaf).unwrap(), [anchor]);
        let (all, usage) = (webpki::ALL_VERIFICATION_ALGS, webpki::KeyUsage::client_auth());
        let verified = leaf.verify_for_usage(all, &anchors, &[], UnixTime::now(), usage, None, None).map(|_| ());
        assert_eq!(verified.is_ok(), fit, "{n}: {verified:?}");
    }
}

#[test]
fn unfit_authority_is_not_used_and_the_rejection_names_why() {
    let unfit: [(&str, Change); 5] = [
        ("CA true", |params| params.is_ca = IsCa::ExplicitNoCa),
        ("keyCertSign", |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
        ("cRLSign", |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
        ("keyCertSign", |params| params.key_usages = Vec::new()),
        ("clientAuth", |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
    ];
    for (expected, change) in unfit {
        let mut world = World::new();
        let authority = Authority::changed("ly.rabat.example", change).unwrap();
        let reason = certificate::check_pem(&authority.certificate(), Purpose::Authority).unwrap_err().to_string();
        assert!(reason.contains(expected), "{expected}: {reason}");
        world.trust = Trust::of(&roster(&[("ma", &[&world.ma]), ("ly", &[&authority])]));
        let issued = authority.issue_changed("node", |params| params.is_ca = IsCa::NoCa).unwrap();
        let rejected = world
            .verifier(Policy::Peers("ma.rabat.example".into()))
            .identify(&der(&issued), UnixTime::now())
            .unwrap_err();
        assert_eq!(rejected.reason, "wrong-ca", "{rejected}");
        assert!(rejected.detail.contains(expected), "{rejected}");
    }
}

#[test]
fn constraint_on_uris_cannot_be_met() {
    // rcgen has no URI subtrees, so this builds a constraint of RFC 5280 section 4.2.1.10 by hand:
    // permitted uniformResourceIdentifier ".rabat.example".
    let host = b".rabat.example";
    let tlv = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let subtree = tlv(0x30, &tlv(0x86, host));
    for context in [0xa0, 0xa1] {
        let extension = tlv(0x30, &tlv(context, &subtree));
        let authority = Authority::changed("ly.rabat.example", |params| {
            let extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], extension);
            params.custom_extensions.push(extension);
        });
        let reason = certificate::check_pem(&authority.unwrap().certificate(), Purpose::Authority).unwrap_err();
        assert!(reason.to_string().contains("URIs"), "{reason}");
    }
}

#[tokio::test]
async fn unsuitable_client_certificate_is_explained_in_both_logs() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let own = tempfile::tempdir().unwrap();
    let (rejection_records, on_rejected) = recorded();
    let server_only = world.ly.issue_changed("node", |params| {
        params.subject_alt_names.push(SanType::DnsName("ly.example".try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let connector = Connector {
        verifier: world.verifier(Policy::Peers("ly.rabat.example".into())),
        credentials: credentials(&own, &server_only.unwrap()),
        connections: Connections::default(),
        compress: Compress::Never,
        on_rejected,
    };
    let dialled = connector.dial(&served.address.to_string(), SpiffeId::node("ma.rabat.example")).await;
    let error = dialled.err().unwrap().to_string();
    assert!(error.contains("rejects our certificate") && error.contains("extended key usage"), "{error}");
    let at_peer = served.rejection_record().await;
    assert_eq!(at_peer.reason, UNSUITABLE);
    assert!(at_peer.detail.contains("clientAuth") && at_peer.detail.contains("ly.rabat.example"), "{at_peer:?}");
    let own_records = rejection_records.lock().clone();
    assert_eq!(own_records.len(), 1, "{own_records:?}");
    assert_eq!((own_records[0].reason, own_records[0].at), ("rejected-by-peer", "dial"));
}
