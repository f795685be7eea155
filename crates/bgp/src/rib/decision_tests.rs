//! Each tie-break alone, and the same result for every order of arrival.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use proptest::prelude::*;

use super::decision::best;
use super::{Interner, Learned, Path};
use crate::message::attribute::{AsPath, Origin, PathAttributes, Segment, SegmentKind};

/// A path as a test writes it; all the same unless said otherwise.
#[derive(Debug, Clone)]
struct Spec {
    local: bool,
    local_pref: Option<u32>,
    as_path: Vec<u32>,
    origin: Origin,
    med: Option<u32>,
    external: bool,
    router_id: u32,
    originator: Option<u32>,
    clusters: usize,
    peer: u8,
}

const PLAIN: Spec = Spec {
    local: false,
    local_pref: None,
    as_path: vec![],
    origin: Origin::Igp,
    med: None,
    external: false,
    router_id: 9,
    originator: None,
    clusters: 0,
    peer: 9,
};

fn path(spec: &Spec, interner: &mut Interner) -> Path {
    let address = |n: u32| Ipv4Addr::from(n);
    let sequence = Segment { kind: SegmentKind::Sequence, asns: spec.as_path.clone() };
    let attributes = PathAttributes {
        origin: spec.origin,
        as_path: AsPath(if spec.as_path.is_empty() { vec![] } else { vec![sequence] }),
        med: spec.med,
        local_pref: spec.local_pref,
        originator_id: spec.originator.map(address),
        cluster_list: vec![address(1); spec.clusters],
        ..PathAttributes::originated(IpAddr::V4(address(7)))
    };
    let learned = Learned {
        peer: IpAddr::V4(Ipv4Addr::new(10, 0, 0, spec.peer)),
        router_id: address(spec.router_id),
        external: spec.external,
    };
    Path {
        learned: (!spec.local).then(|| Arc::new(learned)),
        attributes: interner.intern(attributes),
        usable: true,
    }
}

/// Index of the best.
fn choice(specs: &[Spec]) -> usize {
    let mut interner = Interner::default();
    let paths: Vec<Path> = specs.iter().map(|spec| path(spec, &mut interner)).collect();
    let best = best(paths.iter()).unwrap();
    paths.iter().position(|path| std::ptr::eq(path, best)).unwrap()
}

fn wins(winner: Spec, loser: Spec) {
    assert_eq!(choice(&[winner.clone(), loser.clone()]), 0, "{winner:?} over {loser:?}");
    assert_eq!(choice(&[loser.clone(), winner.clone()]), 1, "{winner:?} over {loser:?}, the other way round");
}

/// The worst at every later step, so that only the step in question can make it win.
fn worst() -> Spec {
    Spec {
        local: false,
        local_pref: Some(100),
        as_path: vec![64600, 2, 3, 4],
        origin: Origin::Incomplete,
        med: Some(1000),
        external: false,
        router_id: 200,
        originator: None,
        clusters: 5,
        peer: 200,
    }
}

/// The best at every step but the one in question.
fn good() -> Spec {
    Spec { local_pref: Some(100), as_path: vec![64600], external: true, router_id: 1, peer: 1, ..PLAIN }
}

#[test]
fn each_step_decides_over_all_later_ones() {
    wins(Spec { local: true, as_path: vec![1; 9], ..worst() }, Spec { local_pref: Some(999), ..good() });
    wins(Spec { local_pref: Some(101), ..worst() }, good());
    wins(Spec { local_pref: None, as_path: vec![], ..worst() }, Spec { local_pref: Some(99), ..good() });
    // (a)
    wins(Spec { as_path: vec![64600], ..worst() }, Spec { as_path: vec![64600, 1], ..good() });
    // (b)
    let short = |spec: Spec| Spec { as_path: vec![64600], ..spec };
    wins(short(Spec { origin: Origin::Igp, ..worst() }), Spec { origin: Origin::Egp, ..good() });
    wins(short(Spec { origin: Origin::Egp, ..worst() }), Spec { origin: Origin::Incomplete, ..good() });
    // (c), within one neighbouring AS; a missing MED is the lowest.
    let igp = |spec: Spec| Spec { origin: Origin::Igp, ..short(spec) };
    wins(igp(Spec { med: Some(1), ..worst() }), Spec { med: Some(2), ..good() });
    wins(igp(Spec { med: None, ..worst() }), Spec { med: Some(1), ..good() });
    // (c) does not compare across neighbouring ASes.
    wins(good(), Spec { as_path: vec![64601], med: Some(0), ..igp(worst()) });
    // (d)
    let med0 = |spec: Spec| Spec { med: None, ..igp(spec) };
    wins(med0(Spec { external: true, ..worst() }), Spec { external: false, ..good() });
    // (f), and ORIGINATOR_ID in place of the identifier
    let out = |spec: Spec| med0(Spec { external: true, ..spec });
    wins(out(Spec { router_id: 1, ..worst() }), Spec { router_id: 2, ..good() });
    wins(out(Spec { originator: Some(1), ..worst() }), Spec { router_id: 2, ..good() });
    wins(good(), out(Spec { originator: Some(2), router_id: 0, ..worst() }));
    // RFC 4456 section 9: cluster list
    let same_id = |spec: Spec| out(Spec { router_id: 1, ..spec });
    wins(same_id(Spec { clusters: 1, ..worst() }), Spec { clusters: 2, ..good() });
    // (g)
    wins(good(), same_id(Spec { clusters: 0, peer: 2, ..worst() }));
}

#[test]
fn med_does_not_depend_on_the_order_of_arrival() {
    // The classic circle: A beats B by identifier, B beats C by identifier, C beats A by MED.
    let a = Spec { as_path: vec![1], med: Some(2), router_id: 1, peer: 1, ..PLAIN };
    let b = Spec { as_path: vec![2], med: None, router_id: 2, peer: 2, ..PLAIN };
    let c = Spec { as_path: vec![1], med: Some(1), router_id: 3, peer: 3, ..PLAIN };
    let all = [a, b, c];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let specs = order.map(|i| all[i].clone());
        assert_eq!(order[choice(&specs)], 1, "A is out by C's MED, and B beats C: {order:?}");
    }
}

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let one =
        (0..3u32, prop::collection::vec(1..3u32, 0..3), 0..2u8, 0..3u32, any::<bool>(), 0..3u32, 0..2usize);
    prop::collection::vec(one, 1..7).prop_map(|all| {
        let spec = |(peer, (pref, as_path, origin, med, external, router_id, clusters))| Spec {
            local_pref: Some(100 + pref / 2),
            as_path,
            origin: if origin == 0 { Origin::Igp } else { Origin::Egp },
            med: Some(med),
            external,
            router_id,
            clusters,
            peer,
            ..PLAIN
        };
        (1u8..).zip(all).map(spec).collect()
    })
}

proptest! {
    #[test]
    fn any_order_of_arrival_gives_the_same_best(specs in specs(), seed in any::<u64>()) {
        let best = &specs[choice(&specs)];
        let mut shuffled = specs.clone();
        let mut rng = crate::session::rng::Rng::new(seed);
        for i in (1..shuffled.len()).rev() {
            let j = usize::try_from(rng.next() % (i as u64 + 1)).unwrap();
            shuffled.swap(i, j);
        }
        prop_assert_eq!(shuffled[choice(&shuffled)].peer, best.peer);
        // A path that is not chosen does not matter once it is gone, unless its MED did.
        let without_med: Vec<Spec> = specs.iter().map(|spec| Spec { med: None, ..spec.clone() }).collect();
        let winner = without_med[choice(&without_med)].peer;
        for lost in without_med.iter().map(|spec| spec.peer).filter(|peer| *peer != winner) {
            let rest: Vec<Spec> = without_med.iter().filter(|spec| spec.peer != lost).cloned().collect();
            prop_assert_eq!(rest[choice(&rest)].peer, winner);
        }
    }
}
