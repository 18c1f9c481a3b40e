//! One range of a file, as RFC 9110, section 14 has it. Of several, or of what is no range, the whole file is sent, which
//! is always right.

use axum::http::HeaderValue;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) bytes: u64,
}

/// The part that was asked for; none where it was the whole.
///
/// # Errors
/// Where nothing of the file is in it.
pub(super) fn of(header: Option<&HeaderValue>, length: u64) -> Result<Option<Range>, ()> {
    let asked = header.and_then(|value| value.to_str().ok()?.strip_prefix("bytes="));
    let Some((first, last)) = asked.and_then(|text| text.split_once('-')) else { return Ok(None) };
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let (first, end) = match (first, last) {
        // The last so many.
        ("", suffix) => match number(suffix) {
            Some(0) => return Err(()),
            Some(bytes) => (length.saturating_sub(bytes), length),
            None => return Ok(None),
        },
        (first, "") => match number(first) {
            Some(first) => (first, length),
            None => return Ok(None),
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(length)),
            _ => return Ok(None),
        },
    };
    match end.checked_sub(first) {
        Some(bytes) if bytes > 0 => Ok(Some(Range { first, bytes })),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_has_them() {
        let range = |text: &'static str, length| of(Some(&HeaderValue::from_static(text)), length);
        let some = |first, bytes| Ok(Some(Range { first, bytes }));
        assert_eq!(of(None, 10), Ok(None));
        assert_eq!(range("bytes=0-0", 10), some(0, 1));
        assert_eq!(range("bytes=2-5", 10), some(2, 4));
        assert_eq!(range("bytes=2-", 10), some(2, 8));
        assert_eq!(range("bytes=-3", 10), some(7, 3));
        assert_eq!(range("bytes=-30", 10), some(0, 10));
        assert_eq!(range("bytes=5-99", 10), some(5, 5));
        for whole in ["bytes=5-2", "lines=1-2", "bytes=a-b", "bytes=1-2,4-5", "bytes=-", "bytes=+1-2"] {
            assert_eq!(range(whole, 10), Ok(None), "{whole}");
        }
        for none in ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=99999999999999999999-"] {
            let whole = none.contains("999999");
            assert_eq!(range(none, 10), if whole { Ok(None) } else { Err(()) }, "{none}");
        }
        assert_eq!(range("bytes=0-", 0), Err(()));
    }
}
