//! Closed vocabularies, spelled as in their standards.
//!
//! In scope: the values, their order where the standard defines one, and parsing them. Out of
//! scope: the consequences of a value.

use std::fmt;
use std::str::FromStr;

use super::rules::Rule;

/// A value that is not in its vocabulary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not one of {expected}")]
pub struct UnknownValue {
    /// The text found, cut at 80 characters.
    pub found: String,
    /// The values, separated by commas.
    pub expected: String,
}

impl From<UnknownValue> for Rule {
    fn from(error: UnknownValue) -> Self {
        Self::OneOf { values: error.expected }
    }
}

/// Declares one vocabulary: an enum, its spellings, parsing and formatting. Spellings after `|` are
/// read and never written.
macro_rules! vocabulary {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $spelling:literal $(| $read:literal)*),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* #[doc = concat!("`", $spelling, "`")] $variant),+
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the value as its standard spells it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $spelling),+
                }
            }

            /// Returns the value that `text` spells, if there is one.
            #[must_use]
            pub fn read(text: &str) -> Option<Self> {
                match text {
                    $($spelling $(| $read)* => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownValue;

            fn from_str(text: &str) -> Result<Self, UnknownValue> {
                Self::read(text).ok_or_else(|| UnknownValue {
                    found: text.chars().take(80).collect(),
                    expected: [$($spelling),+].join(", "),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

vocabulary! {
    /// CAP 1.2 §3.2.1 `status`, without Draft, which is never published.
    Status {
        /// To be acted on.
        Actual = "Actual",
        /// For participants of an exercise.
        Exercise = "Exercise",
        /// About the network itself.
        System = "System",
        /// To be ignored.
        Test = "Test",
    }
}

vocabulary! {
    /// CAP 1.2 §3.2.1 `msgType`.
    MsgType {
        /// New information.
        Alert = "Alert",
        /// Replaces the bulletins it refers to.
        Update = "Update",
        /// Cancels the bulletins it refers to.
        Cancel = "Cancel",
        /// Acknowledges the bulletins it refers to.
        Ack = "Ack",
        /// Rejects the bulletins it refers to.
        Error = "Error",
    }
}

vocabulary! {
    /// CAP 1.2 §3.2.2 `urgency`; the most urgent is the greatest.
    Urgency {
        /// Not known.
        Unknown = "Unknown",
        /// No longer needed.
        Past = "Past",
        /// In the near future.
        Future = "Future",
        /// Within the next hour.
        Expected = "Expected",
        /// At once.
        Immediate = "Immediate",
    }
}

vocabulary! {
    /// CAP 1.2 §3.2.2 `severity`; the most severe is the greatest.
    Severity {
        /// Not known.
        Unknown = "Unknown",
        /// Minimal to no known threat.
        Minor = "Minor",
        /// Possible threat.
        Moderate = "Moderate",
        /// Significant threat.
        Severe = "Severe",
        /// Extraordinary threat.
        Extreme = "Extreme",
    }
}

vocabulary! {
    /// CAP 1.2 §3.2.2 `certainty`; the most certain is the greatest.
    Certainty {
        /// Not known.
        Unknown = "Unknown",
        /// Not expected to occur.
        Unlikely = "Unlikely",
        /// 50 % or less.
        Possible = "Possible",
        /// More than 50 %.
        Likely = "Likely",
        /// Has occurred or is going on.
        Observed = "Observed",
    }
}

vocabulary! {
    /// CAP 1.2 §3.2.2 `category`.
    Category {
        /// Geophysical.
        Geo = "Geo",
        /// Meteorological.
        Met = "Met",
        /// General emergency and public safety.
        Safety = "Safety",
        /// Law enforcement, military, homeland and local security.
        Security = "Security",
        /// Rescue and recovery.
        Rescue = "Rescue",
        /// Fire suppression and rescue.
        Fire = "Fire",
        /// Medical and public health.
        Health = "Health",
        /// Pollution and other environmental.
        Env = "Env",
        /// Public and private transportation.
        Transport = "Transport",
        /// Utility, telecommunication, other infrastructure.
        Infra = "Infra",
        /// Chemical, biological, radiological, nuclear or explosive.
        Cbrne = "CBRNE",
        /// Anything else.
        Other = "Other",
    }
}

vocabulary! {
    /// FIRST TLP 2.0 labels; the most restricted is the greatest. White, the label of TLP 1 and
    /// CISE, is read as CLEAR and never written.
    Tlp {
        /// No limit on disclosure.
        Clear = "TLP:CLEAR" | "TLP:WHITE" | "WHITE" | "White" | "white",
        /// Within the community.
        Green = "TLP:GREEN",
        /// Within the working group and those of its members who need to know.
        Amber = "TLP:AMBER",
        /// Within the working group's focal points.
        AmberStrict = "TLP:AMBER+STRICT",
        /// Named recipients only.
        Red = "TLP:RED",
    }
}

vocabulary! {
    /// Europol handling codes.
    HandlingCode {
        /// No use as evidence in court without the owner's permission.
        H1 = "H1",
        /// No onward dissemination without the owner's permission.
        H2 = "H2",
        /// Other; described in the note.
        H3 = "H3",
    }
}

vocabulary! {
    /// CISE data model `PurposeType`: the purpose of processing personal data.
    Purpose {
        /// Vessel traffic.
        Vtm = "VTM",
        /// Safety.
        Safety = "Safety",
        /// Security.
        Security = "Security",
        /// Search and rescue.
        Sar = "SAR",
        /// Operation.
        Operation = "Operation",
        /// Fisheries, warning.
        FisheriesWarning = "FisheriesWarning",
        /// Fisheries, monitoring.
        FisheriesMonitoring = "FisheriesMonitoring",
        /// Fisheries, operation.
        FisheriesOperation = "FisheriesOperation",
        /// Environment, monitoring.
        EnvironmentMonitoring = "EnvironmentMonitoring",
        /// Environment, warning.
        EnvironmentWarning = "EnvironmentWarning",
        /// Environment, response.
        EnvironmentResponse = "EnvironmentResponse",
        /// Customs, monitoring.
        CustomsMonitoring = "CustomsMonitoring",
        /// Customs, operation.
        CustomsOperation = "CustomsOperation",
        /// Border, monitoring.
        BorderMonitoring = "BorderMonitoring",
        /// Border, operation.
        BorderOperation = "BorderOperation",
        /// Law enforcement, monitoring.
        LawEnforcementMonitoring = "LawEnforcementMonitoring",
        /// Law enforcement, operation.
        LawEnforcementOperation = "LawEnforcementOperation",
        /// Defence, monitoring.
        DefenceMonitoring = "DefenceMonitoring",
        /// Counter-terrorism.
        CounterTerrorism = "CounterTerrorism",
        /// Common security and defence policy.
        CsdpTask = "CSDPTask",
        /// Not specified; not a valid purpose for personal data.
        NonSpecified = "NonSpecified",
    }
}

vocabulary! {
    /// Schemes that grade source and information. Never converted: the same letter means different
    /// things in each.
    GradingScheme {
        /// Source A to F, information 1 to 6.
        Admiralty = "Admiralty",
        /// Europol: source A, B, C, X; information 1 to 4.
        Europol4x4 = "Europol 4x4",
        /// Source A to E, information 1 to 5, and a handling code of its own.
        FiveByFiveByFive = "5x5x5",
    }
}

vocabulary! {
    /// INTERPOL Stolen and Lost Travel Documents: why a document must not be accepted.
    FraudType {
        /// Stolen before it was issued.
        StolenBlank = "stolen blank",
        /// Stolen from its holder.
        StolenFromBearer = "stolen from bearer",
        /// Lost by its holder.
        Lost = "lost",
        /// Withdrawn by its issuer.
        Revoked = "revoked",
        /// Not made by its issuer.
        Counterfeit = "counterfeit",
        /// Genuine, but altered.
        Forged = "forged",
    }
}

vocabulary! {
    /// Means of transport of seized goods.
    Conveyance {
        /// Road vehicle.
        Road = "road",
        /// Train.
        Rail = "rail",
        /// Vessel.
        Sea = "sea",
        /// Aircraft.
        Air = "air",
        /// Post or courier.
        Mail = "mail",
        /// On foot.
        Pedestrian = "pedestrian",
        /// Anything else.
        Other = "other",
    }
}

vocabulary! {
    /// INTERPOL notice colours.
    NoticeColour {
        /// Wanted for prosecution or to serve a sentence.
        Red = "Red",
        /// Missing.
        Yellow = "Yellow",
        /// Identity, location or activities in an investigation.
        Blue = "Blue",
        /// Unidentified body.
        Black = "Black",
        /// Warning about criminal activities.
        Green = "Green",
        /// Imminent threat.
        Orange = "Orange",
        /// Modus operandi.
        Purple = "Purple",
    }
}

vocabulary! {
    /// Sex in a person notice.
    Sex {
        /// Male.
        Male = "male",
        /// Female.
        Female = "female",
        /// Other or unspecified in the document (ICAO 9303 `<` or X).
        Other = "other",
        /// Not known.
        Unknown = "unknown",
    }
}

vocabulary! {
    /// Outcome that a person reports in an acknowledgement.
    AckOutcome {
        /// The bulletin was read.
        Received = "received",
        /// It is being acted on.
        Acting = "acting",
        /// The requested action is done.
        Done = "done",
        /// It will not be acted on.
        Refused = "refused",
    }
}

vocabulary! {
    /// Why a bulletin is no longer in force.
    CancelReason {
        /// The person or object sought was found.
        Recovered = "recovered",
        /// The bulletin was wrong.
        Error = "error",
        /// The matter is closed.
        Resolved = "resolved",
        /// The publisher withdraws it.
        Withdrawn = "withdrawn",
        /// Another reason, given in the remark.
        Other = "other",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn vocabularies_round_trip() {
        for tlp in Tlp::ALL {
            assert_eq!(tlp.as_str().parse::<Tlp>().unwrap(), *tlp);
        }
        for purpose in Purpose::ALL {
            assert_eq!(purpose.as_str().parse::<Purpose>().unwrap(), *purpose);
        }
    }

    #[test]
    fn white_is_read_as_clear_and_never_written() {
        assert_eq!("TLP:WHITE".parse::<Tlp>().unwrap().as_str(), "TLP:CLEAR");
        assert!("tlp:red".parse::<Tlp>().is_err(), "spelling matters");
    }

    #[test]
    fn unknown_value_error_lists_the_expected_ones() {
        let error = "Urgent".parse::<Urgency>().unwrap_err();
        assert_eq!(error.to_string(), "`Urgent` is not one of Unknown, Past, Future, Expected, Immediate");
    }

    #[test]
    fn ordered_vocabularies_follow_their_standard() {
        assert!(Severity::Extreme > Severity::Severe && Severity::Minor > Severity::Unknown);
        assert!(Tlp::Red > Tlp::AmberStrict && Tlp::AmberStrict > Tlp::Amber && Tlp::Green > Tlp::Clear);
        assert!("Draft".parse::<Status>().is_err());
    }
}
