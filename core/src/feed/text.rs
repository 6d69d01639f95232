//! Parsing of the primitive values in feed formats. Each value has exactly one spelling.
//!
//! In scope: strict parsing of decimals and base64 hashes. Out of scope: the formats.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::tree::TREE_SIZE_MAX;
use crate::ids::Hash;

/// Parses a decimal without leading zeroes, of at most 2^63 - 1: sizes, indexes and times.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    if !canonical || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number <= TREE_SIZE_MAX)
}

/// Parses a hash in base64.
pub(crate) fn hash(text: &str) -> Option<Hash> {
    Some(Hash(STANDARD.decode(text).ok()?.try_into().ok()?))
}

/// Returns a hash in base64.
pub(crate) fn base64(hash: &Hash) -> String {
    STANDARD.encode(hash.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_has_one_spelling() {
        assert_eq!(decimal("0"), Some(0));
        assert_eq!(decimal("9223372036854775807"), Some(TREE_SIZE_MAX));
        for wrong in
            ["", "00", "01", "+1", "-1", " 1", "1 ", "1_0", "0x1", "9223372036854775808", "99999999999999999999", "١"]
        {
            assert_eq!(decimal(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_hash_has_one_spelling() {
        let text = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
        assert_eq!(hash(text).map(|hash| base64(&hash)).as_deref(), Some(text));
        for wrong in
            ["", "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2J=", "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I", "AAAA"]
        {
            assert_eq!(hash(wrong), None, "{wrong}");
        }
    }
}
