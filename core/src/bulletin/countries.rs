//! Country codes: ISO 3166-1 from the crate `celes`, and the additions of ICAO Doc 9303-3 §5.
//!
//! In scope: whether a code exists. Out of scope: country names, and members of the exchange
//! ([`crate::ids::Member`]).

/// Codes for Kosovo in the crate. ISO 3166-1 leaves them to user assignment; Doc 9303 uses `RKS`.
const NOT_ISO: [&str; 2] = ["XK", "XKX"];

/// Returns whether `code` is an officially assigned ISO 3166-1 alpha-2 code in upper case.
#[must_use]
pub fn is_alpha2(code: &str) -> bool {
    is_upper(code, 2) && !NOT_ISO.contains(&code) && celes::Country::from_alpha2(code).is_ok()
}

/// Returns whether `code` is an officially assigned ISO 3166-1 alpha-3 code in upper case.
#[must_use]
pub fn is_alpha3(code: &str) -> bool {
    is_upper(code, 3) && !NOT_ISO.contains(&code) && celes::Country::from_alpha3(code).is_ok()
}

/// Nationalities of Doc 9303-3 §5 that ISO 3166-1 does not have: British status (part A), Kosovo,
/// and residents of Kosovo with a document of the United Nations (part C).
const NATIONALITIES: [&str; 7] = ["GBD", "GBN", "GBO", "GBP", "GBS", "RKS", "UNK"];

/// Persons without a defined nationality, Doc 9303-3 §5: stateless, refugee (1951), other refugee,
/// unspecified.
const WITHOUT_NATIONALITY: [&str; 4] = ["XXA", "XXB", "XXC", "XXX"];

/// The other issuers of Doc 9303-3 §5: Germany's one letter, the European Union, the United Nations
/// and their agencies, ICAO, and other issuing authorities: African Development Bank, African
/// Export-Import Bank, Caribbean Community, Council of Europe, COMESA, ECOWAS, Organization of
/// Eastern Caribbean States, Parliamentary Assembly of the Mediterranean, Order of Malta, INTERPOL,
/// SADC. Also Utopia, the code of specimens.
const ISSUERS: [&str; 17] = [
    "D", "EUE", "UNO", "UNA", "IAO", "XBA", "XIM", "XCC", "XCE", "XCO", "XEC", "XES", "XMP", "XOM", "XPO", "XDC", "UTO",
];

/// Returns whether `code` can be the issuer of a travel document, and so the nationality in its
/// machine readable zone: any code of Doc 9303-3 §5.
#[must_use]
pub fn is_issuing_state(code: &str) -> bool {
    ISSUERS.contains(&code) || WITHOUT_NATIONALITY.contains(&code) || NATIONALITIES.contains(&code) || is_alpha3(code)
}

/// Returns whether `code` can be a person's nationality: an alpha-3 code, a code that Doc 9303-3 §5
/// adds for persons, or Utopia, the code of specimens.
#[must_use]
pub fn is_nationality(code: &str) -> bool {
    is_alpha3(code) || NATIONALITIES.contains(&code) || WITHOUT_NATIONALITY.contains(&code) || code == "UTO"
}

fn is_upper(code: &str, letters: usize) -> bool {
    code.len() == letters && code.bytes().all(|b| b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The officially assigned codes of ISO 3166-1, alpha-2 and alpha-3, as the Maintenance Agency
    /// lists them.
    const ISO_3166_1: &str = "\
        AD AND AE ARE AF AFG AG ATG AI AIA AL ALB AM ARM AO AGO AQ ATA AR ARG AS ASM AT AUT AU AUS AW ABW AX ALA AZ AZE \
        BA BIH BB BRB BD BGD BE BEL BF BFA BG BGR BH BHR BI BDI BJ BEN BL BLM BM BMU BN BRN BO BOL BQ BES BR BRA BS BHS \
        BT BTN BV BVT BW BWA BY BLR BZ BLZ CA CAN CC CCK CD COD CF CAF CG COG CH CHE CI CIV CK COK CL CHL CM CMR CN CHN \
        CO COL CR CRI CU CUB CV CPV CW CUW CX CXR CY CYP CZ CZE DE DEU DJ DJI DK DNK DM DMA DO DOM DZ DZA EC ECU EE EST \
        EG EGY EH ESH ER ERI ES ESP ET ETH FI FIN FJ FJI FK FLK FM FSM FO FRO FR FRA GA GAB GB GBR GD GRD GE GEO GF GUF \
        GG GGY GH GHA GI GIB GL GRL GM GMB GN GIN GP GLP GQ GNQ GR GRC GS SGS GT GTM GU GUM GW GNB GY GUY HK HKG HM HMD \
        HN HND HR HRV HT HTI HU HUN ID IDN IE IRL IL ISR IM IMN IN IND IO IOT IQ IRQ IR IRN IS ISL IT ITA JE JEY JM JAM \
        JO JOR JP JPN KE KEN KG KGZ KH KHM KI KIR KM COM KN KNA KP PRK KR KOR KW KWT KY CYM KZ KAZ LA LAO LB LBN LC LCA \
        LI LIE LK LKA LR LBR LS LSO LT LTU LU LUX LV LVA LY LBY MA MAR MC MCO MD MDA ME MNE MF MAF MG MDG MH MHL MK MKD \
        ML MLI MM MMR MN MNG MO MAC MP MNP MQ MTQ MR MRT MS MSR MT MLT MU MUS MV MDV MW MWI MX MEX MY MYS MZ MOZ NA NAM \
        NC NCL NE NER NF NFK NG NGA NI NIC NL NLD NO NOR NP NPL NR NRU NU NIU NZ NZL OM OMN PA PAN PE PER PF PYF PG PNG \
        PH PHL PK PAK PL POL PM SPM PN PCN PR PRI PS PSE PT PRT PW PLW PY PRY QA QAT RE REU RO ROU RS SRB RU RUS RW RWA \
        SA SAU SB SLB SC SYC SD SDN SE SWE SG SGP SH SHN SI SVN SJ SJM SK SVK SL SLE SM SMR SN SEN SO SOM SR SUR SS SSD \
        ST STP SV SLV SX SXM SY SYR SZ SWZ TC TCA TD TCD TF ATF TG TGO TH THA TJ TJK TK TKL TL TLS TM TKM TN TUN TO TON \
        TR TUR TT TTO TV TUV TW TWN TZ TZA UA UKR UG UGA UM UMI US USA UY URY UZ UZB VA VAT VC VCT VE VEN VG VGB VI VIR \
        VN VNM VU VUT WF WLF WS WSM YE YEM YT MYT ZA ZAF ZM ZMB ZW ZWE";

    /// Returns every string of this many upper-case letters.
    fn codes(letters: u32) -> impl Iterator<Item = String> {
        (0..26u32.pow(letters)).map(move |number| {
            let letter =
                |place| char::from_digit(number / 26u32.pow(place) % 26 + 10, 36).unwrap_or('?').to_ascii_uppercase();
            (0..letters).rev().map(letter).collect()
        })
    }

    #[test]
    fn country_codes_are_exactly_those_that_iso_3166_1_assigns() {
        let (alpha2, alpha3): (Vec<&str>, Vec<&str>) = ISO_3166_1.split_whitespace().partition(|code| code.len() == 2);
        assert_eq!((alpha2.len(), alpha3.len()), (249, 249));
        assert_eq!(codes(2).filter(|code| is_alpha2(code)).collect::<Vec<_>>(), alpha2, "in the order of alpha-2");
        let mut sorted = alpha3;
        sorted.sort_unstable();
        assert_eq!(codes(3).filter(|code| is_alpha3(code)).collect::<Vec<_>>(), sorted);
    }

    #[test]
    fn doc_9303_adds_exactly_these() {
        let added =
            |is: fn(&str) -> bool| codes(3).filter(|code| is(code) && !is_alpha3(code)).collect::<Vec<_>>().join(" ");
        assert_eq!(
            added(is_issuing_state),
            "EUE GBD GBN GBO GBP GBS IAO RKS UNA UNK UNO UTO XBA XCC XCE XCO XDC XEC XES XIM XMP XOM XPO XXA XXB XXC XXX"
        );
        assert_eq!(added(is_nationality), "GBD GBN GBO GBP GBS RKS UNK UTO XXA XXB XXC XXX");
        assert!(is_issuing_state("D") && !is_nationality("D"), "of a person it is DEU");
        for code in ["", "mar", "QQQ", "DD", "X", "xxa", "<<<", "D<<", "XKX", "XK", "XAA", "UK", "uk"] {
            assert!(!is_issuing_state(code) && !is_alpha2(code), "{code}");
        }
    }
}
