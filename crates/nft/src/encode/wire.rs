//! Netlink framing: messages and attributes. Lengths are in host order; nf_tables numbers in attributes are in
//! network order, values are in whatever order the kernel compares them in.
//!
//! ```text
//! nlmsghdr    len:u32  type:u16  flags:u16  seq:u32  pid:u32
//! nfgenmsg    family:u8  version:u8  res_id:be16
//! attribute   len:u16  type:u16 (0x8000: nested)  payload, padded to 4
//! ```

/// Size of `nlmsghdr`.
pub const NLMSG_HEADER: usize = 16;
/// Size of `nlmsghdr` and `nfgenmsg`.
pub const NFMSG_HEADER: usize = NLMSG_HEADER + 4;
/// Attribute type bit: holds attributes.
pub(crate) const NLA_F_NESTED: u16 = 0x8000;
/// Largest attribute, header included.
pub(crate) const ATTRIBUTE_MAX: usize = u16::MAX as usize;

/// `NLM_F_REQUEST`.
pub const NLM_F_REQUEST: u16 = 0x01;
/// `NLM_F_ACK`.
pub const NLM_F_ACK: u16 = 0x04;
/// `NLM_F_CREATE`.
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const NLM_F_APPEND: u16 = 0x800;
/// `NLM_F_DUMP`.
pub const NLM_F_DUMP: u16 = 0x300;

/// `NFNL_SUBSYS_NFTABLES`.
pub const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`.
pub const BATCH_BEGIN: u16 = 16;
/// `NFNL_MSG_BATCH_END`.
pub const BATCH_END: u16 = 17;

/// Builds messages one after another in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// One message: header, nfgenmsg, then what `body` writes.
    pub(crate) fn message(&mut self, head: Head, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&head.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&head.flags.to_ne_bytes());
        self.bytes.extend_from_slice(&head.seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[head.family, 0]);
        self.bytes.extend_from_slice(&head.res_id.to_be_bytes());
        body(self);
        // A message is far below 4 GiB: element lists are cut at 64 KiB, rules are written by hand.
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(crate) fn bytes(&mut self, kind: u16, payload: &[u8]) {
        self.attribute(kind, |w| w.bytes.extend_from_slice(payload));
    }

    /// Text with its closing zero byte.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |w| {
            w.bytes.extend_from_slice(text.as_bytes());
            w.bytes.push(0);
        });
    }

    pub(crate) fn be16(&mut self, kind: u16, number: u16) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(crate) fn be32(&mut self, kind: u16, number: u32) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, number: u64) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NLA_F_NESTED, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        // Callers keep below the limit (names, comments and element lists are bounded).
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What stands before a message's attributes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) family: u8,
    pub(crate) res_id: u16,
}

/// Walks attributes: (type without its flag bits, payload). Ends at the first one that does not fit.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, _) = self.0.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The payload of the first attribute of that type.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(k, _)| *k == kind).map(|(_, payload)| payload)
}

pub(crate) fn find_be32(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(find(attributes, kind)?.try_into().ok()?))
}

pub(crate) fn find_text(attributes: &[u8], kind: u16) -> Option<&str> {
    let bytes = find(attributes, kind)?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_do_not_fit_end_the_walk() {
        let mut w = Writer::default();
        w.be32(1, 7);
        w.text(2, "abc");
        w.nest(3, |w| w.bytes(4, &[9]));
        let bytes = w.into_bytes();
        assert_eq!(find_be32(&bytes, 1), Some(7));
        assert_eq!(find_text(&bytes, 2), Some("abc"));
        assert_eq!(find(find(&bytes, 3).unwrap(), 4), Some(&[9][..]));
        for cut in 0..bytes.len() {
            assert!(Attributes(&bytes[..cut]).count() <= 3);
        }
        assert_eq!(Attributes(&[0, 0, 0, 0, 1, 1]).count(), 0, "a length below its own header ends the walk");
    }
}
