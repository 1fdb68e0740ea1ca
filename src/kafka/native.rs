//! Objects of librdkafka's C API, freed when they are dropped.

/// A C object with the function that frees it.
pub struct Owned<T>(pub *mut T, pub unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that goes with this destructor, and is freed once.
            unsafe { self.1(self.0) }
        }
    }
}
