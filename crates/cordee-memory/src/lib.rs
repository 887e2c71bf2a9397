//! Flat memory and typed windows into it.
//!
//! Parameters, gradients, moments and master weights live in a [`Buffer`] each, made once and
//! laid out by a [`Layout`]; whoever computes sees a [`View`] or [`ViewMut`]. A buffer lies on the
//! heap, in a [`SharedMapping`], memory that the ranks of one machine have in common, or on a device,
//! whose memory ([`DeviceMemory`]) somebody else provides.
//!
//! This crate knows no tensors' meaning, no collectives and no device library.

mod buffer;
mod device;
mod dtype;
mod error;
mod heap;
mod layout;
mod pages;
mod recycler;
mod shared;
mod shared_words;
mod view;

pub use buffer::Buffer;
pub use device::{DeviceMemory, DeviceQueue, DeviceRange};
pub use dtype::{DType, Element};
pub use error::MemoryError;
pub use layout::{Layout, Slot};
pub use recycler::Recycler;
pub use shared::{SharedMapping, SharedMemory};
pub use shared_words::SharedWords;
pub use view::{MAX_DIMENSIONS, View, ViewMut};

/// Alignment of every buffer and of every tensor in it, in bytes: four cache lines, and what
/// vector loads and device copies like best.
pub const ALIGNMENT: usize = 256;

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, MemoryError>;
