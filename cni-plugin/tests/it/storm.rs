//! ADD and DEL storms, 64 at once, with processes killed at random moments: no address is double at any time, and in
//! the end nothing is left.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use podway_testkit::pod::Sandbox;
use podway_testkit::wait::wait_until;
use serde_json::{Value, json};

use crate::host::{Call, Families, Host, PATIENCE, ips};

const AT_ONCE: usize = 64;
const ROUNDS: usize = 4;

/// Pseudo-random numbers (xorshift64); the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Starts a call and kills it after `life`, unless it ended before: then its answer.
fn run_for(host: &Host, call: &Call<'_>, life: Duration) -> Option<Value> {
    let mut command = call.command();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = host.place.spawn(command).unwrap();
    // It may have been killed before it read everything.
    let _ = child.stdin.take().unwrap().write_all(call.stdin().as_bytes());
    let end = Instant::now() + life;
    while Instant::now() < end {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    output.status.code().map(|_| serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

#[test]
fn storms_with_random_kills_leave_nothing_and_no_address_is_double() {
    let Some(host) = Host::new("storms_with_random_kills", Families::Dual) else { return };
    host.edit_node_file(|file| {
        file["blocks"][0]["cidr"] = json!("10.244.1.0/24");
        file["blocks"][1]["cidr"] = json!("fd00:244::100/120");
    });
    let seed = u64::from(std::process::id()) << 16 | 0x5eed;
    println!("seed {seed}");
    let pods: Vec<Sandbox> = (0..AT_ONCE).map(|i| host.sandbox(&format!("s{i}"))).collect();
    let held: Mutex<BTreeMap<IpAddr, usize>> = Mutex::default();
    let killed = Mutex::new(0);
    std::thread::scope(|scope| {
        for (i, pod) in pods.iter().enumerate() {
            let (host, held, killed) = (&host, &held, &killed);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(i as u64 * 2 + 1));
                for _ in 0..ROUNDS {
                    // Half of the calls are given little time to live.
                    let life = |random: &mut Random| match random.below(2) {
                        0 => Duration::from_micros(random.below(200_000)),
                        _ => PATIENCE,
                    };
                    match run_for(host, &host.call("ADD", pod), life(&mut random)) {
                        Some(result) => {
                            assert!(result.get("code").is_none(), "{result}");
                            let mut held = held.lock().unwrap();
                            for ip in ips(&result) {
                                assert_eq!(held.insert(ip, i), None, "{ip} is double");
                            }
                        }
                        None => *killed.lock().unwrap() += 1,
                    }
                    held.lock().unwrap().retain(|_, holder| *holder != i);
                    // A runtime says DEL until it succeeds.
                    while run_for(host, &host.call("DEL", pod), life(&mut random))
                        .is_none_or(|a| a != Value::Null)
                    {
                        *killed.lock().unwrap() += 1;
                    }
                }
            });
        }
    });
    println!("{} calls killed", killed.lock().unwrap());
    // A child of a killed DEL may still be at its deletion.
    wait_until("nothing is left", PATIENCE, || Ok(host.leftovers().is_empty().then_some(()))).unwrap_or_else(
        |e| {
            panic!("{e}: {:?}", host.leftovers());
        },
    );
}
