//! `barid cert`: `request` creates a private key and a certificate request for the member's
//! authority to sign; `check` is in `cert_check`.
//!
//! In scope: the key in a file that only its owner can read, and a PKCS #10 request (RFC 2986) with
//! the SPIFFE ID and host names. Out of scope: signing the request, which an authority does with
//! its own tools (docs/tutorial.md has a recipe). The command needs no node and no network: run it
//! on the machine where the key stays.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PublicKeyData, SanType};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::cert_check::{self, CheckArgs};
use super::{Context, Exit, Failure, localize};
use crate::pki::is_host;
use crate::transport::SpiffeId;

/// Arguments of `barid cert`.
#[derive(Debug, Args)]
pub(super) struct CertArgs {
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// Make a key and a request for a certificate, for your member's authority to sign.
    Request(RequestArgs),
    /// Check whether a certificate is fit for its use.
    Check(CheckArgs),
}

/// Subject of the request, and where to write key and request.
#[derive(Debug, Args)]
struct RequestArgs {
    /// Subject: `node`, or the path of a person or system as in access.toml,
    /// `focal-point/customs-hq`.
    #[arg(value_name = "PATH")]
    path: String,
    /// Your member's trust domain, `ma.rabat.example` [default: the profile's].
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Host names or addresses of a node, for clients that check them; several or repeated.
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    host: Vec<String>,
    /// File for the private key, readable only by you; an existing file is never overwritten.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// File for the request; an existing file is never overwritten.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(context: &Context, args: &CertArgs) -> Result<Exit, Failure> {
    match &args.command {
        CertCommand::Request(args) => request_certificate(context, args),
        CertCommand::Check(args) => cert_check::run(context, args),
    }
}

fn request_certificate(context: &Context, args: &RequestArgs) -> Result<Exit, Failure> {
    let domain = match &args.trust_domain {
        Some(domain) => domain.clone(),
        None => {
            let profile = context.profile_if_any()?.ok_or_else(|| Failure::usage("cert-no-domain"))?;
            format!("{}.{}", profile.member, profile.exchange)
        }
    };
    let identity: SpiffeId = format!("spiffe://{domain}/{}", args.path)
        .parse()
        .map_err(|error| Failure::usage("cert-no-identity").because(&error))?;
    if let Some(host) = args.host.iter().find(|host| !is_host(host)) {
        return Err(Failure::usage("cert-no-host").with("host", host));
    }
    if args.key == args.output {
        return Err(Failure::usage("cert-one-file").path(&args.key));
    }
    for path in [&args.key, &args.output] {
        if path.exists() {
            return Err(Failure::usage("cert-exists").path(path));
        }
    }
    let internal = |error: rcgen::Error| Failure::new("internal").because(&error);
    let key = KeyPair::generate().map_err(internal)?;
    let request = request(&identity, &args.host, &key)?;
    write_new(&args.key, 0o600, &key.serialize_pem())?;
    write_new(&args.output, 0o644, &request)?;
    let fingerprint = hex::encode(Sha256::digest(key.subject_public_key_info()));
    let (key, output) = (args.key.display().to_string(), args.output.display().to_string());
    if context.output.is_json() {
        let identity = identity.to_string();
        context
            .output
            .json(&json!({"key": key, "request": output, "identity": identity, "publicKeySha256": fingerprint}))?;
    } else {
        let messages = &context.messages;
        context.output.lines([
            localize!(messages, "cert-requested", path = &output, identity = &identity.to_string()),
            localize!(messages, "cert-key", path = &key),
            localize!(messages, "cert-next", fingerprint = &fingerprint),
        ])?;
    }
    Ok(Exit::Ok)
}

fn request(identity: &SpiffeId, hosts: &[String], key: &KeyPair) -> Result<String, Failure> {
    let unusable = |error: rcgen::Error| Failure::usage("cert-no-identity").because(&error);
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(unusable)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, &*identity.path);
    let uri = identity.to_string().as_str().try_into().map_err(unusable)?;
    params.subject_alt_names.insert(0, SanType::URI(uri));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if identity.is_node() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.serialize_request(key).and_then(|request| request.pem()).map_err(unusable)
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let unwritable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::usage("cert-exists").path(path),
        _ => Failure::new("file-unwritable").path(path).because(&error),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(unwritable)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::prelude::FromDer;

    use super::*;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;

    fn run_request(folder: &Path, path: &str, hosts: &[&str]) -> Result<Exit, Failure> {
        let (output, _) = Output::captured(false);
        let context = Context::new(Messages::new(Lang::En), output, None);
        let request = RequestArgs {
            path: path.into(),
            trust_domain: Some("ma.rabat.example".into()),
            host: hosts.iter().map(ToString::to_string).collect(),
            key: folder.join("new.key"),
            output: folder.join("new.csr"),
        };
        run(&context, &CertArgs { command: CertCommand::Request(request) })
    }

    #[test]
    fn csr_is_signed_names_one_identity_and_key_file_is_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        run_request(folder.path(), "node", &["node.ma.rabat.example", "192.0.2.7"]).unwrap();
        let mode = std::fs::metadata(folder.path().join("new.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pem = std::fs::read(folder.path().join("new.csr")).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        request.verify_signature().unwrap();
        let names: Vec<String> = request
            .requested_extensions()
            .unwrap()
            .filter_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })
            .flatten()
            .map(|name| match name {
                GeneralName::URI(uri) => format!("URI {uri}"),
                GeneralName::DNSName(name) => format!("DNS {name}"),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(names[..2], ["URI spiffe://ma.rabat.example/node", "DNS node.ma.rabat.example"]);
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn csr_never_overwrites_key_and_rejects_invalid_identity() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["", "/node", "focal point/x", "focal-point/../node"] {
            assert_eq!(run_request(folder.path(), path, &[]).unwrap_err().id(), "cert-no-identity", "{path}");
        }
        for hosts in [&[""][..], &["node.ma.example", " "], &["a b"], &["ma.example:7400"], &["https://ma.example"]] {
            assert_eq!(run_request(folder.path(), "node", hosts).unwrap_err().id(), "cert-no-host", "{hosts:?}");
        }
        assert!(!folder.path().join("new.key").exists());
        run_request(folder.path(), "focal-point/customs-hq", &[]).unwrap();
        let key = std::fs::read(folder.path().join("new.key")).unwrap();
        assert_eq!(run_request(folder.path(), "focal-point/customs-hq", &[]).unwrap_err().exit_code(), Exit::Usage);
        assert_eq!(std::fs::read(folder.path().join("new.key")).unwrap(), key);
    }
}
