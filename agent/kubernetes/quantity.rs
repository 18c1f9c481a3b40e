//! Quantities as Kubernetes writes them: `250m`, `1.5`, `64Mi`, `1e3`, `2G`.
//!
//! A decimal number, then a suffix of the powers of 1000 or of 1024, or an exponent of ten; see the API reference of
//! `Quantity`. What is finer than the unit that is asked for is rounded up, as Kubernetes does.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths: a CPU. Nothing where it is no quantity; at most what 64 bits hold.
pub(super) fn millis(quantity: &Quantity) -> Option<u64> {
    scaled(&quantity.0, 3)
}

/// In ones: bytes, pods.
pub(super) fn ones(quantity: &Quantity) -> Option<u64> {
    scaled(&quantity.0, 0)
}

/// Longer ones are no quantities that anybody wrote.
const BYTES_MAX: usize = 64;

/// The number times ten to the power of `shift`, rounded up.
fn scaled(text: &str, shift: i32) -> Option<u64> {
    let text = text.trim().strip_prefix('+').unwrap_or(text.trim());
    if text.len() > BYTES_MAX {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (tens, twos) = power(suffix)?;
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let exponent = tens.checked_add(shift)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let large = digits.checked_mul(1_u128.checked_shl(twos)?);
    Some(large.map_or(u64::MAX, |value| times_ten_to(value, exponent)))
}

fn times_ten_to(value: u128, exponent: i32) -> u64 {
    let ten = 10_u128.checked_pow(exponent.unsigned_abs());
    let value = match (ten, exponent < 0) {
        (Some(ten), false) => value.saturating_mul(ten),
        (Some(ten), true) => value.div_ceil(ten),
        (None, false) => {
            if value == 0 {
                0
            } else {
                u128::MAX
            }
        }
        (None, true) => u128::from(value > 0),
    };
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// The powers of ten and of two that a suffix stands for.
fn power(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => (exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|power| (-99..=99).contains(power))?, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected_millis, expected_ones) in [
            ("250m", Some(250), Some(1)),
            ("1.5", Some(1500), Some(2)),
            ("2", Some(2000), Some(2)),
            ("0", Some(0), Some(0)),
            ("0.0", Some(0), Some(0)),
            (".5", Some(500), Some(1)),
            ("5.", Some(5000), Some(5)),
            ("64Mi", Some(67_108_864_000), Some(67_108_864)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("128974848", Some(128_974_848_000), Some(128_974_848)),
            ("129e6", Some(129_000_000_000), Some(129_000_000)),
            ("1E3", Some(1_000_000), Some(1000)),
            ("1E", Some(u64::MAX), Some(1_000_000_000_000_000_000)),
            ("100u", Some(1), Some(1)),
            ("1n", Some(1), Some(1)),
            ("2k", Some(2_000_000), Some(2000)),
            ("+3", Some(3000), Some(3)),
            ("999Ei", Some(u64::MAX), Some(u64::MAX)),
            ("1e99", Some(u64::MAX), Some(u64::MAX)),
            ("1e-99", Some(1), Some(1)),
            ("", None, None),
            (".", None, None),
            ("-1", None, None),
            ("1.2.3", None, None),
            ("12 Mi", None, None),
            ("1ki", None, None),
            ("1e100", None, None),
            ("many", None, None),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!((millis(&quantity), ones(&quantity)), (expected_millis, expected_ones), "{text:?}");
        }
        assert_eq!(millis(&Quantity("1".repeat(65))), None);
    }
}
