//! The witness of `devstack::bench`.

pub use devstack::bench::Witness;
