//! BGP messages: no bytes make the decoders panic, what was decoded can be encoded and decoded again, and every
//! prefix of an UPDATE has an outcome.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{Bytes, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podway_bgp::message::capability::RoleSaid;
use podway_bgp::message::open::Open;
use podway_bgp::message::update::{self, DecodeContext, Encoding, Treatment, Update};
use podway_bgp::message::{Frame, HEADER_LEN, MAX_LEN, MessageType, Nlri, Notification, next_frame, refresh};
use podway_bgp::types::{Families, Family};

/// Contexts in which an UPDATE can be read; the number comes from the input.
const CONTEXTS: u8 = 64;

/// A stream of bytes, whole and in two pieces: both give the same messages. Each message is decoded.
pub fn framing(bytes: &[u8]) {
    let (frames, end) = frames(&mut BytesMut::from(bytes));
    let cut = bytes.last().map_or(0, |last| usize::from(*last) % bytes.len());
    let (first, second) = bytes.split_at(cut);
    let mut buffer = BytesMut::from(first);
    let (mut pieces, mut piece_end) = self::frames(&mut buffer);
    if piece_end.is_ok() {
        buffer.extend_from_slice(second);
        let (more, its_end) = self::frames(&mut buffer);
        pieces.extend(more);
        piece_end = its_end;
    }
    assert_eq!((&frames, &end), (&pieces, &piece_end), "cut at {cut}");
    if let Ok(waiting) = end {
        assert!(waiting < MAX_LEN, "{waiting} octets wait for more");
    }
    for frame in frames {
        match frame.kind {
            MessageType::Open => open(&frame.body),
            MessageType::Update => (0..CONTEXTS).for_each(|number| update_in(&context(number), &frame.body)),
            MessageType::Notification => notification(&frame.body),
            MessageType::RouteRefresh => refresh(&frame.body),
            MessageType::Keepalive => assert!(frame.body.is_empty()),
        }
    }
}

/// All whole messages in a buffer, and how it ends: octets that are left, or what is wrong with the next header.
fn frames(buffer: &mut BytesMut) -> (Vec<Frame>, Result<usize, Notification>) {
    let mut frames = vec![];
    loop {
        match next_frame(buffer, MAX_LEN) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, Ok(buffer.len())),
            Err(notification) => return (frames, Err(notification)),
        }
    }
}

/// The messages of what we encoded ourselves, which must be whole.
pub(crate) fn own_frames(bytes: &[u8]) -> Vec<Frame> {
    let (frames, end) = frames(&mut BytesMut::from(bytes));
    assert_eq!(end, Ok(0), "own messages have good headers and are whole");
    frames
}

fn own_frame(bytes: &[u8], kind: MessageType) -> Bytes {
    let mut frames = own_frames(bytes);
    let frame = frames.pop().expect("one message");
    assert!(frames.is_empty() && frame.kind == kind);
    frame.body
}

/// The body of an OPEN.
pub fn open(bytes: &[u8]) {
    match Open::decode(Bytes::copy_from_slice(bytes)) {
        Ok(mut open) => {
            // A multiprotocol capability without a family of ours is not written.
            if open.capabilities.families.is_some_and(Families::is_empty) {
                open.capabilities.families = None;
            }
            // Nor is a role that is none.
            open.capabilities.role = open.capabilities.role.filter(|role| *role != RoleSaid::Torn);
            let body = own_frame(&open.encode(), MessageType::Open);
            assert_eq!(Open::decode(body), Ok(open));
        }
        Err(reason) => notified(&reason),
    }
}

/// The body of a NOTIFICATION.
pub fn notification(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(&bytes[..bytes.len().min(MAX_LEN - HEADER_LEN)]);
    let read = Notification::decode(&body);
    notified(&read);
    let words = String::from_utf8_lossy(bytes);
    let shutdown = Notification::shutdown(&words);
    notified(&shutdown);
    if !words.is_empty() {
        assert!(words.starts_with(shutdown.communication().expect("whole characters")));
    }
}

/// A NOTIFICATION can be shown and sent.
fn notified(notification: &Notification) {
    assert!(!notification.to_string().is_empty());
    let body = own_frame(&notification.encode(), MessageType::Notification);
    assert_eq!(Notification::decode(&body), *notification);
}

/// The body of a ROUTE-REFRESH.
pub fn refresh(bytes: &[u8]) {
    if let Some((subtype, family)) = refresh::decode(Bytes::copy_from_slice(bytes)) {
        let body = own_frame(&refresh::encode(subtype, family), MessageType::RouteRefresh);
        assert_eq!(refresh::decode(body), Some((subtype, family)));
    }
}

/// The context in which the rest is read, and the body of an UPDATE.
pub fn update(bytes: &[u8]) {
    let Some((number, body)) = bytes.split_first() else { return };
    let body = &body[..body.len().min(MAX_LEN - HEADER_LEN)];
    update_in(&context(*number), body);
}

fn context(number: u8) -> DecodeContext {
    let families = [Families::BOTH, Families::IPV4, Family::Ipv6.into_set(), Families::NONE];
    DecodeContext {
        four_octet_as: number & 1 == 0,
        external: (number & 2 != 0).then_some(65001),
        families: families[usize::from(number >> 2 & 3)],
        add_path: if number & 16 == 0 { Families::NONE } else { Families::BOTH },
        extended_next_hop: number & 32 != 0,
        first_as: true,
    }
}

trait IntoSet {
    fn into_set(self) -> Families;
}

impl IntoSet for Family {
    fn into_set(self) -> Families {
        [self].into_iter().collect()
    }
}

fn update_in(context: &DecodeContext, body: &[u8]) {
    let update = match Update::decode(Bytes::copy_from_slice(body), context) {
        Ok(update) => update,
        Err(reason) => return notified(&reason),
    };
    let withdrawn: BTreeSet<Nlri> = update.withdrawn.iter().copied().collect();
    let mut announced = BTreeSet::new();
    for (_, prefixes) in &update.announced {
        assert!(!prefixes.is_empty(), "attributes without a prefix");
        let family = Family::of(&prefixes[0].prefix);
        assert!(prefixes.iter().all(|nlri| Family::of(&nlri.prefix) == family), "one family per entry");
        let here: BTreeSet<Nlri> = prefixes.iter().copied().collect();
        assert!(here.is_disjoint(&announced), "announced with two sets of attributes: {update:?}");
        announced.extend(here);
    }
    assert!(withdrawn.is_disjoint(&announced), "a prefix has two outcomes: {update:?}");
    if update.end_of_rib.is_some() {
        assert!(withdrawn.is_empty() && announced.is_empty());
    } else {
        for prefix in named(body, context) {
            assert!(
                withdrawn.contains(&prefix) || announced.contains(&prefix),
                "{prefix} is named and has no outcome: {update:?}"
            );
        }
    }
    if update.faults.iter().any(|fault| fault.treatment == Treatment::Withdraw && fault.kind != 0) {
        assert!(announced.is_empty(), "announced in spite of its faults: {update:?}");
    }
    let encoding =
        Encoding { four_octet_as: context.four_octet_as, add_path: context.add_path, max_len: MAX_LEN };
    for (attributes, prefixes) in &update.announced {
        let mut out = BytesMut::new();
        if update::announce(&mut out, attributes, prefixes, &encoding).is_err() {
            continue;
        }
        let mut again = vec![];
        for frame in own_frames(&out) {
            let context = DecodeContext { families: Families::BOTH, ..*context };
            let read = Update::decode(frame.body, &context).expect("own messages are well-formed");
            assert!(read.faults.is_empty() && read.withdrawn.is_empty(), "{read:?}");
            for (its_attributes, its_prefixes) in read.announced {
                assert_eq!(its_attributes, *attributes);
                again.extend(its_prefixes);
            }
        }
        assert_eq!(again, *prefixes);
    }
    let mut out = BytesMut::new();
    for family in Family::ALL {
        let is_of = |nlri: &Nlri| Family::of(&nlri.prefix) == family;
        let of: Vec<Nlri> = update.withdrawn.iter().copied().filter(is_of).collect();
        update::withdraw(&mut out, &of, &encoding);
    }
    let context = DecodeContext { families: Families::BOTH, ..*context };
    let again: BTreeSet<Nlri> = own_frames(&out)
        .into_iter()
        .flat_map(|frame| {
            Update::decode(frame.body, &context).expect("own messages are well-formed").withdrawn
        })
        .collect();
    assert_eq!(again, withdrawn);
}

/// Prefixes that an UPDATE names, as far as a simple reader can tell: in the classic fields, and in the multiprotocol
/// attributes of negotiated families unless the attributes overrun their length.
fn named(body: &[u8], context: &DecodeContext) -> Vec<Nlri> {
    let cut = |bytes: &'_ [u8]| -> Option<(Vec<u8>, Vec<u8>)> {
        let (len, rest) = bytes.split_first_chunk::<2>()?;
        let (part, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        Some((part.to_vec(), rest.to_vec()))
    };
    let Some((withdrawn, rest)) = cut(body) else { return vec![] };
    let Some((attributes, announced)) = cut(&rest) else { return vec![] };
    let prefixes = |bytes: &[u8], family| prefixes(bytes, family, context.add_path.contains(family));
    let mut all = prefixes(&withdrawn, Family::Ipv4);
    all.extend(prefixes(&announced, Family::Ipv4));
    let mut rest = attributes.as_slice();
    while let [flags, kind, tail @ ..] = rest {
        let (len, tail) = match (flags & 0x10 != 0, tail) {
            (true, [high, low, tail @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), tail),
            (false, [len, tail @ ..]) => (usize::from(*len), tail),
            _ => break,
        };
        let Some((value, tail)) = tail.split_at_checked(len) else { break };
        rest = tail;
        let &[high, low, safi, ref value @ ..] = value else { continue };
        let family = Family::from_wire(u16::from_be_bytes([high, low]), safi);
        let nlri = match (kind, value) {
            (14, [next_hop, value @ ..]) => value.get(usize::from(*next_hop) + 1..).unwrap_or_default(),
            (15, value) => value,
            _ => continue,
        };
        if let Some(family) = family.filter(|family| *kind == 15 || context.families.contains(*family)) {
            all.extend(prefixes(nlri, family));
        }
    }
    all
}

fn prefixes(mut bytes: &[u8], family: Family, add_path: bool) -> Vec<Nlri> {
    let mut all = vec![];
    loop {
        let mut id = 0;
        if add_path {
            let Some((its, rest)) = bytes.split_first_chunk::<4>() else { break };
            (id, bytes) = (u32::from_be_bytes(*its), rest);
        }
        let [bits, rest @ ..] = bytes else { break };
        let Some((octets, rest)) = rest.split_at_checked(usize::from(*bits).div_ceil(8)) else { break };
        bytes = rest;
        let mut padded = [0; 32];
        padded[..octets.len()].copy_from_slice(octets);
        let net = match family {
            Family::Ipv4 => {
                let address = Ipv4Addr::new(padded[0], padded[1], padded[2], padded[3]);
                Ipv4Net::new(address, *bits).map(IpNet::V4)
            }
            Family::Ipv6 => {
                let octets = padded.first_chunk::<16>().copied().unwrap_or_default();
                Ipv6Net::new(Ipv6Addr::from(octets), *bits).map(IpNet::V6)
            }
        };
        all.extend(net.map(|net| Nlri { prefix: net.trunc(), id }));
    }
    all
}
