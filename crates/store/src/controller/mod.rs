//! The controller: frees nodes that are gone for long, and ends the holds of released blocks.
//!
//! | module | what |
//! |---|---|
//! | [`core`] | the pure core: who works, who is missing since when, what is to be done |
//! | this one | the loop round it: store and time |
//!
//! Replicas agree by a lock in the store that is bound to its holder's lease. The lock saves work and log lines, not
//! safety: whatever two replicas do at once is what one would have done, since each step of
//! [`release_node`](crate::release_node) can be repeated, and both look at the store once more before they free.

mod core;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use podway_model::cluster::{ClusterConfig, Leader, decode, encode};
use podway_model::ids::NodeName;
use podway_model::keys::{CONTROLLER, Key};
use tokio::time::{Instant, sleep_until};

use self::core::{Action, Controller, Event, PREFIXES};
use crate::{Hold, ReleaseReport, Store, StoreError, release_node};

/// When things happen.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Between two looks at who is missing, at most: half a grace period that is shorter. A node is freed at its second
    /// look at the earliest.
    pub look: Duration,
    /// Before an attempt that failed is made again.
    pub retry: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { look: Duration::from_secs(60), retry: Duration::from_secs(5) }
    }
}

type Work = FuturesUnordered<Pin<Box<dyn Future<Output = Event> + Send>>>;

/// Runs for ever. `holder` tells this process from other replicas; `waiting_for` is told what is missing until this
/// replica can do its part, as lead or in reserve.
pub async fn run(
    store: Arc<dyn Store>,
    holder: String,
    times: Times,
    waiting_for: impl Fn(Vec<String>),
) -> Infallible {
    let start = Instant::now();
    let mut core = Controller::new(holder.clone(), times);
    let mut watch = store.watch(&PREFIXES);
    let mut work = Work::new();
    loop {
        let deadline = start + core.deadline();
        let event = tokio::select! {
            event = watch.next() => match event {
                Some(event) => Event::Store(event),
                None => std::future::pending().await,
            },
            Some(done) = work.next() => done,
            () = sleep_until(deadline) => Event::Time(unix_seconds()),
        };
        let mut out = Vec::new();
        core.step(start.elapsed(), event, &mut out);
        waiting_for(core.waiting_for());
        for action in out {
            let (store, holder) = (store.clone(), holder.clone());
            match action {
                Action::Lock(expect) => work.push(Box::pin(async move {
                    let value = encode(&Leader { holder });
                    Event::Locked(store.put_leased(CONTROLLER, &value, expect).await)
                })),
                Action::Free { node, at } => work.push(Box::pin(async move {
                    let result = free(store.as_ref(), &node, at).await;
                    Event::Freed { node, result }
                })),
                Action::EndHold { block, revision } => work.push(Box::pin(async move {
                    let result = store.delete_if(&Key::Released(block).to_string(), revision).await;
                    Event::HoldEnded { block, result }
                })),
                Action::Info(text) => tracing::info!("{text}"),
                Action::Warn(text) => tracing::warn!("{text}"),
            }
        }
    }
}

/// Looks once more, past every cache, then frees. `None`: the node is there after all.
async fn free(store: &dyn Store, node: &NodeName, at: u64) -> Result<Option<ReleaseReport>, StoreError> {
    let config = store.get(&Key::Config.to_string()).await?;
    let config = config.and_then(|entry| decode::<ClusterConfig>(&entry.value).ok());
    let is_missing = config.and_then(|config| config.inventory).is_some_and(|i| !i.nodes.contains(node));
    let is_alive = store.get(&Key::Live(node.clone()).to_string()).await?.is_some();
    if !is_missing || is_alive {
        return Ok(None);
    }
    release_node(store, node, Hold::Since(at)).await.map(Some)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
