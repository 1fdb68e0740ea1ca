//! Changes the pinned ClickHouse library in memory so that it can be a replica of a cluster.
//!
//! # Reasons
//!
//! No package registry has a ClickHouse server that replicates. The library `libchdb.so` contains all the code for it.
//! But its main program never sets the interserver address, opens no interserver port and makes no worker for ON
//! CLUSTER. Its configuration cannot change that. Without replicas, nothing of Tallyhouse's behaviour on them is tested.
//!
//! # Form
//!
//! A process that hosts ClickHouse overwrites the beginnings of six functions in its own copy of the code. It does so after
//! it has loaded the library and before it starts the server. No file changes. [`interserver`] finds four of them and [`ddl`]
//! two. Nothing is found by a fixed address: the look-ups follow names of C++ types, error messages and references
//! between them.
//!
//! All look-ups come before the first write, and each compares the code with what it expects. So another build ends the
//! process with a message and no change.
//!
//! This is the one place where `unsafe` is for more than a C API. It is part of devstack, never of the service.

mod ddl;
mod image;
mod interserver;

use image::Image;
use std::{
    ffi::{c_int, c_void},
    io, ptr,
};

/// Bytes to put at the beginning of a function.
struct Write {
    address: usize,
    code: Vec<u8>,
}

/// A function in the loaded library.
type Function = std::ops::Range<usize>;

/// Makes the library a replica that advertises `port` on 127.0.0.1 for its parts. `entry` is the address of any function
/// of the library.
///
/// Fails before the first change when the library is not the build that this module knows.
pub(crate) fn install(entry: *const c_void, port: u16) -> Result<(), String> {
    let writes = look_up(entry, port).map_err(|message| {
        format!(
            "this ClickHouse library cannot be made a replica: {message}. Replicas need version {} on x86-64",
            crate::fetch::CHDB_VERSION
        )
    })?;
    writes.iter().try_for_each(apply).map_err(|error| format!("the library's code cannot be changed: {error}"))
}

fn look_up(entry: *const c_void, port: u16) -> Result<Vec<Write>, String> {
    let image = Image::around(entry as usize)?;
    let (mut writes, address_getter) = interserver::look_up(&image, port)?;
    writes.extend(ddl::look_up(&image, &address_getter)?);
    Ok(writes)
}

impl Write {
    /// Replaces a function's beginning. Fails if the function is shorter than the code.
    fn of(function: &Function, code: Vec<u8>) -> Result<Write, String> {
        if function.len() < code.len() {
            return Err(format!("a function of {} bytes is too short to overwrite", function.len()));
        }
        Ok(Write { address: function.start, code })
    }

    /// Makes a function jump to `target`: mov rax, target; jmp rax.
    fn jump(function: &Function, target: usize) -> Result<Write, String> {
        let code = [[0x48, 0xb8].as_slice(), &target.to_le_bytes(), &[0xff, 0xe0]].concat();
        Write::of(function, code)
    }
}

fn apply(write: &Write) -> io::Result<()> {
    // SAFETY: sysconf reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let start = write.address & !(page - 1);
    let length = write.address + write.code.len() - start;
    let protect = |how: c_int| {
        // SAFETY: the pages belong to the library's code, which stays loaded. No other thread runs in this process yet.
        match unsafe { libc::mprotect(start as *mut c_void, length, how) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    protect(libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the function is at least as long as the code (`Write::of`), and its pages are writable now. Nothing runs it
    // meanwhile, and the image that lends out slices of the code is gone.
    unsafe { ptr::copy_nonoverlapping(write.code.as_ptr(), write.address as *mut u8, write.code.len()) };
    protect(libc::PROT_READ | libc::PROT_EXEC)
}
