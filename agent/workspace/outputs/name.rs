//! Names of files as text: any bytes, written so that neither a URL, a journal nor a terminal takes them for something else.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// RFC 3986, section 2.3: these stand for themselves; all other bytes are written as `%` and two digits. A slash parts
/// components.
pub(crate) fn escape(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(char::from(*byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// The bytes that such a text stands for; none where a `%` has not two digits after it, or for the byte 0, which is in
/// no name.
pub(crate) fn unescape(text: &str) -> Option<OsString> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let byte = match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digit = |digit: u8| char::from(digit).to_digit(16);
                u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?
            }
            (b'%', _) => return None,
            (byte, _) => byte,
        };
        if byte == 0 {
            return None;
        }
        bytes.push(byte);
    }
    Some(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_name_comes_back_as_it_was() {
        let all: Vec<u8> = (1..=255).collect();
        for name in [&all[..], b"a/b c\n\"%41\xff", b""] {
            let text = escape(OsStr::from_bytes(name));
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>&'".contains(&byte)), "{text}");
            assert_eq!(unescape(&text).unwrap().as_bytes(), name);
        }
        assert_eq!(escape(OsStr::new("log.txt")), "log.txt");
        assert_eq!(escape(OsStr::new("a b")), "a%20b");
        for wrong in ["%", "%4", "%zz", "%00", "a%+1"] {
            assert_eq!(unescape(wrong), None, "{wrong}");
        }
    }
}
