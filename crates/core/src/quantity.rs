//! Kubernetes quantities: `100m`, `1.5Gi`, `2`, `1e3`.
//!
//! An amount keeps the notation it was written in, because Kubernetes shows `128Mi` and `128M` each
//! in its own, in one canonical form: whole numbers with the largest suffix that loses nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nothing real is longer, and the arithmetic below stays within 128 bits.
const MAX_TEXT_BYTES: usize = 64;

const NANOS_PER_UNIT: u128 = 1_000_000_000;
const NANOS_PER_MILLI: u128 = 1_000_000;

/// The largest amount, as in Kubernetes.
const MAX_NANOS: u128 = i64::MAX as u128 * NANOS_PER_UNIT;

/// How an amount is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notation {
    /// `128Mi`: powers of 1024.
    Binary,
    /// `128M`, `100m`, `2`: powers of 1000.
    Decimal,
    /// `128e6`.
    Exponent,
}

/// An amount that is not negative, exact to a billionth, and how it was written.
///
/// Amounts are equal by their value alone, however they are written.
#[derive(Clone, Copy)]
pub struct Quantity {
    nanos: u128,
    notation: Notation,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

/// The text is not a quantity that can be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a known suffix.
    #[error("must be a quantity such as 100m, 0.5, 128Mi or 1e3")]
    Malformed,
    /// Below zero.
    #[error("must not be negative")]
    Negative,
    /// Above 2^63 - 1.
    #[error("is too large")]
    TooLarge,
}

impl Quantity {
    /// Thousandths of a CPU, written in the decimal notation.
    pub const fn from_milli(milli: u64) -> Self {
        Self { nanos: milli as u128 * NANOS_PER_MILLI, notation: Notation::Decimal }
    }

    /// Bytes, written in the binary notation.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { nanos: bytes as u128 * NANOS_PER_UNIT, notation: Notation::Binary }
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Thousandths, rounded up; as CPU is counted.
    pub fn milli(self) -> u64 {
        // At most (2^63 - 1) * 1000: beyond that a machine has no CPUs to count.
        u64::try_from(self.nanos.div_ceil(NANOS_PER_MILLI)).unwrap_or(u64::MAX)
    }

    /// Whole units, rounded up; as bytes are counted.
    pub fn units(self) -> u64 {
        u64::try_from(self.nanos.div_ceil(NANOS_PER_UNIT)).unwrap_or(u64::MAX)
    }

    /// The greater amount; `self` where both are the same, so that its notation stays.
    pub fn max(self, other: Self) -> Self {
        if other.nanos > self.nanos { other } else { self }
    }

    /// Whether this is a greater amount, however both are written.
    pub const fn exceeds(self, other: Self) -> bool {
        self.nanos > other.nanos
    }

    /// The value and the power of 1000 (a billionth is -3) that is left when every factor of 1000
    /// has moved into the power.
    fn thousands(self) -> (u128, i32) {
        let (mut value, mut power) = (self.nanos, -3);
        while value != 0 && value.is_multiple_of(1000) {
            value /= 1000;
            power += 1;
        }
        (value, power)
    }

    /// The value and the power of 1024, where the amount is whole and worth a binary suffix.
    fn binary(self) -> Option<(u128, usize)> {
        let mut value = self.nanos / NANOS_PER_UNIT;
        if value < 1024 || !self.nanos.is_multiple_of(NANOS_PER_UNIT) {
            return None;
        }
        let mut power = 0;
        while value.is_multiple_of(1024) {
            value /= 1024;
            power += 1;
        }
        Some((value, power))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        if self.notation == Notation::Binary
            && let Some((value, power)) = self.binary()
        {
            return write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (value, power) = self.thousands();
        match (self.notation, power) {
            (_, 0) => write!(f, "{value}"),
            (Notation::Exponent, _) => write!(f, "{value}e{}", power * 3),
            (_, -3) => write!(f, "{value}n"),
            (_, -2) => write!(f, "{value}u"),
            (_, -1) => write!(f, "{value}m"),
            (_, 1) => write!(f, "{value}k"),
            (_, 2) => write!(f, "{value}M"),
            (_, 3) => write!(f, "{value}G"),
            (_, 4) => write!(f, "{value}T"),
            (_, 5) => write!(f, "{value}P"),
            // 2^63 has 19 digits, so nothing is above exa.
            (_, _) => write!(f, "{value}E"),
        }
    }
}

impl fmt::Debug for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

enum Suffix {
    /// A power of ten.
    Ten(i32, Notation),
    /// A power of two.
    Two(u32),
}

impl Suffix {
    fn parse(text: &str) -> Option<Self> {
        let decimal = |power| Some(Self::Ten(power, Notation::Decimal));
        match text {
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "" => decimal(0),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => Some(Self::Two(10)),
            "Mi" => Some(Self::Two(20)),
            "Gi" => Some(Self::Two(30)),
            "Ti" => Some(Self::Two(40)),
            "Pi" => Some(Self::Two(50)),
            "Ei" => Some(Self::Two(60)),
            _ => {
                let digits = text.strip_prefix(['e', 'E'])?;
                let power = digits.parse::<i32>().ok()?;
                Some(Self::Ten(power, Notation::Exponent))
            }
        }
    }
}

/// The digits of a number without its point, and how many of them stood behind it.
fn split_digits(number: &str) -> Option<(String, i32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let behind = i32::try_from(fraction.len()).ok()?;
    Some((digits, behind))
}

/// `digits` times ten to the `power`, rounded up.
fn scale_up(digits: &str, power: i32) -> Option<u128> {
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    if power >= 0 {
        let factor = 10u128.checked_pow(power.unsigned_abs())?;
        return significant.parse::<u128>().ok()?.checked_mul(factor);
    }
    let dropped = usize::try_from(power.unsigned_abs()).ok()?;
    let Some(kept) = significant.len().checked_sub(dropped) else { return Some(1) };
    let (kept, lost) = significant.split_at(kept);
    let value = if kept.is_empty() { 0 } else { kept.parse::<u128>().ok()? };
    value.checked_add(u128::from(lost.bytes().any(|b| b != b'0')))
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(QuantityError::Malformed);
        }
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end =
            unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let suffix = Suffix::parse(suffix).ok_or(QuantityError::Malformed)?;
        let (digits, behind) = split_digits(number).ok_or(QuantityError::Malformed)?;
        let (nanos, notation) = match suffix {
            Suffix::Ten(power, notation) => {
                let power = power.saturating_sub(behind).saturating_add(9);
                (scale_up(&digits, power), notation)
            }
            Suffix::Two(power) => {
                let in_units = |value: u128| value.checked_mul(1 << power);
                // Multiplied before the point is put back, so that no digit is lost.
                let whole = scale_up(&digits, 0).and_then(in_units);
                let nanos = whole.and_then(|value| scale_up(&value.to_string(), 9 - behind));
                (nanos, Notation::Binary)
            }
        };
        let nanos = nanos.filter(|&nanos| nanos <= MAX_NANOS).ok_or(QuantityError::TooLarge)?;
        if negative && nanos > 0 {
            return Err(QuantityError::Negative);
        }
        Ok(Self { nanos, notation })
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

struct Visitor;

impl serde::de::Visitor<'_> for Visitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity such as 2, \"100m\" or \"128Mi\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
        text.parse().map_err(|e| E::custom(format_args!("{text:?} {e}")))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is written, what is shown, thousandths, whole units.
    const READ: &[(&str, &str, u64, u64)] = &[
        ("0", "0", 0, 0),
        ("0Mi", "0", 0, 0),
        ("-0", "0", 0, 0),
        ("1", "1", 1000, 1),
        ("+1", "1", 1000, 1),
        ("007", "7", 7000, 7),
        ("0.1", "100m", 100, 1),
        (".5", "500m", 500, 1),
        ("1.", "1", 1000, 1),
        ("1.500", "1500m", 1500, 2),
        ("100m", "100m", 100, 1),
        ("1000m", "1", 1000, 1),
        ("2500m", "2500m", 2500, 3),
        ("0.0001", "100u", 1, 1),
        ("1n", "1n", 1, 1),
        ("0.1n", "1n", 1, 1),
        ("1e-12", "1e-9", 1, 1),
        ("100u", "100u", 1, 1),
        ("1e3", "1e3", 1_000_000, 1000),
        ("1E3", "1e3", 1_000_000, 1000),
        ("1e2", "100", 100_000, 100),
        ("12e-1", "1200e-3", 1200, 2),
        ("1k", "1k", 1_000_000, 1000),
        ("1000k", "1M", 1_000_000_000, 1_000_000),
        ("128M", "128M", 128_000_000_000, 128_000_000),
        ("1E", "1E", u64::MAX, 1_000_000_000_000_000_000),
        ("128Mi", "128Mi", 134_217_728_000, 134_217_728),
        ("1.5Gi", "1536Mi", 1_610_612_736_000, 1_610_612_736),
        ("1024Mi", "1Gi", 1_073_741_824_000, 1_073_741_824),
        ("0.5Ki", "512", 512_000, 512),
        ("1Ki", "1Ki", 1_024_000, 1024),
        ("1025Ki", "1025Ki", 1_049_600_000, 1_049_600),
        ("0.1Ki", "102400m", 102_400, 103),
        ("1.0001Mi", "1048680857600u", 1_048_680_858, 1_048_681),
        ("134217728", "134217728", 134_217_728_000, 134_217_728),
        ("7Ei", "7Ei", u64::MAX, 8_070_450_532_247_928_832),
        ("9223372036854775807", "9223372036854775807", u64::MAX, i64::MAX as u64),
    ];

    #[test]
    fn amounts_are_read_and_shown_as_in_kubernetes() {
        for &(text, shown, milli, units) in READ {
            let quantity: Quantity = text.parse().expect(text);
            assert_eq!(quantity.to_string(), shown, "{text}");
            assert_eq!(quantity.milli(), milli, "{text}");
            assert_eq!(quantity.units(), units, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        use QuantityError::{Malformed, Negative, TooLarge};
        let cases = [
            ("", Malformed),
            (" 1", Malformed),
            ("1 ", Malformed),
            (".", Malformed),
            ("+", Malformed),
            ("1.2.3", Malformed),
            ("--1", Malformed),
            ("1K", Malformed),
            ("1ki", Malformed),
            ("1mi", Malformed),
            ("1MiB", Malformed),
            ("1 Mi", Malformed),
            ("1e", Malformed),
            ("1e1.5", Malformed),
            ("e3", Malformed),
            ("Mi", Malformed),
            ("0x10", Malformed),
            ("1_000", Malformed),
            ("NaN", Malformed),
            ("inf", Malformed),
            ("١", Malformed),
            ("-1", Negative),
            ("-100m", Negative),
            ("8Ei", TooLarge),
            ("10E", TooLarge),
            ("1e30", TooLarge),
            ("1e2147483647", TooLarge),
            ("9223372036854775808", TooLarge),
            ("99999999999999999999999999999999999999999999999", TooLarge),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
        assert_eq!("1".repeat(65).parse::<Quantity>(), Err(Malformed));
    }

    #[test]
    fn the_greater_of_two_keeps_its_notation() {
        let q = |text: &str| text.parse::<Quantity>().expect("a quantity");
        assert_eq!(q("1Gi").max(q("1G")).to_string(), "1Gi");
        assert_eq!(q("1G").max(q("1Gi")).to_string(), "1Gi");
        assert_eq!(q("1Ki").max(q("1024")).to_string(), "1Ki");
        assert_eq!(q("1024").max(q("1Ki")).to_string(), "1024");
    }

    #[test]
    fn configuration_may_write_numbers() {
        let read = |json: &str| serde_json::from_str::<Quantity>(json).map(|q| q.to_string());
        assert_eq!(read("\"1.5Gi\"").ok().as_deref(), Some("1536Mi"));
        assert_eq!(read("2").ok().as_deref(), Some("2"));
        assert_eq!(read("0.5").ok().as_deref(), Some("500m"));
        let error = read("\"1GB\"").expect_err("not a quantity").to_string();
        assert!(error.contains("\"1GB\" must be a quantity such as"), "{error}");
        assert!(read("-1").is_err() && read("true").is_err() && read("1e300").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(nanos in 0..=MAX_NANOS, round in 0u32..27, n in 0..3usize) {
            let notation = [Notation::Binary, Notation::Decimal, Notation::Exponent][n];
            let factor = 10u128.pow(round);
            let quantity = Quantity { nanos: nanos / factor * factor, notation };
            let text = quantity.to_string();
            let again: Quantity = text.parse().expect("its own text");
            prop_assert_eq!(again.nanos, quantity.nanos, "{}", text);
            // A binary amount without a suffix reads as a decimal one, in Kubernetes too.
            if notation != Notation::Binary || text.ends_with('i') {
                prop_assert_eq!(again.to_string(), text);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+]?[0-9.]{0,30}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,11}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
