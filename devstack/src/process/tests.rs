use super::*;
use std::{os::unix::process::ExitStatusExt, thread};

const SOON: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Server {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    spawn("a script", command, Output::Captured).unwrap()
}

/// Waits for a one-letter state of `/proc/PID/stat`.
fn await_state(server: &Server, wanted: &str) {
    let started = Instant::now();
    loop {
        let stat = server.read_proc("stat").unwrap();
        if stat.rsplit_once(')').unwrap().1.trim_start().starts_with(wanted) {
            return;
        }
        assert!(started.elapsed() < SOON, "not {wanted}: {stat}");
        thread::yield_now();
    }
}

#[test]
fn a_child_outlives_the_thread_that_asked_for_it() {
    let server = thread::spawn(|| shell("exec sleep 600")).join().unwrap();
    assert!(!wait_gone(server.pid(), Duration::from_millis(100)).unwrap());
    assert!(server.is_alive());
}

#[test]
fn dropping_kills_and_reaps() {
    let server = shell("trap '' TERM; exec sleep 600");
    let pid = server.pid();
    drop(server);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn terminate_returns_the_exit_status_and_output_is_captured_apart() {
    let server = shell("trap 'echo bye; exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done")
        .with_health(|| Err("never".into()));
    let started = Instant::now();
    while server.stderr() != "ready\n" {
        assert!(started.elapsed() < SOON);
        thread::yield_now();
    }
    assert_eq!(server.terminate(SOON).unwrap().code(), Some(7));
    assert_eq!(server.stdout(), "bye\n");
    assert!(matches!(server.stop(), Err(Error::NotRunning { .. })));
}

#[test]
fn terminate_gives_up_at_its_deadline() {
    let server = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let started = Instant::now();
    while server.stdout().is_empty() {
        assert!(started.elapsed() < SOON);
        thread::yield_now();
    }
    assert!(matches!(server.terminate(Duration::from_millis(50)), Err(Error::StillRunning { .. })));
    server.kill9().unwrap();
    assert_eq!(server.wait(SOON).unwrap().signal(), Some(9));
    server.kill9().unwrap();
}

#[test]
fn stop_and_cont_freeze_and_thaw_and_restart_starts_anew() {
    let server = shell("exec sleep 600");
    server.stop().unwrap();
    await_state(&server, "T");
    assert!(server.is_alive());
    server.cont().unwrap();
    await_state(&server, "S");
    let first = server.pid();
    server.restart().unwrap();
    assert_ne!(server.pid(), first);
    assert!(server.is_alive());
}

#[test]
fn a_death_before_health_brings_the_log_along() {
    let server = shell("echo no space left; exit 3").with_health(|| Err("refused".into()));
    let error = server.wait_healthy(SOON).unwrap_err();
    assert!(matches!(&error, Error::Died { log_tail, .. } if log_tail == "no space left"), "{error}");
}

#[test]
fn an_unhealthy_server_is_reported_at_the_deadline() {
    let server = shell("exec sleep 600").with_health(|| Err("refused".into()));
    let error = server.wait_healthy(Duration::from_millis(30)).unwrap_err();
    assert!(matches!(&error, Error::NotHealthy { last, .. } if last == "refused"), "{error}");
}

#[test]
fn measures_processor_time_and_memory() {
    let server = shell("while :; do :; done");
    let started = Instant::now();
    while server.cpu_time().unwrap() < Duration::from_millis(50) {
        assert!(started.elapsed() < SOON);
        thread::yield_now();
    }
    assert!(server.rss_bytes().unwrap() > 100_000);
    server.kill9().unwrap();
    assert!(matches!(server.cpu_time(), Err(Error::NotRunning { .. })));
}

#[test]
fn a_missing_program_is_an_error() {
    assert!(matches!(spawn("nothing", Command::new("no-such-program"), Output::Captured), Err(Error::Io { .. })));
}

#[test]
fn the_peak_of_memory_stays_until_it_is_reset() {
    // 64 MiB in a shell variable, given back before it sleeps.
    let server = shell("x=$(head -c 67108864 /dev/zero | tr '\\0' x); unset x; kill -STOP $$; exec sleep 600");
    await_state(&server, "T");
    let peak = server.peak_memory_bytes().unwrap();
    assert!(peak > 64 << 20, "{peak}");
    server.reset_peak_memory().unwrap();
    let peak_now = server.peak_memory_bytes().unwrap();
    assert!(peak_now < peak && peak_now >= server.rss_bytes().unwrap(), "{peak_now}");
}
