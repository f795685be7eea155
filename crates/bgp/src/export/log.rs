//! The log of a group: encoded once, read by many.

use std::collections::VecDeque;
use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;

/// Whole messages about some prefixes of one source.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// The neighbour that the routes come from: it is not told its own.
    pub(crate) source: Option<IpAddr>,
    /// What all others are told.
    pub(crate) bytes: Bytes,
    /// What the source is told: the withdrawal of what it was told before it had the route itself.
    pub(crate) for_source: Bytes,
    /// The prefixes it is about.
    pub(crate) prefixes: Box<[IpNet]>,
}

impl Segment {
    /// What `reader` is told.
    pub(crate) fn for_reader(&self, reader: IpAddr) -> &Bytes {
        if self.source == Some(reader) { &self.for_source } else { &self.bytes }
    }

    fn weight(&self) -> usize {
        self.bytes.len() + self.for_source.len()
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
