//! The schema of a challenge's file: what `stackd challenge apply` reads, for editors to complete.

use serde_json::Value;

/// The schema's text, as JSON Schema of 2020-12: it is a page of the book, too.
pub const FILE: &str = include_str!("../../../../docs/challenge.schema.json");

/// The schema.
pub(super) fn file() -> Value {
    // It is a part of this program, and a test reads it.
    serde_json::from_str(FILE).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use stackd_core::challenge::ExtraConfig;
    use stackd_core::isolation::Profile;

    use super::*;

    #[test]
    fn the_schema_knows_what_is_read() {
        let schema = file();
        let extra = &schema["$defs"]["extra_config"]["properties"];
        let names = extra["cap_drop"]["items"]["enum"].as_array().unwrap();
        let names: Vec<_> = names.iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(names[0], "ALL");
        assert_eq!(names[1..], *Profile::Default.capabilities());
        // Every key of the schema is read, and every key that is read is in the schema.
        for key in extra.as_object().unwrap().keys() {
            let text = format!("{{\"{key}\": {{}}}}");
            let unknown = ExtraConfig::read(&text).err().is_some_and(|e| e.contains("unknown"));
            assert!(!unknown, "{key}");
        }
        let known = ExtraConfig::read(r#"{"?":1}"#).unwrap_err();
        let known: Vec<_> = known.split('`').skip(3).step_by(2).collect();
        assert_eq!(known.len(), extra.as_object().unwrap().len(), "{known:?}");
    }
}
