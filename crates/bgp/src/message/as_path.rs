//! AS_PATH (RFC 4271 4.3 b and 5.1.2, RFC 5065 for the segment types, RFC 6793 for the width).
//!
//! ```text
//! segment: | type (1) | count of ASes (1) | ASes, 2 or 4 octets each ...
//! ```

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::Take;
use super::open::AS_TRANS;

/// Segment types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SegmentKind {
    /// AS_SET: unordered.
    Set = 1,
    /// AS_SEQUENCE: ordered.
    Sequence = 2,
    /// AS_CONFED_SEQUENCE (RFC 5065).
    ConfedSequence = 3,
    /// AS_CONFED_SET (RFC 5065).
    ConfedSet = 4,
}

/// A segment of an AS path: 1 to 255 AS numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// Its type.
    pub kind: SegmentKind,
    /// Its AS numbers, in the order of the wire.
    pub asns: Vec<u32>,
}

/// An AS path.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsPath(pub Vec<Segment>);

impl AsPath {
    /// Reads the value of the attribute. `None`: malformed (RFC 7606 7.2), or AS 0 in it (RFC 7607).
    pub(super) fn read(mut value: Bytes, four_octet: bool) -> Option<Self> {
        let mut segments = Vec::new();
        while !value.is_empty() {
            let kind = match value.take_u8()? {
                1 => SegmentKind::Set,
                2 => SegmentKind::Sequence,
                3 => SegmentKind::ConfedSequence,
                4 => SegmentKind::ConfedSet,
                _ => return None,
            };
            let count = value.take_u8()?;
            if count == 0 {
                return None;
            }
            let mut asns = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                let asn = if four_octet { value.take_u32()? } else { u32::from(value.take_u16()?) };
                if asn == 0 {
                    return None;
                }
                asns.push(asn);
            }
            segments.push(Segment { kind, asns });
        }
        Some(Self(segments))
    }

    /// The value of the attribute.
    pub(super) fn write(&self, out: &mut BytesMut, four_octet: bool) {
        for segment in &self.0 {
            out.put_u8(segment.kind as u8);
            out.put_u8(u8::try_from(segment.asns.len()).expect("segments hold at most 255 AS numbers"));
            for asn in &segment.asns {
                if four_octet {
                    out.put_u32(*asn);
                } else {
                    out.put_u16(u16::try_from(*asn).unwrap_or(AS_TRANS));
                }
            }
        }
    }

    /// Whether two octets per AS number are too few.
    pub(super) fn needs_four_octets(&self) -> bool {
        self.0.iter().flat_map(|segment| &segment.asns).any(|asn| *asn > u32::from(u16::MAX))
    }

    /// Length for the decision process: a set counts one, confederation segments nothing (RFC 4271 9.1.2.2 a,
    /// RFC 5065 section 5.3).
    pub fn len(&self) -> usize {
        let count = |segment: &Segment| match segment.kind {
            SegmentKind::Sequence => segment.asns.len(),
            SegmentKind::Set => 1,
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        };
        self.0.iter().map(count).sum()
    }

    /// Whether the path is empty: the route comes from our own AS.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The neighbouring AS: the first of a leading sequence (RFC 4271 9.1.2.2 c). `None`: our own AS.
    pub fn neighbour(&self) -> Option<u32> {
        let first = self
            .0
            .iter()
            .find(|s| !matches!(s.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet))?;
        (first.kind == SegmentKind::Sequence).then(|| first.asns.first().copied()).flatten()
    }

    /// Whether `asn` stands anywhere in the path.
    pub fn contains(&self, asn: u32) -> bool {
        self.0.iter().any(|segment| segment.asns.contains(&asn))
    }

    /// Puts `asn` in front (RFC 4271 5.1.2 b).
    pub fn prepend(&mut self, asn: u32) {
        match self.0.first_mut() {
            Some(first) if first.kind == SegmentKind::Sequence && first.asns.len() < 255 => {
                first.asns.insert(0, asn);
            }
            _ => self.0.insert(0, Segment { kind: SegmentKind::Sequence, asns: vec![asn] }),
        }
    }

    /// Whether there are confederation segments.
    pub(super) fn has_confederations(&self) -> bool {
        self.0.iter().any(|s| matches!(s.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet))
    }

    /// The numbers of all sequences, in order.
    pub fn sequence(&self) -> impl Iterator<Item = u32> + '_ {
        let sequences = self.0.iter().filter(|segment| segment.kind == SegmentKind::Sequence);
        sequences.flat_map(|segment| segment.asns.iter().copied())
    }

    /// How often `asn` stands in the path.
    pub fn count(&self, asn: u32) -> usize {
        self.0.iter().flat_map(|segment| &segment.asns).filter(|other| **other == asn).count()
    }

    /// The AS in which the route was originated: the last of a trailing sequence. `None`: our own AS, or a set.
    pub fn origin(&self) -> Option<u32> {
        let last = self.0.last().filter(|last| last.kind == SegmentKind::Sequence)?;
        last.asns.last().copied()
    }

    /// Takes numbers out for which `gone` holds, and with them segments that become empty.
    pub fn remove(&mut self, gone: impl Fn(u32) -> bool) {
        self.0.iter_mut().for_each(|segment| segment.asns.retain(|asn| !gone(*asn)));
        self.0.retain(|segment| !segment.asns.is_empty());
    }

    /// Puts one number in the place of another.
    pub fn replace(&mut self, old: u32, new: u32) {
        for asn in self.0.iter_mut().flat_map(|segment| &mut segment.asns).filter(|asn| **asn == old) {
            *asn = new;
        }
    }

    /// Takes confederation segments out: they must not be in an AS4_PATH (RFC 6793 section 3).
    pub(super) fn without_confederations(&self) -> Self {
        let keep = |s: &&Segment| matches!(s.kind, SegmentKind::Set | SegmentKind::Sequence);
        Self(self.0.iter().filter(keep).cloned().collect())
    }

    /// Rebuilds the path from AS_PATH and AS4_PATH (RFC 6793 4.2.3): the leading part that AS4_PATH lacks, then
    /// AS4_PATH. A longer AS4_PATH is ignored.
    pub(super) fn merged_with(self, as4: &Self) -> Self {
        let (have, later) = (self.len(), as4.len());
        if have < later || as4.is_empty() {
            return self;
        }
        let mut missing = have - later;
        let mut merged: Vec<Segment> = vec![];
        let mut cut = false;
        for segment in self.0 {
            match segment.kind {
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet => merged.push(segment),
                _ if missing == 0 => break,
                SegmentKind::Set => {
                    merged.push(segment);
                    missing -= 1;
                }
                SegmentKind::Sequence => {
                    let take = missing.min(segment.asns.len());
                    missing -= take;
                    cut = take < segment.asns.len();
                    merged.push(Segment { kind: segment.kind, asns: segment.asns[..take].to_vec() });
                }
            }
        }
        for (at, segment) in as4.0.iter().enumerate() {
            match merged.last_mut() {
                // One sequence went in, one sequence comes out.
                Some(last)
                    if at == 0
                        && cut
                        && segment.kind == SegmentKind::Sequence
                        && last.asns.len() + segment.asns.len() <= 255 =>
                {
                    last.asns.extend(&segment.asns);
                }
                _ => merged.push(segment.clone()),
            }
        }
        Self(merged)
    }
}

impl fmt::Display for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            let (open, close, between) = match segment.kind {
                SegmentKind::Sequence => ("", "", " "),
                SegmentKind::Set => ("{", "}", ","),
                SegmentKind::ConfedSequence => ("(", ")", " "),
                SegmentKind::ConfedSet => ("[", "]", ","),
            };
            let asns: Vec<String> = segment.asns.iter().map(u32::to_string).collect();
            write!(f, "{}{open}{}{close}", if at == 0 { "" } else { " " }, asns.join(between))?;
        }
        Ok(())
    }
}
