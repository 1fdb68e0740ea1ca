//! Gives the library an interserver address and a listener for it.
//!
//! Four functions are overwritten:
//!
//! 1. `Context::getInterserverIOAddress()` returns 127.0.0.1 and a port.
//! 2. `Context::getInterserverScheme()` returns `http`.
//! 3. `Context::getInterserverCredentials()` returns "no user, no password". Otherwise it returns a null pointer, which a
//!    fetch of a part uses.
//! 4. The function that makes a handler of the HTTP type `webterminal` jumps to the one that makes an
//!    InterserverIOHTTPHandler. [`super::super::HTTP_HANDLERS`] then routes fetches to that type.
//!
//! They are found from the name of the type InterserverIOHTTPHandler. Its method handleRequest calls
//! getInterserverCredentials, whose next neighbour in the code refers to a message. That neighbour is
//! getInterserverIOAddress, and getInterserverScheme follows it. Names of lambda types lead to the makers of handlers.

use super::{
    Function, Write,
    image::{Image, int, name},
};
use std::{ffi::c_void, sync::OnceLock};

const MESSAGE: &[u8] = b"Parameter 'interserver_http(s)_port' required for replication is not specified in ";
const HANDLER: &[u8] = b"\0N2DB24InterserverIOHTTPHandlerE\0";
const MAKE_INTERSERVER: &[u8] =
    b"\0ZN2DB30HandlingRuleHTTPHandlerFactoryINS_24InterserverIOHTTPHandlerEEC1ERNS_7IServerEEUlvE_\0";
const MAKE_TERMINAL: &[u8] =
    b"\0ZN2DB30HandlingRuleHTTPHandlerFactoryINS_25WebTerminalRequestHandlerEEC1ERNS_7IServerEEUlvE_\0";
/// Number of handleRequest in the handler's vtable.
const HANDLE_REQUEST: usize = 2;
/// Greatest distance from the handler's methods to the makers of handlers. They lie 0.2 MB apart.
const NEARBY: usize = 1 << 20;

/// lock inc [r15 + 8]: a reference is counted.
const COUNTS_A_REFERENCE: &[u8] = &[0xf0, 0x49, 0xff, 0x47, 0x08];
/// mov rax, r14; mov rdx, r15; pop rbx; pop r14; pop r15; ret: a shared_ptr is returned in registers.
const RETURNS_A_SHARED_PTR: &[u8] = &[0x4c, 0x89, 0xf0, 0x4c, 0x89, 0xfa, 0x5b, 0x41, 0x5e, 0x41, 0x5f, 0xc3];
/// mov [rdi + 24], ax: the port goes behind a string of 24 bytes, where rdi points to.
const RETURNS_A_PORT: &[u8] = &[0x66, 0x89, 0x47, 0x18];
/// mov rcx, [rax + 16]; mov [rdi + 16], rcx; vmovups xmm0, [rax]; vmovups [rdi], xmm0: a string is copied.
const COPIES_A_STRING: &[u8] =
    &[0x48, 0x8b, 0x48, 0x10, 0x48, 0x89, 0x4f, 0x10, 0xc5, 0xf8, 0x10, 0x00, 0xc5, 0xf8, 0x11, 0x07];

/// The `std::string` of the library. Short strings lie in place, with their length in the last byte.
#[repr(C)]
pub(super) struct CxxString {
    bytes: [u8; 24],
}

impl CxxString {
    /// Panics when the text is longer than 22 bytes. A longer string would need the library's allocator.
    pub(super) fn short(text: &str) -> CxxString {
        let mut bytes = [0; 24];
        bytes[..22][..text.len()].copy_from_slice(text.as_bytes());
        bytes[23] = text.len() as u8;
        CxxString { bytes }
    }
}

/// Has the layout of C++'s `std::pair<std::string, UInt16>`.
#[repr(C)]
struct Address {
    host: CxxString,
    port: u16,
}

/// `DB::InterserverCredentials`: own user, own password, and a vector of the pairs that are let in.
#[repr(C)]
struct Credentials {
    user: CxxString,
    password: CxxString,
    accepted: [*const [CxxString; 2]; 3],
}

static PORT: OnceLock<u16> = OnceLock::new();

/// Takes the place of `Context::getInterserverIOAddress`.
unsafe extern "C" fn address(out: *mut Address, _context: *const c_void) -> *mut Address {
    let address = Address { host: CxxString::short("127.0.0.1"), port: PORT.get().copied().unwrap_or_default() };
    // SAFETY: the library's callers pass room for a returned pair of string and port (`RETURNS_A_PORT`).
    unsafe { out.write(address) };
    out
}

/// Takes the place of `Context::getInterserverScheme`.
unsafe extern "C" fn scheme(out: *mut CxxString, _context: *const c_void) -> *mut CxxString {
    // SAFETY: the library's callers pass room for a returned string (`COPIES_A_STRING`).
    unsafe { out.write(CxxString::short("http")) };
    out
}

/// Returns the changes, and the function getInterserverIOAddress.
pub(super) fn look_up(image: &Image, port: u16) -> Result<(Vec<Write>, Function), String> {
    let vtable = image.vtable(HANDLER)?;
    let handle_request = image.method(vtable, HANDLE_REQUEST).ok_or("handleRequest is no function")?;
    let handle_request = image.named_function(handle_request, "handleRequest")?;
    let terminal = maker(image, MAKE_TERMINAL, handle_request.start)?;
    let interserver = maker(image, MAKE_INTERSERVER, handle_request.start)?;
    let [credentials, address_getter, scheme_getter] = getters(image, &handle_request)?;
    PORT.get_or_init(|| port);
    let writes = vec![
        Write::of(&credentials, return_no_password())?,
        Write::jump(&address_getter, address as *const () as usize)?,
        Write::jump(&scheme_getter, scheme as *const () as usize)?,
        Write::jump(&terminal, interserver.start)?,
    ];
    Ok((writes, address_getter))
}

/// Returns code that returns credentials without a password: mov rax, credentials; xor edx, edx; ret. It is a shared_ptr
/// without a counter, in registers.
fn return_no_password() -> Vec<u8> {
    let empty = || CxxString::short("");
    let accepted = &raw const *Box::leak(Box::new([empty(), empty()]));
    let accepted = [accepted, accepted.wrapping_add(1), accepted.wrapping_add(1)];
    let credentials = Box::leak(Box::new(Credentials { user: empty(), password: empty(), accepted }));
    let address = (&raw const *credentials as usize).to_le_bytes();
    [[0x48, 0xb8].as_slice(), &address, &[0x31, 0xd2, 0xc3]].concat()
}

/// Returns getInterserverCredentials, getInterserverIOAddress and getInterserverScheme.
fn getters(image: &Image, handle_request: &Function) -> Result<[Function; 3], String> {
    let message = image.text(MESSAGE)?;
    let called = image.callees(handle_request).filter_map(|index| image.function(index));
    // handleRequest calls it, or a function that handleRequest calls.
    let callers = [handle_request.clone()].into_iter().chain(called);
    for index in callers.flat_map(|caller| image.callees(&caller).collect::<Vec<_>>()) {
        let neighbours = (image.function(index), image.function(index + 1), image.function(index + 2));
        let (Some(credentials), Some(address), Some(scheme)) = neighbours else { continue };
        if image.references(&address, message).next().is_none() {
            continue;
        }
        image.expect("getInterserverCredentials", &credentials, COUNTS_A_REFERENCE)?;
        image.expect("getInterserverCredentials", &credentials, RETURNS_A_SHARED_PTR)?;
        image.expect("getInterserverIOAddress", &address, RETURNS_A_PORT)?;
        image.expect("getInterserverScheme", &scheme, COPIES_A_STRING)?;
        return Ok([credentials, address, scheme]);
    }
    Err("nothing calls the neighbour of getInterserverIOAddress".to_owned())
}

/// Returns the body of a lambda that makes a handler. The code that makes a `std::function` of it takes its address.
fn maker(image: &Image, type_name: &[u8], centre: usize) -> Result<Function, String> {
    let policy = image.policy(type_name)?;
    // lea r, [rip + …]
    let is_lea = |code: &[u8]| matches!(code, [0x48 | 0x4c, 0x8d, register] if register & 0xc7 == 5);
    let mut bodies = Vec::new();
    for after in image.references(&image.nearby(centre, NEARBY), policy) {
        // lea r, [body]; mov [s + 80], r; lea r, [policy]
        let before = image.code(&(after - 18..after));
        if before.len() == 18 && is_lea(&before[..3]) && before[10] == 0x50 && is_lea(&before[11..14]) {
            bodies.push((after - 11).wrapping_add_signed(int(&before[3..7]) as isize));
        }
    }
    bodies.dedup();
    let [body] = bodies[..] else { return Err(format!("{} has {} bodies", name(type_name), bodies.len())) };
    let function = image.function_at(body).and_then(|index| image.function(index));
    function.ok_or_else(|| format!("{} is no function", name(type_name)))
}
