//! Questions of many partitions to the same server, sent as one. A member may get a thousand partitions at once.
//!
//! Must never give an answer that is older than its question: a question that comes while one is under way waits for the next.

use crate::clickhouse::sink::{OpenBatch, Sink};
use crate::kafka::consumer::Consumer;
use crate::kafka::{self, KAFKA_TIMEOUT, offsets, topic};
use rdkafka::error::{KafkaError, KafkaResult};
use std::fmt::Display;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tallyhouse_core::protocol::LogView;
use tallyhouse_core::protocol::marks::{Marks, Progress};
use tokio::sync::{mpsc, oneshot};

/// Greatest number of questions that are sent as one.
pub const QUESTIONS_MAX: usize = 1_000;

/// The questions that many partitions ask at once, as when they start.
pub struct Questions {
    /// State in Kafka, by partition.
    pub views: Joint<i32, KafkaResult<LogView>>,
    /// Topic ids in the `source` of a partition's rows.
    pub topic_ids: Joint<i32, Result<Vec<String>, String>>,
    /// Position in the tables, by the name of a source and the offset from which its rows count.
    pub progress: Joint<(String, u64), Result<Progress, String>>,
    /// Marks of an announced batch; `None` while an insert of it runs.
    pub marks: Joint<OpenBatch, Result<Option<Marks>, String>>,
}

impl Questions {
    /// Starts the tasks that send the questions.
    pub fn new(consumer: &Arc<Consumer>, topic: &str, sink: &Sink) -> Questions {
        let (asked, name) = (Arc::downgrade(consumer), topic.to_owned());
        let views =
            Joint::start(Duration::ZERO, move |partitions| log_views(Weak::clone(&asked), name.clone(), partitions));
        let (asked, name) = (sink.clone(), topic.to_owned());
        let topic_ids = Joint::start(Duration::ZERO, move |partitions: Vec<i32>| {
            let (sink, topic) = (asked.clone(), name.clone());
            async move { for_each(partitions.len(), sink.topic_ids_of(&topic, &partitions).await) }
        });
        let asked = sink.clone();
        let progress = Joint::start(Duration::ZERO, move |sources: Vec<(String, u64)>| {
            let sink = asked.clone();
            async move { for_each(sources.len(), sink.progress_of(&sources).await) }
        });
        let asked = sink.clone();
        let marks = Joint::start(Duration::ZERO, move |batches: Vec<OpenBatch>| {
            let sink = asked.clone();
            async move { for_each(batches.len(), sink.marks_of(&batches).await) }
        });
        Questions { views, topic_ids, progress, marks }
    }
}

/// Returns the answers of ClickHouse to `count` questions, or its error for each.
fn for_each<T>(count: usize, answers: Result<Vec<T>, impl Display>) -> Vec<Result<T, String>> {
    match answers {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) => (0..count).map(|_| Err(error.to_string())).collect(),
    }
}

async fn log_views(consumer: Weak<Consumer>, topic: String, partitions: Vec<i32>) -> Vec<KafkaResult<LogView>> {
    let asked = partitions.clone();
    let views = kafka::blocking(move || {
        let consumer = consumer.upgrade().ok_or(KafkaError::Canceled)?;
        let topic_id = topic::topic_id(&consumer, &topic, KAFKA_TIMEOUT)?;
        offsets::log_views(&consumer, &topic, &topic_id, &asked, KAFKA_TIMEOUT)
    });
    match views.await {
        Ok(mut views) => {
            let view = |partition| views.remove(partition).unwrap_or(Err(KafkaError::Canceled));
            partitions.iter().map(view).collect()
        }
        Err(error) => vec![Err(error); partitions.len()],
    }
}

/// Questions of type `Q` with answers of type `A`.
pub struct Joint<Q, A>(mpsc::Sender<(Q, oneshot::Sender<A>)>);

impl<Q: Send + 'static, A: Send + 'static> Joint<Q, A> {
    /// Sends what waits with `ask`, one call after the other. The first question waits for others for `linger`. `ask` gets each
    /// question once and answers in order.
    pub fn start<F>(linger: Duration, ask: impl Fn(Vec<Q>) -> F + Send + 'static) -> Joint<Q, A>
    where
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        let (sender, mut waiting) = mpsc::channel(QUESTIONS_MAX);
        tokio::spawn(async move {
            let mut taken: Vec<(Q, oneshot::Sender<A>)> = Vec::new();
            while let Some(first) = waiting.recv().await {
                taken.push(first);
                if !linger.is_zero() {
                    tokio::time::sleep(linger).await;
                }
                while taken.len() < QUESTIONS_MAX
                    && let Ok(next) = waiting.try_recv()
                {
                    taken.push(next);
                }
                // A task that was cut off wants no answer. Its successor may ask the same.
                let (questions, askers): (Vec<Q>, Vec<_>) =
                    taken.drain(..).filter(|(_, asker)| !asker.is_closed()).unzip();
                if questions.is_empty() {
                    continue;
                }
                // In a task of its own a panic leaves only these askers without an answer.
                let answers = tokio::spawn(ask(questions)).await.unwrap_or_default();
                askers.into_iter().zip(answers).for_each(|(asker, answer)| drop(asker.send(answer)));
            }
        });
        Joint(sender)
    }

    /// Returns the answer to a question, which is sent after this call; `None` if the call that sent it panicked.
    pub async fn ask(&self, question: Q) -> Option<A> {
        let (asker, answer) = oneshot::channel();
        self.0.send((question, asker)).await.ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    /// A server that answers each number with its double once it is let, and panics at -1.
    struct Server {
        calls: Arc<Mutex<Vec<Vec<i32>>>>,
        may_answer: Arc<Semaphore>,
        joint: Arc<Joint<i32, i32>>,
    }

    fn server() -> Server {
        let (calls, may_answer) = (Arc::<Mutex<Vec<Vec<i32>>>>::default(), Arc::new(Semaphore::new(0)));
        let (seen, lets) = (Arc::clone(&calls), Arc::clone(&may_answer));
        let joint = Joint::start(Duration::ZERO, move |questions: Vec<i32>| {
            let (seen, lets) = (Arc::clone(&seen), Arc::clone(&lets));
            async move {
                seen.lock().unwrap().push(questions.clone());
                lets.acquire().await.unwrap().forget();
                assert!(!questions.contains(&-1));
                questions.into_iter().map(|question| question * 2).collect()
            }
        });
        Server { calls, may_answer, joint: Arc::new(joint) }
    }

    impl Server {
        fn ask(&self, asking: &mut JoinSet<(i32, Option<i32>)>, question: i32) {
            let joint = Arc::clone(&self.joint);
            asking.spawn(async move { (question, joint.ask(question).await) });
        }

        async fn until_called(&self, times: usize) {
            let called = async {
                while self.calls.lock().unwrap().len() < times {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), called).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_comes_during_a_call_is_asked_by_the_next_one_together() {
        let server = server();
        let mut asking = JoinSet::new();
        server.ask(&mut asking, 0);
        server.until_called(1).await;
        (1..=300).for_each(|question| server.ask(&mut asking, question));
        // These run before the call is answered, as one thread runs all tasks in turn.
        while server.joint.0.capacity() > QUESTIONS_MAX - 300 {
            tokio::task::yield_now().await;
        }
        server.may_answer.add_permits(2);
        while let Some(answered) = asking.join_next().await {
            let (question, answer) = answered.unwrap();
            assert_eq!(answer, Some(question * 2));
        }
        let sizes: Vec<usize> = server.calls.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 300]);
    }

    #[tokio::test]
    async fn a_panic_and_an_asker_that_is_gone_leave_the_others_alone() {
        let server = server();
        let mut asking = JoinSet::new();
        server.ask(&mut asking, -1);
        server.until_called(1).await;
        let joint = Arc::clone(&server.joint);
        let cut_off = tokio::spawn(async move { joint.ask(7).await });
        while server.joint.0.capacity() == QUESTIONS_MAX {
            tokio::task::yield_now().await;
        }
        cut_off.abort();
        assert!(cut_off.await.is_err());
        server.ask(&mut asking, 7);
        server.may_answer.add_permits(2);
        let mut answers = Vec::new();
        while let Some(answered) = asking.join_next().await {
            answers.push(answered.unwrap());
        }
        answers.sort_unstable();
        assert_eq!(answers, [(-1, None), (7, Some(14))]);
        assert_eq!(*server.calls.lock().unwrap(), [vec![-1], vec![7]]);
    }
}
