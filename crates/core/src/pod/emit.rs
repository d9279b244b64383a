//! Writes YAML exactly as the Kubernetes tools do: keys in their natural order, list items at the
//! indent of their key, quotes where a reader of YAML 1.1 would need them, text of several lines as
//! a block, long text folded behind column 80.

use std::cmp::Ordering;
use std::fmt::Write as _;

use super::plain::reads_as_string;

/// A line is folded at the first space behind this column.
const FOLD_BEHIND: usize = 80;

/// A longer key is written in the explicit form, `? key` and `: value`.
const MAX_SIMPLE_KEY_BYTES: usize = 128;

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping with distinct keys, in any order.
    Map(Vec<(String, Node)>),
}

impl From<bool> for Node {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u16> for Node {
    fn from(value: u16) -> Self {
        Self::Int(value.into())
    }
}

impl From<u32> for Node {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<&str> for Node {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&String> for Node {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

/// A document of one mapping, with a newline at its end.
pub(super) fn document(root: Vec<(String, Node)>) -> String {
    let mut out = Writer { text: String::with_capacity(2048), column: 0 };
    out.mapping(root, 0, true);
    out.end_line();
    out.text
}

struct Writer {
    text: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
        self.column += text.chars().count();
    }

    fn put_char(&mut self, c: char) {
        self.text.push(c);
        self.column += 1;
    }

    fn end_line(&mut self) {
        if self.column > 0 {
            self.text.push('\n');
            self.column = 0;
        }
    }

    fn pad(&mut self, indent: usize) {
        while self.column < indent {
            self.put_char(' ');
        }
    }

    fn new_line(&mut self, indent: usize) {
        self.end_line();
        self.pad(indent);
    }

    /// `inline`: the first key goes where the cursor is, behind `- ` or at the very start.
    fn mapping(&mut self, entries: Vec<(String, Node)>, indent: usize, inline: bool) {
        let mut inline = inline;
        for (key, value) in in_natural_order(entries) {
            if !inline {
                self.new_line(indent);
            }
            inline = false;
            if key.len() <= MAX_SIMPLE_KEY_BYTES && !key.contains(is_break) {
                self.scalar(&key, indent, true);
            } else {
                self.put("? ");
                self.scalar(&key, indent, false);
                self.new_line(indent);
            }
            self.put(":");
            match value {
                Node::List(items) if items.is_empty() => self.put(" []"),
                Node::Map(entries) if entries.is_empty() => self.put(" {}"),
                Node::List(items) => self.list(items, indent, false),
                Node::Map(entries) => self.mapping(entries, indent + 2, false),
                scalar => self.scalar_value(&scalar, indent),
            }
        }
    }

    fn list(&mut self, items: Vec<Node>, indent: usize, inline: bool) {
        let mut inline = inline;
        for item in items {
            if !inline {
                self.new_line(indent);
            }
            inline = false;
            self.put("-");
            match item {
                Node::List(items) if items.is_empty() => self.put(" []"),
                Node::Map(entries) if entries.is_empty() => self.put(" {}"),
                Node::List(items) => {
                    self.put(" ");
                    self.list(items, indent + 2, true);
                }
                Node::Map(entries) => {
                    self.put(" ");
                    self.mapping(entries, indent + 2, true);
                }
                scalar => self.scalar_value(&scalar, indent),
            }
        }
    }

    fn scalar_value(&mut self, node: &Node, indent: usize) {
        self.put(" ");
        match node {
            Node::Bool(value) => self.put(if *value { "true" } else { "false" }),
            Node::Int(value) => self.put(&value.to_string()),
            Node::Text(text) => self.scalar(text, indent, false),
            // The callers write these themselves.
            Node::List(_) | Node::Map(_) => {}
        }
    }

    /// Text that belongs to a key or item at `indent`; what goes on lines of its own is two deeper.
    fn scalar(&mut self, text: &str, indent: usize, is_key: bool) {
        let shape = Shape::of(text);
        let indent = indent + 2;
        if text.contains('\n') {
            if shape.block_allowed && !is_key {
                self.literal(text, indent);
            } else {
                self.double_quoted(text, indent, !is_key);
            }
        } else if !reads_as_string(text) {
            self.double_quoted(text, indent, !is_key);
        } else if shape.plain_allowed {
            self.plain(text, indent, !is_key);
        } else if shape.single_allowed {
            self.single_quoted(text, indent, !is_key);
        } else {
            self.double_quoted(text, indent, !is_key);
        }
    }

    fn plain(&mut self, text: &str, indent: usize, fold: bool) {
        let mut after_space = false;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let foldable = c == ' ' && !after_space && chars.peek() != Some(&' ');
            if fold && foldable && self.column > FOLD_BEHIND {
                self.new_line(indent);
            } else {
                self.put_char(c);
            }
            after_space = c == ' ';
        }
    }

    fn single_quoted(&mut self, text: &str, indent: usize, fold: bool) {
        self.put_char('\'');
        let (mut after_space, mut after_break) = (false, false);
        let mut chars = text.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            let inner = at > 0 && at < text.len() - 1;
            let before_space = chars.peek().is_some_and(|&(_, next)| next == ' ');
            if c == ' ' {
                let foldable = inner && !after_space && !before_space;
                if fold && foldable && self.column > FOLD_BEHIND {
                    self.new_line(indent);
                } else {
                    self.put_char(c);
                }
                after_space = true;
                continue;
            }
            if is_break(c) {
                // Only the line breaks beyond ASCII get here; they stand for themselves.
                self.text.push(c);
                self.column = 0;
                after_break = true;
                continue;
            }
            if after_break {
                self.pad(indent);
            }
            if c == '\'' {
                self.put_char('\'');
            }
            self.put_char(c);
            (after_space, after_break) = (false, false);
        }
        self.put_char('\'');
    }

    fn double_quoted(&mut self, text: &str, indent: usize, fold: bool) {
        self.put_char('"');
        // A leading byte order mark makes every character suspect to the tools we follow.
        let escape_all = text.starts_with('\u{feff}');
        let mut after_space = false;
        let mut chars = text.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            if escape_all || !is_printable(c) || is_break(c) || c == '"' || c == '\\' {
                self.escape(c);
                after_space = false;
            } else if c == ' ' {
                let foldable = !after_space && at > 0 && at < text.len() - 1;
                if fold && foldable && self.column > FOLD_BEHIND {
                    self.new_line(indent);
                    if chars.peek().is_some_and(|&(_, next)| next == ' ') {
                        self.put_char('\\');
                    }
                } else {
                    self.put_char(c);
                }
                after_space = true;
            } else {
                self.put_char(c);
                after_space = false;
            }
        }
        self.put_char('"');
    }

    fn escape(&mut self, c: char) {
        let short = match c {
            '\0' => "\\0",
            '\u{7}' => "\\a",
            '\u{8}' => "\\b",
            '\t' => "\\t",
            '\n' => "\\n",
            '\u{b}' => "\\v",
            '\u{c}' => "\\f",
            '\r' => "\\r",
            '\u{1b}' => "\\e",
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{85}' => "\\N",
            '\u{a0}' => "\\_",
            '\u{2028}' => "\\L",
            '\u{2029}' => "\\P",
            _ => "",
        };
        let start = self.text.len();
        let code = u32::from(c);
        // Writing to a string cannot fail.
        let _ = match (short, code) {
            ("", 0..=0xff) => write!(self.text, "\\x{code:02X}"),
            ("", 0x100..=0xffff) => write!(self.text, "\\u{code:04X}"),
            ("", _) => write!(self.text, "\\U{code:08X}"),
            (short, _) => self.text.write_str(short),
        };
        self.column += self.text.len() - start;
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.put("|");
        if text.starts_with(|c| c == ' ' || is_break(c)) {
            self.put("2");
        }
        let mut backwards = text.chars().rev();
        match (backwards.next().is_some_and(is_break), backwards.next().map(is_break)) {
            (false, _) => self.put("-"),
            (true, None | Some(true)) => self.put("+"),
            (true, Some(false)) => {}
        }
        self.end_line();
        let mut after_break = true;
        for c in text.chars() {
            if is_break(c) {
                self.text.push(c);
                self.column = 0;
                after_break = true;
            } else {
                if after_break {
                    self.pad(indent);
                }
                self.put_char(c);
                after_break = false;
            }
        }
    }
}

/// In which styles a text may be written.
struct Shape {
    plain_allowed: bool,
    single_allowed: bool,
    block_allowed: bool,
}

impl Shape {
    fn of(text: &str) -> Self {
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut breaks, mut special) = (false, false);
        let (mut break_space, mut space_break) = (false, false);
        let mut previous = None;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let blank_follows = chars.peek().is_none_or(|&next| is_blank(next));
            indicators |= match (c, previous) {
                ('?' | ':' | '-', None) => blank_follows,
                ('#', Some(before)) => is_blank(before) || is_break(before) || before == '\0',
                (c, None) => "#,[]{}&*!|>'\"%@`".contains(c),
                (c, Some(_)) => c == ':' && blank_follows,
            };
            special |= !is_printable(c);
            breaks |= is_break(c);
            break_space |= c == ' ' && previous.is_some_and(is_break);
            space_break |= is_break(c) && previous == Some(' ');
            previous = Some(c);
        }
        let outer = |c: char| c == ' ' || is_break(c);
        let padded = text.starts_with(outer) || text.ends_with(outer);
        Self {
            plain_allowed: !(indicators || padded || breaks || special),
            single_allowed: !(break_space || space_break || special),
            block_allowed: !(text.ends_with(' ') || space_break || special),
        }
    }
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Whether a character stands for itself; those beyond 16 bits do not.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        && c != '\u{feff}'
}

/// Sorts by merging, because the order is the tools' own and need not be a total one: the standard
/// sort may panic then.
fn in_natural_order(mut entries: Vec<(String, Node)>) -> Vec<(String, Node)> {
    if entries.len() < 2 {
        return entries;
    }
    let right = in_natural_order(entries.split_off(entries.len() / 2));
    let mut merged = Vec::with_capacity(entries.len() + right.len());
    let mut left = in_natural_order(entries).into_iter().peekable();
    for entry in right {
        while let Some(earlier) = left.next_if(|l| natural_order(&entry.0, &l.0).is_ge()) {
            merged.push(earlier);
        }
        merged.push(entry);
    }
    merged.extend(left);
    merged
}

/// Numbers inside keys count by their value, and letters come behind everything else.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(at) = a.iter().zip(&b).position(|(x, y)| x != y) else {
        return a.len().cmp(&b.len());
    };
    let (x, y) = (a[at], b[at]);
    match (x.is_alphabetic(), y.is_alphabetic()) {
        (true, true) => return x.cmp(&y),
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    // A zero inside a number is a digit like the others, not the start of a new number.
    let before = a[..at].iter().rev().take_while(|c| c.is_ascii_digit());
    let inside = (x == '0' || y == '0') && before.into_iter().any(|&c| c != '0');
    let number = |key: &[char]| {
        let digits: Vec<_> = key[at..].iter().map_while(|c| c.to_digit(10)).collect();
        let value = digits.iter().fold(i64::from(inside), |value, &digit| {
            value.wrapping_mul(10).wrapping_add(digit.into())
        });
        (value, digits.len())
    };
    number(&a).cmp(&number(&b)).then(x.cmp(&y))
}
