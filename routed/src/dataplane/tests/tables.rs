//! The nft tables of the data plane against the kernel, each test in a network namespace of its own. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use podway_kern::nft::NftSocket;
use podway_kern::ns::{self, NetNs};
use podway_kern::rtnl::{Address, LinkChange, Neighbour, Request, Route, Rtnl, VethEnd};
use podway_kern::sysctl::Sysctl;
use podway_model::ids::MacAddr;
use podway_model::names::MASQ_TABLE;
use podway_nft::{
    Chain, ChainKind, DataType, Element, Family, Field, Hook, MapData, NFPROTO_IPV4, NFPROTO_IPV6, Name,
    Nftables as _, Policy, Priority, Rule, Set, TableDump, TableId, TableState, Transaction, Value, tables,
};

use super::super::desired::Masquerade;
use super::super::tables::Tables;
use super::{ip, net};

const MASQ: TableId = TableId::inet(Name::literal(MASQ_TABLE));
const HOST: MacAddr = podway_model::names::HOST_MAC;
const POD: MacAddr = MacAddr([2, 1, 2, 3, 4, 5]);

pub(super) fn in_fresh_netns(test: &str, run: impl FnOnce(Tables) + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    ns::in_new_netns(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut tables = Tables::open().unwrap();
        // No records but the test's own.
        tables.ports.endpoints = folder.path().to_owned();
        tables.ports.ipam = folder.path().to_owned();
        run(tables);
    })
    .unwrap();
}

fn wanted() -> Masquerade {
    let pools = [net("10.244.0.0/16"), net("fd00:10:244::/48")];
    Masquerade { sources: pools.into(), exclude: pools.into() }
}

fn pods(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| ip(address)).collect()
}

fn dump() -> TableDump {
    NftSocket::open().unwrap().dump(&MASQ).unwrap().unwrap()
}

/// Addresses that are masqueraded towards themselves.
fn hairpins(dump: &TableDump) -> usize {
    let sets = dump.sets.iter().filter(|set| [tables::HAIRPIN4, tables::HAIRPIN6].contains(&set.name));
    sets.map(|set| set.elements.len()).sum()
}

#[test]
fn pods_that_come_and_go_change_elements_of_the_masquerade_only() {
    in_fresh_netns("pods_that_come_and_go_change_elements_of_the_masquerade_only", |mut tables| {
        let masquerade = wanted();
        let mut ensure = |addresses: &[&str]| tables.ensure(Some(Some(&masquerade)), &pods(addresses), None);
        assert_eq!(ensure(&["10.244.1.2", "fd00:10:244:1::2"]), 0);
        let first = dump();
        assert_eq!(hairpins(&first), 2);
        // The kernel numbers each rule anew when its table is replaced.
        let handles = |dump: &TableDump| -> Vec<u64> {
            dump.chains.iter().flat_map(|chain| &chain.rules).map(|rule| rule.handle).collect()
        };
        assert_eq!(ensure(&["10.244.1.2", "fd00:10:244:1::2", "10.244.1.3", "fd00:10:244:1::3"]), 0);
        assert_eq!((hairpins(&dump()), handles(&dump())), (4, handles(&first)));
        // What others do elsewhere changes nothing of that.
        let foreign = TableState::new(TableId::inet(Name::literal("foreign")));
        NftSocket::open().unwrap().commit(&Transaction::create(&foreign)).unwrap();
        assert_eq!(ensure(&["10.244.1.3", "fd00:10:244:1::3"]), 0);
        assert_eq!((hairpins(&dump()), handles(&dump())), (2, handles(&first)));
        // Somebody takes the elements, then the table.
        let flush = podway_nft::Op::FlushSet { table: MASQ, name: tables::HAIRPIN4 };
        NftSocket::open().unwrap().commit(&Transaction { ops: vec![flush] }).unwrap();
        assert_eq!(ensure(&["10.244.1.3", "fd00:10:244:1::3"]), 1);
        assert_eq!((hairpins(&dump()), handles(&dump())), (2, handles(&first)));
        NftSocket::open().unwrap().commit(&Transaction::remove(&MASQ)).unwrap();
        assert_eq!(ensure(&["10.244.1.3", "fd00:10:244:1::3"]), 1);
        assert_eq!(hairpins(&dump()), 2);
        assert_eq!(ensure(&["10.244.1.3", "fd00:10:244:1::3"]), 0);
    });
}

/// A service that leads to the pod, whatever the address: UDP 53.
fn service(pod: [IpAddr; 2]) -> TableState {
    let mut table = TableState::new(TableId::inet(Name::literal("service")));
    let names = [Name::literal("to4"), Name::literal("to6")];
    let kinds = [DataType::Ipv4Addr, DataType::Ipv6Addr];
    for ((name, kind), address) in names.iter().zip(kinds).zip(pod) {
        let target = Value::concat([address.into(), 53_u16.into()]);
        let key = Value::concat([17_u8.into(), 53_u16.into()]);
        let data = MapData::Pair(kind, DataType::InetService);
        table.sets.push(
            Set::map(name.clone(), [DataType::InetProto, DataType::InetService], data)
                .with_elements([Element::value(key, target)]),
        );
    }
    let [to4, to6] = names;
    let key = [Field::L4Proto, Field::ThDport];
    let name = Name::literal("prerouting");
    let chain = Chain::base(name, ChainKind::Nat, Hook::Prerouting, Priority::DSTNAT, Policy::Accept)
        .rule(Rule::new("").is(Field::NfProto, NFPROTO_IPV4).dnat_from_map(Family::Ip, key, to4))
        .rule(Rule::new("").is(Field::NfProto, NFPROTO_IPV6).dnat_from_map(Family::Ip6, key, to6));
    table.chains = vec![chain];
    table
}

/// A pod with two addresses, wired as the CNI plugin does. `name`: that of the node's end.
pub(super) fn wire(name: &str, addresses: [IpAddr; 2]) -> NetNs {
    let pod = NetNs::create().unwrap();
    let mut host = Rtnl::open().unwrap();
    let end = |name: &str, mac| VethEnd { name: name.to_owned(), mac: Some(mac), ..VethEnd::default() };
    let up = |link: &str| {
        let link = podway_kern::rtnl::LinkRef::Name(link.to_owned());
        Request::SetLink(link, LinkChange { up: Some(true), ..LinkChange::default() })
    };
    host.run_all(&[
        up("lo"),
        Request::AddVeth { host: end(name, HOST), peer: end("eth0", POD), peer_netns: Some(pod.as_fd()) },
        up(name),
    ])
    .unwrap();
    let (lo, veth) = (host.link("lo").unwrap().unwrap().index, host.link(name).unwrap().unwrap().index);
    let mut inside = Rtnl::open_in(&pod).unwrap();
    inside.run_all(&[up("lo"), up("eth0")]).unwrap();
    let eth0 = inside.link("eth0").unwrap().unwrap().index;
    let gateways = [ip("169.254.1.1"), ip("fe80::1")];
    for (address, gateway) in addresses.into_iter().zip(gateways) {
        let everything = if address.is_ipv4() { net("0.0.0.0/0") } else { net("::/0") };
        let own = if address.is_ipv4() { ip("172.18.0.1") } else { ip("fd00:172:18::1") };
        let on_link = |interface, address: IpAddr| Route {
            interface: Some(interface),
            scope_link: address.is_ipv4(),
            ..Route::to(address.into(), 4)
        };
        let way_out = Route { gateway: Some(gateway), interface: Some(eth0), ..Route::to(everything, 4) };
        let of_gateway = Neighbour { index: eth0, address: gateway, mac: HOST };
        let of_pod = Neighbour { index: veth, address, mac: POD };
        inside.run(Request::ReplaceAddress(Address::host(eth0, address))).unwrap();
        inside.run(Request::ReplaceNeighbour(of_gateway)).unwrap();
        inside.run(Request::AddRoute(on_link(eth0, gateway))).unwrap();
        inside.run(Request::AddRoute(way_out)).unwrap();
        host.run(Request::ReplaceAddress(Address::host(lo, own))).unwrap();
        host.run(Request::ReplaceNeighbour(of_pod)).unwrap();
        host.run(Request::AddRoute(on_link(veth, address))).unwrap();
    }
    pod
}

#[test]
fn a_pod_that_reaches_itself_through_a_translated_address_gets_an_answer() {
    let test = "a_pod_that_reaches_itself_through_a_translated_address_gets_an_answer";
    in_fresh_netns(test, |mut tables| {
        let addresses = [ip("10.244.1.2"), ip("fd00:10:244:1::2")];
        let services = [ip("10.96.0.1"), ip("fd00:96::1")];
        let pod = wire("pw1", addresses);
        for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            Sysctl::new(forwarding).write("1").unwrap();
        }
        NftSocket::open().unwrap().commit(&Transaction::create(&service(addresses))).unwrap();
        for (address, service) in addresses.into_iter().zip(services) {
            let server = pod.run(|| UdpSocket::bind((address, 53)).unwrap()).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let ask = |question: &[u8]| {
                let client = pod.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
                client.connect((service, 53)).unwrap();
                client.send(question).unwrap();
                client
            };
            // Not translated it comes back from the pod's own address: IPv4 drops it as a martian, and over IPv6 the
            // answer would come from an address that nobody asked.
            tables.ensure(Some(Some(&wanted())), &BTreeSet::new(), None);
            let _lost = ask(b"lost");
            tables.ensure(Some(Some(&wanted())), &addresses.into(), None);
            let client = ask(b"question");
            let mut buffer = [0; 16];
            let from = loop {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                if &buffer[..length] == b"question" {
                    break from;
                }
                assert_eq!(from.ip(), address);
            };
            assert_ne!(from.ip(), address, "the node stands between");
            server.send_to(b"answer", from).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"answer");
        }
    });
}
