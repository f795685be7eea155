//! Writes under way: at most one per key, and what follows each.
//!
//! After a write was answered, its key rests until the own watch has shown the result: deciding anew on an older
//! view would write twice. After a failure it rests with capped, jittered backoff.

use std::collections::BTreeMap;
use std::time::Duration;

use podway_store::{StoreError, Written};

use super::event::{Action, Operation, Write};
use super::pools::spread;

/// How long a written key rests if the watch does not show the result: it was changed again at once, by
/// somebody else, and only the later change was delivered.
const REST: Duration = Duration::from_secs(2);
/// How long an answer is waited for. Every backend bounds its calls in less; the end of one that never came would
/// block its key for ever.
const ANSWER: Duration = Duration::from_secs(60);
/// First and longest delay after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// All keys that rest.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    last_id: u64,
    /// Time of the latest [`Writes::wake`].
    time: Duration,
    keys: BTreeMap<String, Resting>,
}

#[derive(Debug)]
struct Resting {
    failures: u32,
    until: Until,
}

#[derive(Debug, PartialEq, Eq)]
enum Until {
    /// The write with this id is answered, or this time.
    Answer(u64, Duration),
    /// The watch shows this revision of the key, or this time.
    Seen(i64, Duration),
    /// This time.
    Time(Duration),
    /// Nothing: only the failures are remembered.
    Nothing,
}

impl Writes {
    /// Asks for a write, unless the key rests. Answers whether it was asked for.
    pub(crate) fn propose(&mut self, key: String, operation: Operation, out: &mut Vec<Action>) -> bool {
        let failures = match self.keys.get(&key) {
            Some(Resting { until: Until::Nothing, failures }) => *failures,
            Some(_) => return false,
            None => 0,
        };
        self.last_id += 1;
        let id = self.last_id;
        self.keys.insert(key.clone(), Resting { failures, until: Until::Answer(id, self.time + ANSWER) });
        out.push(Action::Write(Write { id, key, operation }));
        true
    }

    /// A write was answered. Answers which key it was for; `None` for one that is not under way. `shown`: revision
    /// of a key as the watch shows it.
    pub(crate) fn on_answer(
        &mut self,
        now: Duration,
        id: u64,
        result: &Result<Written, StoreError>,
        shown: impl Fn(&str) -> Option<i64>,
    ) -> Option<String> {
        let is_it = |r: &Resting| matches!(r.until, Until::Answer(asked, _) if asked == id);
        let (key, resting) = self.keys.iter_mut().find(|(_, r)| is_it(r))?;
        let key = key.clone();
        match result {
            Ok(Written::Done { revision }) => {
                *resting = Resting { failures: 0, until: Until::Seen(*revision, now + REST) };
            }
            Ok(Written::Refused { found }) => {
                // What stands there instead will be, or was, delivered by the watch. Where it was, the refusal came
                // from another key, whose change is on its way.
                let seen = found.as_ref().map(|entry| entry.mod_revision);
                let until = if shown(&key) == seen {
                    Until::Time(now + RETRY.0)
                } else {
                    Until::Seen(seen.unwrap_or(0), now + REST)
                };
                *resting = Resting { failures: 0, until };
            }
            Err(_) => resting.fail(now, &key, id),
        }
        Some(key)
    }

    /// Wakes keys whose rest is over. `modified`: revision of a key as the watch shows it; none: it is not there.
    pub(crate) fn wake(&mut self, now: Duration, modified: impl Fn(&str) -> Option<i64>) {
        self.time = now;
        self.keys.retain(|key, resting| {
            match resting.until {
                Until::Answer(_, at) if now < at => return true,
                Until::Answer(id, _) => {
                    resting.fail(now, key, id);
                    return true;
                }
                Until::Seen(revision, at) => {
                    // 0: that the key is gone, which an older value does not show.
                    let shows = |modified| revision > 0 && modified >= revision;
                    let seen = modified(key).map_or(revision == 0, shows);
                    if !seen && now < at {
                        return true;
                    }
                }
                Until::Time(at) if now < at => return true,
                Until::Time(_) | Until::Nothing => {}
            }
            resting.until = Until::Nothing;
            resting.failures > 0
        });
    }

    /// Whether a write of the key is under way or just answered.
    pub(crate) fn is_busy(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|r| matches!(r.until, Until::Answer(..) | Until::Seen(..)))
    }

    /// When the next rest ends by time.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let times = self.keys.values().filter_map(|resting| match resting.until {
            Until::Answer(_, at) | Until::Seen(_, at) | Until::Time(at) => Some(at),
            Until::Nothing => None,
        });
        times.min()
    }
}

impl Resting {
    /// Once more, later.
    fn fail(&mut self, now: Duration, key: &str, id: u64) {
        self.failures = self.failures.saturating_add(1);
        let full = RETRY.0.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
        let share = spread(&[key, &id.to_string()]) % 512;
        let jitter = full.mul_f64(f64::from(u32::try_from(share).unwrap_or(0)) / 1024.0);
        self.until = Until::Time(now + full - jitter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "nodes/a";

    fn propose(writes: &mut Writes) -> Option<u64> {
        let mut out = vec![];
        writes.propose(KEY.into(), Operation::Delete(1), &mut out);
        out.iter().find_map(|action| match action {
            Action::Write(write) => Some(write.id),
            _ => None,
        })
    }

    #[test]
    fn a_key_rests_until_the_watch_shows_the_write() {
        let mut writes = Writes::default();
        let id = propose(&mut writes).unwrap();
        assert_eq!(propose(&mut writes), None, "one at a time");
        writes.on_answer(Duration::ZERO, id, &Ok(Written::Done { revision: 7 }), |_| None);
        writes.wake(Duration::ZERO, |_| Some(6));
        assert_eq!(propose(&mut writes), None);
        writes.wake(Duration::ZERO, |_| Some(7));
        assert!(propose(&mut writes).is_some());
    }

    #[test]
    fn a_write_that_another_key_prevents_is_not_tried_again_in_a_tight_loop() {
        let mut writes = Writes::default();
        let id = propose(&mut writes).unwrap();
        writes.on_answer(Duration::ZERO, id, &Ok(Written::Refused { found: None }), |_| None);
        writes.wake(Duration::ZERO, |_| None);
        assert_eq!(propose(&mut writes), None, "the watch shows already what was found");
        writes.wake(writes.deadline().unwrap(), |_| None);
        assert!(propose(&mut writes).is_some());
    }

    #[test]
    fn a_key_that_was_found_gone_rests_until_the_watch_shows_it_gone() {
        let mut writes = Writes::default();
        let id = propose(&mut writes).unwrap();
        writes.on_answer(Duration::ZERO, id, &Ok(Written::Refused { found: None }), |_| Some(7));
        writes.wake(Duration::ZERO, |_| Some(7));
        assert_eq!(propose(&mut writes), None, "the watch shows what was there before");
        writes.wake(Duration::ZERO, |_| None);
        assert!(propose(&mut writes).is_some());
    }

    #[test]
    fn a_write_that_the_watch_never_shows_is_given_up_in_time() {
        let mut writes = Writes::default();
        let id = propose(&mut writes).unwrap();
        writes.on_answer(Duration::ZERO, id, &Ok(Written::Done { revision: 7 }), |_| None);
        writes.wake(writes.deadline().unwrap(), |_| None);
        assert!(propose(&mut writes).is_some());
    }

    #[test]
    fn a_write_that_is_never_answered_is_given_up_in_time_and_its_late_answer_is_nobodys() {
        let mut writes = Writes::default();
        let id = propose(&mut writes).unwrap();
        writes.wake(ANSWER / 2, |_| None);
        assert_eq!(propose(&mut writes), None);
        writes.wake(writes.deadline().unwrap(), |_| None);
        assert_eq!(propose(&mut writes), None, "first a pause, as after a failure");
        assert_eq!(writes.on_answer(ANSWER, id, &Ok(Written::Done { revision: 7 }), |_| None), None);
        writes.wake(writes.deadline().unwrap(), |_| None);
        assert!(propose(&mut writes).is_some());
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly_up_to_the_cap() {
        let (mut writes, mut now) = (Writes::default(), Duration::ZERO);
        let error = StoreError::Timeout { endpoint: "e".into(), after: REST };
        let mut delays = vec![];
        for _ in 0..20 {
            let id = propose(&mut writes).unwrap();
            writes.on_answer(now, id, &Err(error.clone()), |_| None);
            let at = writes.deadline().unwrap();
            delays.push(at - now);
            now = at;
            writes.wake(now, |_| None);
        }
        assert!(delays[0] < Duration::from_millis(500));
        assert!(delays.iter().all(|delay| *delay <= RETRY.1) && delays[19] >= RETRY.1 / 2);
    }
}
