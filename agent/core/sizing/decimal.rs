//! Numbers that people write (`0.1`), taken to whole units without floating point.

/// Why a number is not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// Not digits with at most one point.
    #[error("is not a decimal number")]
    Malformed,
    /// More units than a `u64` holds.
    #[error("is too large")]
    TooLarge,
}

/// Digits after the point that count in full; later ones only say whether to round up.
const FRACTION_DIGITS: usize = 18;
const FRACTION_UNIT: u128 = 1_000_000_000_000_000_000;

/// `text` (digits, perhaps a point and digits) times `units_per_one`, rounded up: a build gets no less than was written.
///
/// # Errors
/// Anything else, signs and exponents included; and more than a `u64`.
pub fn scaled(text: &str, units_per_one: u64) -> Result<u64, DecimalError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(DecimalError::Malformed);
    }
    let whole: u64 = match whole.trim_start_matches('0') {
        "" => 0,
        digits => digits.parse().map_err(|_| DecimalError::TooLarge)?,
    };
    let value = |digit: u8| u128::from(digit.wrapping_sub(b'0'));
    let counted = fraction.bytes().chain(core::iter::repeat(b'0')).take(FRACTION_DIGITS);
    let numerator = counted.fold(0u128, |sum, digit| sum.saturating_mul(10).saturating_add(value(digit)));
    let rest = fraction.bytes().skip(FRACTION_DIGITS).any(|digit| digit != b'0');
    // Below 10^18 times 2^64: no overflow of 128 bits.
    let part = numerator.saturating_mul(u128::from(units_per_one));
    let part = if rest { part.saturating_add(1) } else { part }.div_ceil(FRACTION_UNIT);
    let sum = u128::from(whole).saturating_mul(u128::from(units_per_one)).saturating_add(part);
    u64::try_from(sum).map_err(|_| DecimalError::TooLarge)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    #[test]
    fn what_floats_get_wrong_is_right() {
        assert_eq!(scaled("0.1", 1000), Ok(100));
        assert_eq!(scaled("1.1", 1000), Ok(1100));
        assert_eq!(scaled("2.3", 60_000), Ok(138_000));
        assert_eq!(scaled("0.1", 1 << 30), Ok(107_374_183), "rounded up");
        assert_eq!(scaled("0.0000000000000000000000001", 1000), Ok(1));
        assert_eq!(scaled("256.000000000000000000001", 1000), Ok(256_001));
        assert_eq!(scaled("1048576", 1 << 30), Ok(1 << 50));
        assert_eq!(scaled("0000000000000000000000004.50", 1000), Ok(4500));
    }

    #[test]
    fn what_is_no_plain_decimal_is_refused() {
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "NaN", "inf", "1,5", "1.2.3", " 1", "١"] {
            assert_eq!(scaled(text, 1000), Err(DecimalError::Malformed), "{text:?}");
        }
        assert_eq!(scaled("99999999999999999999999", 1), Err(DecimalError::TooLarge));
        assert_eq!(scaled("18446744073709551615", 2), Err(DecimalError::TooLarge));
    }

    proptest! {
        #[test]
        fn every_thousandth_is_exact(millis in any::<u32>()) {
            let millis = u64::from(millis);
            prop_assert_eq!(scaled(&format!("{}.{:03}", millis / 1000, millis % 1000), 1000), Ok(millis));
        }
    }
}
