//! The log of a group: encoded once, read by many.

use std::collections::VecDeque;
use std::net::IpAddr;

use bytes::Bytes;

use crate::message::Nlri;

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
    /// The prefixes it is about.
    pub(crate) prefixes: Box<[Nlri]>,
}

impl Segment {
    fn weight(&self) -> usize {
        self.to - self.from + self.for_source.len()
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
