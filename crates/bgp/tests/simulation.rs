//! Many speakers under virtual time: sessions form, tables agree, nothing is lost in a graceful restart, stale routes
//! are swept. Seeds are in the failure message's test name and loop variable; each run repeats exactly.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::needless_range_loop,
    clippy::cast_possible_truncation,
    reason = "numbers of nodes and blocks in these tests are small, and their texts well-formed"
)]

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podway_bgp::config::{Circle, Claims, ConnectMode, Import, Restarted, Role, SpeakerConfig, Standing};
use podway_bgp::topology::{Chooser, Link, Member, Rule, View};
use podway_bgp::{AfterStop, Event};
use podway_model::ids::NodeName;
use sim::{Net, block, config, mesh, neighbour, reflected, v4};

const MINUTE: Duration = Duration::from_secs(60);

fn both(_: usize, _: usize) -> ConnectMode {
    ConnectMode::Both
}

/// One side connects, as `routed` has it.
fn one_sided(i: usize, j: usize) -> ConnectMode {
    if i < j { ConnectMode::Both } else { ConnectMode::Passive }
}

#[test]
fn meshes_of_all_sizes_converge() {
    for (nodes, seed) in [(2, 1), (3, 2), (5, 3), (10, 4), (30, 5)] {
        for mode in [both, one_sided] {
            let mut net = Net::new(mesh(nodes, 3, mode), seed);
            let took = net.until(&format!("mesh of {nodes}, seed {seed}"), MINUTE, Net::converged);
            assert!(took < Duration::from_secs(15), "mesh of {nodes}: {took:?}");
        }
    }
}

#[test]
fn one_reflector_or_three_serve_everybody() {
    for (nodes, reflectors, seed) in [(2, 1, 1), (4, 1, 2), (12, 1, 3), (30, 1, 4), (12, 3, 5), (30, 3, 6)] {
        let mut net = Net::new(reflected(nodes, reflectors, 3), seed);
        net.until(&format!("{nodes} nodes, {reflectors} reflectors"), MINUTE, Net::converged);
        // Quiet: what agrees stays as it is (no loop keeps updates going).
        net.run(Duration::from_secs(1));
        let before = net.messages;
        net.run(Duration::from_secs(30));
        let keepalives = 30 * nodes * reflectors * 2;
        assert!(net.messages - before <= keepalives, "{} messages in 30 s of rest", net.messages - before);
        assert!(net.converged());
    }
}

#[test]
fn lost_connections_heal() {
    for seed in 0..12 {
        let configs = if seed % 2 == 0 { mesh(6, 2, both) } else { reflected(8, 2, 2) };
        let mut net = Net::new(configs, 100 + seed);
        for _ in 0..20 {
            net.run(Duration::from_millis(300));
            net.reset_one();
        }
        net.until(&format!("seed {seed}"), 2 * MINUTE, Net::converged);
    }
}

#[test]
fn a_cut_ends_sessions_by_the_hold_timer_and_heals() {
    for seed in 0..4 {
        let mut net = Net::new(mesh(4, 2, both), 200 + seed);
        net.until("up", MINUTE, Net::converged);
        net.cut.insert((0, 1));
        // Hold time 9 s: the routes go although both do graceful restart.
        let took = net.until("routes of a silent peer go", Duration::from_secs(10), |net| {
            !net.nodes[0].kernel.contains_key(&block(1, 0)) && !net.nodes[1].kernel.contains_key(&block(0, 0))
        });
        assert!(took > Duration::from_secs(5), "only silence ends it: {took:?}");
        assert!(net.reaches(0, 2) && net.reaches(1, 3), "others are not touched");
        net.cut.clear();
        net.until("healed", MINUTE, Net::converged);
    }
}

/// Nobody's kernel loses a route of anybody while a daemon is killed and comes back.
fn restart_without_loss(mut net: Net, victims: &[usize], orderly: bool, pause: Duration) {
    let nodes = net.nodes.len();
    net.until("up", MINUTE, Net::converged);
    let complete = |net: &Net| {
        for (i, j) in (0..nodes).flat_map(|i| (0..nodes).map(move |j| (i, j))).filter(|(i, j)| i != j) {
            assert!(net.reaches(i, j), "n{i} lost n{j}'s routes\n{}", net.report());
        }
    };
    complete(&net);
    let lives: Vec<(usize, Restarted)> = victims
        .iter()
        .map(|i| (*i, if orderly { net.stop(*i, AfterStop::Keep) } else { net.kill(*i) }))
        .collect();
    net.run_while(pause, complete);
    for (i, restarted) in lives {
        net.start(i, Some(restarted));
    }
    net.until_while("back", MINUTE, Net::converged, complete);
    net.run(Duration::from_secs(5));
    complete(&net);
    // Nothing is stale any more, and it stays so when all timers have run out.
    net.run_while(5 * MINUTE, complete);
}

#[test]
fn a_killed_daemon_loses_no_route() {
    for seed in 0..4 {
        restart_without_loss(Net::new(mesh(5, 2, both), seed), &[2], false, Duration::from_millis(500));
        restart_without_loss(Net::new(mesh(5, 2, one_sided), seed), &[0], false, Duration::from_secs(3));
        restart_without_loss(Net::new(mesh(5, 2, one_sided), seed), &[4], false, Duration::from_secs(20));
    }
}

#[test]
fn a_stopped_daemon_loses_no_route() {
    restart_without_loss(Net::new(mesh(4, 2, both), 1), &[1], true, Duration::from_secs(2));
    restart_without_loss(Net::new(reflected(6, 1, 2), 1), &[0], true, Duration::from_secs(2));
}

#[test]
fn a_killed_reflector_or_client_loses_no_route() {
    for seed in 0..4 {
        restart_without_loss(Net::new(reflected(8, 1, 2), seed), &[0], false, Duration::from_secs(1));
        restart_without_loss(Net::new(reflected(8, 1, 2), seed), &[5], false, Duration::from_secs(1));
        restart_without_loss(Net::new(reflected(8, 2, 2), seed), &[0], false, Duration::from_secs(4));
    }
}

#[test]
fn daemons_restarted_together_do_not_wait_for_each_other() {
    let all: Vec<usize> = (0..5).collect();
    restart_without_loss(Net::new(mesh(5, 2, both), 9), &all, false, Duration::from_secs(1));
    let mut net = Net::new(mesh(5, 2, one_sided), 10);
    net.until("up", MINUTE, Net::converged);
    let lives: Vec<Restarted> = all.iter().map(|i| net.kill(*i)).collect();
    for (i, restarted) in lives.into_iter().enumerate() {
        net.start(i, Some(restarted));
    }
    let took = net.until("all back", MINUTE, Net::converged);
    assert!(took < Duration::from_secs(10), "the deferral time is 30 s, it took {took:?}");
}

#[test]
fn a_second_kill_within_the_restart_loses_no_route() {
    let mut net = Net::new(mesh(4, 2, both), 3);
    net.until("up", MINUTE, Net::converged);
    let complete = |net: &Net| assert!((0..3).all(|i| net.reaches(i, 3)), "{}", net.report());
    let restarted = net.kill(3);
    net.run(Duration::from_secs(1));
    net.start(3, Some(restarted.clone()));
    // Killed again as soon as one session is up, before its table is through.
    net.until_while("a session", MINUTE, |net| net.is_established(0, 3), complete);
    let _ = net.kill(3);
    net.run(Duration::from_secs(1));
    complete(&net);
    net.start(3, Some(restarted));
    net.until_while("back", MINUTE, Net::converged, complete);
}

#[test]
fn a_dead_node_is_forgotten_when_the_restart_time_is_over() {
    let mut net = Net::new(mesh(3, 2, both), 4);
    net.until("up", MINUTE, Net::converged);
    drop(net.kill(2));
    net.run(Duration::from_secs(55));
    assert!(net.reaches(0, 2), "kept for 60 s");
    net.run(Duration::from_secs(6));
    assert!(!net.nodes[0].kernel.contains_key(&block(2, 0)) && net.converged(), "{}", net.report());
}

#[test]
fn what_changed_during_a_restart_is_swept() {
    let mut net = Net::new(mesh(4, 3, both), 5);
    net.until("up", MINUTE, Net::converged);
    let restarted = net.kill(1);
    // While node 1 is away, it loses a block, and node 2 loses one that node 1's kernel still has.
    let mut first = config(1, 2);
    first.neighbours = net.nodes[1].config.neighbours.clone();
    net.nodes[1].config = Arc::new(first);
    let mut second = config(2, 1);
    second.neighbours = net.nodes[2].config.neighbours.clone();
    net.configure(2, second);
    net.run(Duration::from_secs(1));
    assert!(net.nodes[0].kernel.contains_key(&block(1, 2)), "stale");
    assert!(net.nodes[1].kernel.contains_key(&block(2, 2)), "still in the kernel of the daemon that is down");
    net.start(1, Some(restarted));
    let took = net.until("swept on both sides", MINUTE, Net::converged);
    assert!(took < Duration::from_secs(10), "by End-of-RIB, not by a timer: {took:?}");
}

#[test]
fn a_rebooted_node_keeps_nobodys_stale_routes() {
    // Power loss: the others notice by hold timer or by the new connection; forwarding state is gone, F says so.
    let mut net = Net::new(mesh(3, 2, both), 6);
    net.until("up", MINUTE, Net::converged);
    net.vanish(2);
    net.run(Duration::from_secs(1));
    net.start(2, None);
    net.until("back", MINUTE, Net::converged);
}

#[test]
fn crashes_cuts_and_resets_in_any_order_end_in_agreement() {
    for seed in 0..16 {
        let configs = match seed % 3 {
            0 => mesh(5, 2, both),
            1 => mesh(5, 2, one_sided),
            _ => reflected(7, 2, 2),
        };
        let nodes = configs.len();
        let mut net = Net::new(configs, 1000 + seed);
        for _ in 0..12 {
            let (kind, i, j) =
                (net.random() % 5, net.random() as usize % nodes, net.random() as usize % nodes);
            match kind {
                0 => {
                    let restarted = net.kill(i);
                    net.run(Duration::from_millis(700));
                    net.start(i, Some(restarted));
                }
                1 => {
                    net.vanish(i);
                    net.run(Duration::from_millis(1500));
                    net.start(i, None);
                }
                2 if i != j => {
                    net.cut.insert((i.min(j), i.max(j)));
                    net.run(Duration::from_secs(4));
                    net.cut.clear();
                }
                3 => {
                    let restarted = net.stop(i, AfterStop::Drop);
                    net.run(Duration::from_millis(300));
                    net.start(i, Some(restarted));
                }
                _ => net.reset_one(),
            }
            net.run(Duration::from_millis(net.nodes.len() as u64 * 50));
        }
        net.until(&format!("seed {seed}"), 10 * MINUTE, Net::converged);
    }
}

#[test]
fn a_node_is_added_and_removed_without_touching_other_sessions() {
    let mut net = Net::new(mesh(4, 2, both), 7);
    net.until("up", MINUTE, Net::converged);
    let logged: Vec<usize> = net.nodes.iter().map(|node| node.log.len()).collect();
    // Node 3 leaves everybody's configuration.
    for i in 0..3 {
        let mut config = (*net.nodes[i].config).clone();
        config.neighbours.remove(&v4(3));
        net.configure(i, config);
    }
    let gone = |net: &Net| (0..3).all(|i| !net.nodes[i].kernel.contains_key(&block(3, 0)));
    net.until("its routes go", Duration::from_secs(1), gone);
    net.run(Duration::from_secs(20));
    for i in 0..3 {
        assert_eq!(net.nodes[i].log.len(), logged[i] + 1, "one session ended\n{}", net.report());
    }
    let before: Vec<usize> = net.nodes.iter().map(|node| node.log.len()).collect();
    for i in 0..3 {
        let mut config = (*net.nodes[i].config).clone();
        config.neighbours.insert(v4(3), neighbour(3, Role::Mesh, ConnectMode::Both));
        config.originated.insert(block(i, 9), v4(i));
        net.configure(i, config);
    }
    net.until("it is back", MINUTE, Net::converged);
    for i in 0..3 {
        assert_eq!(net.nodes[i].log.len(), before[i] + 1, "one session came\n{}", net.report());
    }
}

#[test]
fn a_route_waits_for_its_claim_and_goes_with_it() {
    let mut configs = mesh(2, 1, both);
    for config in &mut configs {
        config.neighbours.values_mut().for_each(|neighbour| neighbour.import = Import::Claimed);
    }
    let mut net = Net::new(configs, 8);
    net.run(Duration::from_secs(5));
    assert!(net.is_established(0, 1) && net.nodes[0].kernel.is_empty(), "no claim, no route");
    let claim = |hop: usize| Claims::from([(block(1, 0), [v4(hop)].into())]);
    net.step(0, Event::Claimed(Arc::new(claim(1))));
    assert_eq!(net.nodes[0].kernel.get(&block(1, 0)), Some(&vec![v4(1)]), "used as soon as it is claimed");
    assert_eq!(net.nodes[0].kernel.len(), 1, "and nothing else");
    net.step(0, Event::Claimed(Arc::new(claim(0))));
    assert!(net.nodes[0].kernel.is_empty(), "another node's claim");
}

#[test]
fn a_switch_from_mesh_to_reflectors_and_back_follows_the_configuration() {
    let nodes = 6;
    let mut net = Net::new(mesh(nodes, 2, both), 11);
    net.until("mesh", MINUTE, Net::converged);
    for (i, config) in reflected(nodes, 1, 2).into_iter().enumerate() {
        net.configure(i, config);
    }
    net.until("reflector", MINUTE, Net::converged);
    assert!((1..nodes).all(|i| net.is_established(0, i)) && !net.is_established(1, 2));
    for (i, config) in mesh(nodes, 2, both).into_iter().enumerate() {
        net.configure(i, config);
    }
    net.until("mesh again", MINUTE, Net::converged);
}

/// Node `i` of a cluster whose topology it sees like this.
fn viewed(i: usize, nodes: usize, view: &View, firm: bool) -> SpeakerConfig {
    let name = |i: usize| format!("n{i}").parse::<NodeName>().unwrap();
    let mut config = config(i, 2);
    for j in (0..nodes).filter(|j| *j != i) {
        let link = Link::new(view, &name(i), &name(j), i < j);
        let mut other = neighbour(j, link.role, link.connect);
        other.options.standing = if firm { Standing::Firm } else { link.standing };
        if link.listed || (firm && link.standing == Standing::Wanted) {
            config.neighbours.insert(v4(j), other);
        } else if !firm {
            let circle = config
                .options
                .circles
                .iter()
                .position(|c| (c.template.role, c.template.connect) == (link.role, link.connect));
            let circle = circle.unwrap_or_else(|| {
                config.options.circles.push(Circle { members: BTreeMap::new(), template: other });
                config.options.circles.len() - 1
            });
            config.options.circles[circle].members.insert(v4(j), format!("n{j}"));
        }
    }
    config
}

fn reflected_by(all: &[usize]) -> View {
    View::Reflectors(all.iter().map(|i| format!("n{i}").parse().unwrap()).collect())
}

/// A cluster goes from view to view, each node within two minutes in its own time; `complete` at every instant.
fn walk(nodes: usize, views: &[View], seed: u64, firm: bool, complete: impl Fn(&Net) + Copy) -> Net {
    let mut net = Net::new((0..nodes).map(|i| viewed(i, nodes, &views[0], firm)).collect(), seed);
    net.until(&format!("up, seed {seed}"), MINUTE, |net| {
        (0..nodes).all(|i| (0..nodes).all(|j| i == j || net.reaches(i, j)))
    });
    for view in &views[1..] {
        let begin = net.now;
        let mut order: Vec<(Duration, usize)> =
            (0..nodes).map(|i| (begin + Duration::from_millis(net.random() % 120_000), i)).collect();
        order.sort_unstable();
        for (at, i) in order {
            net.run_while(at - net.now, complete);
            net.configure(i, viewed(i, nodes, view, firm));
            complete(&net);
        }
        net.until_while(
            &format!("sessions of {view:?} and no others, seed {seed}"),
            4 * MINUTE,
            |net| {
                let name = |i: usize| format!("n{i}").parse::<NodeName>().unwrap();
                let wanted = |i: usize, j: usize| {
                    *view == View::Mesh || view.reflects(&name(i)) || view.reflects(&name(j))
                };
                let pairs = (0..nodes).flat_map(|i| (0..i).map(move |j| (i, j)));
                pairs.into_iter().all(|(i, j)| net.is_established(i, j) == wanted(i, j))
            },
            complete,
        );
    }
    net.run_while(5 * MINUTE, complete);
    net
}

fn all_reach_all(net: &Net) {
    let nodes = net.nodes.len();
    for (i, j) in (0..nodes).flat_map(|i| (0..nodes).map(move |j| (i, j))).filter(|(i, j)| i != j) {
        assert!(net.reaches(i, j), "n{i} lost n{j}'s routes\n{}", net.report());
    }
}

#[test]
fn topologies_change_without_a_missing_route_while_views_differ() {
    let views = [
        View::Mesh,
        reflected_by(&[0, 1, 2]),
        // By hand, or because nodes come and go: one reflector is another one, then all are.
        reflected_by(&[1, 2, 3]),
        reflected_by(&[6, 7]),
        View::Mesh,
        reflected_by(&[4]),
    ];
    for seed in 0..6 {
        let net = walk(9, &views, 300 + seed, false, all_reach_all);
        // Nothing of the mesh is left: each is told of everybody by its reflector.
        let told: Vec<usize> =
            net.nodes[0].speaker.as_ref().unwrap().peers().iter().map(|p| p.usable).collect();
        assert_eq!(told, [8 * 3], "seed {seed}");
    }
}

/// A cluster whose nodes choose by themselves, each by what it has heard of the others by then.
struct Choosing {
    net: Net,
    choosers: Vec<Chooser>,
    views: Vec<View>,
    /// When each node came, and when it went.
    there: Vec<(Duration, Duration)>,
    /// How much later than it happens a node hears of it.
    lag: Vec<Duration>,
    threshold: usize,
}

impl Choosing {
    fn new(nodes: usize, threshold: usize, seed: u64) -> Self {
        let mut net = Net::new((0..nodes).map(|i| config(i, 2)).collect(), seed);
        (0..nodes).for_each(|i| net.vanish(i));
        let lag = (0..nodes).map(|_| Duration::from_millis(net.random() % 120_000)).collect();
        let name = |i: usize| format!("n{i}").parse::<NodeName>().unwrap();
        Self {
            net,
            choosers: (0..nodes).map(|i| Chooser::new(name(i))).collect(),
            views: vec![View::Mesh; nodes],
            there: vec![(Duration::MAX, Duration::MAX); nodes],
            lag,
            threshold,
        }
    }

    fn is_there(&self, i: usize) -> bool {
        let (came, went) = self.there[i];
        came <= self.net.now && self.net.now < went
    }

    fn come(&mut self, i: usize) {
        self.there[i] = (self.net.now, Duration::MAX);
        self.look(i);
        self.net.start(i, None);
    }

    /// Node `i` looks at what it has heard by now.
    fn look(&mut self, i: usize) {
        let then = self.net.now.saturating_sub(self.lag[i]);
        // Who comes hears all that is so.
        let heard = |j: usize| {
            let (came, went) = self.there[j];
            let at = then.max(self.there[i].0);
            j == i || (came <= at && at < went)
        };
        let known: Vec<usize> = (0..self.there.len()).filter(|j| heard(*j)).collect();
        let member = |j: &usize| {
            let one = Member { zone: Some(format!("z{}", j % 3)), live: true, can_reflect: true };
            (format!("n{j}").parse::<NodeName>().unwrap(), one)
        };
        let members: BTreeMap<NodeName, Member> = known.iter().map(member).collect();
        let up = &self.net.nodes[i].up;
        let is_up = |name: &NodeName| name.as_str()[1..].parse().is_ok_and(|j: usize| up.contains(&v4(j)));
        self.choosers[i].follow(Rule::Auto { threshold: self.threshold, by_hand: BTreeSet::new() }, members);
        self.views[i] = self.choosers[i].view(self.net.now, is_up);
        let mut config = viewed(i, self.there.len(), &self.views[i], false);
        let is_known = |address: &std::net::IpAddr| known.iter().any(|j| v4(*j) == *address);
        config.neighbours.retain(|address, _| is_known(address));
        config.options.circles.iter_mut().for_each(|circle| circle.members.retain(|a, _| is_known(a)));
        config.options.circles.retain(|circle| !circle.members.is_empty());
        if *self.net.nodes[i].config != config {
            self.net.configure(i, config);
        }
    }

    /// Lets time pass; `patience`: how long a node is there before everybody must reach it.
    fn run(&mut self, time: Duration, patience: Duration) {
        let end = self.net.now + time;
        while self.net.now < end {
            let old: Vec<usize> = (0..self.there.len())
                .filter(|i| self.is_there(*i) && self.there[*i].0 + patience <= self.net.now)
                .collect();
            self.net.run_while(Duration::from_secs(1), |net| {
                for (i, j) in
                    old.iter().flat_map(|i| old.iter().map(move |j| (*i, *j))).filter(|(i, j)| i != j)
                {
                    assert!(net.reaches(i, j), "n{i} lost n{j}'s routes\n{}", net.report());
                }
            });
            (0..self.there.len())
                .filter(|i| self.is_there(*i))
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|i| self.look(i));
        }
    }
}

#[test]
fn a_cluster_that_grows_beyond_the_threshold_and_shrinks_again_loses_no_route() {
    for seed in 0..2 {
        let mut cluster = Choosing::new(16, 8, 320 + seed);
        // A node that comes is known to the slowest after two minutes, and all sessions are there a moment later.
        let patience = 3 * MINUTE;
        (0..7).for_each(|i| cluster.come(i));
        cluster.run(4 * MINUTE, patience);
        assert!(cluster.views.iter().all(|view| *view == View::Mesh));
        for i in 7..16 {
            cluster.come(i);
            cluster.run(Duration::from_secs(20), patience);
        }
        cluster.run(8 * MINUTE, patience);
        let view = cluster.views[0].clone();
        assert!(matches!(&view, View::Reflectors(all) if all.len() == 3), "{view:?}");
        assert!(cluster.views.iter().all(|other| *other == view), "seed {seed}: {:?}", cluster.views);
        let sessions: usize = cluster.net.nodes.iter().map(|node| node.up.len()).sum();
        assert_eq!(sessions, 2 * (3 + 3 * 13), "three reflectors, and everybody with them");
        // Nodes leave one after the other, reflectors among them: what is theirs goes, and nothing else. Between two of
        // them there is time to replace a reflector: three that end within a minute are a failure.
        for i in 0..9 {
            cluster.there[i].1 = cluster.net.now;
            let _ = cluster.net.stop(i, AfterStop::Drop);
            cluster.run(Duration::from_secs(70), patience);
        }
        cluster.run(8 * MINUTE, patience);
        assert!((9..16).all(|i| cluster.views[i] == View::Mesh));
        assert!((9..16).all(|i| cluster.net.nodes[i].up.len() == 6), "{}", cluster.net.report());
    }
}

/// Seeds of what is random: `PODWAY_SEEDS` says how many, or as many as the gate has time for; `PODWAY_SEED` names one.
#[expect(clippy::disallowed_methods, reason = "a test is told by its environment how much time there is")]
fn seeds(few: u64) -> std::ops::Range<u64> {
    let one = std::env::var("PODWAY_SEED").ok().and_then(|text| text.parse().ok());
    if let Some(seed) = one {
        return seed..seed + 1;
    }
    0..std::env::var("PODWAY_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(few)
}

#[test]
fn topologies_change_and_daemons_are_killed_meanwhile_and_no_route_is_missing_of_any_seed() {
    for seed in seeds(6) {
        let mut net = Net::new(vec![config(0, 0)], 5000 + seed);
        let nodes = 4 + net.random() as usize % 6;
        let view = |net: &mut Net| match net.random() % 3 {
            0 => View::Mesh,
            _ => {
                let first = net.random() as usize % nodes;
                let several = 1 + net.random() as usize % 3;
                reflected_by(&(first..first + several).map(|i| i % nodes).collect::<Vec<_>>())
            }
        };
        let views: Vec<View> = (0..4).map(|_| view(&mut net)).collect();
        let mut net = Net::new((0..nodes).map(|i| viewed(i, nodes, &views[0], false)).collect(), 6000 + seed);
        let reach = |net: &Net| (0..nodes).all(|i| (0..nodes).all(|j| i == j || net.reaches(i, j)));
        net.until(&format!("up, seed {seed}, {nodes} nodes, {views:?}"), MINUTE, reach);
        let always = |net: &Net| {
            let pairs = (0..nodes).flat_map(|i| (0..nodes).map(move |j| (i, j)));
            let missing: Vec<(usize, usize)> =
                pairs.filter(|(i, j)| i != j && !net.reaches(*i, *j)).collect();
            assert!(missing.is_empty(), "seed {seed}, {views:?}: {missing:?} are missing\n{}", net.report());
        };
        for view in &views[1..] {
            let mut order: Vec<(Duration, usize)> =
                (0..nodes).map(|i| (net.now + Duration::from_millis(net.random() % 120_000), i)).collect();
            order.sort_unstable();
            for (at, i) in order {
                if net.now < at {
                    net.run_while(at - net.now, always);
                }
                net.configure(i, viewed(i, nodes, view, false));
                if net.random().is_multiple_of(3) {
                    let victim = net.random() as usize % nodes;
                    let restarted = net.kill(victim);
                    let away = Duration::from_millis(50 + net.random() % 3000);
                    net.run_while(away, always);
                    net.start(victim, Some(restarted));
                }
            }
            net.run_while(3 * MINUTE, always);
            net.nobody_is_surprised();
        }
    }
}

#[test]
fn a_change_that_breaks_before_it_makes_is_found() {
    let lost = std::cell::Cell::new(false);
    let look = |net: &Net| {
        let nodes = net.nodes.len();
        let all = (0..nodes).all(|i| (0..nodes).all(|j| i == j || net.reaches(i, j)));
        lost.set(lost.get() || !all);
    };
    let _ = walk(9, &[View::Mesh, reflected_by(&[0, 1, 2])], 300, true, look);
    assert!(lost.get(), "the simulation sees routes that are missing for an instant");
}

#[test]
fn a_node_that_only_one_side_wants_to_let_go_keeps_its_session() {
    let nodes = 5;
    let reflectors = reflected_by(&[0]);
    let mut net = Net::new((0..nodes).map(|i| viewed(i, nodes, &View::Mesh, false)).collect(), 310);
    net.until("up", MINUTE, Net::converged);
    // Nodes 3 and 4 do not hear of it for an hour.
    for i in 0..3 {
        net.configure(i, viewed(i, nodes, &reflectors, false));
    }
    net.run_while(60 * MINUTE, all_reach_all);
    assert!(net.is_established(1, 3) && net.is_established(3, 4), "{}", net.report());
    assert!(!net.is_established(1, 2), "both want it: {}", net.report());
    for i in 3..nodes {
        net.configure(i, viewed(i, nodes, &reflectors, false));
    }
    let gone = |net: &Net| !net.is_established(1, 3) && !net.is_established(3, 4);
    net.until_while("they let go too", MINUTE, gone, all_reach_all);
}

#[test]
fn a_reflector_that_is_not_there_keeps_the_mesh_up() {
    let nodes = 5;
    let mut net = Net::new((0..nodes).map(|i| viewed(i, nodes, &View::Mesh, false)).collect(), 311);
    net.until("up", MINUTE, Net::converged);
    let complete = |net: &Net| {
        let alive = [1, 2, 3, 4];
        for (i, j) in alive.iter().flat_map(|i| alive.map(|j| (*i, j))).filter(|(i, j)| i != j) {
            assert!(net.reaches(i, j), "n{i} lost n{j}'s routes\n{}", net.report());
        }
    };
    net.vanish(0);
    for i in 1..nodes {
        net.configure(i, viewed(i, nodes, &reflected_by(&[0]), false));
    }
    net.run_while(30 * MINUTE, complete);
    let statuses = net.nodes[1].speaker.as_ref().unwrap().peers();
    let said = statuses.iter().find(|peer| peer.address == v4(2)).and_then(|peer| peer.leaving.clone());
    assert_eq!(said.as_deref(), Some("3 prefixes have another way"));
}

#[test]
fn a_node_whose_reflector_is_none_to_others_is_served() {
    // Node 4 takes node 3 for a reflector, because its sessions to the three others have been down for long.
    let nodes = 6;
    let all = reflected_by(&[0, 1, 2]);
    let mut net = Net::new((0..nodes).map(|i| viewed(i, nodes, &all, false)).collect(), 312);
    let reach = |net: &Net| (0..nodes).all(|i| (0..nodes).all(|j| i == j || net.reaches(i, j)));
    net.until("up", MINUTE, reach);
    for reflector in 0..3 {
        net.cut.insert((reflector, 4));
    }
    net.run(MINUTE);
    assert!(!net.reaches(4, 5) && !net.reaches(5, 4), "its routes go by the hold timer");
    net.configure(4, viewed(4, nodes, &reflected_by(&[0, 1, 2, 3]), false));
    let back = |net: &Net| {
        (0..nodes)
            .all(|i| net.nodes[i].speaker.is_some() && (i == 4 || net.reaches(4, i) && net.reaches(i, 4)))
    };
    net.until("everybody reaches it by way of node 3", MINUTE, back);
    net.cut.clear();
    net.until("its reflectors are back", 3 * MINUTE, |net| (0..3).all(|i| net.is_established(i, 4)));
    net.configure(4, viewed(4, nodes, &all, false));
    net.until_while("it lets go of node 3", MINUTE, |net| !net.is_established(3, 4), all_reach_all);
}

#[test]
fn clients_talk_through_the_reflector_with_their_own_next_hops() {
    let mut configs = reflected(3, 1, 1);
    configs[0].cluster_id = Some("1.2.3.4".parse().unwrap());
    let mut net = Net::new(configs, 12);
    net.until("up", MINUTE, Net::converged);
    let routes = net.nodes[1].speaker.as_ref().unwrap().routes();
    let reflected = routes.iter().find(|route| route.prefix == block(2, 0)).unwrap();
    assert_eq!((reflected.next_hop, reflected.from), (v4(2), Some(v4(0))));
    assert_eq!(reflected.originator_id.map(std::net::IpAddr::V4), Some(v4(2)));
    let direct = routes.iter().find(|route| route.prefix == block(0, 0)).unwrap();
    assert_eq!(direct.originator_id, None);
    assert!(config(0, 0).mistakes().is_empty());
}
