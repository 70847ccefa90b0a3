//! What the opaque pointers stand for. A handle is the address of an entry in a table that is built once and never
//! freed, so an unknown handle is found out by comparing addresses, without following it.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::control::{Control, refuse};
use crate::facts::{Gpu, Host, MigDevice};
use crate::types::{Answer, DRIVER_NOT_LOADED, Handle, INVALID_ARGUMENT};

/// Something that has a handle. Instances are told by a MIG device that lies in them.
#[derive(Debug)]
pub enum Object {
    Gpu(&'static Gpu),
    MigDevice(&'static Gpu, &'static MigDevice),
    GpuInstance(&'static Gpu, &'static MigDevice),
    ComputeInstance(&'static Gpu, &'static MigDevice),
}

/// The served host and its handles.
#[derive(Debug)]
pub struct Machine {
    pub host: &'static Host,
    objects: Vec<Object>,
}

impl Machine {
    /// Reads the facts file at the first call of the process; without one there is no driver.
    pub fn get() -> Answer<&'static Self> {
        static MACHINE: OnceLock<Answer<Machine>> = OnceLock::new();
        let load = || Self::load(Control::get()?.facts.as_deref().ok_or(DRIVER_NOT_LOADED)?);
        MACHINE.get_or_init(load).as_ref().map_err(|code| *code)
    }

    fn load(facts: &Path) -> Answer<Self> {
        let json = fs::read_to_string(facts).map_err(|error| error.to_string());
        let host = json.and_then(|json| Host::parse(&json));
        host.map(Self::of).map_err(|problem| refuse(&format!("{}: {problem}", facts.display())))
    }

    fn of(host: Host) -> Self {
        let host: &'static Host = Box::leak(Box::new(host));
        let mut objects: Vec<Object> = host.gpus.iter().map(Object::Gpu).collect();
        for gpu in &host.gpus {
            for device in gpu.mig.iter().filter(|mig| mig.enabled).flat_map(|mig| &mig.devices) {
                objects.push(Object::MigDevice(gpu, device));
                objects.push(Object::GpuInstance(gpu, device));
                objects.push(Object::ComputeInstance(gpu, device));
            }
        }
        Self { host, objects }
    }

    /// What a handle stands for.
    pub fn object(&self, handle: Handle) -> Answer<&Object> {
        self.objects.iter().find(|object| address(object) == handle).ok_or(INVALID_ARGUMENT)
    }

    /// The first object that `wanted` picks, and its handle.
    pub fn find<T>(&self, wanted: impl Fn(&Object) -> Option<T>) -> Option<(Handle, T)> {
        self.objects.iter().find_map(|object| Some((address(object), wanted(object)?)))
    }
}

fn address(object: &Object) -> Handle {
    std::ptr::from_ref(object).cast()
}
