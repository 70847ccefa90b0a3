//! The classes of devices beside GPUs, and what they are called.

use serde::Serialize;

/// A class of devices beside GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SideClass {
    /// /dev/nvidia-caps-imex-channels/channel<N>: memory of GPUs on other machines.
    ImexChannel,
    /// /dev/nvidia-nvswitch<N> and /dev/nvidia-nvswitchctl: the fabric between GPUs.
    Nvswitch,
    /// /dev/nvidia-fs<N>: GPUDirect Storage.
    Gds,
    /// /dev/gdrdrv: GPU memory in a process's own address space.
    Gdrcopy,
    /// /dev/infiniband: network cards that reach GPU memory.
    Mofed,
    /// Every node of the driver, also those that configure and monitor MIG.
    Management,
}

impl SideClass {
    /// The CDI kind of its devices.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ImexChannel => "nvidia.com/imex-channel",
            Self::Nvswitch => "nvidia.com/nvswitch",
            Self::Gds => "nvidia.com/gds",
            Self::Gdrcopy => "nvidia.com/gdrcopy",
            Self::Mofed => "nvidia.com/mofed",
            Self::Management => "management.nvidia.com/gpu",
        }
    }

    /// Every class, in the order of listings.
    pub const ALL: [Self; 6] =
        [Self::ImexChannel, Self::Nvswitch, Self::Gds, Self::Gdrcopy, Self::Mofed, Self::Management];
}
