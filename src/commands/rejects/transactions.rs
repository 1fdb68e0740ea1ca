//! The transactions of a replay. Each event topic has one producer at a time, even if earlier ones still believe they
//! may write.
//!
//! Must never say "committed" without the broker's word, nor "not committed" where that is not known.

use super::RejectsError;
use crate::config::Config;
use crate::kafka::blocking;
use crate::kafka::producer::{Producer, client_config};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use std::time::{Duration, Instant};

/// Time after which the broker aborts a transaction whose replay has died. Until then members wait, unless another
/// replay begins.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit of each start, commit and abort.
const DECISION_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for one answer from Kafka.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const ALLOW_WRITE: &str = "Check that the brokers run. Allow this user to write to the event topic and to the topic of \
                           kafka.topics.replays. Allow it Describe and Write on the transactional id tallyhouse-replay-<event topic>";

/// A producer of transactions that has shut out every earlier one of its name.
#[derive(Clone)]
pub(super) struct Transactions(Producer);

impl Transactions {
    /// Shuts out every earlier replay into the event topic, and waits until its open transaction is decided.
    ///
    /// # Errors
    /// Kafka does not answer in time, or a right is missing.
    pub async fn start(config: &Config) -> Result<Transactions, RejectsError> {
        let mut properties = client_config(config);
        properties.set("transactional.id", format!("tallyhouse-replay-{}", config.kafka.topics.events));
        properties.set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string());
        let failed = |error| RejectsError::Kafka { doing: "no transaction can be begun", error, remedy: ALLOW_WRITE };
        let producer = Producer::new(&properties).map_err(failed)?;
        let starting = producer.clone();
        blocking(move || starting.inner.init_transactions(DECISION_TIMEOUT)).await.map_err(failed)?;
        Ok(Transactions(producer))
    }

    /// Returns the producer, to send with between `begin` and `commit`.
    pub fn producer(&self) -> &Producer {
        &self.0
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`RejectsError::Fenced`] or [`RejectsError::Aborted`].
    pub async fn begin(&self) -> Result<(), RejectsError> {
        let beginning = self.0.clone();
        blocking(move || beginning.inner.begin_transaction()).await.map_err(|error| self.sort(error))
    }

    /// Commits the transaction. Everything that was sent must be acknowledged.
    ///
    /// # Errors
    /// [`RejectsError::Aborted`] where it is known not to be committed; else [`RejectsError::Fenced`] or
    /// [`RejectsError::Unknown`].
    pub async fn commit(&self) -> Result<(), RejectsError> {
        let deadline = Instant::now() + DECISION_TIMEOUT;
        loop {
            let committing = self.0.clone();
            let done = blocking(move || committing.inner.commit_transaction(ANSWER_TIMEOUT)).await;
            let Err(error) = done else { return Ok(()) };
            let (requires_abort, is_retriable) = match &error {
                KafkaError::Transaction(cause) => (cause.txn_requires_abort(), cause.is_retriable()),
                _ => (false, false),
            };
            if requires_abort {
                return Err(self.abort(error).await);
            }
            if !is_retriable || Instant::now() > deadline {
                return Err(match self.sort(error) {
                    RejectsError::Aborted(error) => RejectsError::Unknown(error),
                    fenced => fenced,
                });
            }
        }
    }

    /// Aborts the transaction, and returns the error with its cause.
    pub async fn abort(&self, why: KafkaError) -> RejectsError {
        let aborting = self.0.clone();
        // Where this fails as well, the broker aborts it by itself, or the next replay has it aborted.
        let _ = blocking(move || aborting.inner.abort_transaction(DECISION_TIMEOUT)).await;
        self.sort(why)
    }

    fn sort(&self, error: KafkaError) -> RejectsError {
        use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
        let fatal = self.0.inner.client().fatal_error().map(|(code, _)| code);
        let is_fenced = |code| matches!(code, Some(Fenced | ProducerFenced | InvalidProducerEpoch));
        match is_fenced(fatal) || is_fenced(error.rdkafka_error_code()) {
            true => RejectsError::Fenced,
            false => RejectsError::Aborted(error),
        }
    }
}
