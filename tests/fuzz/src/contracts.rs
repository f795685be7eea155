//! What programs tell each other: keys and values of the store, files, socket messages, names.

use std::io::Cursor;
use std::str::FromStr;
use std::time::Duration;

use podway_ipam::{Attachment, Ledger, Request};
use podway_model::bgp::{BgpFilter, CommunitySets};
use podway_model::cluster::{
    self, BgpPeer, Claim, ClusterConfig, Liveness, NodeRecord, Pool, Reflector, Released, Usage,
};
use podway_model::document::Document;
use podway_model::endpoint::EndpointRecord;
use podway_model::ids::{
    Asn, BootId, ContainerId, IfName, InstanceId, MacAddr, Mtu, NamespaceName, NetworkName, NodeName,
    ObjectName, Vni,
};
use podway_model::k8s;
use podway_model::keys::Key;
use podway_model::names;
use podway_model::node_file::NodeFile;
use podway_model::socket::{self, PolicyReply, PolicyRequest, RoutedReply, RoutedRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// JSON that a type reads is JSON that it writes.
pub(crate) fn json_round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
) -> Option<T> {
    let read: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read from JSON can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("own JSON"), read);
    Some(read)
}

/// A name or number as text: what is read shows as text that reads the same.
fn text_round_trip<T: FromStr + ToString + PartialEq + std::fmt::Debug>(text: &str)
where
    T::Err: std::fmt::Display + std::fmt::Debug,
{
    match text.parse::<T>() {
        Ok(read) => assert_eq!(read.to_string().parse::<T>().expect("own text"), read),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A key of the store.
pub fn store_keys(bytes: &[u8]) {
    text_round_trip::<Key>(&String::from_utf8_lossy(bytes));
}

/// A key, a line feed, and a value of the store: read as what stands under such a key, and as everything else.
pub fn store_values(bytes: &[u8]) {
    let (key, value) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => (String::from_utf8_lossy(&bytes[..at]), &bytes[at + 1..]),
        None => (String::from_utf8_lossy(&[]), bytes),
    };
    value_round_trip::<ClusterConfig>(value);
    value_round_trip::<Pool>(value);
    value_round_trip::<NodeRecord>(value);
    value_round_trip::<Liveness>(value);
    value_round_trip::<Claim>(value);
    value_round_trip::<Released>(value);
    value_round_trip::<Usage>(value);
    value_round_trip::<BgpPeer>(value);
    value_round_trip::<BgpFilter>(value);
    if let Ok(filter) = cluster::decode::<BgpFilter>(value) {
        let _ = podway_bgp::filter::named::resolve(&filter, &CommunitySets::new());
    }
    value_round_trip::<Reflector>(value);
    json_round_trip::<k8s::Namespace>(value);
    json_round_trip::<k8s::Pod>(value);
    json_round_trip::<k8s::NetworkPolicy>(value);
    if let Ok(pool) = cluster::decode::<Pool>(value) {
        let _ = pool.block_len();
    }
    let Ok(key) = key.parse::<Key>() else { return };
    match Document::from_store(&key, value) {
        Ok(document) => {
            let again = Document::from_store(&key, &document.to_json()).expect("own value");
            assert_eq!(again, document);
            assert!(!document.to_yaml().is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn value_round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    match cluster::decode::<T>(bytes) {
        Ok(read) => assert_eq!(cluster::decode::<T>(&cluster::encode(&read)).expect("own value"), read),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The node file, and leases from what it says.
pub fn node_file(bytes: &[u8]) {
    let Some(file) = json_round_trip::<NodeFile>(bytes) else { return };
    let now = Duration::from_secs(100);
    let mut ledger = Ledger::default();
    let literal = "the literal is a name";
    for number in 0..3 {
        let id: ContainerId = format!("c{number}").parse().expect(literal);
        let attachment = Attachment::new(id, "eth0".parse().expect(literal));
        let request = Request::new(attachment, "podway".parse().expect(literal));
        match ledger.plan(&file, &request, now) {
            Ok(plan) => crate::leases::carry_out(&mut ledger, &file, plan, now),
            Err(refusal) => assert!(!refusal.to_string().is_empty()),
        }
    }
    for pool in &file.pools {
        let usage = ledger.pool_usage(&file, &pool.name, now);
        assert!(!usage.to_string().is_empty());
    }
}

/// An endpoint record.
pub fn endpoint_record(bytes: &[u8]) {
    if let Some(record) = json_round_trip::<EndpointRecord>(bytes) {
        let endpoint = podway_policy::Endpoint::from(&record);
        assert_eq!(endpoint.ifname, record.host_ifname);
    }
}

/// A stream on a socket: length, message, length, message.
pub fn socket_framing(bytes: &[u8]) {
    fn read<T: DeserializeOwned>(bytes: &[u8]) -> u64 {
        let mut stream = Cursor::new(bytes);
        loop {
            match socket::read_message::<T>(&mut stream) {
                Ok(Some(_)) => {}
                Ok(None) => return stream.position(),
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return stream.position();
                }
            }
        }
    }
    let len = bytes.len() as u64;
    assert!(read::<PolicyRequest>(bytes) <= len);
    assert!(read::<PolicyReply>(bytes) <= len);
    assert!(read::<RoutedRequest>(bytes) <= len);
    assert!(read::<RoutedReply>(bytes) <= len);
}

/// The body of a message on a socket.
pub fn socket_messages(bytes: &[u8]) {
    message_round_trip::<PolicyRequest>(bytes);
    message_round_trip::<PolicyReply>(bytes);
    message_round_trip::<RoutedRequest>(bytes);
    message_round_trip::<RoutedReply>(bytes);
}

fn message_round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let message: T = match socket::decode_message(bytes) {
        Ok(message) => message,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let written = socket::encode_message(&message).expect("as long as what was read");
    let (head, body) = written.split_first_chunk::<4>().expect("a length comes first");
    assert_eq!(socket::message_length(*head).expect("own length"), body.len());
    assert_eq!(socket::decode_message::<T>(body).expect("own message"), message);
}

/// Names, addresses, prefixes and numbers as text.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let text = text.as_ref();
    text_round_trip::<NodeName>(text);
    text_round_trip::<ObjectName>(text);
    text_round_trip::<NamespaceName>(text);
    text_round_trip::<NetworkName>(text);
    text_round_trip::<ContainerId>(text);
    text_round_trip::<IfName>(text);
    text_round_trip::<BootId>(text);
    text_round_trip::<InstanceId>(text);
    text_round_trip::<MacAddr>(text);
    text_round_trip::<ipnet::IpNet>(text);
    text_round_trip::<k8s::Protocol>(text);
    for number in [bytes.first_chunk::<4>().map(|b| u32::from_be_bytes(*b)), text.parse().ok()] {
        let Some(number) = number else { continue };
        assert!(Asn::try_from(number).map_or(true, |asn| asn.number() == number));
        assert!(Vni::try_from(number).map_or(true, |vni| vni.number() == number));
        if let Ok(mtu) = Mtu::try_from(number) {
            assert!(mtu.less(50).bytes() <= mtu.bytes());
        }
    }
    if let Some((container, ifname)) = names::parse_ifalias(text) {
        assert_eq!(names::host_ifalias(container, ifname), text);
        assert!(names::host_ifname(container, ifname).parse::<IfName>().is_ok());
    }
    let _ = names::router_id(text);
    let _ = names::vtep_mac(text, text);
}
