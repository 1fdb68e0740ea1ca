//! The loaded library in memory: finds texts, C++ types, functions and the references between them.
//!
//! It only reads. Addresses are plain numbers, and every read is checked against the mapped segments.

use super::Function;
use std::{
    ffi::{c_int, c_void},
    ops::Range,
    slice,
};

/// The beginning of the unwind table's header that this module can read: version 1 and the encodings of three fields.
const UNWIND_HEAD: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
/// Bytes before the first entry of the unwind table.
const UNWIND_HEAD_BYTES: usize = 12;
/// Bytes before a function's length in its unwind entry.
const LENGTH_AT: usize = 12;

/// A mapped segment of the library.
struct Segment {
    start: usize,
    bytes: &'static [u8],
}

/// The library as it is loaded in this process.
pub(super) struct Image {
    constants: Segment,
    code: Segment,
    pointers: Segment,
    /// Address of the unwind table's header, to which its entries are relative.
    unwind: usize,
    /// Starts of functions and of their unwind entries, relative to the header, sorted by start.
    functions: Vec<[i32; 2]>,
}

impl Segment {
    fn get(&self, range: &Range<usize>) -> Option<&'static [u8]> {
        let from = range.start.checked_sub(self.start)?;
        self.bytes.get(from..range.end.checked_sub(self.start)?)
    }

    fn contains(&self, address: usize) -> bool {
        (self.start..self.start + self.bytes.len()).contains(&address)
    }
}

/// The search of [`Image::around`] for the library that contains an address.
struct Search {
    inside: usize,
    found: Option<Result<Image, String>>,
}

unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid description, and the pointer that `around` gave it.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader describes dlpi_phnum headers there, and they stay as long as the library is loaded.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let base = info.dlpi_addr as usize;
    let segment = |kind, flags| {
        let header = headers.iter().find(|header| header.p_type == kind && header.p_flags & 7 == flags)?;
        let start = base + header.p_vaddr as usize;
        // SAFETY: the loader has mapped this segment for reading. The host never unloads the library, and
        // `super::apply` changes code only after the image is gone.
        let bytes = unsafe { slice::from_raw_parts(start as *const u8, header.p_memsz as usize) };
        Some(Segment { start, bytes })
    };
    let Some(code) = segment(libc::PT_LOAD, libc::PF_R | libc::PF_X) else { return 0 };
    if !code.contains(search.inside) {
        return 0;
    }
    let constants = segment(libc::PT_LOAD, libc::PF_R);
    let pointers = segment(libc::PT_GNU_RELRO, libc::PF_R);
    let unwind = headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME);
    search.found = Some(match (constants, pointers, unwind) {
        (Some(constants), Some(pointers), Some(unwind)) => {
            let functions = Vec::new();
            Ok(Image { constants, code, pointers, unwind: base + unwind.p_vaddr as usize, functions })
        }
        _ => Err("its program headers are not as expected".to_owned()),
    });
    1
}

impl Image {
    /// Describes the library whose code contains `address`.
    pub(super) fn around(address: usize) -> Result<Image, String> {
        let mut search = Search { inside: address, found: None };
        // SAFETY: `visit` takes the pointer for what it is, and nothing keeps it after the call.
        unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
        let mut image = search.found.unwrap_or_else(|| Err("its code is not found".to_owned()))?;
        image.functions = image.read_functions().ok_or("its unwind table is not as expected")?;
        Ok(image)
    }

    fn read_functions(&self) -> Option<Vec<[i32; 2]>> {
        if self.constants.get(&(self.unwind..self.unwind + 4))? != UNWIND_HEAD {
            return None;
        }
        let first = self.unwind + UNWIND_HEAD_BYTES;
        let count = self.four(self.unwind + 8)? as usize;
        let table = self.constants.get(&(first..first + 8 * count))?;
        let entry = |bytes: &[u8]| [int(&bytes[..4]), int(&bytes[4..])];
        Some(table.chunks_exact(8).map(entry).collect())
    }

    fn four(&self, address: usize) -> Option<i32> {
        self.constants.get(&(address..address + 4)).map(int)
    }

    /// Returns the pointer at an address among the relocated constants.
    fn pointer(&self, address: usize) -> Option<usize> {
        self.pointers.get(&(address..address + 8)).map(pointer)
    }

    /// Returns the code at these addresses; it is empty where there is none.
    pub(super) fn code(&self, range: &Range<usize>) -> &'static [u8] {
        self.code.get(range).unwrap_or_default()
    }

    /// Returns the address of a text among the constants. The linker has merged equal ones.
    pub(super) fn text(&self, text: &[u8]) -> Result<usize, String> {
        let all = self.constants.bytes;
        // SAFETY: both pointers come with the lengths of their slices.
        let found = unsafe { libc::memmem(all.as_ptr().cast(), all.len(), text.as_ptr().cast(), text.len()) };
        if found.is_null() { Err(format!("{:?} is not in it", name(text))) } else { Ok(found as usize) }
    }

    /// Returns the places among the relocated constants that point to `target`.
    fn pointers_to(&self, target: usize) -> impl Iterator<Item = usize> {
        let skip = self.pointers.start.next_multiple_of(8) - self.pointers.start;
        let start = self.pointers.start + skip;
        let words = self.pointers.bytes[skip..].chunks_exact(8);
        words.enumerate().filter(move |(_, word)| pointer(word) == target).map(move |(index, _)| start + 8 * index)
    }

    /// Returns the one pointer to the type_info with this name for which `accept` is true.
    fn type_use(&self, type_name: &[u8], accept: impl Fn(usize) -> bool) -> Result<usize, String> {
        let text = self.text(type_name)? + 1;
        let infos = self.pointers_to(text).map(|slot| slot - 8);
        let mut found = infos.flat_map(|info| self.pointers_to(info)).filter(|&slot| accept(slot));
        match (found.next(), found.next()) {
            (Some(slot), None) => Ok(slot),
            _ => Err(format!("the type {} has no single use", name(type_name))),
        }
    }

    /// Returns the place of a type's vtable: after the offset to the top of the object and before the methods.
    pub(super) fn vtable(&self, type_name: &[u8]) -> Result<usize, String> {
        let is_vtable = |slot: usize| {
            self.pointer(slot - 8) == Some(0) && self.pointer(slot + 8).is_some_and(|method| self.code.contains(method))
        };
        self.type_use(type_name, is_vtable)
    }

    /// Returns the place of the std::function policy of a lambda. It is the type_info's place less three words that are
    /// zero: no copy and no destruction for a small lambda, and not null.
    pub(super) fn policy(&self, type_name: &[u8]) -> Result<usize, String> {
        let is_policy = |slot: usize| (1..=3).all(|words| self.pointer(slot - 8 * words) == Some(0));
        self.type_use(type_name, is_policy).map(|slot| slot - 24)
    }

    /// Returns the index of a method in a vtable. Numbers 0 and 1 are the destructors.
    pub(super) fn method(&self, vtable: usize, number: usize) -> Option<usize> {
        self.function_at(self.pointer(vtable + 8 + 8 * number)?)
    }

    /// Returns the function with this index, in the order of addresses.
    pub(super) fn function(&self, index: usize) -> Option<Function> {
        let [start, entry] = *self.functions.get(index)?;
        let at = |offset: i32| self.unwind.wrapping_add_signed(offset as isize);
        let length = self.four(at(entry) + LENGTH_AT)? as u32 as usize;
        Some(at(start)..at(start) + length)
    }

    /// Returns the function with this index, or an error that names it.
    pub(super) fn named_function(&self, index: usize, name: &str) -> Result<Function, String> {
        self.function(index).ok_or_else(|| format!("{name} is no function"))
    }

    /// Returns the index of the function that begins at `address`.
    pub(super) fn function_at(&self, address: usize) -> Option<usize> {
        let offset = self.offset(address)?;
        self.functions.binary_search_by_key(&offset, |function| function[0]).ok()
    }

    /// Returns the index of the function that contains `address`.
    pub(super) fn function_around(&self, address: usize) -> Option<usize> {
        let offset = self.offset(address)?;
        let index = self.functions.partition_point(|function| function[0] <= offset).checked_sub(1)?;
        self.function(index).is_some_and(|function| function.contains(&address)).then_some(index)
    }

    fn offset(&self, address: usize) -> Option<i32> {
        i32::try_from(address.wrapping_sub(self.unwind) as isize).ok()
    }

    /// Returns the code up to `distance` bytes from `centre`.
    pub(super) fn nearby(&self, centre: usize, distance: usize) -> Range<usize> {
        let end = self.code.start + self.code.bytes.len();
        self.code.start.max(centre - distance)..end.min(centre + distance)
    }

    /// Returns the address after each place in `range` whose four bytes are the distance from there to `target`.
    pub(super) fn references(&self, range: &Range<usize>, target: usize) -> impl Iterator<Item = usize> {
        let start = range.start;
        self.code(range).windows(4).enumerate().filter_map(move |(index, four)| {
            let after = start + index + 4;
            (after.wrapping_add_signed(int(four) as isize) == target).then_some(after)
        })
    }

    /// Returns the indices of the functions that `function` calls directly.
    pub(super) fn callees(&self, function: &Function) -> impl Iterator<Item = usize> {
        let start = function.start;
        self.code(function).windows(5).enumerate().filter(|(_, five)| five[0] == 0xe8).filter_map(move |(at, five)| {
            self.function_at((start + at + 5).wrapping_add_signed(int(&five[1..]) as isize))
        })
    }

    /// Fails unless `function` contains this code.
    pub(super) fn expect(&self, name: &str, function: &Function, code: &[u8]) -> Result<(), String> {
        let found = self.code(function).windows(code.len()).any(|window| window == code);
        if found { Ok(()) } else { Err(format!("{name} is not the code that is expected")) }
    }
}

/// Reads a signed number of four bytes.
pub(super) fn int(bytes: &[u8]) -> i32 {
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn pointer(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// Returns a text of the library for a message.
pub(super) fn name(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace('\0', "")
}
