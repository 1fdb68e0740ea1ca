//! Tests signals, and readers of the output that go away: commands end in order, in time, and leave no fence behind.

use crate::audit::{assert_clean, await_insert, double_a_counter, store_two_months};
use crate::service::{Bench, await_http};
use devstack::{Output, Server, process};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tallyhouse::platform::signals::DOUBLED_WITHIN;
use tokio::signal::unix::{SignalKind, signal};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Setting of a grace that is far longer than any of these tests.
const GRACE: [(&str, &str); 1] = [("TALLYHOUSE__SHUTDOWN__GRACE_MS", "30000")];
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Installs handlers for signals that `nohup`, say, makes this process ignore. A child inherits an ignored signal,
/// but not a handler.
fn take_signals_that_are_ignored() {
    for kind in [SignalKind::hangup(), SignalKind::quit()] {
        drop(signal(kind).unwrap());
    }
}

fn send(member: &Server, signal: Signal) {
    kill_process(Pid::from_raw(member.pid().cast_signed()).unwrap(), signal).unwrap();
}

fn await_log(member: &Server, text: &str) {
    let deadline = Instant::now() + TIMEOUT;
    while !member.stderr().contains(text) {
        assert!(Instant::now() < deadline, "the log never had {text:?}: {}", member.stderr());
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A closed terminal, Ctrl-\ and a doubled signal end a member as SIGTERM does: it flushes and prints its summary.
///
/// The first pair is of two kinds, as the system makes one of two signals of the same kind that wait.
pub async fn a_hangup_and_a_doubled_signal_end_in_order(url: &str, database: &str) {
    take_signals_that_are_ignored();
    let bench = Bench::new(url, database).await;
    for (round, signals) in
        [[Signal::TERM, Signal::INT], [Signal::HUP, Signal::HUP], [Signal::QUIT, Signal::TERM]].into_iter().enumerate()
    {
        bench.produce(300);
        let member = bench.start(&[("TALLYHOUSE__FLUSH__AGE_MS", "600000")]);
        await_http(&member, "/metrics", "tallyhouse_consumed_records_total 300").await;
        signals.into_iter().for_each(|signal| send(&member, signal));
        let status = member.wait(TIMEOUT).unwrap();
        assert_eq!(status.code(), Some(0), "{signals:?}: {}", member.stderr());
        assert!(member.stdout().starts_with("consumed 300,"), "{signals:?}: {}", member.stdout());
        assert_eq!(bench.stored().await, 300 * (round as u64 + 1));
    }
}

/// While a repair's constraint holds a batch back, a member waits for it. A second signal then ends it, and it names
/// the open batch.
pub async fn a_second_signal_names_what_is_left_open(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(300);
    bench.execute("ALTER TABLE email_events ADD CONSTRAINT tallyhouse_repair_0 CHECK 0").await;
    let member = bench.start(&GRACE);
    await_http(&member, "/readyz", "insert\":\"").await;
    let open = bench.open_batches(3);
    send(&member, Signal::TERM);
    await_log(&member, "stopping: flushing");
    // The rule is about time, so there is nothing else to wait for.
    tokio::time::sleep(DOUBLED_WITHIN + Duration::from_millis(100)).await;
    assert!(member.is_alive(), "it did not wait for a constraint that goes by itself: {}", member.stderr());
    send(&member, Signal::TERM);
    let status = member.wait(TIMEOUT).unwrap();
    let log = member.stderr();
    assert_eq!(status.code(), Some(143), "{log}");
    let told = log.lines().last().unwrap();
    assert!(told.contains("ended by a second SIGTERM") && !open.is_empty(), "{told}");
    for batch in open {
        let named = format!("partition {}: batch [{}, {})", batch.partition, batch.start, batch.end);
        assert!(told.contains(&named), "{named} is not in {told}");
    }
    bench.execute("ALTER TABLE email_events DROP CONSTRAINT tallyhouse_repair_0").await;
    bench.consume(ledger.produced).await;
    bench.assert_exact(&ledger, "after a second signal").await;
}

/// Inserts into one table are refused permanently. The end does not wait for `shutdown.grace_ms`, flushes all other
/// batches, and names the ones that it leaves open.
pub async fn a_refused_insert_is_not_waited_for(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.execute("ALTER TABLE email_events ADD CONSTRAINT held CHECK NOT source LIKE '%/1@%'").await;
    let ledger = bench.produce(3_000);
    let member = bench.start(&GRACE);
    await_http(&member, "/readyz", "partition 1, insert").await;
    bench.await_stored(2_000, &[&member]).await;
    let since = Instant::now();
    let status = member.terminate(TIMEOUT).unwrap();
    let (took, log) = (since.elapsed(), member.stderr());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(took < Duration::from_secs(10), "it took {took:.1?}: {log}");
    let [batch] = &bench.open_batches(3)[..] else { panic!("{:?}", bench.open_batches(3)) };
    let named =
        format!("Left open: partition 1: batch [{}, {}) is announced and not committed", batch.start, batch.end);
    let told = log.lines().last().unwrap();
    assert!(batch.partition == 1 && told.contains(&named) && told.contains("`held`"), "{told}");
    bench.execute("ALTER TABLE email_events DROP CONSTRAINT held").await;
    bench.consume(ledger.produced).await;
    bench.assert_exact(&ledger, "after a refusal").await;
}

/// The reader of a repair's output goes away, or its terminal is closed, while its constraint stands. No constraint
/// is left.
pub async fn a_repair_whose_output_goes_away_leaves_no_fence(url: &str, database: &str) {
    take_signals_that_are_ignored();
    let bench = Bench::new(url, database).await;
    store_two_months(&bench, 1_500).await;
    let fences = format!(
        "SELECT count() FROM system.tables WHERE database = '{database}' AND (name LIKE 'daily_repair_%' \
         OR position(create_table_query, 'tallyhouse_repair_') > 0)"
    );
    // An insert that takes its time keeps the repair behind its constraint.
    let slow = "INSERT INTO daily (day, event_type, campaign_id, workspace_id, source, total, end_offset) SELECT '2026-10-31', 'open', \
                generateUUIDv4(), generateUUIDv4(), 'elsewhere/0', sleepEachRow(1), 1 FROM numbers(3) SETTINGS max_block_size = 1";
    double_a_counter(&bench, 202611).await;
    for hangs_up in [true, false] {
        let repairing = async {
            await_insert(&bench, database).await;
            let mut command = bench.command(&["repair", "daily", "--month", "202611", "--trust-rows"]);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            tokio::task::spawn_blocking(move || until_members_wait(child, hangs_up)).await.unwrap()
        };
        let ((), (status, error)) = tokio::join!(bench.execute(slow), repairing);
        assert_eq!(bench.count(&fences).await, 0, "{error}");
        match hangs_up {
            false => {
                assert!(status == Some(74) && error.contains("standard output: Broken pipe"), "{status:?}: {error}")
            }
            true => assert!(status == Some(1) && error.contains("interrupted"), "{status:?}: {error}"),
        }
        let differs = bench.run(&["repair", "daily", "--month", "202611", "--trust-rows", "--dry-run"], &[]).0;
        assert_eq!(differs, Some(if hangs_up { 2 } else { 0 }), "the month is counted again, or as it was");
    }
    bench.execute("ALTER TABLE daily DELETE WHERE source = 'elsewhere/0' SETTINGS mutations_sync = 2").await;
    let (status, output, error) = bench.run(&["repair", "daily", "--month", "202611"], &[]);
    assert_eq!(status, Some(0), "{output}{error}");
    assert_clean(&bench, "after repairs that were cut short");
}

/// Reads the output until the constraint is put up, closes it, and waits for the end. Returns exit status and
/// standard error.
fn until_members_wait(mut child: std::process::Child, hangs_up: bool) -> (Option<i32>, String) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in lines.by_ref() {
        seen.push(line.unwrap());
        if seen.last().unwrap().contains("members wait from here on") {
            break;
        }
    }
    if hangs_up {
        kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    }
    drop(lines);
    assert!(seen.last().is_some_and(|line| line.contains("members wait")), "{seen:?}");
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A closed terminal ends a watch as Ctrl-C does.
pub async fn a_watch_ends_when_the_terminal_is_closed(url: &str, database: &str) {
    take_signals_that_are_ignored();
    let bench = Bench::new(url, database).await;
    let command = bench.command(&["status", "--watch", "1", "--json"]);
    let watch = process::spawn("tallyhouse status", command, Output::Captured).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while !watch.stdout().contains('\n') {
        assert!(Instant::now() < deadline, "{}", watch.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    send(&watch, Signal::HUP);
    assert_eq!(watch.wait(TIMEOUT).unwrap().code(), Some(0), "{}", watch.stderr());
}
