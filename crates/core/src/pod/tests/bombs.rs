//! Texts that are small to send and dear to read.

use std::time::{Duration, Instant};

use super::refusals::refusal;

#[test]
fn bombs_are_refused_at_once() {
    let levels: String = ('b'..='i')
        .map(|level| {
            let below = char::from(level as u8 - 1);
            format!("{level}: &{level} [{}]\n", vec![format!("*{below}"); 9].join(", "))
        })
        .collect();
    let laughs = format!("a: &a [x, x, x, x, x, x, x, x, x]\n{levels}kind: Pod\n");
    let long = format!("kind: Pod\na: &a {}\nb: [{}]", "y".repeat(30_000), "*a, ".repeat(60));
    let nested: String = (0..300).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let merges: String = (0..200).map(|i| format!("m{i}: {{<<: *a}}\n")).collect();
    let cases = [
        ("aliases of aliases", laughs),
        ("aliases of a long text", long),
        ("a self-reference", "kind: Pod\na: &a [*a]".to_owned()),
        ("merges", format!("a: &a {{k: v}}\n{merges}")),
        ("nested lists", "[".repeat(60_000)),
        ("nested lists in blocks", "- ".repeat(30_000)),
        ("nested mappings", "{a: ".repeat(15_000)),
        ("nested mappings in blocks", nested),
        ("many values", format!("kind: Pod\na: [{}]", "b,".repeat(30_000))),
        ("many documents", "---\n".repeat(15_000)),
        ("a long text", format!("kind: Pod\na: {}", "x".repeat(64 * 1024))),
    ];
    for (what, yaml) in cases {
        let start = Instant::now();
        let text = refusal(&yaml);
        assert!(text.starts_with("yaml parse failed: "), "{what}: {text}");
        assert!(text.len() < 400, "{what}: {text}");
        // Milliseconds when optimised; the bound only tells a bomb that goes off.
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: {:?}", start.elapsed());
    }
}
