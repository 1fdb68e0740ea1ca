//! The servers of one shard in order of preference, and the one in use.
//!
//! All statements of a member go to one server at a time. The member changes to the next server when the one in use does not
//! answer or cannot write, and returns to a preferred one later. Each change waits for the sync of the new server.
//!
//! An insert may be under way on the server that was left. Its token is in Keeper, so the same insert on another server is dropped
//! if the first one arrives, and the other way around. That is why only replicas of the same tables may take each other's place.
//!
//! Must never change to a server before its sync has succeeded, nor to one whose tables are not replicas of the others.

use super::client::{ClickHouseOptions, Client};
use super::error::ClickHouseError;
use super::schema::{Schema, SchemaProblem};
use super::sight;
use crate::platform::advice::Advice;
use crate::platform::lock::locked;
use crate::platform::metrics::SERVER_IN_USE;
use metrics::gauge;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Interval of the looks at the server in use.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for the answer to a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of looks in a row that fail before another server is tried.
const FAILED_LOOKS_MAX: u32 = 3;

/// Shortest time between two attempts to return to a preferred server.
const RETURN_INTERVAL: Duration = Duration::from_secs(5);

/// Longest time to see that a server can take the place of the one in use. Meanwhile nobody looks at that one.
const FIT_TIMEOUT: Duration = Duration::from_secs(10);

const NO_SECOND: &str = "clickhouse.replicas_confirmed needs a second server";
const NO_SECOND_FIX: &str = "Name two replicas in clickhouse.url";

/// The servers of one shard.
#[derive(Debug)]
pub struct Servers {
    list: Vec<Client>,
    in_use: AtomicUsize,
    schema: Schema,
    losses: Mutex<Losses>,
}

/// The lost parts that members know of.
#[derive(Debug, Default)]
struct Losses {
    /// Greatest number that a replica has reported; `None` before the first one.
    parts: Option<u64>,
    /// Time at which it was seen to have grown.
    seen: Option<Instant>,
}

impl Servers {
    /// Returns the clients that the options name, in order of preference.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] if an option cannot be used.
    pub fn clients(options: &ClickHouseOptions) -> Result<Vec<Client>, ClickHouseError> {
        options
            .url
            .split(',')
            .map(|url| Client::new(&ClickHouseOptions { url: url.trim().to_owned(), ..options.clone() }))
            .collect()
    }

    /// Returns a client for the first server that answers, or for the first one if none does. A single server is not asked.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] if an option cannot be used.
    pub async fn answering(options: &ClickHouseOptions) -> Result<Client, ClickHouseError> {
        let mut clients = Servers::clients(options)?;
        let mut first = 0;
        if clients.len() > 1 {
            for (number, client) in clients.iter().enumerate() {
                let asked = timeout(LOOK_TIMEOUT, client.server_query("SELECT toUInt64(1)").scalar_u64()).await;
                if matches!(asked, Ok(Ok(_))) {
                    first = number;
                    break;
                }
            }
        }
        Ok(clients.swap_remove(first))
    }

    /// Returns the servers of `list`, of which the one with this number is in use. [`fit`] has returned `client` for it.
    pub fn new(list: &[Client], in_use: usize, client: &Client, schema: &Schema, lost: u64) -> Servers {
        let mut list: Vec<Client> = list.iter().map(|client| client.for_form(schema.form())).collect();
        list[in_use] = client.clone();
        let schema = schema.clone();
        let servers = Servers { list, in_use: AtomicUsize::new(in_use), schema, losses: Mutex::default() };
        servers.note_lost(lost);
        servers.note(in_use);
        servers
    }

    /// Returns the server in use.
    pub fn in_use(&self) -> &Client {
        &self.list[self.in_use.load(Ordering::Relaxed)]
    }

    /// Returns all servers, in the order of the configuration.
    pub fn all(&self) -> &[Client] {
        &self.list
    }

    /// Waits until another server answers at one of the addresses than before.
    pub async fn other_server(&self) -> ClickHouseError {
        let mut waiting = JoinSet::new();
        for client in &self.list {
            let client = client.clone();
            waiting.spawn(async move { client.other_server().await });
        }
        match waiting.join_next().await {
            Some(Ok(error)) => error,
            // Only a panic or the end of the process can be the reason.
            _ => std::future::pending().await,
        }
    }

    /// Notes the number of lost parts that a sync has reported. Tokens may be gone with them.
    pub(super) fn note_lost(&self, parts: u64) {
        let mut losses = locked(&self.losses);
        if losses.parts.is_some_and(|known| parts > known) {
            tracing::error!(parts, "parts of the tables were lost with the only replica that had them");
            losses.seen = Some(Instant::now());
        }
        losses.parts = losses.parts.max(Some(parts));
    }

    /// Returns the number of lost parts that is known.
    pub(super) fn lost(&self) -> u64 {
        locked(&self.losses).parts.unwrap_or_default()
    }

    /// Refuses an insert for this time after parts were lost.
    pub(super) fn refuse_after_loss(&self, quarantine: Duration) -> Result<(), ClickHouseError> {
        let Some(seen) = locked(&self.losses).seen else { return Ok(()) };
        let left = quarantine.saturating_sub(seen.elapsed());
        let server = self.in_use().described();
        let quarantined = ClickHouseError::Quarantined { server, seconds: left.as_secs() };
        if left.is_zero() { Ok(()) } else { Err(quarantined) }
    }

    /// Waits until the replica in use and a second one have all rows of the shard. An insert may have gone to another one before.
    /// Returns the number of lost parts that is known then.
    ///
    /// # Errors
    /// Any [`SchemaProblem`] of the replica that should confirm.
    pub async fn confirm(&self) -> Result<u64, SchemaProblem> {
        let in_use = self.in_use.load(Ordering::Relaxed);
        let mut problem = None;
        for (number, other) in self.list.iter().enumerate().filter(|(number, _)| *number != in_use) {
            match self.confirm_on(&self.list[in_use], other).await {
                Ok(parts) => {
                    self.note_lost(parts);
                    return Ok(self.lost());
                }
                Err(error) => problem = problem.or(Some(error)),
            }
            tracing::debug!("{} does not confirm", self.list[number].described());
        }
        Err(problem.unwrap_or_else(|| self.list[in_use].unfit(Advice::new(NO_SECOND, NO_SECOND_FIX)).into()))
    }

    async fn confirm_on(&self, in_use: &Client, other: &Client) -> Result<u64, SchemaProblem> {
        if !other.is_other_replica_of(in_use) {
            can_replace(in_use, other, &self.schema).await?;
        }
        let (ours, theirs) = tokio::try_join!(in_use.sync(), other.sync())?;
        Ok(ours.max(theirs))
    }

    fn note(&self, in_use: usize) {
        for (number, server) in self.list.iter().enumerate() {
            gauge!(SERVER_IN_USE, "server" => server.url().to_owned()).set(f64::from(u8::from(number == in_use)));
        }
    }

    /// Changes the server in use when it has to be changed, until `stop`. With one server there is nothing to do.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        if self.list.len() < 2 {
            return;
        }
        let (mut failed, mut returned) = (0, Instant::now());
        loop {
            tokio::select! {
                () = sleep(LOOK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            let in_use = self.in_use.load(Ordering::Relaxed);
            let trouble = look(&self.list[in_use]).await.err();
            failed = if trouble.is_some() { failed + 1 } else { 0 };
            if let Some(error) = trouble.filter(|_| failed <= FAILED_LOOKS_MAX) {
                tracing::warn!("{error}; look {failed} of {FAILED_LOOKS_MAX} before another server is tried");
            }
            let candidates: Vec<usize> = match failed {
                0 if returned.elapsed() >= RETURN_INTERVAL => (0..in_use).collect(),
                FAILED_LOOKS_MAX.. => (0..self.list.len()).filter(|number| *number != in_use).collect(),
                _ => Vec::new(),
            };
            if candidates.is_empty() {
                continue;
            }
            returned = Instant::now();
            for number in candidates {
                let asked = can_replace(&self.list[in_use], &self.list[number], &self.schema);
                let late = || self.list[number].unanswered(FIT_TIMEOUT).into();
                match timeout(FIT_TIMEOUT, asked).await.unwrap_or_else(|_| Err(late())) {
                    Ok(lost) => {
                        self.note_lost(lost);
                        let (from, to) = (self.list[in_use].described(), self.list[number].described());
                        tracing::warn!("the member now uses the ClickHouse server {to}, and no longer {from}");
                        self.in_use.store(number, Ordering::Relaxed);
                        self.note(number);
                        failed = 0;
                        break;
                    }
                    Err(problem) => tracing::warn!("{} is not used: {problem}", self.list[number].described()),
                }
            }
        }
    }
}

/// Checks that a server answers and can write.
async fn look(client: &Client) -> Result<(), ClickHouseError> {
    let late = || client.unanswered(LOOK_TIMEOUT);
    let states = timeout(LOOK_TIMEOUT, client.table_states()).await.map_err(|_| late())??;
    match states.iter().find(|state| state.is_cut_off()) {
        None => Ok(()),
        Some(state) => Err(ClickHouseError::NoKeeper {
            url: client.url().to_owned(),
            code: 242,
            name: "TABLE_IS_READ_ONLY".to_owned(),
            message: format!("system.replicas says so of {} {}", state.table, state.keeper_error),
        }),
    }
}

/// Checks that members may use a server, and returns a client for its tables and the number of its lost parts. Its rows may be
/// believed after that.
///
/// # Errors
/// Any [`SchemaProblem`].
pub async fn fit(client: &Client) -> Result<(Client, Schema, u64), SchemaProblem> {
    // Statements have to arrive whole before any answer is believed.
    client.prove_settings().await?;
    let (client, schema) = Schema::found(client).await?;
    // The form decides which servers may answer, and tables that are not on one server need more settings.
    if client.is_replica() || client.is_shared() {
        client.prove_settings().await?;
    }
    client.prove_server().await?;
    match schema.check(&client).await {
        // A replica that lags does not show the last migration yet.
        Err(SchemaProblem::Older { .. }) if client.is_replica() => {
            client.sync_table("schema_migrations").await?;
            schema.check(&client).await?;
        }
        checked => checked?,
    }
    // Where that is not known now, a row that is not shown stops its partition.
    sight::refuse_filters(&client).await?;
    let lost = client.sync().await?;
    Ok((client, schema, lost))
}

/// Checks that a server can take the place of the one in use. Returns the number of its lost parts.
async fn can_replace(in_use: &Client, client: &Client, schema: &Schema) -> Result<u64, SchemaProblem> {
    look(client).await?;
    let (client, found, lost) = fit(client).await?;
    if found != *schema || !client.is_other_replica_of(in_use) {
        let problem = format!("its tables are not replicas of those of {}", in_use.described());
        return Err(client.unfit(Advice::new(problem, "Let clickhouse.url name replicas of one shard")).into());
    }
    Ok(lost)
}
