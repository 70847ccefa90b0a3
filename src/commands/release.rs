//! `divvy release`: ends a container's hold on a device.
