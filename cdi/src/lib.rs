//! The Container Device Interface (CDI): the file in which a vendor tells container engines what a device name means.
//!
//! The way through the crate, in the order a spec takes; nothing here knows of NVIDIA, and nothing reads a spec
//! directory or holds a cache.
//!
//! 1. [`name`]: vendor, class and device names, refused before an engine trips over them.
//! 2. [`model`]: the spec itself, and its JSON text.
//! 3. [`version`]: the lowest `cdiVersion` that a spec's content allows.
//! 4. [`mod@validate`]: every rule that an engine or a runtime would otherwise break on, checked at once.
//! 5. [`mod@write`]: a spec file put into a spec directory whole or not at all.

mod json;
pub mod model;
pub mod name;
pub mod validate;
pub mod version;
pub mod write;

pub use model::{ContainerEdits, Device, DeviceNode, Hook, HookName, Mount, ParseError, Spec};
pub use name::{DeviceName, Kind, NameError, NamePart};
pub use validate::{InvalidSpec, Problem, Violation, validate};
pub use version::{Version, VersionError, minimum_version};
pub use write::{Prepared, WriteError, Written, prepare, write};
