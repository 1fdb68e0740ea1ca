//! Developer stack.
