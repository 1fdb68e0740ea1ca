//! The one thread that starts every child.
//!
//! The kernel kills a child when the *thread* that started it ends (PR_SET_PDEATHSIG). Test threads come and go, so a
//! thread that lives as long as the process starts all children.
//!
//! Must never end, and must never start a child that could outlive this process.

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

struct Request {
    command: Arc<Mutex<Command>>,
    reply: Sender<io::Result<Child>>,
}

/// Makes every child that `command` starts die with this process, even if this process is killed with -9.
///
/// The child also gets a process group of its own, so that Ctrl-C in a terminal reaches only this process. This
/// process then ends its children in its own order.
pub(super) fn arm(command: &mut Command) {
    let parent = getpid();
    command.stdin(Stdio::null()).process_group(0);
    let die_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above took effect.
        if getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes the system calls prctl and getppid and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
}

/// Starts a child of `command` on the spawner thread. Fails as `Command::spawn` fails.
pub(super) fn spawn(command: &Arc<Mutex<Command>>) -> io::Result<Child> {
    let (reply, answer) = channel();
    let gone = |_| io::Error::other("the thread that starts processes has ended");
    spawner()?.send(Request { command: Arc::clone(command), reply }).map_err(|_| gone(()))?;
    answer.recv().map_err(|_| gone(()))?
}

fn spawner() -> io::Result<&'static Sender<Request>> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(requests) = SPAWNER.get() {
        return Ok(requests);
    }
    let (requests, queue) = channel();
    thread::Builder::new().name("devstack-spawner".into()).spawn(move || serve(&queue))?;
    Ok(SPAWNER.get_or_init(|| requests))
}

fn serve(queue: &Receiver<Request>) {
    for request in queue {
        let child = request.command.lock().unwrap_or_else(PoisonError::into_inner).spawn();
        if let Err(unclaimed) = request.reply.send(child)
            && let Ok(mut child) = unclaimed.0
        {
            let _ = child.kill();
        }
    }
}
