//! Which strings would read as something else if they were written without quotes.
//!
//! These are the rules of YAML 1.1 as the Kubernetes tools apply them when they write: what looks
//! like a boolean, null, a number or a date is quoted, `yes` and `0o7` included.

/// Whether `text`, unquoted, would read as a string again.
pub(super) fn reads_as_string(text: &str) -> bool {
    let Some(&first) = text.as_bytes().first() else { return false };
    match first {
        b'y' | b'Y' | b'n' | b'N' | b't' | b'T' | b'f' | b'F' | b'o' | b'O' | b'~' => {
            !is_keyword(text)
        }
        b'.' => !is_special_float(text) && !is_finite_float(text),
        b'+' | b'-' | b'0'..=b'9' => {
            let digits = text.replace('_', "");
            !is_special_float(text)
                && !is_timestamp(text)
                && !is_integer(&digits)
                && !is_finite_float(&digits)
                && !is_base_60(text)
        }
        _ => true,
    }
}

/// A word in one of the three cases that count: `yes`, `Yes`, `YES`.
fn is_keyword(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "yes", "true", "on", "n", "no", "false", "off", "null"];
    let rest = text.get(1..).unwrap_or_default();
    let one_case = rest.bytes().all(|b| b.is_ascii_lowercase())
        || text.bytes().all(|b| b.is_ascii_uppercase());
    text == "~" || (one_case && WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)))
}

fn is_special_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// A decimal number with an optional fraction and exponent, not beyond what a double holds.
fn is_finite_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (number, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let has_digits = !whole.is_empty() || !fraction.is_empty();
    let exponent_is_number = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && all_digits(digits)
    });
    has_digits
        && all_digits(whole)
        && all_digits(fraction)
        && exponent_is_number
        && unsigned.parse::<f64>().is_ok_and(f64::is_finite)
}

/// An integer of 64 bits in base 2, 8, 10 or 16 by its prefix; `text` has no underscores.
fn is_integer(text: &str) -> bool {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let signed = unsigned.len() < text.len();
    let (radix, digits) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &unsigned[2..]),
        [b'0', b'o' | b'O', ..] => (8, &unsigned[2..]),
        [b'0', b'b' | b'B', ..] => (2, &unsigned[2..]),
        [b'0', _, ..] => (8, &unsigned[1..]),
        _ => (10, unsigned),
    };
    if text.strip_prefix("0b").is_some_and(|bits| i64::from_str_radix(bits, 2).is_ok()) {
        // A sign behind the prefix passes as well.
        return true;
    }
    // `from_str_radix` would take a second sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return false;
    }
    let Ok(value) = u64::from_str_radix(digits, radix) else { return false };
    match (signed, negative) {
        (true, true) => value <= i64::MAX.unsigned_abs() + 1,
        (true, false) => value <= i64::MAX.unsigned_abs(),
        (false, _) => true,
    }
}

/// A number in base 60, such as `1:30`.
fn is_base_60(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits_or_gaps = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let mut places = whole.split(':');
    let first = places.next().unwrap_or_default();
    let place = |text: &str| match text.as_bytes() {
        [one] => one.is_ascii_digit(),
        [ten, one] => (b'0'..=b'5').contains(ten) && one.is_ascii_digit(),
        _ => false,
    };
    first.starts_with(|c: char| c.is_ascii_digit())
        && digits_or_gaps(first)
        && digits_or_gaps(fraction)
        && whole.contains(':')
        && places.all(place)
}

/// A cursor over the fields of a date.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    /// One or two digits, up to `most`.
    fn number(&mut self, most: u32) -> Option<u32> {
        let two = self.0.get(..2).filter(|text| all_digits(text));
        let text = two.or_else(|| self.0.get(..1).filter(|text| all_digits(text)))?;
        self.0 = &self.0[text.len()..];
        text.parse().ok().filter(|&number| number <= most)
    }

    fn literal(&mut self, literal: char) -> Option<()> {
        self.0 = self.0.strip_prefix(literal)?;
        Some(())
    }

    fn time_of_day(&mut self) -> Option<()> {
        self.number(23)?;
        self.literal(':')?;
        self.number(59)?;
        self.literal(':')?;
        self.number(59)?;
        if let Some(rest) = self.0.strip_prefix(['.', ','])
            && rest.starts_with(|c: char| c.is_ascii_digit())
        {
            self.0 = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        Some(())
    }

    fn zone(&mut self) -> Option<()> {
        if self.literal('Z').is_some() {
            return Some(());
        }
        self.0 = self.0.strip_prefix(['+', '-'])?;
        let [h1, h2, b':', m1, m2] = *self.0.as_bytes().first_chunk()? else { return None };
        let two = |ten: u8, one: u8| {
            (ten.is_ascii_digit() && one.is_ascii_digit())
                .then(|| u32::from(ten - b'0') * 10 + u32::from(one - b'0'))
        };
        (two(h1, h2)? <= 24 && two(m1, m2)? <= 60).then_some(())?;
        self.0 = &self.0[5..];
        Some(())
    }
}

fn is_timestamp(text: &str) -> bool {
    timestamp(text).is_some()
}

fn timestamp(text: &str) -> Option<()> {
    let year: u32 = text.get(..4).filter(|year| all_digits(year))?.parse().ok()?;
    let mut fields = Fields(&text[4..]);
    fields.literal('-')?;
    let month = fields.number(12)?;
    fields.literal('-')?;
    let day = fields.number(31)?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if month == 0 || day == 0 || day > days {
        return None;
    }
    match fields.0.as_bytes().first() {
        None => return Some(()),
        Some(b'T' | b't') => {
            fields.0 = &fields.0[1..];
            fields.time_of_day()?;
            fields.zone()?;
        }
        Some(b' ') => {
            fields.0 = fields.0.trim_start_matches(' ');
            fields.time_of_day()?;
        }
        _ => return None,
    }
    fields.0.is_empty().then_some(())
}
