//! `struct tcmsg` and its attributes.
//!
//! ```text
//!  family u8 · padding 3 · interface index u32 · handle u32 · parent u32 · info u32
//!  attribute: length u16 · type u16 · payload, padded to 4
//! ```

const HEAD: usize = 20;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// What stands before the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) index: u32,
    pub(super) handle: u32,
    pub(super) parent: u32,
    /// Of a filter: priority and protocol.
    pub(super) info: u32,
}

impl Head {
    pub(super) fn read(payload: &[u8]) -> Option<(Self, Attributes<'_>)> {
        let (head, attributes) = payload.split_first_chunk::<HEAD>()?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let head = Self { index: word(4), handle: word(8), parent: word(12), info: word(16) };
        Some((head, Attributes(attributes)))
    }
}

/// Builds a message's payload.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn new(head: Head) -> Self {
        let mut bytes = vec![0; 4];
        for word in [head.index, head.handle, head.parent, head.info] {
            bytes.extend(word.to_ne_bytes());
        }
        Self { bytes }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn bytes(&mut self, kind: u16, payload: &[u8]) {
        self.attribute(kind, |w| w.bytes.extend_from_slice(payload));
    }

    /// Text with its closing zero byte.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |w| {
            w.bytes.extend_from_slice(text.as_bytes());
            w.bytes.push(0);
        });
    }

    /// Attributes inside an attribute. Traffic control's are not flagged as nested.
    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        body(self);
        let length =
            u16::try_from(self.bytes.len() - start).expect("all that is written here is some 100 bytes");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Attributes in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Payload of the first attribute of that type.
    pub(super) fn get(self, wanted: u16) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while let Some((head, _)) = rest.split_first_chunk::<4>() {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let payload = rest.get(4..length)?;
            if u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK == wanted {
                return Some(payload);
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
        None
    }

    /// Text without its closing zero byte.
    pub(super) fn text(self, wanted: u16) -> Option<&'a str> {
        std::str::from_utf8(self.get(wanted)?).ok().map(|text| text.trim_end_matches('\0'))
    }
}
