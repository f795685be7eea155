//! Our tables and the distribution's `nft`: what we commit lists cleanly and reads as our text form, and what `nft` makes
//! of our text is, attribute for attribute, what our encoder makes. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use podway_kern::nft::NftSocket;
use podway_kern::ns;
use podway_nft::encode::decode::{Replies, ReplyKind};
use podway_nft::encode::number::msg;
use podway_nft::encode::request;
use podway_nft::encode::wire::{Attributes, NLM_F_DUMP};
use podway_nft::tables::{Masquerade, guard, masquerade, ports};
use podway_nft::{
    Chain, ChainKind, CmpOp, DataType, Element, Expr, Family, Field, Hook, MapData, NFPROTO_IPV4,
    NFPROTO_IPV6, Name, Nftables as _, Policy, Priority, Reject, Rule, Set, Source, Span, TableFlags,
    TableId, TableState, Target, Transaction, Value, Verdict, ct_state, ct_status, fib_type,
};
use podway_policy::{Endpoint, Engine, Event, Flush, Limits};

/// Runs `nft`, in the calling thread's namespaces; it must succeed and say nothing to stderr.
fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "nft {arguments:?}: {stderr}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

/// A listing with the elements of each set on lines of their own and in order.
fn in_order(listed: &str) -> String {
    let mut lines = Vec::new();
    let mut elements: Option<String> = None;
    for line in listed.lines() {
        let mut text = elements.take().unwrap_or_default();
        if text.is_empty() && !line.trim_start().starts_with("elements = {") {
            lines.push(line.to_owned());
            continue;
        }
        text.push(' ');
        text.push_str(line.trim());
        if !text.ends_with('}') {
            elements = Some(text);
            continue;
        }
        let inside = text.trim_start_matches(" elements = {").trim_end_matches('}');
        let mut each: Vec<&str> = inside.split(',').map(str::trim).collect();
        each.sort_unstable();
        lines.extend(each.into_iter().map(|element| format!("\t\telement {element}")));
    }
    lines.join("\n") + "\n"
}

/// An attribute in lines: a rule's expressions and a set's user data one by one.
///
/// Left out is what `nft` sends besides and what changes nothing: `byteorder` of single bytes (a no-op of the kernel's),
/// a set's size where it is constant, and what tells `nft` how a key was written.
fn attribute(object: &str, kind: u16, bytes: &[u8]) -> Vec<String> {
    match (object, kind) {
        ("rule", 4) => Attributes(bytes)
            .map(|(_, one)| {
                let name =
                    Attributes(one).find(|(kind, _)| *kind == 1).map(|(_, name)| name).unwrap_or_default();
                let data: Vec<_> =
                    Attributes(one).filter(|(kind, _)| *kind == 2).flat_map(|(_, d)| Attributes(d)).collect();
                format!("{} {data:02x?}", String::from_utf8_lossy(name))
            })
            .filter(|text| !(text.starts_with("byteorder") && text.contains("(04, [00, 00, 00, 01])")))
            .collect(),
        ("set", 9) => vec![format!("fields: {:02x?}", Attributes(bytes).find(|(kind, _)| *kind == 2))],
        ("set", 13) => {
            let (mut rest, mut lines) = (bytes, Vec::new());
            while let [kind, len, more @ ..] = rest {
                let (data, after) = more.split_at(usize::from(*len));
                if [0, 1, 6].contains(kind) {
                    lines.push(format!("user data {kind}: {data:02x?}"));
                }
                rest = after;
            }
            lines
        }
        _ => vec![format!("{kind}: {bytes:02x?}")],
    }
}

type Raw = BTreeMap<String, Vec<String>>;

/// Every attribute of every chain, rule and set, in the kernel's order, without handles and numbers of use.
fn raw(table: &TableId) -> Raw {
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    // Attributes that count: chain 2 handle, 6 use; rule 3 handle, 6 position; set 10 id, 16 handle, 19 and 20 counts.
    let kinds = [
        ("chain", msg::GETCHAIN, &[2_u16, 6][..]),
        ("rule", msg::GETRULE, &[3, 6]),
        ("set", msg::GETSET, &[10, 16, 19, 20]),
    ];
    let mut found = Raw::new();
    for (what, kind, counted) in kinds {
        socket.send(&request(kind, NLM_F_DUMP, 1, Some((table, None))), 0).unwrap();
        let objects = found.entry(what.to_owned()).or_default();
        let mut buffer = Vec::with_capacity(1 << 17);
        'dump: loop {
            buffer.clear();
            socket.recv(&mut buffer, 0).unwrap();
            for reply in Replies(&buffer) {
                match reply.kind {
                    ReplyKind::Object { attributes, .. } => {
                        let kept = Attributes(attributes).filter(|(kind, _)| !counted.contains(kind));
                        let mut text: Vec<String> =
                            kept.flat_map(|(kind, bytes)| attribute(what, kind, bytes)).collect();
                        // The order of statements is shown by the listing; where a protocol is asked that the
                        // text leaves out, nft puts the question right before the header that needs it.
                        text.sort();
                        objects.push(text.join("\n"));
                    }
                    ReplyKind::Done(0) => break 'dump,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    found
}

fn without_handles(socket: &mut NftSocket, table: &TableId) -> podway_nft::TableDump {
    let mut dump = socket.dump(table).unwrap().unwrap();
    for rule in dump.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        rule.handle = 0;
        // Compared attribute by attribute.
        rule.exprs.clear();
    }
    dump.sets.sort_by(|a, b| a.name.cmp(&b.name));
    dump
}

/// Fails with the lines that differ.
fn same_text(what: &str, left: &str, right: &str) {
    let differ = |a: &str, b: &str| -> Vec<String> {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).map(str::to_owned).collect()
    };
    assert!(left == right, "{what}: {:#?} {:#?}", differ(left, right), differ(right, left));
}

/// Both ways, in a fresh namespace.
fn compare(what: &str, table: &TableState) {
    let mut socket = NftSocket::open().unwrap();
    socket.commit(&Transaction::create(table)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(socket.dump(&table.id).unwrap().unwrap().difference(table), None, "{what}");
    let listed = nft(&["list", "ruleset"], "");
    let json: serde_json::Value = serde_json::from_str(&nft(&["-j", "list", "ruleset"], "")).unwrap();
    assert!(json["nftables"].as_array().unwrap().len() > table.chains.len(), "{what}: {json}");
    let text = table.to_string();
    same_text(&format!("{what}: nft's listing, our text"), &in_order(&listed), &in_order(&text));
    let (ours, our_dump) = (raw(&table.id), without_handles(&mut socket, &table.id));

    socket.commit(&Transaction::remove(&table.id)).unwrap();
    nft(&["-f", "-"], &text);
    assert_eq!(without_handles(&mut socket, &table.id), our_dump, "{what}: loaded by nft, by us");
    for (kind, theirs) in raw(&table.id) {
        let mut ours = ours[&kind].clone();
        let mut theirs = theirs;
        if kind == "set" {
            ours.sort();
            theirs.sort();
        }
        for (theirs, ours) in theirs.iter().zip(&ours) {
            same_text(&format!("{what}: a {kind} as nft makes it, as we make it"), theirs, ours);
        }
        assert_eq!(theirs.len(), ours.len(), "{what}: {kind}s");
    }
}

fn on_a_node(test: &str, tables: impl FnOnce() -> Vec<(&'static str, TableState)>) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return;
    }
    for (what, table) in tables() {
        ns::in_new_netns(|| compare(what, &table)).unwrap();
    }
}

fn nets<T: FromIterator<ipnet::IpNet>>(texts: &[&str]) -> T {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn the_fixed_tables_are_nfts_own() {
    on_a_node("the_fixed_tables_are_nfts_own", || {
        let allowed: Vec<_> = nets(&["10.9.0.0/16", "10.10.0.0/16", "192.0.2.7/32", "fd00:9::/64"]);
        let wanted = Masquerade {
            sources: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
            exclude: nets(&["10.244.0.0/16", "10.96.0.0/12", "fd00:10:244::/48", "0.0.0.0/8"]),
            local_pods: ["10.244.1.2", "10.244.1.3", "fd00:10:244:1::2"].map(|a| a.parse().unwrap()).into(),
        };
        let record = serde_json::json!({
            "schema": 1, "id": "0", "bootId": "00000000-0000-0000-0000-000000000001", "network": "podway",
            "containerId": "c", "ifname": "eth0", "hostIfname": "pw0", "mac": "02:00:00:00:00:01", "mtu": 1500,
            "pod": null, "addresses": ["10.244.1.2", "fd00:10:244:1::2"], "netns": "",
            "hostPorts": [
                {"hostIp": null, "hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
                {"hostIp": "192.0.2.1", "hostPort": 53, "containerPort": 5353, "protocol": "UDP"},
                {"hostIp": "2001:db8::1", "hostPort": 53, "containerPort": 5353, "protocol": "SCTP"},
            ],
        });
        let record: podway_model::endpoint::EndpointRecord = serde_json::from_value(record).unwrap();
        vec![
            ("guard", guard(&[])),
            ("guard with prefixes", guard(&allowed)),
            ("masquerade of nothing", masquerade(&Masquerade::default())),
            ("masquerade", masquerade(&wanted)),
            ("host ports of nobody", ports([])),
            ("host ports", ports([&record])),
        ]
    });
}

/// A policy table of the engine, for these objects.
fn policy_table(policies: &[&str]) -> TableState {
    let mut engine = Engine::new(Limits::default(), TableFlags::default());
    let namespace = r#"{"metadata": {"name": "x", "labels": {"team": "red"}}}"#;
    engine.on_event(Event::NamespacePut(serde_json::from_str(namespace).unwrap()));
    for (number, name) in [(2, "a"), (3, "b"), (4, "c")] {
        let addresses = [format!("10.244.1.{number}"), format!("fd00:10:244:1::{number}")];
        let pod = serde_json::json!({
            "metadata": {"namespace": "x", "name": name, "labels": {"app": name}},
            "spec": {"containers": [{"name": "main", "ports": [
                {"name": "http", "containerPort": 8080 + number, "protocol": "TCP"}]}]},
            "status": {"podIPs": [{"ip": addresses[0]}, {"ip": addresses[1]}]},
        });
        engine.on_event(Event::PodPut(serde_json::from_value(pod).unwrap()));
        let endpoint = Endpoint {
            ifname: format!("pw{number}").parse().unwrap(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod: Some(podway_model::endpoint::PodRef { namespace: "x".into(), name: name.into(), uid: None }),
        };
        engine.on_event(Event::EndpointPut(name.to_owned(), endpoint));
    }
    for (number, spec) in policies.iter().enumerate() {
        let policy = format!(r#"{{"metadata": {{"namespace": "x", "name": "p{number}"}}, "spec": {spec}}}"#);
        engine.on_event(Event::PolicyPut(serde_json::from_str(&policy).unwrap()));
    }
    engine.on_synced();
    assert!(matches!(engine.flush(), Flush::Replace(_)));
    engine.table()
}

#[test]
fn policy_tables_are_nfts_own() {
    on_a_node("policy_tables_are_nfts_own", || {
        let from_a = r#"{"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "a"}}}],
             "ports": [{"port": 80}, {"port": "http"}, {"port": 1000, "endPort": 2000}, {"protocol": "SCTP"}]}]}"#;
        let blocks = r#"{"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25", "192.0.2.3/32"]}},
                      {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}},
                      {"ipBlock": {"cidr": "::/0"}}]}],
            "egress": [{"ports": [{"port": 53, "protocol": "UDP"}, {"port": 1, "endPort": 65535}]}]}"#;
        let names = r#"{"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}, {"to": [{"namespaceSelector": {}}]}]}"#;
        vec![
            ("no policy", policy_table(&[])),
            ("deny", policy_table(&[r#"{"podSelector": {}}"#])),
            ("peers and ports", policy_table(&[from_a])),
            ("blocks", policy_table(&[blocks])),
            ("names", policy_table(&[names])),
            ("all of them", policy_table(&[from_a, blocks, names])),
        ]
    });
}

/// A table with every statement and every kind of set that we know.
fn everything() -> TableState {
    use DataType::{ClassId, DevGroup, IfName, InetProto, InetService, Ipv4Addr, Ipv6Addr, Mark};
    let name = Name::literal;
    let v4 = |text: &str| Value::from(text.parse::<std::net::Ipv4Addr>().unwrap());
    let v6 = |text: &str| Value::from(text.parse::<std::net::Ipv6Addr>().unwrap());
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let leaf = name("leaf");
    let mut table = TableState::new(TableId::inet(name("everything")));
    table.sets = vec![
        Set::new(name("uplinks"), [IfName]).with_elements([Element::key(Value::ifname("eth0"))]),
        Set::new(name("kinds"), [DevGroup]).with_elements([Element::key(112_u32)]),
        Set { constant: true, ..Set::new(name("consts"), [InetProto, InetService]) }
            .with_elements([Element::key(Value::concat([6_u8.into(), 80_u16.into()]))]),
        Set::new(name("nets4"), [Ipv4Addr]).with_interval().with_elements([
            Element::key(Span::net(net("0.0.0.0/8"))),
            Element::key(Span::range(v4("10.0.0.5"), v4("10.0.0.9"))),
            Element::key(v4("10.0.0.10")),
            Element::key(Span::range(v4("224.0.0.0"), v4("255.255.255.255"))),
        ]),
        Set::map(name("nets6"), [Ipv6Addr], MapData::Value(Mark)).with_interval().with_elements([
            Element::value(Span::net(net("fd00::/8")), 1_u32),
            Element::value(v6("2001:db8::1"), 2_u32),
        ]),
        Set::new(name("ranges"), [Ipv4Addr, InetService]).with_interval().with_elements([Element::key(
            Span {
                from: Value::concat([v4("10.0.0.0"), 80_u16.into()]),
                to: Some(Value::concat([v4("10.0.0.255"), 89_u16.into()])),
            },
        )]),
        Set::map(name("prios"), [Ipv4Addr], MapData::Value(ClassId))
            .with_elements([Element::value(v4("10.0.0.1"), 0x0001_0002_u32)]),
        Set::map(name("targets"), [InetProto, InetService], MapData::Pair(Ipv4Addr, InetService))
            .with_elements([Element::value(
                Value::concat([17_u8.into(), 53_u16.into()]),
                Value::concat([v4("10.0.0.1"), 5353_u16.into()]),
            )]),
        Set::map(name("verdicts"), [InetService], MapData::Verdict).with_elements([
            Element::verdict(80_u16, Verdict::Jump(leaf.clone())),
            Element::verdict(81_u16, Verdict::Goto(leaf.clone())),
            Element::verdict(82_u16, Verdict::Drop),
            Element::verdict(83_u16, Verdict::Accept),
        ]),
    ];
    let ip = || Rule::new("").is(Field::NfProto, NFPROTO_IPV4);
    let ip6 = || Rule::new("").is(Field::NfProto, NFPROTO_IPV6);
    let tcp = || Rule::new("").is(Field::L4Proto, 6_u8);
    let bits = |mask, xor| Expr::Set {
        target: Target::Mark,
        source: Source::Bits { field: Field::Mark, mask, xor },
    };
    let prefix = |op| Expr::Cmp { field: Field::IifName, op, value: Value::ifname_prefix("pw") };
    let forward = Chain::base(name("forward"), ChainKind::Filter, Hook::Forward, Priority(7), Policy::Drop)
        .rule(
            Rule::new("")
                .is(Field::IifName, Value::ifname("eth0"))
                .is_not(Field::OifName, Value::ifname("lo"))
                .accept(),
        )
        .rule(Rule::new("a name's beginning").with(prefix(CmpOp::Eq)))
        .rule(Rule::new("").with(prefix(CmpOp::Ne)))
        .rule(Rule::new("").in_set([Field::IifName], name("uplinks")))
        .rule(Rule::new("").not_in_set([Field::OifGroup], name("kinds")))
        .rule(Rule::new("").in_set([Field::L4Proto, Field::ThDport], name("consts")).counter())
        .rule(ip().in_set([Field::IpSaddr], name("nets4")).not_in_set([Field::IpDaddr], name("nets4")))
        .rule(ip().in_set([Field::IpSaddr, Field::ThSport], name("ranges")))
        .rule(ip6().set_from_map(Target::CtMark, [Field::Ip6Daddr], name("nets6")))
        .rule(ip().set_from_map(Target::Priority, [Field::IpDaddr], name("prios")))
        .rule(ip().in_net(Field::IpSaddr, net("10.0.0.0/8")).not_in_net(Field::IpDaddr, net("10.1.0.0/20")))
        .rule(ip6().in_net(Field::Ip6Saddr, net("fd00::/7")).is(Field::Ip6Daddr, v6("fd00::1")))
        .rule(tcp().verdict_map([Field::ThDport], name("verdicts")))
        .rule(tcp().is(Field::ThDport, 80_u16).is_not(Field::ThSport, 81_u16).reject(Reject::TcpReset))
        .rule(tcp().within(Field::ThDport, 1000_u16, 2000_u16).reject(Reject::PortUnreachable))
        .rule(tcp().with(Expr::Range {
            field: Field::ThDport,
            op: CmpOp::Ne,
            from: 1_u16.into(),
            to: 9_u16.into(),
        }))
        .rule(Rule::new("").is(Field::L4Proto, 17_u8).reject(Reject::AdminProhibited))
        .rule(ip().is(Field::L4Proto, 1_u8).is(Field::IcmpType, 8_u8).accept())
        .rule(ip6().is(Field::L4Proto, 58_u8).within(Field::Icmpv6Type, 133_u8, 137_u8).accept())
        .rule(Rule::new("").any_bit(Field::CtState, ct_state::ESTABLISHED | ct_state::RELATED).accept())
        .rule(Rule::new("").any_bit(Field::CtStatus, ct_status::CONFIRMED | ct_status::DNAT).accept())
        .rule(Rule::new("").is(Field::CtMark, 5_u32).set(Target::CtMark, 0))
        .rule(Rule::new("").is(Field::Mark, 5_u32).set(Target::Mark, 7))
        .rule(Rule::new("").is(Field::Priority, 0_u32).set(Target::Priority, 0x0001_0002))
        .rule(Rule::new("").set_bits(Target::Mark, 0x4000))
        .rule(Rule::new("").with(bits(0xff, 0)))
        .rule(Rule::new("").with(bits(u32::MAX, 0x10)))
        .rule(Rule::new("").with(bits(0xffff, 0x1_0000)))
        .rule(Rule::new("").is(Field::FibSaddrIif, 0_u8).drop())
        .rule(Rule::new("").is(Field::FibSaddrIif, 1_u8).accept())
        .rule(
            Rule::new("")
                .is(Field::FibSaddrType, fib_type::LOCAL)
                .is_not(Field::FibDaddrType, fib_type::BROADCAST),
        )
        .rule(Rule::new("").limit(10, 5).log("dropped ", Some(112)))
        .rule(Rule::new("").limit(10, 50).log("", None))
        .rule(Rule::new("").verdict(Verdict::Continue))
        .rule(Rule::new("").jump(leaf.clone()));
    let raw = Chain::base(name("raw"), ChainKind::Filter, Hook::Output, Priority::RAW, Policy::Accept)
        .rule(Rule::new("").is(Field::ThDport, 53_u16).notrack());
    let dstnat =
        Chain::base(name("dstnat"), ChainKind::Nat, Hook::Prerouting, Priority::DSTNAT, Policy::Accept)
            .rule(ip().dnat_from_map(Family::Ip, [Field::L4Proto, Field::ThDport], name("targets")));
    let plain = Expr::Masquerade { fully_random: false };
    let srcnat =
        Chain::base(name("srcnat"), ChainKind::Nat, Hook::Postrouting, Priority::SRCNAT, Policy::Accept)
            .rule(Rule::new("").is(Field::Mark, 1_u32).masquerade())
            .rule(Rule::new("").with(plain));
    let leaf = Chain::regular(leaf).rule(Rule::new("").verdict(Verdict::Return));
    table.chains = vec![leaf, forward, raw, dstnat, srcnat];
    table
}

#[test]
fn every_statement_is_nfts_own() {
    on_a_node("every_statement_is_nfts_own", || vec![("everything", everything())]);
}
