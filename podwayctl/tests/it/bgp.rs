//! The real binary and BGP: what documents name, reflectors, filters tried, and what is asked of one peer.

use crate::cluster::{Daemon, join_two_nodes};
use crate::place::Place;
use podway_model::socket::{BgpPathStatus, BgpPeerStatus, RoutedReply, RoutedRequest};

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!("---\n{{apiVersion: podway.io/v1, kind: {kind}, metadata: {{name: {name}}}, spec: {spec}}}\n")
}

const FILTER: &str = "{otherwise: reject, rules: [\
    {match: [{community: [blue]}], set: [{localPref: 200}, {addCommunity: '64512:9'}]}, \
    {match: [{prefix: [{within: 10.0.0.0/8, longest: 24}]}], verdict: accept}]}";

#[test]
fn names_that_do_not_exist_are_refused_and_what_is_named_stays() {
    let place = Place::new();
    let peer = document("BGPPeer", "tor", "{address: 192.0.2.1, asn: 65000, importFilter: f}");
    place.run_with("apply -f -", &peer).expect(
        64,
        "",
        "peers/tor: spec.importFilter: f found, a BGPFilter (there is none) expected",
    );
    let filter = document("BGPFilter", "f", FILTER);
    let unknown = place.run_with("apply -f -", &filter);
    unknown.expect(64, "", "filters/f: spec.rules[0].match[0].community: blue found");
    place.run("get bgpfilters").expect(0, "", "no BGPFilter found");
    let config =
        |sets: &str| document("ClusterConfig", "default", &format!("{{bgp: {{communities: {sets}}}}}"));
    let all = format!("{}{filter}{peer}", config("{blue: ['64512:7']}"));
    place.run_with("apply -f -", &all).expect(
        0,
        "clusterconfig/default created\nbgpfilter/f created\nbgppeer/tor created\n",
        "",
    );
    // What is named cannot be taken away.
    place.run("delete bgpfilter f").expect(1, "", "\"f\" is in use: peers/tor: spec.importFilter names it");
    place.run_with("apply -f -", &config("{red: ['64512:8']}")).expect(
        64,
        "",
        "config: spec.bgp.communities: others found, \"blue\" among them, which filters/f names expected",
    );
    place.run("get bgppeers").expect(
        0,
        "NAME  ADDRESS    PORT  ASN    IMPORT    EXPORT  NODES\n\
         tor   192.0.2.1  179   65000  all by f  none    all\n",
        "",
    );
    place.run("delete bgppeer tor").expect(0, "bgppeer/tor deleted\n", "");
    place.run("delete bgpfilter f").expect(0, "bgpfilter/f deleted\n", "");
}

#[test]
fn reflectors_are_added_listed_and_the_last_one_is_kept() {
    let place = Place::new();
    let config = document("ClusterConfig", "default", "{backend: bgp, bgp: {topology: reflectors}}");
    place.run_with("apply -f -", &config).expect(
        64,
        "",
        "config: spec.bgp.topology: reflectors found, mesh, or a Reflector document for at least one node expected",
    );
    join_two_nodes(&place);
    place.run("bgp reflector list").expect(0, "no node is a reflector\n", "");
    place.run("bgp reflector add n9").expect(3, "", "node n9 not found");
    place.run("bgp reflector add N_1").expect(64, "", "NODE");
    place.run("bgp reflector add n1 --cluster-id 0.0.0.0").expect(64, "", "--cluster-id");
    place.run("bgp reflector add n1").expect(0, "n1 is a reflector\n", "the topology is mesh");
    place.run_with("apply -f -", &config).expect(0, "clusterconfig/default created\n", "");
    place.run("bgp reflector add n2 --cluster-id 10.0.0.9").expect(0, "n2 is a reflector\n", "");
    place.run("bgp reflector list").expect(
        0,
        "NODE  CLUSTER ID   STATE  USED\n\
         n1    (router id)  live   yes\n\
         n2    10.0.0.9     down   yes\n",
        "",
    );
    place.run("bgp reflector remove n2").expect(0, "n2 is a reflector no longer\n", "");
    place.run("bgp reflector remove n2").expect(3, "", "node n2 is no reflector");
    place.run("bgp reflector remove n1").expect(1, "", "the last reflector is in use");
    place.run("delete reflector n1").expect(1, "", "the last reflector is in use");
    let listed: serde_json::Value =
        serde_json::from_str(&place.run("bgp reflector list -o json").out()).expect("JSON");
    assert_eq!(listed[0]["node"], "n1");
}

#[test]
fn a_filter_is_tried_on_a_route() {
    let place = Place::new();
    let sets = document("ClusterConfig", "default", "{bgp: {communities: {blue: ['64512:7']}}}");
    let text = format!("{sets}{}", document("BGPFilter", "f", FILTER));
    let file = place.write("filter.yaml", &text);
    let accepted = "10.1.0.0/16 is accepted by rules[1]\n  next hop:     192.0.2.9\n  AS path:      65000 65001\n  \
                    local pref:   200\n  communities:  64512:7 64512:9\n";
    let line = "bgp filter test f 10.1.0.0/16 --from 192.0.2.9 --as-path 65000,65001 --community 64512:7";
    place.run(&format!("{line} -f {file}")).expect(0, accepted, "");
    place.run(&format!("bgp filter test f 10.1.2.128/25 -f {file}")).expect(
        2,
        "10.1.2.128/25 is rejected by otherwise\n",
        "denied",
    );
    place.run(&format!("bgp filter test g 10.1.0.0/16 -f {file}")).expect(3, "", "BGPFilter g not found");
    place
        .run(&format!("bgp filter test f 10.1.0.0/16 --community 1:2:3:4 -f {file}"))
        .expect_code(64, "1:2:3:4");
    // And from the store.
    place.run_with("apply -f -", &text).expect_code(0, "");
    let json: serde_json::Value =
        serde_json::from_str(&place.run(&format!("{line} -o json")).out()).expect("JSON");
    assert_eq!((&json["accepted"], &json["rule"]), (&true.into(), &1.into()));
    assert_eq!(json["attributes"]["localPref"], 200);
}

#[test]
fn one_peer_is_asked_for_by_address_or_name() {
    let place = Place::new();
    let path = place.path("routed.sock");
    let peer = |name: &str, address: [u8; 4]| BgpPeerStatus {
        name: name.to_owned(),
        address: address.into(),
        asn: 65000,
        state: "Established".to_owned(),
        role: "external".to_owned(),
        since_seconds: 61,
        received: 1,
        advertised: 1,
        stale: 0,
        updates: 0,
        bfd: None,
        kernel: None,
        last_error: None,
        told: Some("malformed AS_PATH (3/11)".to_owned()),
        told_seconds: Some(9),
        ignored: 2,
        remark: Some("attribute 1: value 9".to_owned()),
        leaving: None,
    };
    let at: std::net::IpAddr = [10, 0, 0, 2].into();
    let path_status = move |state: &str| BgpPathStatus {
        prefix: "10.1.0.0/16".parse().expect("a prefix"),
        path_id: 0,
        next_hop: at,
        as_path: "65000".to_owned(),
        local_pref: None,
        med: Some(7),
        originator_id: None,
        communities: vec!["64512:7".to_owned()],
        state: state.to_owned(),
    };
    let _routed = Daemon::start(&path, move |question: RoutedRequest| match question {
        RoutedRequest::BgpPeers => RoutedReply::BgpPeers {
            peers: vec![peer("tor", [10, 0, 0, 2]), peer("both", [10, 0, 0, 3]), peer("both", [10, 0, 0, 4])],
        },
        RoutedRequest::BgpReceived { peer } if peer == at => {
            RoutedReply::BgpPaths { paths: vec![path_status("rejected")] }
        }
        RoutedRequest::BgpAdvertised { .. } => RoutedReply::BgpPaths { paths: vec![] },
        RoutedRequest::BgpReset { words, .. } if words == "Monday" => RoutedReply::Done,
        _ => RoutedReply::Failed { reason: "there is no session with it".to_owned() },
    });
    let socket = format!("--routed-socket {}", path.display());
    for peer in ["tor", "10.0.0.2"] {
        place.run(&format!("bgp received {peer} {socket}")).expect(
            0,
            "PREFIX       NEXT HOP  AS PATH  LOCAL PREF  MED  COMMUNITIES  STATE\n\
             10.1.0.0/16  10.0.0.2  65000    -           7    64512:7      rejected\n",
            "",
        );
    }
    place.run(&format!("bgp advertised tor {socket}")).expect(0, "10.0.0.2 has been told nothing\n", "");
    place.run(&format!("bgp reset tor --words Monday {socket}")).expect(
        0,
        "10.0.0.2 was told that its session begins anew\n",
        "",
    );
    place.run(&format!("bgp refresh tor {socket}")).expect(1, "", "there is no session with it");
    place.run(&format!("bgp received nobody {socket}")).expect(3, "", "\"nobody\" not found");
    place.run(&format!("bgp received both {socket}")).expect(64, "", "10.0.0.3, 10.0.0.4");
    let peers = place.run(&format!("bgp peers {socket}")).out();
    assert!(
        peers.contains("malformed AS_PATH (3/11), 9s ago") && peers.contains("2: attribute 1"),
        "{peers}"
    );
}
