//! Packet lines (gitprotocol-common(5)): four hexadecimal digits of length, then so many bytes less four.

/// What one line may hold: 65520 bytes less the length's four.
const DATA_BYTES_MAX: usize = 65_516;
/// The end of a list, or of a message.
pub(super) const FLUSH: &[u8] = b"0000";

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// Its bytes, without the line's end.
    Data(&'a [u8]),
    /// `0000`.
    Flush,
    /// `0001`.
    Delimiter,
}

/// The packets of a text, from its beginning.
#[derive(Debug, Clone)]
pub(super) struct Packets<'a> {
    rest: &'a [u8],
}

impl<'a> Packets<'a> {
    pub(super) const fn new(text: &'a [u8]) -> Self {
        Self { rest: text }
    }

    /// The next packet; nothing at the end.
    pub(super) fn next(&mut self) -> Result<Option<Packet<'a>>, &'static str> {
        let Some((length, rest)) = self.rest.split_first_chunk::<4>() else {
            return if self.rest.is_empty() { Ok(None) } else { Err("the last packet is cut off") };
        };
        let length = parse_length(*length).ok_or("a packet does not begin with its length")?;
        let (packet, rest) = match length {
            0 => (Packet::Flush, rest),
            1 => (Packet::Delimiter, rest),
            2 | 3 => return Err("a packet of a reserved length"),
            _ => {
                let (data, rest) = rest.split_at_checked(length - 4).ok_or("the last packet is cut off")?;
                if data.len() > DATA_BYTES_MAX {
                    return Err("a packet is too long");
                }
                (Packet::Data(data.strip_suffix(b"\n").unwrap_or(data)), rest)
            }
        };
        self.rest = rest;
        Ok(Some(packet))
    }
}

fn parse_length(digits: [u8; 4]) -> Option<usize> {
    digits.iter().try_fold(0_usize, |length, digit| {
        let value = char::from(*digit).to_digit(16)?;
        Some(length << 4 | usize::try_from(value).ok()?)
    })
}

/// One packet with this text, which must fit.
pub(super) fn line(text: &str) -> Vec<u8> {
    debug_assert!(text.len() <= DATA_BYTES_MAX);
    format!("{:04x}{text}", text.len().saturating_add(4)).into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn all(text: &[u8]) -> Result<Vec<Packet<'_>>, &'static str> {
        let mut packets = Packets::new(text);
        let mut found = Vec::new();
        while let Some(packet) = packets.next()? {
            found.push(packet);
        }
        Ok(found)
    }

    #[test]
    fn packets_are_read_as_git_writes_them() {
        assert_eq!(all(b""), Ok(vec![]));
        assert_eq!(
            all(b"0006a\n000100040005b0000"),
            Ok(vec![Packet::Data(b"a"), Packet::Delimiter, Packet::Data(b""), Packet::Data(b"b"), Packet::Flush])
        );
        for wrong in
            [&b"0"[..], b"000", b"0002", b"0003", b"0006a", b"zzzz", b"-001", b"+001", b"fff5", b"\xff\xff\xff\xff"]
        {
            assert!(all(wrong).is_err(), "{wrong:?}");
        }
        let longest = [b"fff0".as_slice(), &vec![b'a'; DATA_BYTES_MAX]].concat();
        assert_eq!(all(&longest).unwrap().len(), 1);
        let longer = [b"fff1".as_slice(), &vec![b'a'; DATA_BYTES_MAX + 1]].concat();
        assert!(all(&longer).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(texts in prop::collection::vec("[ -~]{0,200}", 0..20)) {
            let bytes: Vec<u8> = texts.iter().flat_map(|text| line(text)).collect();
            let expected: Vec<_> = texts.iter().map(|text| Packet::Data(text.as_bytes())).collect();
            prop_assert_eq!(all(&bytes).unwrap(), expected);
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&bytes);
        }
    }
}
