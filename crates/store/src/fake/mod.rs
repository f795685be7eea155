//! The store in memory, for tests: the same trait, deterministic under tokio's paused clock, with fault injection.
//!
//! One [`FakeServer`] is the store; [`FakeServer::client`] makes a [`FakeStore`] per simulated process, with a lease
//! and [`Faults`] of its own. The state machine itself is [`mem::Mem`]: simulations with their own notion of
//! time drive it directly.

pub mod mem;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::coalesce::Outlet;
use crate::{Capabilities, Entry, Expect, Guard, Listing, Store, StoreError, Watch, Written};
use mem::{LeaseEnded, LeaseId, Mem};

/// The store itself.
#[derive(Debug, Clone)]
pub struct FakeServer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    mem: Mutex<Mem>,
    changed: Notify,
}

/// What goes wrong between one client and the store.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Nothing arrives.
    pub unavailable: bool,
    /// Each call takes this long.
    pub delay: Duration,
    /// Writes happen, but the answer is lost: [`StoreError::Timeout`].
    pub answers_lost: bool,
    /// Watches stand still; what happens meanwhile is delivered afterwards.
    pub watches_stuck: bool,
}

impl Default for FakeServer {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeServer {
    /// An empty store. Must be called within a tokio runtime.
    pub fn new() -> Self {
        let shared = Shared { start: Instant::now(), mem: Mutex::new(Mem::new()), changed: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// A client as one process has it.
    pub fn client(&self, lease_time: Duration) -> Arc<FakeStore> {
        let state = ClientState { faults: Faults::default(), lease: None };
        let client =
            FakeStore { shared: self.shared.clone(), lease_time, state: Arc::new(Mutex::new(state)) };
        tokio::spawn(keep_alive(Arc::downgrade(&client.state), self.shared.clone(), lease_time));
        Arc::new(client)
    }

    /// Changes the state behind the clients' backs: compaction, wipe, restore of a backup.
    pub fn with<T>(&self, change: impl FnOnce(&mut Mem) -> T) -> T {
        let result = change(&mut self.shared.mem());
        self.shared.changed.notify_waiters();
        result
    }
}

impl Shared {
    fn mem(&self) -> MutexGuard<'_, Mem> {
        let mut mem = self.mem.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mem.revision();
        mem.advance(self.start.elapsed());
        if mem.revision() != before {
            self.changed.notify_waiters();
        }
        mem
    }
}

/// A client of the store in memory.
#[derive(Debug)]
pub struct FakeStore {
    shared: Arc<Shared>,
    lease_time: Duration,
    state: Arc<Mutex<ClientState>>,
}

#[derive(Debug)]
struct ClientState {
    faults: Faults,
    lease: Option<LeaseId>,
}

fn lock(state: &Mutex<ClientState>) -> MutexGuard<'_, ClientState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends when the client is dropped: its lease then runs out, as a killed process's does.
async fn keep_alive(state: std::sync::Weak<Mutex<ClientState>>, shared: Arc<Shared>, lease_time: Duration) {
    loop {
        tokio::time::sleep(lease_time / 3).await;
        let Some(state) = state.upgrade() else { return };
        let mut state = lock(&state);
        if let (Some(lease), false) = (state.lease, state.faults.unavailable)
            && shared.mem().keep_alive(lease) == Err(LeaseEnded)
        {
            state.lease = None;
        }
    }
}

const ENDPOINT: &str = "memory";

impl FakeStore {
    /// Changes what goes wrong for this client.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.state).faults);
        self.shared.changed.notify_waiters();
    }

    /// Waits as long as the faults say; fails if they do.
    async fn reach(&self) -> Result<(), StoreError> {
        let Faults { delay, unavailable, .. } = lock(&self.state).faults.clone();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if unavailable {
            return Err(StoreError::Unavailable {
                endpoint: ENDPOINT.into(),
                cause: "made unavailable by the test".into(),
            });
        }
        Ok(())
    }

    async fn read<T>(&self, read: impl FnOnce(&Mem) -> T) -> Result<T, StoreError> {
        self.reach().await?;
        Ok(read(&self.shared.mem()))
    }

    async fn write<T>(&self, write: impl FnOnce(&mut Mem) -> T) -> Result<T, StoreError> {
        self.reach().await?;
        let result = write(&mut self.shared.mem());
        self.shared.changed.notify_waiters();
        if lock(&self.state).faults.answers_lost {
            return Err(StoreError::Timeout { endpoint: ENDPOINT.into(), after: Duration::ZERO });
        }
        Ok(result)
    }

    fn lease(&self, mem: &mut Mem) -> LeaseId {
        let mut state = lock(&self.state);
        match state.lease {
            Some(lease) if mem.keep_alive(lease).is_ok() => lease,
            _ => *state.lease.insert(mem.grant(self.lease_time)),
        }
    }
}

#[async_trait]
impl Store for FakeStore {
    fn describe(&self) -> String {
        "a store in memory".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { writable: true, leases: true, shared: true }
    }

    fn watch(&self, prefixes: &[&str]) -> Watch {
        let (outlet, watch) = Outlet::new();
        let prefixes = prefixes.iter().map(|p| (*p).to_owned()).collect();
        tokio::spawn(watch_task(self.shared.clone(), self.state.clone(), prefixes, outlet));
        watch
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read(|mem| mem.entry(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.read(|mem| mem.list(&[prefix.to_owned()])).await
    }

    async fn put(&self, key: &str, value: &[u8]) -> Result<i64, StoreError> {
        self.write(|mem| mem.put(key, value, None).unwrap_or_else(|LeaseEnded| mem.revision())).await
    }

    async fn put_if(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError> {
        self.write(|mem| mem.put_if(key, value, expect, None)).await?.map_err(lease_ended)
    }

    async fn put_guarded(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        guards: &[Guard],
    ) -> Result<Written, StoreError> {
        self.write(|mem| mem.put_guarded(key, value, expect, guards)).await?.map_err(lease_ended)
    }

    async fn put_leased(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError> {
        self.write(|mem| {
            let lease = self.lease(mem);
            mem.put_if(key, value, expect, Some(lease))
        })
        .await?
        .map_err(lease_ended)
    }

    async fn put_for(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        seconds: u32,
    ) -> Result<Written, StoreError> {
        let write = |mem: &mut Mem| {
            let lease = mem.grant(Duration::from_secs(seconds.into()));
            mem.put_if(key, value, expect, Some(lease))
        };
        self.write(write).await?.map_err(lease_ended)
    }

    fn takes_outside(&self, _prefix: &str) -> Result<(), String> {
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.write(|mem| mem.delete(key)).await
    }

    async fn delete_if(&self, key: &str, mod_revision: i64) -> Result<Written, StoreError> {
        self.write(|mem| mem.delete_if(key, mod_revision)).await
    }
}

fn lease_ended(LeaseEnded: LeaseEnded) -> StoreError {
    StoreError::Unavailable { endpoint: ENDPOINT.into(), cause: "the lease has ended".into() }
}

/// Ends when the watch is dropped.
async fn watch_task(
    shared: Arc<Shared>,
    client: Arc<Mutex<ClientState>>,
    prefixes: Vec<String>,
    mut outlet: Outlet,
) {
    let mut seen: Option<i64> = None;
    loop {
        let mut woken = std::pin::pin!(shared.changed.notified());
        woken.as_mut().enable();
        let Faults { unavailable, watches_stuck, .. } = lock(&client).faults.clone();
        let mut expiry = None;
        if unavailable {
            outlet.pending.unavailable(format!("{ENDPOINT}: made unavailable by the test"));
        } else {
            outlet.pending.available();
            let mem = shared.mem();
            expiry = mem.next_expiry();
            let resumed = seen.filter(|seen| *seen <= mem.revision()).map(|seen| mem.since(&prefixes, seen));
            match resumed {
                _ if watches_stuck => {}
                Some(Ok((changes, revision))) => {
                    outlet.pending.changes(changes, revision);
                    seen = Some(revision);
                }
                // At the start, after a compaction, or the revision went backwards: the store was restored.
                Some(Err(_)) | None => {
                    let Listing { entries, revision } = mem.list(&prefixes);
                    outlet.pending.snapshot(entries, revision);
                    seen = Some(revision);
                }
            }
        }
        let timer = async {
            match expiry {
                Some(at) => tokio::time::sleep_until(shared.start + at).await,
                None => std::future::pending().await,
            }
        };
        let work = async {
            tokio::select! { () = woken => {}, () = timer => {} }
        };
        if outlet.during(work).await.is_none() {
            return;
        }
    }
}
