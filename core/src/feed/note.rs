//! Signed notes, as in C2SP signed-note: a text, a blank line, and signature lines.
//!
//! In scope: parsing and formatting, and the plain Ed25519 signature (type 0x01) over the text. Out
//! of scope: the meaning of a text, signatures with a time (`timestamped`), and which keys are
//! trusted.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use super::key::{Algorithm, KeyError, SigningKey, VerifierKey};
use crate::limits::{NOTE_BYTES_MAX, NOTE_SIGNATURES_MAX};

/// A text with its signatures, none of which has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The text, including its last newline. This is the signed message.
    pub text: String,
    /// The signature lines, in order.
    pub signatures: Vec<NoteSignature>,
}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// Name of the key that the line claims.
    pub name: String,
    /// Its key id: a hint, never an authority.
    pub id: [u8; 4],
    /// The signature as its type defines it, without the key id.
    pub bytes: Vec<u8>,
}

/// Why bytes are not a note, or a note is not signed by a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Larger than a note may be.
    #[error("the note has {found} bytes, more than {max}")]
    TooLarge {
        /// Bytes allowed.
        max: usize,
        /// Bytes found.
        found: usize,
    },
    /// Not UTF-8, or control characters other than newline.
    #[error("the note is not plain text")]
    NotText,
    /// No text, blank line and signature lines.
    #[error("the note has no text followed by a blank line and signatures")]
    Form,
    /// More signature lines than allowed.
    #[error("the note has more than {NOTE_SIGNATURES_MAX} signatures")]
    TooManySignatures,
    /// Not `— <name> <base64>`.
    #[error("signature line {0} does not have the form `— <name> <base64>`")]
    SignatureLine(usize),
    /// No line by this key.
    #[error("the note is not signed by {0}")]
    Unsigned(String),
    /// Several lines by this key, which makes its statement ambiguous.
    #[error("the note is signed by {0} more than once")]
    SignedTwice(String),
    /// A line by this key with an invalid signature.
    #[error("the note's signature by {0} is wrong")]
    BadSignature(String),
    /// An unsuitable key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Note {
    /// Parses a note of at most [`NOTE_BYTES_MAX`]. For every note accepted here, encoding returns
    /// the same bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        Self::parse_bounded(bytes, NOTE_BYTES_MAX)
    }

    /// Parses a note of at most `max` bytes.
    pub fn parse_bounded(bytes: &[u8], max: usize) -> Result<Self, NoteError> {
        if bytes.len() > max {
            return Err(NoteError::TooLarge { max, found: bytes.len() });
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?;
        if whole.bytes().any(|byte| byte < b' ' && byte != b'\n') {
            return Err(NoteError::NotText);
        }
        // Signature lines are never empty, so they begin after the last empty line.
        let blank = whole.rfind("\n\n").ok_or(NoteError::Form)?;
        let (text, lines) = (&whole[..=blank], &whole[blank + 2..]);
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Form)?;
        let mut signatures = Vec::new();
        for (line, place) in lines.split('\n').zip(1..) {
            if place > NOTE_SIGNATURES_MAX {
                return Err(NoteError::TooManySignatures);
            }
            signatures.push(NoteSignature::parse_line(line).ok_or(NoteError::SignatureLine(place))?);
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// Signs a text that ends in a newline with one plain Ed25519 key.
    pub fn sign(text: &str, key: &SigningKey) -> Result<Self, NoteError> {
        if !text.ends_with('\n') || text.bytes().any(|byte| byte < b' ' && byte != b'\n') {
            return Err(NoteError::NotText);
        }
        Ok(Self { text: text.to_owned(), signatures: vec![key.sign_text(text)?] })
    }

    /// Returns the bytes of the note.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }

    /// Verifies the plain Ed25519 signature (type 0x01) of `key`, which must occur exactly once.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), NoteError> {
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(key.cannot("the text of a note").into());
        }
        let line = self.line_by(key)?.ok_or_else(|| NoteError::Unsigned(key.name().to_owned()))?;
        if key.verifies(self.text.as_bytes(), &line.bytes) {
            Ok(())
        } else {
            Err(NoteError::BadSignature(key.name().to_owned()))
        }
    }

    /// Returns the line that claims to be by `key`, if there is one; several are an error.
    pub(super) fn line_by(&self, key: &VerifierKey) -> Result<Option<&NoteSignature>, NoteError> {
        let mut lines = self.signatures.iter().filter(|line| line.is_by(key));
        let line = lines.next();
        match lines.next() {
            Some(_) => Err(NoteError::SignedTwice(key.name().to_owned())),
            None => Ok(line),
        }
    }
}

impl SigningKey {
    /// Signs a note's text (with its last newline) with a plain Ed25519 key (type 0x01).
    pub fn sign_text(&self, text: &str) -> Result<NoteSignature, KeyError> {
        if self.algorithm() != Algorithm::Ed25519 {
            return Err(self.verifier().cannot("the text of a note"));
        }
        Ok(NoteSignature::new(self, self.sign(text.as_bytes())?))
    }
}

impl NoteSignature {
    pub(super) fn new(key: &SigningKey, bytes: Vec<u8>) -> Self {
        Self { name: key.name().to_owned(), id: key.verifier().id(), bytes }
    }

    /// Returns whether name and id are those of `key`. This does not authenticate the line.
    #[must_use]
    pub fn is_by(&self, key: &VerifierKey) -> bool {
        self.id == key.id() && self.name == key.name()
    }

    /// Parses one line without its newline. Longer and less restricted names than those of our keys
    /// are accepted, because signatures by unknown keys are ignored.
    pub(super) fn parse_line(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix("— ")?.split_once(' ')?;
        if !super::key::is_name(name) {
            return None;
        }
        let decoded = STANDARD.decode(encoded).ok()?;
        let (id, bytes) = decoded.split_first_chunk()?;
        if bytes.is_empty() {
            return None;
        }
        Some(Self { name: name.to_owned(), id: *id, bytes: bytes.to_vec() })
    }
}

impl fmt::Display for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "— {} {}", self.name, STANDARD.encode([self.id.as_slice(), &self.bytes].concat()))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::limits::KEY_NAME_BYTES_MAX;
    use proptest::prelude::*;

    const EXAMPLE_KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    const EXAMPLE: &str = "This is an example message.\n\n\
        — example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
    /// From the documentation of golang.org/x/mod/sumdb/note.
    const GO_KEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const GO_TEXT: &str =
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
    const GO_LINE: &str =
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn the_example_of_the_specification_verifies() {
        let note = Note::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(note.text, "This is an example message.\n");
        note.verify(&EXAMPLE_KEY.parse().unwrap()).unwrap();
        assert_eq!(note.to_bytes(), EXAMPLE.as_bytes());
    }

    #[test]
    fn the_example_of_the_reference_implementation_is_signed_byte_for_byte() {
        let key = SigningKey::from_text(GO_KEY).unwrap();
        let note = Note::sign(GO_TEXT, &key).unwrap();
        assert_eq!(note.to_string(), format!("{GO_TEXT}\n{GO_LINE}"));
        note.verify(key.verifier()).unwrap();
    }

    #[test]
    fn malformed_notes_are_rejected() {
        let rejected = |text: &str| Note::parse(text.as_bytes()).unwrap_err();
        assert_eq!(rejected(GO_TEXT), NoteError::Form);
        assert_eq!(rejected(&format!("{GO_TEXT}\n")), NoteError::Form);
        assert_eq!(rejected(&format!("{GO_TEXT}\n{}", GO_LINE.trim_end())), NoteError::Form);
        assert_eq!(rejected(&format!("\x01{GO_TEXT}\n{GO_LINE}")), NoteError::NotText);
        assert_eq!(rejected(&format!("{GO_TEXT}\r\n\r\n{GO_LINE}")), NoteError::NotText);
        assert_eq!(Note::parse(b"\xff\n\n").unwrap_err(), NoteError::NotText);
        assert_eq!(rejected(&format!("{GO_TEXT}\n{GO_LINE}Unexpected line.\n")), NoteError::SignatureLine(2));
        assert_eq!(rejected(&format!("{GO_TEXT}\n— Bad Name x08go/Y=\n")), NoteError::SignatureLine(1));
        // A key id without a signature, base64 without padding, and base64 with stray bits.
        for encoded in ["x08gow==", "x08go/Y", "x08go/Z="] {
            assert_eq!(rejected(&format!("{GO_TEXT}\n— a {encoded}\n")), NoteError::SignatureLine(1), "{encoded}");
        }
        assert_eq!(rejected(&format!("{GO_TEXT}\n{}", GO_LINE.repeat(65))), NoteError::TooManySignatures);
        let large = vec![b'a'; NOTE_BYTES_MAX + 1];
        assert!(matches!(Note::parse(&large), Err(NoteError::TooLarge { .. })));
    }

    /// The note at the beginning of the specification, which does not give its key.
    const POEM: &str = "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n\
        — quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n";

    #[test]
    fn a_text_may_have_empty_lines() {
        let note = Note::parse(POEM.as_bytes()).unwrap();
        assert!(note.text.ends_with("sole:\n\ned è subito sera.\n"));
        assert_eq!((note.signatures.len(), note.signatures[0].bytes.len()), (1, 64));
        assert_eq!(note.to_string(), POEM);
    }

    #[test]
    fn lines_by_unknown_keys_are_ignored_whatever_their_name() {
        let key = SigningKey::from_text(GO_KEY).unwrap();
        let line = |name: &str, bytes: &[u8]| format!("— {name} {}\n", STANDARD.encode(bytes));
        let long = "x".repeat(KEY_NAME_BYTES_MAX + 1);
        for name in ["\u{7f}", "a\u{9b}b", "\u{200b}", "\u{202e}x", "—", "ключ", "=", long.as_str(), "PeterNeumann"]
        {
            let text = format!("{GO_TEXT}\n{}{GO_LINE}{}", line(name, &[0; 5]), line(name, &[7; 5_000]));
            let note =
                Note::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", name.escape_unicode()));
            assert_eq!(note.signatures.len(), 3);
            note.verify(key.verifier()).unwrap();
            assert_eq!(note.to_string(), text);
        }
        for name in ["", "a+b", "+", "a\u{a0}b", "\u{2003}", "\u{3000}x", "\u{85}", "\u{2028}", "a\u{2029}"] {
            let text = format!("{GO_TEXT}\n{GO_LINE}{}", line(name, &[0; 5]));
            assert_eq!(Note::parse(text.as_bytes()), Err(NoteError::SignatureLine(2)), "{}", name.escape_unicode());
        }
        let known = format!("{GO_TEXT}\n{}", GO_LINE.replace("x08go/Z", "x08go/a"));
        assert!(
            Note::parse(known.as_bytes()).unwrap().verify(key.verifier()).is_err(),
            "a signature by a known key must be valid"
        );
    }

    #[test]
    fn sixteen_signatures_of_the_largest_size_fit() {
        // ML-DSA-44, -65 and -87 (FIPS 204 table 2), each with a time, under the longest names.
        for bytes in [2_420, 3_309, 4_627] {
            let signature = |n: u8| NoteSignature {
                name: format!("{n:0>KEY_NAME_BYTES_MAX$}"),
                id: [n; 4],
                bytes: vec![n; bytes + 8],
            };
            let text = format!("{}\n1\n{}\n", "o".repeat(KEY_NAME_BYTES_MAX), "r".repeat(44));
            let note = Note { text, signatures: (0..16).map(signature).collect() };
            assert_eq!(Note::parse(&note.to_bytes()), Ok(note), "{bytes}");
        }
    }

    #[test]
    fn note_verifies_only_with_exactly_one_signature_by_the_key() {
        let key = SigningKey::from_text(GO_KEY).unwrap();
        let other = SigningKey::from_seed("PeterNeumann", Algorithm::Ed25519, [7; 32]).unwrap();
        let note = Note::sign(GO_TEXT, &key).unwrap();
        let name = || "PeterNeumann".to_owned();
        assert_eq!(note.verify(other.verifier()), Err(NoteError::Unsigned(name())));
        let altered = Note { text: "Another.\n".to_owned(), ..note.clone() };
        assert_eq!(altered.verify(key.verifier()), Err(NoteError::BadSignature(name())));
        let mut twice = note.clone();
        twice.signatures.push(note.signatures[0].clone());
        assert_eq!(twice.verify(key.verifier()), Err(NoteError::SignedTwice(name())));
        // Another key's signature under this key's name and id.
        let mut forged = note;
        forged.signatures[0].bytes = other.sign(GO_TEXT.as_bytes()).unwrap();
        assert_eq!(forged.verify(key.verifier()), Err(NoteError::BadSignature(name())));
        let cosigner = SigningKey::from_seed("c", Algorithm::CosignatureEd25519, [7; 32]).unwrap();
        assert!(matches!(cosigner.sign_text("a\n"), Err(KeyError::Purpose { .. })));
    }

    proptest! {
        #[test]
        fn signed_note_round_trips(text in "([ -~é—]{0,20}\n){1,6}", names in prop::collection::vec("[a-z/.]{1,9}", 1..4)) {
            let sign = |name: &String| SigningKey::from_seed(name, Algorithm::Ed25519, [3; 32]).unwrap().sign_text(&text).unwrap();
            let note = Note { text: text.clone(), signatures: names.iter().map(sign).collect() };
            prop_assert_eq!(Note::parse(&note.to_bytes()), Ok(note));
        }

        #[test]
        fn parsed_note_encodes_to_the_same_bytes(text in "[a-c\n]{1,8}\n\n(— [a-c]{1,3} [A-Za-z0-9+/]{4,12}={0,2}\n){1,3}") {
            if let Ok(note) = Note::parse(text.as_bytes()) {
                prop_assert_eq!(note.to_string(), text);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Note::parse(&bytes).is_err());
        }
    }
}
