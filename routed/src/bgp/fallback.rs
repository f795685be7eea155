//! While no reflector is up, the claims in the store say where blocks are: what BGP has no route for goes to the node
//! that claims it. A pure core: who is up and the time come in.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podway_bgp::config::{Claims, Role, SpeakerConfig};

use crate::view::BgpRoutes;

/// How long a reflector is up before the claims are needed no more, although it has not told of all of them: those that
/// are left are of nodes that are gone.
const HANDOVER: Duration = Duration::from_secs(30);

/// Whether the claims are needed.
#[derive(Debug, Default)]
pub(super) struct Fallback {
    is_needed: bool,
    /// Since when a reflector is up again.
    up_since: Option<Duration>,
    /// What was made of what.
    made: Option<(Arc<BgpRoutes>, Arc<BgpRoutes>)>,
}

impl Fallback {
    /// Looks at sessions at `now`; the answer: whether it has begun or ended to be needed. `is_covered`: BGP has a route for
    /// every claim. A reflector that has just begun tells its whole table and knows little itself.
    pub(super) fn look(
        &mut self,
        now: Duration,
        config: &SpeakerConfig,
        is_up: impl Fn(IpAddr) -> bool,
        is_covered: impl FnOnce() -> bool,
    ) -> bool {
        let before = self.is_needed;
        let reflectors = config.neighbours.iter().filter(|(_, other)| other.role == Role::Reflector);
        match reflectors.map(|(address, _)| is_up(*address)).max() {
            None => (self.is_needed, self.up_since) = (false, None),
            Some(false) => (self.is_needed, self.up_since) = (true, None),
            Some(true) if self.is_needed => {
                let since = *self.up_since.get_or_insert(now);
                if now >= since + HANDOVER || is_covered() {
                    (self.is_needed, self.up_since) = (false, None);
                }
            }
            Some(true) => {}
        }
        before != self.is_needed
    }

    /// Whether the claims are in use.
    pub(super) fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// When to look again; none: not before sessions or settings change.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.up_since.map(|since| since + HANDOVER)
    }

    /// The claims are others.
    pub(super) fn forget(&mut self) {
        self.made = None;
    }

    /// Whether BGP has a route for every claim of another node.
    pub(super) fn is_covered(learned: &BgpRoutes, claims: &Claims, own: &BTreeSet<IpAddr>) -> bool {
        let mut others = claims.iter().filter(|(_, holders)| holders.is_disjoint(own));
        others.all(|(prefix, _)| learned.routes.contains_key(prefix))
    }

    /// What BGP has, and what the claims add to it.
    pub(super) fn routes(
        &mut self,
        learned: &Arc<BgpRoutes>,
        claims: &Claims,
        own: &BTreeSet<IpAddr>,
    ) -> Arc<BgpRoutes> {
        if !self.is_needed {
            self.made = None;
            return Arc::clone(learned);
        }
        if let Some((from, made)) = &self.made
            && Arc::ptr_eq(from, learned)
        {
            return Arc::clone(made);
        }
        let mut all = BgpRoutes::clone(learned);
        for (prefix, holders) in claims {
            // While a claim moves there may be two holders: the lower one, and never both.
            let holder = holders.iter().next().filter(|_| holders.is_disjoint(own));
            if let Some(holder) = holder {
                all.routes.entry(*prefix).or_insert_with(|| vec![*holder]);
            }
        }
        let all = Arc::new(all);
        self.made = Some((Arc::clone(learned), Arc::clone(&all)));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podway_bgp::config::{ConnectMode, Export, Import, Neighbour, NeighbourOptions, SpeakerOptions};
    use podway_bgp::types::Families;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn config(others: &[(u8, Role)]) -> SpeakerConfig {
        let one = |(last, role): &(u8, Role)| {
            let neighbour = Neighbour {
                name: format!("n{last}"),
                asn: 64512.try_into().unwrap(),
                role: *role,
                connect: ConnectMode::Both,
                port: 179,
                local_address: None,
                families: Families::BOTH,
                import: Import::Claimed,
                export: Export::All,
                options: NeighbourOptions::default(),
            };
            (at(*last), neighbour)
        };
        SpeakerConfig {
            asn: 64512.try_into().unwrap(),
            router_id: [10, 0, 0, 1].into(),
            cluster_id: None,
            hold_time: 90 * SECOND,
            graceful_restart: None,
            neighbours: others.iter().map(one).collect(),
            originated: BTreeMap::new(),
            own_addresses: [at(1)].into(),
            options: SpeakerOptions::default(),
        }
    }

    #[test]
    fn claims_are_needed_while_no_reflector_is_up_and_until_its_table_is_here() {
        let config = config(&[(2, Role::Reflector), (3, Role::Reflector)]);
        let mut fallback = Fallback::default();
        let one = |is_up: bool| move |other: IpAddr| is_up && other == at(3);
        let (none, all) = (|| false, || true);
        assert!(fallback.look(SECOND, &config, one(false), none) && fallback.is_needed());
        assert!(!fallback.look(10 * SECOND, &config, one(true), none) && fallback.is_needed());
        assert_eq!(fallback.deadline(), Some(40 * SECOND));
        assert!(fallback.look(11 * SECOND, &config, one(true), all) && !fallback.is_needed());
        assert!(
            !fallback.look(12 * SECOND, &config, one(true), none) && !fallback.is_needed(),
            "a node has gone"
        );
        // Claims of nodes that are gone, of which no reflector tells; it goes again, and the time begins anew.
        assert!(fallback.look(13 * SECOND, &config, one(false), all) && fallback.is_needed());
        assert!(!fallback.look(14 * SECOND, &config, one(true), none) && fallback.is_needed());
        assert!(!fallback.look(20 * SECOND, &config, one(false), none) && fallback.is_needed());
        assert!(!fallback.look(30 * SECOND, &config, one(true), none) && fallback.is_needed());
        assert!(!fallback.look(59 * SECOND, &config, one(true), none) && fallback.is_needed());
        assert!(fallback.look(60 * SECOND, &config, one(true), none) && !fallback.is_needed());
        assert_eq!(fallback.deadline(), None);
    }

    #[test]
    fn a_mesh_and_a_reflector_need_no_claims() {
        for others in [vec![(2, Role::Mesh)], vec![(2, Role::Client), (3, Role::Mesh)], vec![]] {
            let mut fallback = Fallback::default();
            assert!(!fallback.look(SECOND, &config(&others), |_| false, || false) && !fallback.is_needed());
        }
    }

    #[test]
    fn what_bgp_knows_goes_before_what_claims_say_and_own_blocks_are_left_out() {
        let config = config(&[(2, Role::Reflector)]);
        let mut fallback = Fallback::default();
        let block = |n: u8| ipnet::IpNet::new([10, 244, n, 0].into(), 26).unwrap();
        let claims = Claims::from([
            (block(1), [at(1)].into()),
            (block(2), [at(2)].into()),
            (block(3), [at(3)].into()),
            (block(4), [at(4), at(5)].into()),
        ]);
        let learned = Arc::new(BgpRoutes { synced: true, routes: [(block(3), vec![at(9)])].into() });
        let own = BTreeSet::from([at(1)]);
        assert_eq!(fallback.routes(&learned, &claims, &own), learned, "not needed");
        fallback.look(SECOND, &config, |_| false, || false);
        let all = fallback.routes(&learned, &claims, &own);
        let expected = [(block(2), vec![at(2)]), (block(3), vec![at(9)]), (block(4), vec![at(4)])];
        assert_eq!(all.routes, expected.into());
        assert!(Fallback::is_covered(&all, &claims, &own) && !Fallback::is_covered(&learned, &claims, &own));
        assert!(Arc::ptr_eq(&all, &fallback.routes(&learned, &claims, &own)), "made once");
        fallback.forget();
        assert!(fallback.routes(&learned, &Claims::new(), &own).routes.len() == 1);
    }
}
