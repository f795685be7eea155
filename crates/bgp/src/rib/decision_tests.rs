//! Each tie-break alone, and the same result for every order of arrival.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use proptest::prelude::*;

use super::decision::{equal, ranked};
use super::{Interner, Learned, Path, Rules, Shared};
use crate::config::{Med, Multipath};
use crate::message::attribute::{AsPath, LLGR_STALE, Origin, PathAttributes, Segment, SegmentKind, kind};

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
    long_lived_stale: bool,
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
    long_lived_stale: false,
};

fn path(spec: &Spec, interner: &mut Interner) -> Path {
    let address = |n: u32| Ipv4Addr::from(n);
    let sequence = Segment { kind: SegmentKind::Sequence, asns: spec.as_path.clone() };
    let mut attributes = PathAttributes {
        origin: spec.origin,
        as_path: AsPath(if spec.as_path.is_empty() { vec![] } else { vec![sequence] }),
        med: spec.med,
        local_pref: spec.local_pref,
        originator_id: spec.originator.map(address),
        cluster_list: vec![address(1); spec.clusters],
        ..PathAttributes::originated(IpAddr::V4(address(7)))
    };
    if spec.long_lived_stale {
        attributes.add_member(kind::COMMUNITIES, LLGR_STALE.to_be_bytes());
    }
    let learned = Learned {
        peer: IpAddr::V4(Ipv4Addr::new(10, 0, 0, spec.peer)),
        router_id: address(spec.router_id),
        external: spec.external,
    };
    let attributes = interner.intern(attributes);
    let (learned, received) = ((!spec.local).then(|| Arc::new(learned)), Arc::clone(&attributes));
    Path::new(Arc::new(Shared { learned, received, attributes, usable: true }), 0)
}

/// Index of the best.
fn choice(specs: &[Spec]) -> usize {
    choices(specs, Rules::default(), |paths, rules| equal(paths.iter(), rules).into_iter().take(1).collect())
        [0]
}

/// Indices of the paths that `select` gives.
fn choices(
    specs: &[Spec],
    rules: Rules,
    select: impl for<'a> Fn(&'a [Path], &Rules) -> Vec<&'a Path>,
) -> Vec<usize> {
    let mut interner = Interner::default();
    let paths: Vec<Path> = specs.iter().map(|spec| path(spec, &mut interner)).collect();
    let at = |chosen: &Path| paths.iter().position(|path| std::ptr::eq(path, chosen)).unwrap();
    select(&paths, &rules).into_iter().map(at).collect()
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
        long_lived_stale: false,
    }
}

/// The best at every step but the one in question.
fn good() -> Spec {
    Spec { local_pref: Some(100), as_path: vec![64600], external: true, router_id: 1, peer: 1, ..PLAIN }
}

#[test]
fn each_step_decides_over_all_later_ones() {
    wins(Spec { local: true, as_path: vec![1; 9], ..worst() }, Spec { local_pref: Some(999), ..good() });
    // RFC 9494 section 4.3: long-lived stale is the last resort.
    wins(worst(), Spec { local_pref: Some(999), long_lived_stale: true, ..good() });
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

/// The peers of the paths that count as equal, the best first.
fn equals(specs: &[Spec], rules: Rules) -> Vec<u8> {
    let all = choices(specs, rules, |paths, rules| equal(paths.iter(), rules));
    all.into_iter().map(|at| specs[at].peer).collect()
}

#[test]
fn med_can_be_compared_always_and_a_missing_one_be_the_worst() {
    let rules =
        |always, missing_is_worst| Rules { med: Med { always, missing_is_worst }, ..Rules::default() };
    let low = Spec { as_path: vec![1], med: Some(1), router_id: 9, peer: 1, ..PLAIN };
    let high = Spec { as_path: vec![2], med: Some(2), router_id: 1, peer: 2, ..PLAIN };
    let none = Spec { as_path: vec![1], med: None, router_id: 5, peer: 3, ..PLAIN };
    let best = |specs: &[&Spec], rules| {
        let all: Vec<Spec> = specs.iter().map(|spec| (*spec).clone()).collect();
        equals(&all, rules)[0]
    };
    assert_eq!(best(&[&low, &high], rules(false, false)), 2, "different ASes: the identifier decides");
    assert_eq!(best(&[&low, &high], rules(true, false)), 1);
    assert_eq!(best(&[&low, &none], rules(false, false)), 3, "missing is 0");
    assert_eq!(best(&[&low, &none], rules(false, true)), 1);
    assert_eq!(best(&[&high, &none], rules(true, true)), 2);
}

#[test]
fn paths_equal_up_to_the_interior_cost_are_used_together() {
    let rules = |relax| Rules { multipath: Multipath { limit: 8, relax }, ..Rules::default() };
    let path = |peer: u8| Spec { as_path: vec![1], peer, router_id: u32::from(peer), ..PLAIN };
    let all = [path(3), path(1), path(2)];
    assert_eq!(equals(&all, rules(false)), [1, 2, 3], "the best first, by identifier");
    // Each step up to (e) keeps a path out.
    for worse in [
        Spec { local_pref: Some(99), ..path(2) },
        Spec { as_path: vec![1, 2], ..path(2) },
        Spec { origin: Origin::Egp, ..path(2) },
        Spec { med: Some(1), ..path(2) },
        Spec { long_lived_stale: true, ..path(2) },
    ] {
        assert_eq!(equals(&[path(3), worse.clone(), path(1)], rules(true)), [1, 3], "{worse:?}");
    }
    let outside = |peer| Spec { external: true, ..path(peer) };
    assert_eq!(
        equals(&[outside(3), path(1), outside(2)], rules(true)),
        [2, 3],
        "external and internal never mix"
    );
    // Other neighbouring ASes only where configuration says so.
    let other = Spec { as_path: vec![2], ..path(2) };
    assert_eq!(equals(&[path(1), other.clone(), path(3)], rules(false)), [1, 3]);
    assert_eq!(equals(&[path(1), other, path(3)], rules(true)), [1, 2, 3]);
    // The later tie-breaks do not keep a path out, they order.
    assert_eq!(equals(&[Spec { clusters: 3, ..path(1) }, path(1)], rules(false)).len(), 2);
}

#[test]
fn ranks_are_the_best_and_then_the_best_of_the_rest() {
    // The circle of MEDs: A is out by C's MED as long as C is there.
    let a = Spec { as_path: vec![1], med: Some(2), router_id: 1, peer: 1, ..PLAIN };
    let b = Spec { as_path: vec![2], med: None, router_id: 2, peer: 2, ..PLAIN };
    let c = Spec { as_path: vec![1], med: Some(1), router_id: 3, peer: 3, ..PLAIN };
    let specs = [a, b, c];
    let rank = |limit| {
        let all = choices(&specs, Rules::default(), |paths, rules| ranked(paths.iter(), rules, limit));
        all.into_iter().map(|at| specs[at].peer).collect::<Vec<_>>()
    };
    assert_eq!((rank(1), rank(2), rank(9)), (vec![2], vec![2, 3], vec![2, 3, 1]));
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
        let rules = Rules { multipath: Multipath { limit: 8, relax: seed % 2 == 0 }, ..Rules::default() };
        prop_assert_eq!(equals(&specs, rules), equals(&shuffled, rules));
        let ranks = |specs: &[Spec]| -> Vec<u8> {
            let all = choices(specs, rules, |paths, rules| ranked(paths.iter(), rules, usize::MAX));
            all.into_iter().map(|at| specs[at].peer).collect()
        };
        prop_assert_eq!(ranks(&specs), ranks(&shuffled));
        // A path that is not chosen does not matter once it is gone, unless its MED did.
        let without_med: Vec<Spec> = specs.iter().map(|spec| Spec { med: None, ..spec.clone() }).collect();
        let winner = without_med[choice(&without_med)].peer;
        for lost in without_med.iter().map(|spec| spec.peer).filter(|peer| *peer != winner) {
            let rest: Vec<Spec> = without_med.iter().filter(|spec| spec.peer != lost).cloned().collect();
            prop_assert_eq!(rest[choice(&rest)].peer, winner);
        }
    }
}
