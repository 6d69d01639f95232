//! Paths of fields as the user has written them in a draft.
//!
//! In scope: a node names fields as the protocol buffers do (`header.msg_type`); a draft in JSON has
//! `header.msgType`, or either. Out of scope: finding the fields that break a rule.

use serde_json::Value;

use super::Failure;

/// Names the fields of a failure as the draft `text` does, or as JSON does where the draft lacks
/// them.
pub(super) fn written(failure: Failure, text: &str) -> Failure {
    let draft: Value = serde_json::from_str(text).unwrap_or_default();
    failure.with_paths(|path| path_in(&draft, path))
}

/// Returns the path of a field in the names of a draft.
fn path_in(draft: &Value, path: &str) -> String {
    let mut value = Some(draft);
    let parts = path.split('.').map(|part| {
        let (name, indexes) = part.split_at(part.find('[').unwrap_or(part.len()));
        let camel = json_name(name);
        let name = if value.is_some_and(|value| value.get(&camel).is_none() && value.get(name).is_some()) {
            name.to_owned()
        } else {
            camel
        };
        value = value.and_then(|value| value.get(&name));
        for index in indexes.split(['[', ']']).filter_map(|index| index.parse::<usize>().ok()) {
            value = value.and_then(|value| value.get(index));
        }
        format!("{name}{indexes}")
    });
    parts.collect::<Vec<_>>().join(".")
}

/// Returns the JSON name of a field: `msgType` for `msg_type`.
fn json_name(name: &str) -> String {
    let mut after_underscore = false;
    let mut json = String::new();
    for c in name.chars() {
        match c {
            '_' => after_underscore = true,
            c if after_underscore => {
                json.extend(c.to_uppercase());
                after_underscore = false;
            }
            c => json.push(c),
        }
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_in_the_draft() {
        let draft = serde_json::json!({
            "header": {"msgType": "Alert", "roster_version": 1},
            "body": {"travel_document_alert": {"documentNumber": "x"}, "areas": [{}, {"area_desc": ""}]},
        });
        for (path, expected) in [
            ("header.msg_type", "header.msgType"),
            ("header.roster_version", "header.roster_version"),
            ("header.handling.releasable_to[3]", "header.handling.releasableTo[3]"),
            ("body.travel_document_alert.document_number", "body.travel_document_alert.documentNumber"),
            ("body.travel_document_alert.mrz[1]", "body.travel_document_alert.mrz[1]"),
            ("body.areas[1].area_desc", "body.areas[1].area_desc"),
            ("body.areas[0].area_desc", "body.areas[0].areaDesc"),
            ("--wait-for", "--wait-for"),
            ("", ""),
        ] {
            assert_eq!(path_in(&draft, path), expected);
        }
        assert_eq!(path_in(&Value::Null, "body.seizure_report.goods[2].hs_code"), "body.seizureReport.goods[2].hsCode");
    }
}
