//! The page for people.

use crate::facts::Facts;

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8881}\
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:3rem auto;padding:0 1rem}\
h1{font-size:1.9rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .4rem}\
p{margin:.3rem 0 0;opacity:.75}table{border-collapse:collapse;width:100%}\
td{border-top:1px solid var(--line);padding:.3rem .6rem;vertical-align:top;overflow-wrap:anywhere}\
td:first-child{width:38%;font-weight:600}tr:nth-child(odd){background:var(--soft)}\
code{font:14px ui-monospace,monospace}";

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

fn table(title: &str, pairs: &[(String, String)]) -> String {
    let row = |(k, v): &(String, String)| {
        format!("<tr><td>{}</td><td><code>{}</code></td></tr>", escape(k), escape(v))
    };
    let rows: String = pairs.iter().map(row).collect();
    format!("<h2>{title}</h2><table>{rows}</table>")
}

/// The facts and a request's headers as HTML.
pub(crate) fn render(facts: &Facts, peer: &str, headers: &[(String, String)]) -> String {
    let title = escape(&facts.hostname);
    let tables: String = [
        table("Who I am", &facts.identity),
        table("My limits", &facts.limits),
        table("My environment", &facts.environment),
        table("Your request", headers),
        table("My network", &facts.interfaces),
        table("My mounts", &facts.mounts),
    ]
    .concat();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style><h1>Hello from {title}</h1>\
         <p>This stack is all yours: here is what it can see of the world. You came from \
         <code>{}</code>. The same for programs: <a href=\"/json\">/json</a></p>{tables}</html>\n",
        escape(peer)
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_header_cannot_write_the_page() {
        let row = super::table("t", &[("x".into(), "<script>&\"".into())]);
        assert!(row.contains("&lt;script&gt;&amp;&quot;"), "{row}");
    }
}
