//! Netlink attributes in a row: written one behind the other, read by type.
//!
//! ```text
//!  attribute: length u16 · type u16 (with NLA_F_NESTED where it holds attributes and its family says so)
//!             · payload, padded to 4
//! ```

const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

/// Builds a message's payload.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// `head`: what stands before the attributes.
    pub(crate) fn new(head: Vec<u8>) -> Self {
        Self { bytes: head }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn bytes(&mut self, kind: u16, payload: &[u8]) {
        self.attribute(kind, |w| w.bytes.extend_from_slice(payload));
    }

    /// Attributes that were written apart.
    pub(crate) fn append(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    /// Text with its closing zero byte.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |w| {
            w.bytes.extend_from_slice(text.as_bytes());
            w.bytes.push(0);
        });
    }

    /// Attributes inside an attribute, without the flag that says so: as traffic control takes them.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind, body);
    }

    /// Attributes inside an attribute, flagged: as families of the generic kind want them.
    pub(crate) fn nest_flagged(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NLA_F_NESTED, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).expect("callers keep an attribute below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Attributes in a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Type and payload of each attribute, up to the first one that is cut off.
    pub(crate) fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (head, _) = rest.split_first_chunk::<4>()?;
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let payload = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK, payload))
        })
    }

    /// Payload of the first attribute of that type.
    pub(crate) fn get(self, wanted: u16) -> Option<&'a [u8]> {
        self.all().find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload)
    }

    /// Text without its closing zero byte.
    pub(crate) fn text(self, wanted: u16) -> Option<&'a str> {
        std::str::from_utf8(self.get(wanted)?).ok().map(|text| text.trim_end_matches('\0'))
    }
}
