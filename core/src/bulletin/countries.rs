//! Country codes: ISO 3166-1 by the table of the crate `celes`, and what ICAO Doc 9303-3 §5 adds to it.
//!
//! In scope: whether a code exists. Out of scope: names, and members of the exchange ([`crate::names::Member`]).

/// Whether `code` is an ISO 3166-1 alpha-2 code in upper case.
#[must_use]
pub fn is_alpha2(code: &str) -> bool {
    is_upper(code, 2) && celes::Country::from_alpha2(code).is_ok()
}

/// Whether `code` is an ISO 3166-1 alpha-3 code in upper case.
#[must_use]
pub fn is_alpha3(code: &str) -> bool {
    is_upper(code, 3) && celes::Country::from_alpha3(code).is_ok()
}

/// Codes of Doc 9303-3 §5 that ISO 3166-1 does not have: Germany's one letter, British status, the European Union, the United
/// Nations, Kosovo, ICAO itself, and the specimens' Utopia.
const ICAO_ONLY: [&str; 13] = ["D", "GBD", "GBN", "GBO", "GBP", "GBS", "EUE", "UNO", "UNA", "UNK", "RKS", "IAO", "UTO"];

/// Persons without a nationality, Doc 9303-3 §5 part D: stateless, refugee (1951), other refugee, unspecified.
const WITHOUT_NATIONALITY: [&str; 4] = ["XXA", "XXB", "XXC", "XXX"];

/// Whether `code` can be the issuer of a travel document: an alpha-3 code, or one that Doc 9303-3 §5 adds. Organisations are taken
/// from the range that ISO leaves to its users (`XAA` to `XZZ`: `XPO`, `XEC`, `XOM` …); new ones need no new version of ours.
#[must_use]
pub fn is_issuing_state(code: &str) -> bool {
    ICAO_ONLY.contains(&code) || is_alpha3(code) || (is_upper(code, 3) && code.starts_with('X'))
}

/// Whether `code` can stand for a nationality: an alpha-3 code, a person without one, or the specimens' Utopia.
#[must_use]
pub fn is_nationality(code: &str) -> bool {
    is_alpha3(code) || WITHOUT_NATIONALITY.contains(&code) || code == "UTO"
}

fn is_upper(code: &str, letters: usize) -> bool {
    code.len() == letters && code.bytes().all(|b| b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_and_icao_codes_are_told_apart() {
        for code in ["MA", "LY", "TN", "NE", "DZ", "SS"] {
            assert!(is_alpha2(code), "{code}");
        }
        for code in ["MAR", "LBY", "TUN", "NER", "DEU"] {
            assert!(is_alpha3(code) && is_issuing_state(code) && is_nationality(code), "{code}");
        }
        for code in ["D", "UTO", "XXA", "XXB", "XXC", "XXX", "UNO", "EUE", "XPO", "GBN"] {
            assert!(is_issuing_state(code) && !is_alpha3(code), "{code}");
        }
        for code in ["", "mar", "QQQ", "MA", "DD", "X", "xxa", "<<<"] {
            assert!(!is_issuing_state(code), "{code}");
        }
        assert!(is_nationality("XXB") && !is_nationality("XPO") && !is_nationality("D"));
        assert!(!is_alpha2("QQ") && !is_alpha2("ma"));
    }
}
