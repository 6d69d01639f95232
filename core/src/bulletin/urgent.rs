//! What is urgent: bulletins that overtake on the express lane (docs/protocol.md §11).
//!
//! In scope: telling by the header, and who goes first among the urgent. Out of scope: how they overtake.

use super::vocabulary::{Severity, Status, Urgency};
use crate::proto;

/// How urgent a bulletin is. Orders by who goes first: no exercise goes before the real thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Status Actual.
    Actual,
    /// Any other status: it overtakes what is not urgent.
    Other,
}

/// Whether a bulletin with this header is urgent: urgency Immediate, or severity Extreme. By what is read here, whatever the kind.
#[must_use]
pub fn urgent(header: &proto::Header) -> Option<Priority> {
    let urgent = header.urgency == Urgency::Immediate.as_str() || header.severity == Severity::Extreme.as_str();
    let actual = header.status == Status::Actual.as_str();
    urgent.then_some(if actual { Priority::Actual } else { Priority::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediate_or_extreme_is_urgent_and_actual_orders_first() {
        let header = |urgency: &str, severity: &str, status: &str| proto::Header {
            urgency: urgency.into(),
            severity: severity.into(),
            status: status.into(),
            ..proto::Header::default()
        };
        assert_eq!(urgent(&header("Immediate", "Minor", "Actual")), Some(Priority::Actual));
        assert_eq!(urgent(&header("Unknown", "Extreme", "Actual")), Some(Priority::Actual));
        for status in ["Exercise", "Test", "System", "a later value", ""] {
            assert_eq!(urgent(&header("Immediate", "Extreme", status)), Some(Priority::Other));
        }
        assert_eq!(urgent(&header("Expected", "Severe", "Actual")), None);
        assert_eq!(urgent(&header("", "", "")), None);
        assert!(Priority::Actual < Priority::Other);
    }
}
