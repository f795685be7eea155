//! Every (state, event) pair of RFC 4271 section 8.2.2 against a table that was written from the RFC's text, not from
//! the code. A row: state, event numbers, next state, what goes out or happens. Pairs that no row names stay in their
//! state and do nothing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: a failure is a panic, numbers are small"
)]

use std::collections::BTreeMap;

use podway_bgp::session::State;
use podway_bgp::session::fsm::{FsmEvent, Op, transition};

/// `connect`: opens TCP; `close`: drops TCP; `open`, `keepalive`, `hold!`, `sendhold!`,
/// `fsm!`, `notify!`: messages; `up`, `down`:
/// the session; `process`: hands the message on; `pause`: idle hold; `+1`, `=0`: ConnectRetryCounter; `retry`,
/// `-retry`: ConnectRetryTimer; `t240`, `timers`, `hold`: HoldTimer to 4 minutes, both timers negotiated, restarted.
const TABLE: &[(&str, &[u8], &str, &str)] = &[
    ("Idle", &[1, 3], "Connect", "=0 retry connect"),
    ("Idle", &[4, 5], "Active", "=0 retry"),
    ("Idle", &[6, 7], "Idle", "pause"),
    ("Idle", &[13], "Connect", "=0 retry connect"),
    ("Idle", &[14, 16, 17], "Idle", "close"),
    ("Connect", &[2], "Idle", "close =0 -retry"),
    ("Connect", &[9], "Connect", "close retry connect"),
    ("Connect", &[12], "OpenSent", "open t240"),
    ("Connect", &[16, 17], "OpenSent", "-retry open t240"),
    ("Connect", &[18], "Idle", "-retry close pause"),
    ("Connect", &[20], "OpenConfirm", "-retry open keepalive timers"),
    (
        "Connect",
        &[8, 10, 11, 13, 19, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30],
        "Idle",
        "-retry close +1 pause",
    ),
    ("Active", &[2], "Idle", "close =0 -retry"),
    ("Active", &[9], "Connect", "retry connect"),
    ("Active", &[12, 16, 17], "OpenSent", "-retry open t240"),
    ("Active", &[20], "OpenConfirm", "-retry open keepalive timers"),
    (
        "Active",
        &[8, 10, 11, 13, 18, 19, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30],
        "Idle",
        "-retry close +1 pause",
    ),
    ("OpenSent", &[2], "Idle", "notify! -retry close =0"),
    ("OpenSent", &[8, 21, 22, 23], "Idle", "notify! -retry close +1 pause"),
    ("OpenSent", &[10], "Idle", "hold! -retry close +1 pause"),
    ("OpenSent", &[18], "Active", "close retry"),
    ("OpenSent", &[19], "OpenConfirm", "-retry keepalive timers process"),
    ("OpenSent", &[24], "Idle", "-retry close pause"),
    ("OpenSent", &[9, 11, 12, 13, 20, 25, 26, 27, 28, 29], "Idle", "fsm! -retry close +1 pause"),
    ("OpenConfirm", &[2], "Idle", "notify! -retry close =0"),
    ("OpenConfirm", &[8, 21, 22, 23], "Idle", "notify! -retry close +1 pause"),
    ("OpenConfirm", &[10], "Idle", "hold! -retry close +1 pause"),
    ("OpenConfirm", &[11], "OpenConfirm", "keepalive"),
    ("OpenConfirm", &[18, 25], "Idle", "-retry close +1 pause"),
    ("OpenConfirm", &[24], "Idle", "-retry close pause"),
    ("OpenConfirm", &[26], "Established", "hold up"),
    ("OpenConfirm", &[9, 12, 13, 19, 20, 27, 28, 29], "Idle", "fsm! -retry close +1 pause"),
    ("Established", &[2], "Idle", "notify! -retry down close =0"),
    ("Established", &[8, 21, 22, 23, 28], "Idle", "notify! -retry down close +1 pause"),
    ("Established", &[10], "Idle", "hold! -retry down close +1 pause"),
    ("Established", &[30], "Idle", "sendhold! -retry down close +1 pause"),
    ("Established", &[11], "Established", "keepalive"),
    ("Established", &[18, 24, 25], "Idle", "-retry down close +1 pause"),
    ("Established", &[26], "Established", "hold"),
    ("Established", &[27, 29], "Established", "hold process"),
    ("Established", &[9, 12, 13, 19, 20], "Idle", "fsm! -retry down close +1 pause"),
];

fn word(op: &Op) -> &'static str {
    match op {
        Op::ZeroCounter => "=0",
        Op::BumpCounter => "+1",
        Op::StartConnectRetry => "retry",
        Op::StopConnectRetry => "-retry",
        Op::Connect => "connect",
        Op::Drop => "close",
        Op::SendOpen => "open",
        Op::SendKeepalive => "keepalive",
        Op::LargeHold => "t240",
        Op::NegotiatedHold => "timers",
        Op::RestartHold => "hold",
        Op::Notify => "notify!",
        Op::NotifyHold => "hold!",
        Op::NotifySendHold => "sendhold!",
        Op::NotifyFsm => "fsm!",
        Op::Up => "up",
        Op::Down => "down",
        Op::Process => "process",
        Op::Damp => "pause",
    }
}

fn shown(state: State, event: FsmEvent, passive: bool) -> (String, String) {
    let (next, ops) = transition(state, event, passive);
    (next.to_string(), ops.iter().map(word).collect::<Vec<_>>().join(" "))
}

#[test]
fn every_pair_does_what_the_rfc_says() {
    let mut expected: BTreeMap<(String, u8), (String, String)> = BTreeMap::new();
    for (state, events, next, ops) in TABLE {
        for event in *events {
            let row = expected.insert(((*state).to_owned(), *event), ((*next).to_owned(), (*ops).to_owned()));
            assert_eq!(row, None, "{state} {event} stands twice in the table");
        }
    }
    for state in State::ALL {
        for (event, number) in FsmEvent::ALL.into_iter().zip(1..) {
            assert_eq!(event as u8, number);
            let key = (state.to_string(), number);
            let wanted = expected.remove(&key).unwrap_or((state.to_string(), String::new()));
            assert_eq!(shown(state, event, false), wanted, "{state} {event:?}");
        }
    }
    assert!(expected.is_empty(), "{expected:?}");
}

#[test]
fn a_passive_machine_differs_only_after_its_idle_hold_time() {
    for state in State::ALL {
        for event in FsmEvent::ALL {
            let same = shown(state, event, true) == shown(state, event, false);
            assert_eq!(same, (state, event) != (State::Idle, FsmEvent::IdleHoldExpired), "{state} {event:?}");
        }
    }
    assert_eq!(
        shown(State::Idle, FsmEvent::IdleHoldExpired, true),
        ("Active".to_owned(), "=0 retry".to_owned())
    );
}

#[test]
fn properties_of_all_pairs() {
    for (state, event) in State::ALL.into_iter().flat_map(|s| FsmEvent::ALL.map(|e| (s, e))) {
        let (next, ops) = transition(state, event, false);
        let at = |op: Op| ops.iter().position(|o| *o == op);
        let was_up = state == State::Established;
        assert_eq!(at(Op::Down).is_some(), was_up && next != State::Established, "{state} {event:?}");
        assert_eq!(at(Op::Up).is_some(), !was_up && next == State::Established, "{state} {event:?}");
        // What is said is said before the connection is dropped.
        for say in [Op::Notify, Op::NotifyHold, Op::NotifySendHold, Op::NotifyFsm] {
            assert!(at(say).is_none() || at(say) < at(Op::Drop), "{state} {event:?}");
        }
        // Nothing that fails stays down for ever: only an operator's stop does.
        if next == State::Idle && state != State::Idle {
            assert_eq!(at(Op::Damp).is_some(), event != FsmEvent::ManualStop, "{state} {event:?}");
        }
    }
}
