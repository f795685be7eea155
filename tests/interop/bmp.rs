//! Monitoring stations: the page's example with a station that is not ours, GoBGP's decoder (`go/bmpd`), which writes a
//! line for each message. What it read is compared with what the neighbours really told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use podway_model::socket::{BgpStationStatus, RoutedReply, RoutedRequest};
use podway_testkit::root_or_skip;
use serde_json::Value;

use crate::examples::{self, Scene, text};
use crate::rig::until;
use crate::say;

const STATION: &str = "10.0.0.9:11019";
const DEAF: &str = "/run/podway/deaf";
const NODE_1: &str = "10.0.0.11";
const NODE_2: &str = "10.0.0.12";
/// Prefixes that BIRD tells at once, and takes back, while the station does not read: with the best routes and both views
/// of them more than may wait.
const MANY: u32 = 40_000;

/// The station, if it was built.
fn judge(test: &str) -> Option<PathBuf> {
    let program = std::env::var_os("PODWAY_JUDGES").map(|dir| PathBuf::from(dir).join("bmpd"));
    let program = program.filter(|program| program.is_file());
    if program.is_none() {
        say(&format!("SKIP {test}: no BMP decoder of somebody else (PODWAY_JUDGES)"));
    }
    program
}

/// A neighbour, or the loc-RIB, as the station has it.
#[derive(Debug, Default, Clone)]
struct Seen {
    up: Value,
    /// Prefixes and next hops, before and after policy.
    tables: [BTreeMap<String, String>; 2],
    ends: [bool; 2],
    statistics: BTreeSet<u64>,
}

/// What the station's latest connection told.
#[derive(Debug, Default)]
struct Heard {
    connection: u64,
    peers: BTreeMap<(u64, String), Seen>,
    downs: Vec<(String, u64)>,
    texts: Vec<String>,
    terminated: bool,
}

impl Heard {
    fn read(scene: &Scene) -> Result<Self> {
        let log = std::fs::read_to_string(scene.log("collector")).unwrap_or_default();
        let mut heard = Self::default();
        for line in log.lines() {
            // The last line may be a half one.
            let Ok(one) = serde_json::from_str::<Value>(line) else { continue };
            heard.take(&one).with_context(|| format!("the station read {line}"))?;
        }
        Ok(heard)
    }

    fn take(&mut self, one: &Value) -> Result<()> {
        let list = |key: &str| crate::rig::words(&one[key]);
        let peer = (one["peerType"].as_u64().unwrap_or(0), one["peer"].as_str().unwrap_or("").to_owned());
        let post = usize::from(one["post"] == true);
        match one["kind"].as_str().unwrap_or("") {
            "listening" | "closed" => {}
            "connected" => {
                let connection = one["connection"].as_u64().unwrap_or(0);
                *self = Self { connection, ..Self::default() };
            }
            "initiation" => self.texts = list("texts"),
            "termination" => self.terminated = true,
            "up" => {
                let seen = Seen { up: one.clone(), ..Seen::default() };
                ensure!(self.peers.insert(peer, seen).is_none(), "it was up");
            }
            "down" => {
                ensure!(self.peers.remove(&peer).is_some(), "it was not up");
                self.downs.push((peer.1, one["reason"].as_u64().unwrap_or(0)));
            }
            "route" => {
                let seen = self.peers.get_mut(&peer).context("it is not up")?;
                for prefix in list("withdrawn") {
                    seen.tables[post].remove(&prefix);
                }
                let hop = one["nextHop"].as_str().unwrap_or("").to_owned();
                seen.tables[post].extend(list("announced").into_iter().map(|prefix| (prefix, hop.clone())));
                seen.ends[post] |= one["end"] == true;
            }
            "statistics" => {
                let seen = self.peers.get_mut(&peer).context("it is not up")?;
                seen.statistics
                    .extend(one["stats"].as_array().into_iter().flatten().filter_map(Value::as_u64));
            }
            other => bail!("{other}: {one}"),
        }
        Ok(())
    }

    fn peer(&self, address: &str) -> Result<&Seen> {
        self.peers.get(&(0, address.to_owned())).with_context(|| format!("{address} is not up"))
    }

    /// Whether a neighbour has these prefixes, each by way of itself, in both tables.
    fn has(&self, address: &str, prefixes: &BTreeSet<String>) -> Result<bool> {
        let seen = self.peer(address)?;
        let wanted: BTreeMap<String, String> =
            prefixes.iter().map(|prefix| (prefix.clone(), address.to_owned())).collect();
        Ok(seen.tables.iter().all(|table| *table == wanted) && seen.ends == [true, true])
    }
}

fn stations(scene: &Scene) -> Result<BgpStationStatus> {
    match scene.ask("reflector", &RoutedRequest::BgpStations)? {
        RoutedReply::BgpStations { stations } => stations.into_iter().next().context("there is a station"),
        other => bail!("an answer to another question: {other:?}"),
    }
}

/// What BIRD says that it tells the reflector.
fn told_by_bird(scene: &Scene) -> Result<BTreeSet<String>> {
    let all = text(&scene.run("node-2", "birdc show route export reflector")?);
    let prefixes =
        all.lines().filter_map(|line| line.split_whitespace().next()).filter(|word| word.contains('/'));
    Ok(prefixes.map(str::to_owned).collect())
}

fn begin_station(scene: &mut Scene, judge: &std::path::Path) -> Result<()> {
    let command = format!("BMPD_DEAF={DEAF} exec {} {STATION}", judge.display());
    scene.begin("collector", "sh", &["-c", &command])
}

fn bird(scene: &Scene, command: &str) -> Result<()> {
    let output = scene.run("node-2", &format!("birdc '{command}'"))?;
    ensure!(output.status.success(), "birdc {command}: {}", text(&output));
    Ok(())
}

fn one(prefix: &str) -> BTreeSet<String> {
    BTreeSet::from([prefix.to_owned()])
}

#[test]
fn a_station_of_somebody_else_hears_what_neighbours_tell() {
    let test = "a_station_of_somebody_else_hears_what_neighbours_tell";
    if !root_or_skip(test) {
        return;
    }
    let Some(judge) = judge(test) else { return };
    examples::run(test, "Monitoring stations", |scene| {
        // The speaker comes first: the station is looked for until it is there.
        scene.start_all()?;
        until("the station is missed", || {
            let station = stations(scene)?;
            Ok(!station.connected && station.last_error.is_some_and(|why| why.contains("refused")))
        })?;
        begin_station(scene, &judge)?;
        until("the station has what both neighbours told", || {
            let heard = Heard::read(scene)?;
            let bird = told_by_bird(scene)?;
            ensure!(bird == one("10.244.2.0/24"), "BIRD tells {bird:?}");
            Ok(heard.has(NODE_1, &one("10.244.1.0/24"))? && heard.has(NODE_2, &bird)?)
        })?;
        let heard = Heard::read(scene)?;
        ensure!(heard.texts.len() == 2 && heard.texts[1] == "s1", "sysDescr and sysName: {:?}", heard.texts);
        let up = &heard.peer(NODE_2)?.up;
        ensure!(up["local"] == "10.0.0.100" && up["asn"] == 64512 && up["routerId"] == NODE_2, "{up}");
        ensure!(up["opens"] == serde_json::json!(["10.0.0.100", NODE_2]), "both OPENs, ours first: {up}");
        let ports = (up["ports"][0].as_u64(), up["ports"][1].as_u64());
        ensure!(ports.0 == Some(179) && ports.1.is_some_and(|port| port > 1023), "{up}");
        until("the station has the best routes", || {
            let heard = Heard::read(scene)?;
            let best = heard.peers.iter().find(|((kind, _), _)| *kind == 3).context("there is a loc-RIB")?.1;
            let prefixes: Vec<&String> = best.tables[0].keys().collect();
            Ok(prefixes == ["10.244.1.0/24", "10.244.2.0/24"] && best.ends[0])
        })?;
        scene.answers_are_the_pages()?;
        until("statistics come", || {
            let wanted = BTreeSet::from([4, 5, 6, 7, 9, 11]);
            Ok(Heard::read(scene)?.peer(NODE_2)?.statistics == wanted)
        })?;
        // A withdrawal, and a session's end with its reason.
        bird(scene, "disable pods")?;
        until("the withdrawal came", || Heard::read(scene)?.has(NODE_2, &BTreeSet::new()))?;
        bird(scene, "enable pods")?;
        until("the route is back", || Heard::read(scene)?.has(NODE_2, &one("10.244.2.0/24")))?;
        bird(scene, "disable reflector")?;
        until("the session's end came", || {
            let heard = Heard::read(scene)?;
            Ok(heard.downs == [(NODE_2.to_owned(), 3)] && heard.peer(NODE_2).is_err())
        })?;
        bird(scene, "enable reflector")?;
        until("the session is back", || Heard::read(scene)?.has(NODE_2, &one("10.244.2.0/24")))?;
        // The station is killed and comes back: all is told again.
        let mut killed = scene.running.remove("collector").context("the station runs")?;
        killed.iter_mut().try_for_each(podway_testkit::process::Process::kill)?;
        until("the station is missed", || Ok(!stations(scene)?.connected))?;
        bird(scene, "disable pods")?;
        std::fs::remove_file(scene.log("collector"))?;
        begin_station(scene, &judge)?;
        until("the station that came back has everything", || {
            let heard = Heard::read(scene)?;
            Ok(heard.has(NODE_1, &one("10.244.1.0/24"))? && heard.has(NODE_2, &BTreeSet::new())?)
        })?;
        // SIGTERM ends the session with a Termination.
        let speaker =
            scene.running.get_mut("reflector").and_then(|all| all.first_mut()).context("it runs")?;
        ensure!(speaker.terminate(crate::rig::LIMIT)?.success(), "ended by SIGTERM");
        until("the station is told of the end", || Ok(Heard::read(scene)?.terminated))
    });
}

#[test]
fn a_station_that_does_not_read_holds_nobody_up() {
    let test = "a_station_that_does_not_read_holds_nobody_up";
    if !root_or_skip(test) {
        return;
    }
    let Some(judge) = judge(test) else { return };
    examples::run(test, "Monitoring stations", |scene| {
        scene.put("collector", DEAF, "")?;
        begin_station(scene, &judge)?;
        scene.start_all()?;
        until("the station is connected", || Ok(stations(scene)?.connected))?;
        // A table that fills every buffer on the way, and more changes than may wait.
        let mut many = String::from("protocol static more { ipv4;\n");
        for n in 0..MANY {
            let _ = writeln!(many, " route {}/32 blackhole;", std::net::Ipv4Addr::from(0x0b00_0000 + n));
        }
        let few = scene.section.file("node-2")?.text.clone();
        scene.put("node-2", "/etc/bird/many.conf", &format!("{few}{many}}}\n"))?;
        let count = |scene: &Scene| -> Result<usize> { Ok(scene.routes("node-1")?.len()) };
        for _ in 0..2 {
            bird(scene, "configure \"/etc/bird/many.conf\"")?;
            until("the other neighbour has all routes", || Ok(count(scene)? == MANY as usize + 2))?;
            bird(scene, "configure \"/etc/bird/bird.conf\"")?;
            until("the other neighbour has none of them", || Ok(count(scene)? == 2))?;
        }
        let status = stations(scene)?;
        ensure!(status.connected && status.dropped > 0, "changes were dropped: {status:?}");
        ensure!(status.waiting <= 64 << 10, "a bounded number waits: {status:?}");
        bird(scene, "configure \"/etc/bird/many.conf\"")?;
        until("the other neighbour has all routes again", || Ok(count(scene)? == MANY as usize + 2))?;
        let output = scene.run("collector", &format!("rm {DEAF}"))?;
        ensure!(output.status.success(), "{}", text(&output));
        until("the station that reads again has what is, and nothing that was", || {
            let told = told_by_bird(scene)?;
            ensure!(told.len() == MANY as usize + 1, "BIRD tells {} routes", told.len());
            let heard = Heard::read(scene)?;
            Ok(heard.has(NODE_2, &told)? && heard.has(NODE_1, &one("10.244.1.0/24"))?)
        })?;
        let heard = Heard::read(scene)?;
        ensure!(heard.connection == 1, "the connection stood: {}", heard.connection);
        ensure!(
            heard.downs.iter().all(|(_, reason)| *reason == 5),
            "nobody's session fell: {:?}",
            heard.downs
        );
        let status = stations(scene)?;
        ensure!(status.told_anew > 0 && status.waiting == 0, "{status:?}");
        Ok(())
    });
}
