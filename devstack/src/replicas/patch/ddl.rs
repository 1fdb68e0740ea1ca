//! Makes ON CLUSTER work in the library.
//!
//! Its main program makes no DDLWorker and never permits replicated DDL. Two functions are overwritten:
//!
//! 1. `DatabaseCatalog::canPerformReplicatedDDLQueries()` returns true.
//! 2. `Context::getDDLWorker()` returns a worker. The first call makes it with the library's own constructor and starts it.
//!
//! So a server takes part in ON CLUSTER from its first statement with ON CLUSTER.
//!
//! They are found from the names of types and from messages. In the vtable of DDLWorker, shutdown is method 3. Its
//! constructor lies before that and refers to its own signature. The method startup lies between the two and sets the
//! flag that shutdown sets. In the vtable of DatabaseReplicated, one method asks canPerformReplicatedDDLQueries before it
//! refers to a message. Messages of getDDLWorker and getGlobalContext lead to these; they lie near
//! getInterserverIOAddress.

use super::{
    Function, Write,
    image::{Image, int, name},
    interserver::CxxString,
};
use std::{
    alloc::{Layout, alloc_zeroed},
    ffi::{c_int, c_void},
    mem, ptr,
    sync::OnceLock,
};

const WORKER: &[u8] = b"\0N2DB9DDLWorkerE\0";
const DATABASE: &[u8] = b"\0N2DB18DatabaseReplicatedE\0";
const CONSTRUCTOR: &[u8] = b"\0DB::DDLWorker::DDLWorker(int, const std::string &, const std::string &, ContextPtr, \
    const Poco::Util::AbstractConfiguration *, const String &, const String &, const String &, \
    const CurrentMetrics::Metric *, const CurrentMetrics::Metric *)\0";
const NO_WORKER: &[u8] = b"\0DDL background thread is not initialized\0";
const NO_CONTEXT: &[u8] = b"\0There is no global context or global context has expired\0";
const NO_DDL: &[u8] = b"\0Replicated DDL queries are disabled\0";
/// Number of shutdown in the worker's vtable.
const SHUTDOWN: usize = 3;
/// Number of methods of DatabaseReplicated that are looked at. It has fewer.
const METHODS_MAX: usize = 200;
/// Greatest distance between functions of one source file.
const NEARBY: usize = 256 << 10;
/// Bytes of room for a worker, which needs 752.
const ROOM: usize = 16 << 10;

/// `std::shared_ptr`, which the library passes and returns in registers.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shared {
    object: *const c_void,
    counter: *const c_void,
}

type Constructor = unsafe extern "C-unwind" fn(
    *mut c_void,
    c_int,
    *const CxxString,
    *const CxxString,
    Shared,
    *const c_void,
    *const CxxString,
    *const CxxString,
    *const CxxString,
    *const c_void,
    *const c_void,
);
type Startup = unsafe extern "C-unwind" fn(*mut c_void);
type GlobalContext = unsafe extern "C-unwind" fn(*const c_void) -> Shared;

/// Functions of the library that the worker is made with.
struct Found {
    constructor: Constructor,
    startup: Startup,
    global_context: GlobalContext,
}

static FOUND: OnceLock<Found> = OnceLock::new();
/// Address of the worker.
static MADE: OnceLock<usize> = OnceLock::new();

/// Takes the place of `Context::getDDLWorker`.
unsafe extern "C-unwind" fn worker(context: *const c_void) -> *mut c_void {
    let address = MADE.get_or_init(|| FOUND.get().map_or(0, |found| make(found, context)));
    *address as *mut c_void
}

/// Makes a worker and starts it. It lives as long as the process.
fn make(found: &Found, context: *const c_void) -> usize {
    let Ok(layout) = Layout::from_size_align(ROOM, 64) else { return 0 };
    // SAFETY: the layout has a size.
    let worker = unsafe { alloc_zeroed(layout) }.cast::<c_void>();
    let [queue, replicas] = ["/clickhouse/ddl/queue", "/clickhouse/ddl/hosts"].map(CxxString::short);
    let [prefix, keeper, logger] = ["", "default", "DDLWorker"].map(CxxString::short);
    let none = ptr::null();
    // SAFETY: `look_up` identified these three functions by their own messages, and their parameters are those of the
    // signature in `CONSTRUCTOR`. The room is larger than a worker. The strings live until the constructor returns,
    // which copies them. One reference to the global context is never released, so that context outlives the worker.
    unsafe {
        let global = (found.global_context)(context);
        (found.constructor)(worker, 1, &queue, &replicas, global, none, &prefix, &keeper, &logger, none, none);
        (found.startup)(worker);
    }
    worker as usize
}

/// Returns the changes. `near` is a function of the source file that has `getDDLWorker`.
pub(super) fn look_up(image: &Image, near: &Function) -> Result<Vec<Write>, String> {
    let vtable = image.vtable(WORKER)?;
    let shutdown = image.method(vtable, SHUTDOWN).ok_or("DDLWorker::shutdown is no function")?;
    let shutdown_start = image.named_function(shutdown, "DDLWorker::shutdown")?.start;
    let constructor = user(image, CONSTRUCTOR, shutdown_start)?;
    let stop = flag(image, shutdown).ok_or("DDLWorker::shutdown sets no flag")?;
    let startups: Vec<usize> = (constructor + 1..shutdown).filter(|&index| flag(image, index) == Some(stop)).collect();
    let [startup] = startups[..] else { return Err("DDLWorker::startup is not found".to_owned()) };
    let get_worker = image.named_function(user(image, NO_WORKER, near.start)?, "getDDLWorker")?;
    let global_context = image.named_function(user(image, NO_CONTEXT, near.start)?, "getGlobalContext")?;
    let permission = permission(image)?;
    let constructor = image.named_function(constructor, "DDLWorker::DDLWorker")?.start;
    let startup = image.named_function(startup, "DDLWorker::startup")?.start;
    // SAFETY: each address is the start of the function that the look-ups above identified, and `make` calls it with
    // that function's parameters.
    let found = unsafe {
        Found {
            constructor: mem::transmute::<usize, Constructor>(constructor),
            startup: mem::transmute::<usize, Startup>(startup),
            global_context: mem::transmute::<usize, GlobalContext>(global_context.start),
        }
    };
    FOUND.get_or_init(|| found);
    // mov eax, 1; ret
    let permit = Write::of(&permission, vec![0xb8, 1, 0, 0, 0, 0xc3])?;
    Ok(vec![permit, Write::jump(&get_worker, worker as *const () as usize)?])
}

/// Returns the index of the function near `centre` that refers to a text. The text begins after the first byte.
fn user(image: &Image, text: &[u8], centre: usize) -> Result<usize, String> {
    let address = image.text(text)? + 1;
    let nearby = image.nearby(centre, NEARBY);
    let index = image.references(&nearby, address).next().and_then(|at| image.function_around(at));
    index.ok_or_else(|| format!("no function uses {:?}", name(text)))
}

/// Returns the offset of the flag that a function sets at its beginning: xchg [rdi + offset], al.
fn flag(image: &Image, index: usize) -> Option<i32> {
    let code = image.code(&image.function(index)?);
    let head = &code[..code.len().min(64)];
    head.windows(6).find(|window| window[..2] == [0x86, 0x87]).map(|window| int(&window[2..]))
}

/// Returns the function canPerformReplicatedDDLQueries.
fn permission(image: &Image) -> Result<Function, String> {
    let vtable = image.vtable(DATABASE)?;
    let message = image.text(NO_DDL)? + 1;
    let mut found = Vec::new();
    let methods = (0..METHODS_MAX).map_while(|number| image.function(image.method(vtable, number)?));
    for method in methods.filter(|method| image.references(method, message).next().is_some()) {
        for (at, window) in image.code(&method).windows(17).enumerate() {
            // call instance; mov rdi, rax; call permission; test al, al; je
            if let [0xe8, _, _, _, _, 0x48, 0x89, 0xc7, 0xe8, a, b, c, d, 0x84, 0xc0, 0x0f, 0x84] = window {
                found.push((method.start + at + 13).wrapping_add_signed(int(&[*a, *b, *c, *d]) as isize));
            }
        }
    }
    let [address] = found[..] else { return Err(format!("{} candidates for canPerform…", found.len())) };
    let function =
        image.function_at(address).and_then(|index| image.function(index)).ok_or("canPerform… is no function")?;
    // movzx eax, byte [rdi + flag]; ret
    if !matches!(image.code(&function), [0x0f, 0xb6, 0x87, _, _, _, _, 0xc3]) {
        return Err("canPerformReplicatedDDLQueries is not the code that is expected".to_owned());
    }
    Ok(function)
}
