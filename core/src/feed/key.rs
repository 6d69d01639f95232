//! Keys of signed notes: types, encodings, and raw signing and verification.
//!
//! In scope: C2SP signed-note verifier keys (`<name>+<id>+<base64>`), the matching private keys of
//! golang.org/x/mod/sumdb/note, and the three signature types that Barid uses. Out of scope: what
//! is signed (`note`, `timestamped`), which keys count and when (`roster`), and the source of
//! private keys: a seed is an argument.

use std::fmt;
use std::hash::{Hash as StdHash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use ml_dsa::{Keypair as _, MlDsa44};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::ids::Hash;
use crate::limits::KEY_NAME_BYTES_MAX;

/// A signature type of C2SP signed-note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// 0x01: Ed25519 over the note's text.
    Ed25519,
    /// 0x04: Ed25519 over a checkpoint with a time (tlog-cosignature).
    CosignatureEd25519,
    /// 0x06: ML-DSA-44 over a tree head with a time (tlog-cosignature). A log may sign its own
    /// checkpoints with it too.
    CosignatureMlDsa44,
}

impl Algorithm {
    /// All supported types.
    pub const ALL: [Self; 3] = [Self::Ed25519, Self::CosignatureEd25519, Self::CosignatureMlDsa44];

    /// Returns the assigned signature type byte.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::CosignatureEd25519 => 0x04,
            Self::CosignatureMlDsa44 => 0x06,
        }
    }

    /// Returns the type with this signature type byte.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.number() == number)
    }

    /// Returns the length of a public key, in bytes.
    #[must_use]
    pub fn public_key_bytes(self) -> usize {
        match self {
            Self::Ed25519 | Self::CosignatureEd25519 => 32,
            Self::CosignatureMlDsa44 => 1_312,
        }
    }
}

/// Why a key, or a use of it, is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not of the form of a key.
    #[error("the key does not have the form {0}")]
    Form(&'static str),
    /// A key name that is empty, too long, or has spaces, `+` or control characters.
    #[error("`{0}` cannot be a key name")]
    Name(String),
    /// A signature type that Barid does not use.
    #[error("signature type {0:#04x} is not supported")]
    Algorithm(u8),
    /// Key material whose length does not match its type.
    #[error("the key has {found} bytes, its type has {expected}")]
    Length {
        /// Length for its type.
        expected: usize,
        /// Length found.
        found: usize,
    },
    /// The id does not match name, type and key.
    #[error("the key id is {found}, name and key yield {expected}")]
    Id {
        /// Id derived from name, type and key, in hex.
        expected: String,
        /// Id as written.
        found: String,
    },
    /// Not a point of the curve, not in canonical encoding, or of small order.
    #[error("the public key is not a sound point of the curve")]
    Point,
    /// A key of this type does not sign this type of message.
    #[error("key `{name}` of type {number:#04x} does not sign {what}")]
    Purpose {
        /// The key's name.
        name: String,
        /// The key's signature type.
        number: u8,
        /// The message to be signed or verified.
        what: &'static str,
    },
    /// Signing failed: ML-DSA rejects candidates, and stops after very many.
    #[error("no signature was found")]
    Signing,
}

/// A named public key that verifies one signature type. Cheap to clone. Printed and parsed as a
/// C2SP vkey, `<name>+<hex id>+<base64 of type and key>`.
#[derive(Clone)]
pub struct VerifierKey {
    name: Arc<str>,
    id: [u8; 4],
    algorithm: Algorithm,
    public: Public,
}

#[derive(Clone)]
enum Public {
    Ed25519(ed25519_dalek::VerifyingKey),
    MlDsa44(Arc<MlDsaPublic>),
}

/// An ML-DSA key with its matrix expanded. Expanding it is most of the cost of a verification.
struct MlDsaPublic {
    bytes: Vec<u8>,
    key: ml_dsa::VerifyingKey<MlDsa44>,
}

impl VerifierKey {
    /// Creates a key from its name and raw public key.
    pub fn new(name: &str, algorithm: Algorithm, public: &[u8]) -> Result<Self, KeyError> {
        check_name(name)?;
        let length = || KeyError::Length { expected: algorithm.public_key_bytes(), found: public.len() };
        let id = key_id(name, algorithm, public);
        let public = match algorithm {
            Algorithm::Ed25519 | Algorithm::CosignatureEd25519 => {
                let bytes: &[u8; 32] = public.try_into().map_err(|_| length())?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Point)?;
                // A key must have only one encoding, and with a key of small order signatures
                // verify that nobody made.
                if key.is_weak() || key.to_edwards().compress().as_bytes() != bytes {
                    return Err(KeyError::Point);
                }
                Public::Ed25519(key)
            }
            Algorithm::CosignatureMlDsa44 => {
                let encoded = ml_dsa::EncodedVerifyingKey::<MlDsa44>::try_from(public).map_err(|_| length())?;
                let key = ml_dsa::VerifyingKey::decode(&encoded);
                Public::MlDsa44(Arc::new(MlDsaPublic { bytes: public.to_vec(), key }))
            }
        };
        Ok(Self { name: name.into(), id, algorithm, public })
    }

    /// Returns the key's name, as in its signature lines.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the first four bytes of SHA-256(name ‖ 0x0A ‖ type ‖ key): a hint, never an
    /// authority.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        self.id
    }

    /// Returns SHA-256(name ‖ 0x0A ‖ type ‖ key), which begins with the id. People compare it, by
    /// telephone if necessary.
    #[must_use]
    pub fn fingerprint(&self) -> Hash {
        Hash(fingerprint(&self.name, self.algorithm, self.public_bytes()))
    }

    /// Returns its signature type.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the raw public key.
    #[must_use]
    pub fn public_bytes(&self) -> &[u8] {
        match &self.public {
            Public::Ed25519(key) => key.as_bytes(),
            Public::MlDsa44(key) => &key.bytes,
        }
    }

    /// Returns whether `signature` (without key id and time) is by this key over exactly `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.public {
            Public::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Public::MlDsa44(public) => ml_dsa::Signature::try_from(signature)
                .is_ok_and(|signature| public.key.verify_with_context(message, &[], &signature)),
        }
    }

    pub(super) fn cannot(&self, what: &'static str) -> KeyError {
        KeyError::Purpose { name: self.name.to_string(), number: self.algorithm.number(), what }
    }
}

impl PartialEq for VerifierKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && self.name == other.name && self.public_bytes() == other.public_bytes()
    }
}

impl Eq for VerifierKey {}

impl StdHash for VerifierKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, self.algorithm, self.public_bytes()).hash(state);
    }
}

const VKEY_FORM: &str = "<name>+<id>+<base64>";

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, id, algorithm, public) = parse_parts(text, VKEY_FORM)?;
        let key = Self::new(name, algorithm, &public)?;
        check_id(id, key.id)?;
        Ok(key)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut material = vec![self.algorithm.number()];
        material.extend_from_slice(self.public_bytes());
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id), STANDARD.encode(material))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({}+{} {:?})", self.name, hex::encode(self.id), self.algorithm)
    }
}

/// A named private key. It is wiped from memory when dropped, and can be neither printed nor
/// compared.
#[derive(Clone)]
pub struct SigningKey {
    verifier: VerifierKey,
    secret: Secret,
}

#[derive(Clone)]
enum Secret {
    Ed25519(Box<ed25519_dalek::SigningKey>),
    MlDsa44(Box<ml_dsa::SigningKey<MlDsa44>>),
}

const SKEY_FORM: &str = "PRIVATE+KEY+<name>+<id>+<base64>";
const SKEY_PREFIX: &str = "PRIVATE+KEY+";

impl SigningKey {
    /// Derives the key from a 32-byte seed (RFC 8032 section 5.1.5; FIPS 204 algorithm 6).
    pub fn from_seed(name: &str, algorithm: Algorithm, seed: [u8; 32]) -> Result<Self, KeyError> {
        let seed = Zeroizing::new(seed);
        let (secret, verifier) = match algorithm {
            Algorithm::Ed25519 | Algorithm::CosignatureEd25519 => {
                let key = ed25519_dalek::SigningKey::from_bytes(&seed);
                let verifier = VerifierKey::new(name, algorithm, key.verifying_key().as_bytes())?;
                (Secret::Ed25519(Box::new(key)), verifier)
            }
            Algorithm::CosignatureMlDsa44 => {
                let key = Box::new(ml_dsa::SigningKey::<MlDsa44>::from_seed((&*seed).into()));
                let verifier = VerifierKey::new(name, algorithm, &key.verifying_key().encode())?;
                (Secret::MlDsa44(key), verifier)
            }
        };
        Ok(Self { verifier, secret })
    }

    /// Parses the text that [`SigningKey::to_text`] returns.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let rest = text.strip_prefix(SKEY_PREFIX).ok_or(KeyError::Form(SKEY_FORM))?;
        let (name, id, algorithm, material) = parse_parts(rest, SKEY_FORM)?;
        let seed = material.as_slice().try_into();
        let seed = seed.map_err(|_| KeyError::Length { expected: 32, found: material.len() })?;
        let key = Self::from_seed(name, algorithm, seed)?;
        check_id(id, key.verifier.id)?;
        Ok(key)
    }

    /// Returns `PRIVATE+KEY+<name>+<hex id>+<base64 of type and seed>`, the encoding of
    /// golang.org/x/mod/sumdb/note.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let seed: &[u8] = match &self.secret {
            Secret::Ed25519(key) => key.as_bytes(),
            Secret::MlDsa44(key) => key.as_seed(),
        };
        let mut material = Zeroizing::new(vec![self.verifier.algorithm.number()]);
        material.extend_from_slice(seed);
        let encoded = Zeroizing::new(STANDARD.encode(&*material));
        Zeroizing::new(format!("{SKEY_PREFIX}{}+{}+{}", self.name(), hex::encode(self.verifier.id), *encoded))
    }

    /// Returns its public key.
    #[must_use]
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.verifier.name()
    }

    /// Returns its signature type.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.verifier.algorithm
    }

    /// Returns the signature over exactly `message`. Signing is deterministic.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.secret {
            Secret::Ed25519(key) => Ok(key.sign(message).to_bytes().to_vec()),
            Secret::MlDsa44(key) => {
                let signature = key.try_sign(message).map_err(|_| KeyError::Signing)?;
                Ok(signature.encode().to_vec())
            }
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}+{} {:?})", self.name(), hex::encode(self.verifier.id), self.algorithm())
    }
}

/// Returns SHA-256(name ‖ 0x0A ‖ type ‖ key).
fn fingerprint(name: &str, algorithm: Algorithm, public: &[u8]) -> [u8; 32] {
    let hash = Sha256::new().chain_update(name).chain_update([b'\n', algorithm.number()]).chain_update(public);
    hash.finalize().into()
}

fn key_id(name: &str, algorithm: Algorithm, public: &[u8]) -> [u8; 4] {
    let hash = fingerprint(name, algorithm, public);
    [hash[0], hash[1], hash[2], hash[3]]
}

/// Returns whether a name satisfies C2SP signed-note: not empty, no Unicode spaces and no `+`.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+')
}

/// Checks the stricter rules for names of keys used here, because people read them.
fn check_name(name: &str) -> Result<(), KeyError> {
    if !is_name(name) || name.len() > KEY_NAME_BYTES_MAX || name.contains(char::is_control) {
        return Err(KeyError::Name(name.chars().take(80).collect()));
    }
    Ok(())
}

fn check_id(found: &str, expected: [u8; 4]) -> Result<(), KeyError> {
    let expected = hex::encode(expected);
    if found == expected { Ok(()) } else { Err(KeyError::Id { expected, found: found.chars().take(16).collect() }) }
}

type Parts<'a> = (&'a str, &'a str, Algorithm, Zeroizing<Vec<u8>>);

/// Splits `<name>+<id>+<base64>` into name, id, type and key material. The base64 part may contain
/// `+`.
fn parse_parts<'a>(text: &'a str, form: &'static str) -> Result<Parts<'a>, KeyError> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(KeyError::Form(form));
    };
    let material = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| KeyError::Form(form))?);
    let (number, key) = material.split_first().ok_or(KeyError::Form(form))?;
    let algorithm = Algorithm::from_number(*number).ok_or(KeyError::Algorithm(*number))?;
    Ok((name, id, algorithm, Zeroizing::new(key.to_vec())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text).unwrap()
    }

    #[test]
    fn the_go_example_keys_are_read_and_written() {
        const SKEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
        const VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key = SigningKey::from_text(SKEY).unwrap();
        assert_eq!(*key.to_text(), SKEY);
        assert_eq!(key.verifier().to_string(), VKEY);
        assert_eq!(VKEY.parse::<VerifierKey>().unwrap(), *key.verifier());
        assert_eq!(format!("{key:?}"), "SigningKey(PeterNeumann+c74f20a3 Ed25519)");
    }

    #[test]
    fn ed25519_signatures_match_rfc_8032_section_7_1() {
        let vectors = [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b\
                 d25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c\
                 387b2eaeb4302aeeb00d291612bb0c00",
            ),
            (
                "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
                "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
                "af82",
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659\
                 4a7c15e9716ed28dc027beceea1ec40a",
            ),
        ];
        for (seed, public, message, signature) in vectors {
            let seed = bytes(seed).try_into().unwrap();
            let key = SigningKey::from_seed("example.com/rfc8032", Algorithm::Ed25519, seed).unwrap();
            assert_eq!(key.verifier().public_bytes(), bytes(public));
            assert_eq!(key.sign(&bytes(message)).unwrap(), bytes(signature));
            assert!(key.verifier().verifies(&bytes(message), &bytes(signature)));
            assert!(!key.verifier().verifies(b"other", &bytes(signature)));
        }
    }

    /// The ML-DSA-44 example key of RFC 9881 appendix C, by its hash: seed 00, 01, ... 1f.
    #[test]
    fn ml_dsa_44_keys_come_from_the_seed_as_published() {
        let seed = std::array::from_fn(|place| u8::try_from(place).unwrap());
        let key = SigningKey::from_seed("example.com/rfc9881", Algorithm::CosignatureMlDsa44, seed).unwrap();
        let public = key.verifier().public_bytes();
        assert_eq!(public.len(), 1_312);
        assert_eq!(
            hex::encode(Sha256::digest(public)),
            "9f107644c1084526af3bc8098680b05499a2325a644e388fb4f970e058d19d46"
        );
        assert_eq!(SigningKey::from_text(&key.to_text()).unwrap().verifier(), key.verifier());
        let signature = key.sign(b"Exercise").unwrap();
        assert_eq!(signature.len(), 2_420);
        assert_eq!(signature, key.sign(b"Exercise").unwrap());
        assert!(key.verifier().verifies(b"Exercise", &signature));
        assert!(!key.verifier().verifies(b"exercise", &signature));
    }

    #[test]
    fn unsound_keys_are_rejected() {
        let rejected = |text: &str| text.parse::<VerifierKey>().unwrap_err();
        // Bad keys of the reference implementation: an unknown type and a wrong length, each with a
        // matching id.
        assert!(matches!(
            rejected("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"),
            KeyError::Algorithm(0x65)
        ));
        assert!(matches!(
            rejected("PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10Q="),
            KeyError::Length { .. }
        ));
        assert!(matches!(
            rejected("PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"),
            KeyError::Id { .. }
        ));
        assert!(matches!(rejected("PeterNeumann+c74f20a3"), KeyError::Form(_)));
        assert!(matches!(
            rejected("Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"),
            KeyError::Name(_)
        ));
        // The identity, of order 1, and a y coordinate that is not reduced.
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(VerifierKey::new("a", Algorithm::Ed25519, &identity).unwrap_err(), KeyError::Point);
        assert_eq!(VerifierKey::new("a", Algorithm::Ed25519, &[0xff; 32]).unwrap_err(), KeyError::Point);
    }

    proptest! {
        #[test]
        fn keys_print_and_parse(seed in any::<[u8; 32]>(), name in "[a-z./]{1,40}") {
            for algorithm in [Algorithm::Ed25519, Algorithm::CosignatureEd25519] {
                let key = SigningKey::from_seed(&name, algorithm, seed).unwrap();
                prop_assert_eq!(&key.verifier().to_string().parse::<VerifierKey>().unwrap(), key.verifier());
                prop_assert_eq!(SigningKey::from_text(&key.to_text()).unwrap().to_text(), key.to_text());
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,120}") {
            prop_assert!(text.parse::<VerifierKey>().is_err());
            prop_assert!(SigningKey::from_text(&text).is_err());
        }
    }
}
