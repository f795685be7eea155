//! IPIP and WireGuard devices against the kernel, each test in a network namespace of its own. Needs root, and a kernel
//! that has them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests: a failure is a panic, a skip is a line")]

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use podway_kern::ns;
use podway_kern::rtnl::{IpipParams, LinkChange, LinkRef, Request, Rtnl};
use podway_kern::wireguard::{PeerChange, PrivateKey, Wireguard, WireguardChange, WireguardPeer, public_key};
use podway_model::ids::WireguardKey;

/// Runs a test in a fresh network namespace where the kernel makes a device of that kind, or says why not.
fn with_device(test: &str, kind: &str, device: &Request<'static>, run: impl FnOnce(Rtnl) + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    ns::in_new_netns(|| {
        let mut rtnl = Rtnl::open().unwrap();
        match rtnl.run(device.clone()) {
            Ok(()) => run(rtnl),
            Err(e) if e.errno() == Some(podway_kern::Errno::EOPNOTSUPP) => {
                println!("SKIP {test}: no {kind} in this kernel");
            }
            Err(e) => unreachable!("{e}"),
        }
    })
    .unwrap();
}

#[test]
fn an_ipip_device_reads_back_as_made() {
    let local = Ipv4Addr::new(192, 0, 2, 1);
    let device = Request::AddIpip { name: "t".to_owned(), local, mtu: 1480 };
    with_device("an_ipip_device_reads_back_as_made", "ipip", &device, |mut rtnl| {
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        rtnl.run(Request::SetLink(LinkRef::from("t"), up)).unwrap();
        let link = rtnl.link("t").unwrap().unwrap();
        assert_eq!(link.ipip, Some(IpipParams { local: Some(local), remote: None }));
        assert_eq!((link.mtu, link.up, link.kind.as_deref()), (1480, true, Some("ipip")));
        let again = Request::AddIpip { name: "u".to_owned(), local, mtu: 1480 };
        assert!(rtnl.run(again).unwrap_err().is_exists(), "two devices with the same ends");
    });
}

fn wireguard() -> Request<'static> {
    Request::AddWireguard { name: "t".to_owned(), mtu: 1440 }
}

#[test]
fn a_wireguard_device_reads_back_as_set_however_many_peers_it_has() {
    with_device(
        "a_wireguard_device_reads_back_as_set_however_many_peers_it_has",
        "wireguard",
        &wireguard(),
        |mut rtnl| {
            let index = rtnl.link("t").unwrap().unwrap().index;
            let mut socket = Wireguard::open().unwrap();
            let key = |i: u32| {
                let mut bytes = [9; 32];
                bytes[..4].copy_from_slice(&i.to_be_bytes());
                WireguardKey(bytes)
            };
            let net = |i: u32| IpNet::from(Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | i << 6), 26).unwrap());
            let peer = |i: u32| WireguardPeer {
                endpoint: Some(if i.is_multiple_of(2) {
                    "192.0.2.9:51820".parse().unwrap()
                } else {
                    "[fd00:2::9]:51820".parse().unwrap()
                }),
                keepalive_seconds: u16::try_from(i % 100).unwrap(),
                allowed: [net(i), format!("fd00:{i:x}::/64").parse().unwrap()].into(),
            };
            let set = |peer, exactly| PeerChange::Set { peer, exactly };
            // One with more prefixes than fit into one message, either way.
            let mut large = peer(5000);
            large.allowed.extend((10_000..13_000).map(net));
            let mut peers: Vec<_> = (0..1000).map(|i| (key(i), set(peer(i), true))).collect();
            peers.push((key(5000), set(large.clone(), true)));
            let private = PrivateKey::from_random([3; 32]);
            let first = WireguardChange { private_key: Some(private), port: Some(51820), peers };
            socket.set(index, &first).unwrap();
            let mut expected = podway_kern::wireguard::WireguardDevice::default();
            expected.apply(&first);
            let found = socket.device(index).unwrap();
            assert!(found.public_key.is_some());
            expected.public_key = found.public_key;
            assert_eq!(found.peers.len(), 1001);
            assert!(found == expected, "what was set is what is read");

            // A prefix moves, a peer goes, one keeps what it has and gets more, one is cut down.
            let moved = WireguardPeer { allowed: [net(7)].into(), ..peer(1) };
            let cut = WireguardPeer { allowed: [net(3)].into(), ..peer(3) };
            let second = WireguardChange {
                private_key: None,
                port: Some(51900),
                peers: vec![
                    (key(1), set(moved, false)),
                    (key(2), PeerChange::Remove),
                    (key(3), set(cut, true)),
                ],
            };
            socket.set(index, &second).unwrap();
            expected.apply(&second);
            let found = socket.device(index).unwrap();
            assert_eq!(found.peers[&key(1)].allowed.len(), 3);
            assert!(!found.peers[&key(7)].allowed.contains(&net(7)), "a prefix has one peer");
            assert!(found == expected, "what was changed is what is read");
        },
    );
}

#[test]
fn the_kernel_computes_public_keys_and_leaves_nothing_behind() {
    let test = "the_kernel_computes_public_keys_and_leaves_nothing_behind";
    with_device(test, "wireguard", &wireguard(), |mut rtnl| {
        let before = rtnl.links().unwrap();
        // X25519 (RFC 7748 section 5), computed apart from the kernel.
        let bytes = |hex: &str| -> [u8; 32] {
            std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
        };
        let private = bytes("77076d0a7318a57d3c16c17251b26645df4c2f92ebc0992ac177fba51db92c2a");
        let public = bytes("f8a9535a2d2ff605e8e144d54f4ef5c62313a2055dbb21fddd3fd9c299eb015d");
        assert_eq!(public_key(&PrivateKey::from_random(private)).unwrap(), WireguardKey(public));
        assert_eq!(rtnl.links().unwrap(), before);
    });
}
