//! Decides which bulletins are urgent and take the priority lane (docs/protocol.md §11).
//!
//! In scope: urgency by the header, and the order among urgent bulletins. Out of scope: how they
//! overtake others.

use super::vocabulary::{Severity, Status, Urgency};
use crate::proto;

/// Class of an urgent bulletin. The lesser value goes first: an exercise never overtakes an actual
/// event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Status Actual.
    Actual,
    /// Any other status. It overtakes only bulletins that are not urgent.
    Other,
}

/// Returns the priority class of a bulletin with this header, or `None` if it is not urgent. Urgent
/// means urgency Immediate or severity Extreme, for every kind.
#[must_use]
pub fn header_priority(header: &proto::Header) -> Option<Priority> {
    let has_priority = header.urgency == Urgency::Immediate.as_str() || header.severity == Severity::Extreme.as_str();
    let actual = header.status == Status::Actual.as_str();
    has_priority.then_some(if actual { Priority::Actual } else { Priority::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediate_or_extreme_has_priority_and_actual_orders_first() {
        let header = |urgency: &str, severity: &str, status: &str| proto::Header {
            urgency: urgency.into(),
            severity: severity.into(),
            status: status.into(),
            ..proto::Header::default()
        };
        assert_eq!(header_priority(&header("Immediate", "Minor", "Actual")), Some(Priority::Actual));
        assert_eq!(header_priority(&header("Unknown", "Extreme", "Actual")), Some(Priority::Actual));
        for status in ["Exercise", "Test", "System", "a later value", ""] {
            assert_eq!(header_priority(&header("Immediate", "Extreme", status)), Some(Priority::Other));
        }
        assert_eq!(header_priority(&header("Expected", "Severe", "Actual")), None);
        assert_eq!(header_priority(&header("", "", "")), None);
        assert!(Priority::Actual < Priority::Other);
    }
}
