//! What goes wrong, and what operators do.

use podway_model::cluster::{Claim, Released, decode, encode};
use podway_model::keys::Key;

use super::super::rig::{EPOCH, seconds};
use super::world::{Happening, World};

impl World {
    /// One thing goes wrong.
    pub(super) fn chaos(&mut self) {
        let node = self.any_node();
        match self.below(100) {
            0..20 => {
                self.nodes[node].is_cut = true;
                let long = self.below(10) == 0;
                let after = self.up_to(if long { 600_000 } else { 20_000 });
                self.at(after, Happening::Reconnect(node));
                self.at(seconds(2), Happening::NoticeCut(node));
                self.tell(format!("n{node} is cut off for {after:?}"));
            }
            20..35 => {
                self.crash(node);
                let after = self.up_to(20_000);
                self.at(after, Happening::Start(node));
                self.tell(format!("n{node} crashes for {after:?}"));
            }
            35..42 => {
                self.reboot(node);
                let after = self.up_to(30_000);
                self.at(after, Happening::Start(node));
                self.tell(format!("n{node} reboots for {after:?}"));
            }
            42..50 => self.mem.compact(),
            50..58 => self.nodes[node].seen = None,
            58..70 => {
                let hold = self.below(2) == 0;
                self.release(node, hold);
            }
            70..76 => {
                let hours = i64::try_from(self.below(60)).unwrap() - 30;
                self.nodes[node].skew += hours * 3600;
                self.nodes[node].most_skew = self.nodes[node].most_skew.max(self.nodes[node].skew);
                self.tell_time(node);
            }
            76..80 => self.spoil(node),
            80..84 => {
                self.put_pools(true);
                let after = self.up_to(10_000);
                self.tell(format!("pools are disabled for {after:?}"));
                for (key, value) in self.pools(false) {
                    self.at(after, Happening::Operator(key, Some(value)));
                }
            }
            84..98 => {
                let load = self.below(if self.seed.is_multiple_of(2) { 50 } else { 150 });
                self.nodes[node].load = load;
            }
            _ => self.strike(),
        }
    }

    /// `podwayctl node release`, key after key.
    fn release(&mut self, node: usize, hold: bool) {
        self.tell(format!("n{node} is released, hold: {hold}"));
        let name = self.nodes[node].me.node.clone();
        let mut after = self.up_to(20);
        for entry in self.mem.list(&[format!("claims/{name}/")]).entries {
            let Ok(Key::Claim(_, block)) = entry.key.parse() else { continue };
            if hold {
                let at_unix_seconds = EPOCH + self.now.as_secs();
                let released = encode(&Released { at_unix_seconds, former_owner: name.clone() });
                self.at(after, Happening::Operator(Key::Released(block).to_string(), Some(released)));
                after += self.up_to(20);
            }
            self.at(after, Happening::Operator(entry.key, None));
            after += self.up_to(20);
        }
        for key in [Key::Node(name.clone()), Key::Live(name)] {
            self.at(after, Happening::Operator(key.to_string(), None));
            after += self.up_to(20);
        }
    }

    /// A value that cannot be used, mended after a while; a node mends its own.
    fn spoil(&mut self, node: usize) {
        let name = self.nodes[node].me.node.clone();
        let own = self.mem.list(&[format!("claims/{name}/")]).entries;
        let key = match self.below(3) {
            0 => Key::Config.to_string(),
            1 => Key::Node(name).to_string(),
            _ => match own.first() {
                Some(entry) => entry.key.clone(),
                None => return,
            },
        };
        self.tell(format!("{key} is spoilt"));
        self.mem.put(&key, b"{\"schema\":99}", None).unwrap();
        if key == Key::Config.to_string() {
            let after = self.up_to(10_000);
            self.at(after, Happening::Operator(key, Some(br#"{"schema":1}"#.to_vec())));
        }
    }

    /// The store is wiped, or restored from a backup: once, in some seeds.
    fn strike(&mut self) {
        match (self.seed % 4, self.was_wiped, self.backup.take()) {
            (0, false, _) => {
                self.tell("the store is wiped".into());
                self.was_wiped = true;
                let keys: Vec<String> =
                    self.mem.list(&[String::new()]).entries.into_iter().map(|entry| entry.key).collect();
                self.mem.wipe();
                for key in keys {
                    self.note_deleted(&key, true);
                }
                let after = seconds(1) + self.up_to(40_000);
                for (key, value) in self.pools(false) {
                    self.at(after, Happening::Operator(key, Some(value)));
                }
            }
            (1, false, Some(backup)) if backup.revision() < self.mem.revision() => {
                self.tell(format!("the store is restored to revision {}", backup.revision()));
                self.was_wiped = true;
                let before = self.mem.list(&[String::new()]).entries;
                self.mem = backup;
                self.restores += 1;
                for entry in before {
                    let now = self.mem.entry(&entry.key);
                    if now.is_none_or(|now| now.create_revision != entry.create_revision) {
                        self.note_deleted(&entry.key, true);
                    }
                }
                // What a client knows is not this store any more.
                for node in 0..self.nodes.len() {
                    self.nodes[node].seen = None;
                    self.nodes[node].lease = None;
                }
            }
            (1, false, _) => self.backup = Some(self.mem.clone()),
            _ => {}
        }
    }

    /// Everything is mended: whoever is cut off comes back, whoever is down starts, no block is held back.
    pub(super) fn make_peace(&mut self) {
        self.tell("peace".into());
        self.is_quiet = true;
        for entry in self.mem.list(&["released/".to_owned()]).entries {
            self.mem.delete(&entry.key);
        }
        // A claim that was spoilt while its node did not use it is an operator's to look at.
        for entry in self.mem.list(&["claims/".to_owned()]).entries {
            if decode::<Claim>(&entry.value).is_err() {
                self.mem.delete(&entry.key);
                self.note_deleted(&entry.key, true);
            }
        }
        self.put_pools(false);
        self.mem.put("config", br#"{"schema":1}"#, None).unwrap();
        for node in 0..self.nodes.len() {
            self.nodes[node].skew = 0;
            self.at(seconds(1), Happening::Start(node));
            self.at(seconds(1), Happening::Reconnect(node));
        }
    }
}
