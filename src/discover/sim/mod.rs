//! Simulated hosts: the NVML facts of a real machine as data, and the files and device nodes that its driver
//! would show. Discovery reads them through the same code as a live machine; `divvy sim` lays them out as real
//! files for engines to use.
//!
//! - `tree`: the files and nodes of a host, built from its facts
//! - `elf`: loadable shared objects without functions

mod elf;
mod tree;

pub use tree::{Entry, Tree, shared_object};

use crate::nvml::facts::Facts;

/// One built-in host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimHost {
    /// Name after `sim:`.
    pub name: &'static str,
    /// One line for listings.
    pub about: &'static str,
    facts: &'static str,
    /// The configuration that its administrator would have written.
    pub config: Option<&'static str>,
    /// Major number of the nvidia-caps driver, which the kernel assigns anew at each boot.
    caps_major: u32,
    /// Major number of nvidia-uvm, likewise.
    uvm_major: u32,
    /// It has NVSwitches, IMEX channels, GPUDirect Storage, GDRCopy and InfiniBand.
    fabric: bool,
}

/// Every built-in host.
pub const HOSTS: [SimHost; 6] = [
    SimHost {
        name: "a100-lab",
        about: "8 x A100-SXM4-40GB, GPU 0 cut by MIG",
        facts: include_str!("a100-lab.json"),
        config: None,
        caps_major: 242,
        uvm_major: 511,
        fabric: false,
    },
    SimHost {
        name: "h100x8",
        about: "8 x H100 80GB, whole",
        facts: include_str!("h100x8.json"),
        config: None,
        caps_major: 235,
        uvm_major: 511,
        fabric: false,
    },
    SimHost {
        name: "hgx-h100",
        about: "the same with NVSwitches, IMEX channels, GPUDirect Storage, GDRCopy and InfiniBand",
        facts: include_str!("h100x8.json"),
        config: None,
        caps_major: 235,
        uvm_major: 511,
        fabric: true,
    },
    SimHost {
        name: "l4",
        about: "1 x L4, which has no MIG",
        facts: include_str!("l4.json"),
        config: None,
        caps_major: 236,
        uvm_major: 509,
        fabric: false,
    },
    SimHost {
        name: "mixed",
        about: "4 x H100 80GB: two whole, GPU 1 cut by MIG, GPU 2 shared in turns",
        facts: include_str!("mixed.json"),
        config: Some(include_str!("mixed.toml")),
        caps_major: 235,
        uvm_major: 510,
        fabric: false,
    },
    SimHost {
        name: "mps",
        about: "6 x H100 80GB: two whole, GPU 1 cut by MIG, GPU 2 shared in turns, GPUs 3 and 4 and a MIG device through MPS",
        facts: include_str!("mps.json"),
        config: Some(include_str!("mps.toml")),
        caps_major: 235,
        uvm_major: 510,
        fabric: false,
    },
];

impl SimHost {
    /// The host of this name, without `sim:`.
    pub fn parse(name: &str) -> Option<Self> {
        HOSTS.into_iter().find(|host| host.name == name)
    }

    /// What its NVML would say.
    pub fn facts(&self) -> Facts {
        // Built in and read by a test; a host whose data does not parse is a host without facts.
        serde_json::from_str(self.facts).unwrap_or_default()
    }

    /// Its files and nodes.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::of(&self.facts(), self.caps_major, self.uvm_major);
        if self.fabric {
            tree.fabric();
        }
        tree
    }
}

/// `sim:a100-lab, sim:h100x8, ...`, for messages.
pub fn names() -> String {
    HOSTS.map(|host| format!("sim:{}", host.name)).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_has_facts() {
        for (host, gpus) in HOSTS.into_iter().zip([8, 8, 8, 1, 4, 6]) {
            let facts: Facts = serde_json::from_str(host.facts).unwrap();
            assert_eq!(facts.gpus.len(), gpus, "{}", host.name);
        }
    }
}
