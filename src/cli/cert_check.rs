//! `barid cert check`: whether a certificate is fit for all that it is used for, before anybody depends on it.
//!
//! In scope: the judgement that nodes and governors make (`core::certificate`), and when it is valid. Out of scope: who signed it, and
//! revocation, which depend on a roster and on lists.

use std::path::PathBuf;

use barid_core::certificate::{self, Purpose};
use clap::{Args, ValueEnum};
use pbjson_types::Timestamp;
use serde_json::json;

use super::tls::{certificates, spiffe_id};
use super::{Context, Exit, Failure, say, times};
use crate::clock;

/// Which, and what for.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Certificate in PEM; of a chain the first.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What it is for [default: what its SPIFFE ID says; without one an authority].
    #[arg(long = "for", value_name = "USE", value_enum)]
    purpose: Option<Use>,
}

/// What a certificate may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Use {
    Node,
    Person,
    Authority,
}

impl Use {
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
}

pub(super) fn run(context: &Context, args: &CheckArgs) -> Result<Exit, Failure> {
    let chain = certificates(&args.file)?;
    let Some(certificate) = chain.first() else {
        return Err(Failure::usage("identity-unusable").path(&args.file));
    };
    let by_name = || match spiffe_id(certificate) {
        Some(id) if id.ends_with("/node") => Use::Node,
        Some(_) => Use::Person,
        None => Use::Authority,
    };
    let used = args.purpose.unwrap_or_else(by_name);
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    let judged = certificate::check(certificate, used.purpose());
    let validity = judged
        .and_then(|validity| validity.at(now).map(|()| validity))
        .map_err(|unfit| Failure::new("cert-unfit").path(&args.file).with("purpose", used.as_str()).because(&unfit))?;
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
            say!(context.messages, "cert-fit", path = &path, purpose = used.as_str(), at = written(validity.not_after));
        context.output.line(&text)?;
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::cli::messages::{Lang, Messages};
    use crate::cli::output::Output;
    use crate::pki::Authority;

    #[test]
    fn certificate_is_judged_for_what_its_identity_says_or_for_what_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("ma.rabat.example").unwrap();
        let server_only = |params: &mut rcgen::CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        let issue = |path: &str| authority.issue(path, &[]).unwrap().certificate;
        let unfit = authority.issue_changed("node", server_only).unwrap().certificate;
        let cases = [
            (authority.certificate(), None, Ok("authority")),
            (issue("node"), None, Ok("node")),
            (issue("focal-point/a"), None, Ok("person")),
            (issue("node"), Some(Use::Person), Ok("person")),
            (issue("node"), Some(Use::Authority), Err("CA true")),
            (authority.certificate(), Some(Use::Node), Err("CA true")),
            (unfit, None, Err("clientAuth")),
        ];
        for (pem, purpose, expected) in cases {
            let file = folder.path().join("x.pem");
            std::fs::write(&file, pem).unwrap();
            for lang in Lang::ALL {
                let (output, captured) = Output::captured(false);
                let context = Context::new(Messages::new(lang), output, None);
                let result = run(&context, &CheckArgs { file: file.clone(), purpose });
                match expected {
                    Ok(used) => {
                        assert_eq!(result.unwrap(), Exit::Ok);
                        let text = String::from_utf8(captured.lock().clone()).unwrap();
                        assert!(text.contains(used) && text.contains("x.pem"), "{text}");
                    }
                    Err(words) => {
                        let failure = result.unwrap_err();
                        assert_eq!((failure.id(), failure.exit_code()), ("cert-unfit", Exit::Failure));
                        assert!(failure.to_string().contains(words), "{failure}");
                    }
                }
            }
        }
    }
}
