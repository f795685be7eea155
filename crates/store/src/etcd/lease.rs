//! This process's lease: made on first use, kept alive by a task, made anew after it was lost.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::Client;
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, classify};
use crate::{Backoff, StoreError};

/// The lease. Dropping it stops the keeper; the lease then runs out as it would after a crash.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Arc<Connection>,
    seconds: u32,
    current: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    id: i64,
    /// Set by the keeper when the server says that the lease has ended.
    lost: watch::Receiver<bool>,
    keeper: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Lease {
    /// A lease of `seconds`, not made yet.
    pub(super) fn new(connection: Arc<Connection>, seconds: u32) -> Self {
        Self { connection, seconds, current: Mutex::default() }
    }

    /// The id of the lease. `key`: what it is wanted for, for errors.
    pub(super) async fn id(&self, key: &str) -> Result<i64, StoreError> {
        let mut current = self.current.lock().await;
        if let Some(kept) = current.as_ref().filter(|kept| !*kept.lost.borrow()) {
            return Ok(kept.id);
        }
        let seconds = i64::from(self.seconds);
        let granted = self
            .connection
            .once("write", key, async move |mut client: Client| client.lease_grant(seconds, None).await)
            .await?;
        let (tell, lost) = watch::channel(false);
        let period = Duration::from_secs(u64::from(self.seconds.max(3))) / 3;
        let keeper = tokio::spawn(keep(self.connection.clone(), granted.id(), period, tell));
        let kept = Kept { id: granted.id(), lost, keeper: keeper.abort_handle() };
        Ok(current.insert(kept).id)
    }

    /// The server does not know this lease any more.
    pub(super) async fn forget(&self, id: i64) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|kept| kept.id == id) {
            *current = None;
        }
    }
}

/// Keeps the lease alive until the server says that it has ended.
async fn keep(connection: Arc<Connection>, id: i64, period: Duration, lost: watch::Sender<bool>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), period, id.unsigned_abs());
    loop {
        match keep_over_one_connection(&connection, id, period, &mut backoff).await {
            Ok(()) => {
                lost.send_replace(true);
                return;
            }
            // Told by the watch, which sees the same; the lease may still be saved.
            Err(_) => sleep(backoff.delay()).await,
        }
    }
}

/// `Ok`: the lease has ended.
async fn keep_over_one_connection(
    connection: &Connection,
    id: i64,
    period: Duration,
    backoff: &mut Backoff,
) -> Result<(), StoreError> {
    let connected = connection.connected().await?;
    let mut client = connected.client.clone();
    let failed = |error| classify(error, &connected.endpoint, "keep alive", "lease");
    let late = || StoreError::Timeout { endpoint: connected.endpoint.clone(), after: period };
    let attempt = async {
        let opened = timeout(period, client.lease_keep_alive(id)).await;
        let (mut keeper, mut answers) = opened.map_err(|_| late())?.map_err(failed)?;
        loop {
            keeper.keep_alive().await.map_err(failed)?;
            let answer = timeout(period, answers.message()).await.map_err(|_| late())?.map_err(failed)?;
            match answer {
                Some(answer) if answer.ttl() <= 0 => return Ok(()),
                Some(_) => backoff.reset(),
                None => return Err(late()),
            }
            sleep(period).await;
        }
    };
    let result = attempt.await;
    if let Err(StoreError::Refused { cause, .. }) = &result
        && super::connection::is_lease_lost(cause)
    {
        return Ok(());
    }
    if result.is_err() {
        connection.failed(&connected).await;
    }
    result
}
