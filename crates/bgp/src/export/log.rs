//! The log of a group: encoded once, read by many.

use std::collections::VecDeque;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};

use super::policy::{GroupKey, Side};
use crate::message::update::{DecodeContext, Update};
use crate::message::{MessageType, Nlri, next_frame};

/// Whole messages about some prefixes of one source. What was encoded together lies in one chunk, so that a reader of
/// many segments gets few pieces.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// The neighbour that the routes come from: it is not told its own.
    pub(crate) source: Option<IpAddr>,
    /// Where its octets lie.
    pub(crate) chunk: Bytes,
    /// What all others are told: from here in the chunk
    pub(crate) from: usize,
    /// to here.
    pub(crate) to: usize,
    /// What the source is told: the withdrawal of what it was told before it had the route itself.
    pub(crate) for_source: Bytes,
}

impl Segment {
    fn weight(&self) -> usize {
        self.to - self.from + self.for_source.len()
    }

    /// The prefixes that it is about. Few want to know, so it is read from what everybody is told: those of `for_source` are
    /// among them.
    pub(crate) fn prefixes(&self, key: &GroupKey) -> Vec<Nlri> {
        let updates = read(&self.chunk[self.from..self.to], key);
        debug_assert!(updates.is_ok(), "what we have written can be read: {updates:?}");
        let updates = updates.into_iter().flatten().map(|(_, update)| update);
        let told = |update: Update| {
            let announced = update.announced.into_iter().flat_map(|(_, prefixes)| prefixes);
            update.withdrawn.into_iter().chain(announced)
        };
        updates.flat_map(told).collect()
    }
}

/// Reads messages for a group as its members do: bodies, and what they say.
pub(super) fn read(bytes: &[u8], key: &GroupKey) -> Result<Vec<(Bytes, Update)>, String> {
    let mut rest = BytesMut::from(bytes);
    let context = DecodeContext {
        four_octet_as: key.encoding.four_octet_as,
        external: match &key.side {
            Side::Internal { .. } => None,
            Side::External(external) => Some(external.asn),
        },
        families: key.families,
        add_path: key.encoding.add_path,
        extended_next_hop: key.extended_next_hop,
        first_as: matches!(&key.side, Side::External(external) if !external.route_server),
    };
    let mut all = vec![];
    loop {
        match next_frame(&mut rest, key.encoding.max_len).map_err(|n| n.to_string())? {
            Some(frame) if frame.kind == MessageType::Update => {
                let update = Update::decode(frame.body.clone(), &context).map_err(|n| n.to_string())?;
                all.push((frame.body, update));
            }
            Some(frame) => return Err(format!("a {:?} among the updates", frame.kind)),
            None if rest.is_empty() => return Ok(all),
            None => return Err("a message is cut off".to_owned()),
        }
    }
}

/// Collects what a reader is told, joining what lies together.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    run: Option<(Bytes, usize, usize)>,
    done: Vec<Bytes>,
    len: usize,
}

impl Pieces {
    /// Octets so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What `reader` is told of a segment.
    pub(crate) fn push_segment(&mut self, segment: &Segment, reader: IpAddr) {
        if segment.source == Some(reader) {
            return self.push(segment.for_source.clone());
        }
        self.len += segment.to - segment.from;
        match &mut self.run {
            Some((chunk, _, to)) if *to == segment.from && chunk.as_ptr() == segment.chunk.as_ptr() => {
                *to = segment.to;
            }
            _ => {
                self.end_run();
                self.run = Some((segment.chunk.clone(), segment.from, segment.to));
            }
        }
    }

    /// Octets of its own.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.end_run();
            self.len += bytes.len();
            self.done.push(bytes);
        }
    }

    fn end_run(&mut self) {
        if let Some((chunk, from, to)) = self.run.take()
            && from < to
        {
            self.done.push(chunk.slice(from..to));
        }
    }

    /// All of it, in order.
    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        self.end_run();
        self.done
    }
}

/// Segments, numbered from the beginning of the group's life.
#[derive(Debug, Default)]
pub(crate) struct Log {
    first: u64,
    segments: VecDeque<Segment>,
    bytes: usize,
}

impl Log {
    /// The number that the next segment will have.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.segments.len() as u64
    }

    /// Whether the segments from `position` on are all still there.
    pub(crate) fn reaches(&self, position: u64) -> bool {
        position >= self.first
    }

    pub(crate) fn push(&mut self, segment: Segment) {
        self.bytes += segment.weight();
        self.segments.push_back(segment);
    }

    pub(crate) fn segment(&self, position: u64) -> Option<&Segment> {
        let at = usize::try_from(position.checked_sub(self.first)?).ok()?;
        self.segments.get(at)
    }

    /// The segments from `position` on.
    pub(crate) fn from(&self, position: u64) -> impl Iterator<Item = &Segment> {
        let at = usize::try_from(position.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.segments.range(at.min(self.segments.len())..)
    }

    /// Octets that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets go of what stands before `position`.
    pub(crate) fn trim(&mut self, position: u64) {
        while self.first < position {
            let Some(segment) = self.segments.pop_front() else { break };
            self.bytes -= segment.weight();
            self.first += 1;
        }
    }
}
