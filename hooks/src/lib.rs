//! What happens at and to a container when it starts. The binary `divvy-hook` is a thin shell around
//! this library; the command `divvy` uses it for the hook's command line and for glibc's library cache.
//!
//! Images are hostile: nothing here executes what an image brought, and every path inside a container goes through
//! [`rootfs`]. The modules in the order of the flow:
//!
//! - [`args`]: the hook's command line, written into the CDI spec and read back when the container starts
//! - [`stale`]: whether the spec is of the driver and plan that the host has now
//! - [`lease`]: what hook and daemon say to each other, and the lease
//! - [`tree`]: JSON of other programs, of which little is needed
//! - [`ancestry`]: the container's first process, and the ones that start it
//! - [`state`]: what the engine says on standard input, and where the container's root is
//! - [`create_runtime`]: asks the daemon for the leased devices
//! - [`user_namespace`]: whose files are whose
//! - [`rootfs`]: reading and writing below that root, and nowhere else
//! - [`leased`]: the container's lease, and the nodes that are not its own taken away
//! - [`mps`]: the directories of an MPS server, mounted where its clients look for them
//! - [`device_files`]: the driver's libraries kept from making device nodes
//! - [`ldcache`]: glibc's `ld.so.cache`, as pure functions on bytes
//! - [`elf_note`]: for which drivers an image's own libcuda is made, as its ELF note says
//! - [`create_container`]: the one pass over the root before the container's first program runs

pub mod ancestry;
pub mod args;
pub mod create_container;
pub mod create_runtime;
pub mod device_files;
pub mod elf_note;
pub mod ldcache;
pub mod lease;
pub mod leased;
pub mod mps;
pub mod rootfs;
pub mod stale;
pub mod state;
pub mod tree;
pub mod user_namespace;
