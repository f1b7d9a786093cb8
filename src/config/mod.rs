//! The configuration.

mod span;
pub use span::duration;
