//! As much JSON as this program writes.

use std::fmt::Write;

/// A string with its quotes.
pub(crate) fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An object of strings.
pub(crate) fn object(pairs: &[(String, String)]) -> String {
    let fields: Vec<_> =
        pairs.iter().map(|(k, v)| format!("{}:{}", string(k), string(v))).collect();
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_json_cannot_hold_is_escaped() {
        assert_eq!(super::string("a\"b\\\n\u{1}ü"), r#""a\"b\\\n\u0001ü""#);
        assert_eq!(super::object(&[("k".into(), "v".into())]), r#"{"k":"v"}"#);
    }
}
