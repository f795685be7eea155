//! Connections and messages: who may connect, which of two connections lives (RFC 4271 6.8, RFC 4724 section 5).

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;

use super::Speaker;
use super::peer::{INCOMING, OUTGOING};
use crate::config::Role;
use crate::event::{Action, ConnId};
use crate::message::notification::{cease, code};
use crate::message::open::Open;
use crate::message::update::Update;
use crate::message::{Frame, MAX_EXTENDED_LEN, MAX_LEN, MessageType, Notification, refresh};
use crate::session::fsm::{FsmEvent, State};
use crate::session::negotiated::Negotiated;

/// How long after a session came up a second connection counts as opened at the same time as the first. Later, it is
/// a peer that came back while its old connection still looked alive.
const COLLISION_WINDOW: Duration = Duration::from_secs(10);

impl Speaker {
    pub(super) fn on_accepted(&mut self, conn: ConnId, remote: IpAddr) {
        if !self.stopped && !self.peers.contains_key(&remote) {
            self.add_from_range(remote);
        }
        let Some(peer) = self.peers.get(&remote).filter(|peer| !self.stopped && peer.held.is_none()) else {
            // Whoever is unknown, or may not connect now, is told so (RFC 4486: Connection Rejected).
            if !self.stopped {
                let bytes = Notification::cease(cease::REJECTED).encode();
                self.actions.push(Action::Send { conn, bytes });
            }
            self.actions.push(Action::Close { conn });
            return;
        };
        let at = peer.slot_for_incoming();
        self.pace.greeted(self.now);
        if peer.slots[at].conn.is_some() {
            // The peer gave up its earlier attempt.
            self.fire(remote, at, FsmEvent::CollisionDump, Some(Notification::cease(cease::COLLISION)));
        }
        self.start_incoming(remote, at);
        if let Some(peer) = self.peers.get_mut(&remote) {
            peer.slots[at].conn = Some(conn);
            self.conns.insert(conn, (remote, at));
            self.fire(remote, at, FsmEvent::TcpConnectionConfirmed, None);
        }
    }

    fn start_incoming(&mut self, address: IpAddr, at: usize) {
        if self.peers.get(&address).is_some_and(|peer| peer.slots[at].state == State::Idle) {
            self.fire(address, at, FsmEvent::AutomaticStartPassive, None);
        }
    }

    pub(super) fn on_connected(&mut self, conn: ConnId) {
        if let Some((address, at)) = self.conns.get(&conn).copied() {
            self.pace.greeted(self.now);
            self.fire(address, at, FsmEvent::TcpRequestAcked, None);
        }
    }

    pub(super) fn on_closed(&mut self, conn: ConnId, reason: String) {
        let Some((address, at)) = self.conns.remove(&conn) else { return };
        if let Some(peer) = self.peers.get_mut(&address) {
            let slot = &mut peer.slots[at];
            slot.conn = None;
            slot.last_error = Some(reason);
            self.fire(address, at, FsmEvent::TcpConnectionFails, None);
        }
    }

    pub(super) fn on_slot_timer(&mut self, address: IpAddr, at: usize, event: FsmEvent) {
        let resting =
            |peer: &super::Peer| INCOMING.into_iter().any(|at| peer.slots[at].state >= State::OpenSent);
        if event == FsmEvent::IdleHoldExpired
            && at == OUTGOING
            && self.peers.get(&address).is_some_and(resting)
        {
            // The peer has connected to us meanwhile: the slot rests until that connection is gone.
            return;
        }
        self.fire(address, at, event, None);
    }

    pub(super) fn on_received(&mut self, conn: ConnId, bytes: &Bytes) {
        let Some((address, at)) = self.conns.get(&conn).copied() else { return };
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.slots[at].receive(bytes);
        // RFC 8654 section 4: whoever offers extended messages takes them.
        let extended = peer.neighbour.options.extended_messages;
        let max_len = if extended { MAX_EXTENDED_LEN } else { MAX_LEN };
        // Each message may end the connection; what stands behind it is then nobody's.
        while let Some(slot) = self.peers.get_mut(&address).map(|peer| &mut peer.slots[at]) {
            if !slot.is_on(conn) {
                return;
            }
            match slot.next_frame(max_len) {
                Ok(None) => return,
                Ok(Some(frame)) => self.on_message(address, at, frame),
                Err(notification) => self.fire(address, at, FsmEvent::HeaderError, Some(notification)),
            }
        }
    }

    fn on_message(&mut self, address: IpAddr, at: usize, frame: Frame) {
        match frame.kind {
            MessageType::Open => self.on_open(address, at, frame.body),
            MessageType::Keepalive => self.fire(address, at, FsmEvent::Keepalive, None),
            MessageType::Update => self.on_update_message(address, at, frame.body),
            MessageType::Notification => {
                let notification = Notification::decode(&frame.body);
                let version = (notification.code, notification.subcode) == (code::OPEN, 1);
                let event = if version { FsmEvent::NotificationVersion } else { FsmEvent::Notification };
                self.fire(address, at, event, Some(notification));
            }
            MessageType::RouteRefresh => self.on_refresh_frame(address, at, frame.body),
        }
    }

    fn on_refresh_frame(&mut self, address: IpAddr, at: usize, body: Bytes) {
        if body.len() != 4 {
            let whole = crate::message::whole(MessageType::RouteRefresh, &body);
            let session = self.peers.get(&address).and_then(|peer| peer.session.as_ref());
            let enhanced = session.is_some_and(|s| s.slot == at && s.negotiated.enhanced_refresh);
            // RFC 7313 section 5 for its markers, RFC 4271 6.1 for all else.
            let notification = if enhanced && matches!(body.get(2), Some(1 | 2)) {
                Notification::with_data(code::REFRESH, 1, &whole)
            } else {
                Notification::with_data(code::HEADER, 2, &whole[16..18])
            };
            self.fire(address, at, FsmEvent::HeaderError, Some(notification));
            return;
        }
        let up = self.is_session(address, at);
        self.fire(address, at, FsmEvent::RouteRefresh, None);
        if let (true, Some((subtype, family))) = (up, refresh::decode(body)) {
            self.on_refresh_message(address, subtype, family);
        }
    }

    fn is_session(&self, address: IpAddr, at: usize) -> bool {
        let session = self.peers.get(&address).and_then(|peer| peer.session.as_ref());
        session.is_some_and(|session| session.slot == at)
    }

    fn on_update_message(&mut self, address: IpAddr, at: usize, body: Bytes) {
        let peer = self.peers.get(&address);
        let session = peer.and_then(|peer| peer.session.as_ref()).filter(|session| session.slot == at);
        let Some(session) = session else {
            // Not in Established: the machine knows what to say.
            self.fire(address, at, FsmEvent::Update, None);
            return;
        };
        match Update::decode(body, &session.negotiated.decode) {
            Ok(update) => {
                self.fire(address, at, FsmEvent::Update, None);
                self.on_update(address, update);
            }
            Err(notification) => self.fire(address, at, FsmEvent::UpdateError, Some(notification)),
        }
    }

    fn on_open(&mut self, address: IpAddr, at: usize, body: Bytes) {
        let Some(peer) = self.peers.get(&address) else { return };
        if peer.slots[at].state != State::OpenSent {
            self.fire(address, at, FsmEvent::Open, None);
            return;
        }
        let whole = crate::message::whole(MessageType::Open, &body);
        let opened = Open::decode(body);
        if let Ok(open) = &opened {
            self.take_as_from_range(address, open.asn);
        }
        let Some(peer) = self.peers.get(&address) else { return };
        let checked = opened.and_then(|open| Negotiated::new(&self.config, &peer.neighbour, &open));
        let negotiated = match checked {
            Ok(negotiated) => negotiated,
            Err(notification) => {
                self.fire(address, at, FsmEvent::OpenError, Some(notification));
                return;
            }
        };
        for other in (0..peer.slots.len()).filter(|other| *other != at) {
            match self.collide(address, at, other, &negotiated) {
                Collision::None => {}
                Collision::Newer => {
                    let cease = Notification::cease(cease::COLLISION);
                    self.fire(address, other, FsmEvent::CollisionDump, Some(cease));
                }
                // The session ends without a NOTIFICATION: its routes stay.
                Collision::Restart => self.fire(address, other, FsmEvent::TcpConnectionFails, None),
                Collision::Older => {
                    let cease = Notification::cease(cease::COLLISION);
                    self.fire(address, at, FsmEvent::CollisionDump, Some(cease));
                    return;
                }
            }
        }
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.slots[at].negotiated = Some(negotiated);
            if let Some(opens) = &mut peer.slots[at].opens {
                opens.1 = whole;
            }
            self.fire(address, at, FsmEvent::Open, None);
        }
    }

    /// Which of two connections lives when a good OPEN has come on `newer`.
    fn collide(&self, address: IpAddr, newer: usize, older: usize, theirs: &Negotiated) -> Collision {
        let Some(peer) = self.peers.get(&address) else { return Collision::None };
        let old = &peer.slots[older];
        if old.state < State::OpenConfirm {
            return Collision::None;
        }
        if old.state == State::Established {
            let before = old.negotiated.as_ref();
            let restarts = before.is_some_and(|before| !before.restart_families().is_empty());
            let first_sign = theirs.restarting() && before.is_some_and(|before| !before.restarting());
            let late = self.now >= old.since + COLLISION_WINDOW;
            // RFC 4724 section 5: the new connection replaces the session if graceful restart was negotiated. Not at
            // the connection but at its OPEN, and not while both may have been opened at once: else two speakers
            // that connect to each other would tear down one session after the other.
            if restarts && (late || first_sign) {
                return Collision::Restart;
            }
            // RFC 4271 6.8: a collision with an established session closes the new connection.
            if late {
                return Collision::Older;
            }
        }
        if newer != OUTGOING && older != OUTGOING {
            // Both are theirs: the earlier one was given up.
            return Collision::Newer;
        }
        // RFC 4271 6.8, RFC 6286 section 2.3: the connection that the higher identifier opened lives; of equal ones
        // that of the higher AS number. Both sides come to the same answer, in whatever order the OPENs arrive.
        let local = peer.neighbour.options.local_as.map_or(self.config.asn, |local| local.asn);
        let ours = (self.config.router_id, local.number());
        let remote = match peer.neighbour.role {
            Role::External => peer.neighbour.asn.number(),
            Role::Mesh | Role::Client | Role::Reflector => ours.1,
        };
        let keep_ours = ours > (theirs.router_id, remote);
        if keep_ours == (newer == OUTGOING) { Collision::Newer } else { Collision::Older }
    }
}

/// What becomes of two connections.
enum Collision {
    /// They do not collide.
    None,
    /// The newer one lives.
    Newer,
    /// The newer one lives, and the older one's routes are kept as over a restart.
    Restart,
    /// The older one lives.
    Older,
}
