//! What every exported function does before its own work: it writes the call down, asks whether NVML is started and
//! whether a test wants a failure, and looks its handle up.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use crate::control::Control;
use crate::facts::{Gpu, MigDevice};
use crate::handles::{Machine, Object};
use crate::types::{Answer, Handle, INVALID_ARGUMENT, NOT_SUPPORTED, Return, SUCCESS, UNINITIALIZED};

/// How many starts have no stop yet.
static STARTS: AtomicU32 = AtomicU32::new(0);

/// One call of a function that needs NVML started.
#[derive(Debug)]
pub struct Call {
    function: &'static str,
    pub control: &'static Control,
    pub machine: &'static Machine,
}

/// What an nvmlDevice_t stands for.
#[derive(Debug)]
pub enum Device {
    Gpu(&'static Gpu),
    Mig(&'static Gpu, &'static MigDevice),
}

/// Runs a function's own work on a started NVML.
pub fn answer(function: &'static str, work: impl FnOnce(&Call) -> Answer) -> Return {
    code(|| {
        let control = Control::get()?;
        control.log_call(function);
        if STARTS.load(Ordering::SeqCst) == 0 {
            return Err(UNINITIALIZED);
        }
        control.check(function, None)?;
        work(&Call { function, control, machine: Machine::get()? })
    })
}

/// nvmlInit_v2 and nvmlInitWithFlags.
pub fn start(function: &'static str) -> Return {
    code(|| {
        let control = Control::get()?;
        control.log_call(function);
        control.log("init");
        thread::sleep(control.init_delay);
        control.check(function, None)?;
        Machine::get()?;
        STARTS.fetch_add(1, Ordering::SeqCst);
        Ok(())
    })
}

/// nvmlShutdown.
pub fn stop(function: &'static str) -> Return {
    code(|| {
        let control = Control::get()?;
        control.log_call(function);
        control.log("shutdown");
        control.check(function, None)?;
        let stopped = STARTS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |starts| starts.checked_sub(1));
        stopped.map(drop).map_err(|_| UNINITIALIZED)
    })
}

fn code(work: impl FnOnce() -> Answer) -> Return {
    work().err().unwrap_or(SUCCESS)
}

impl Call {
    /// Asks whether a test wants this call to fail for a GPU.
    pub fn on_gpu(&self, index: u32) -> Answer {
        self.control.check(self.function, Some(index))
    }

    /// The GPU or MIG device of a handle.
    pub fn device(&self, handle: Handle) -> Answer<Device> {
        let device = match *self.machine.object(handle)? {
            Object::Gpu(gpu) => Device::Gpu(gpu),
            Object::MigDevice(gpu, device) => Device::Mig(gpu, device),
            Object::GpuInstance(..) | Object::ComputeInstance(..) => return Err(INVALID_ARGUMENT),
        };
        let (Device::Gpu(gpu) | Device::Mig(gpu, _)) = device;
        self.on_gpu(gpu.index)?;
        Ok(device)
    }

    /// The GPU of a handle; `otherwise` for a MIG device.
    pub fn gpu(&self, handle: Handle, otherwise: Return) -> Answer<&'static Gpu> {
        match self.device(handle)? {
            Device::Gpu(gpu) => Ok(gpu),
            Device::Mig(..) => Err(otherwise),
        }
    }

    /// The MIG device of a handle and its GPU; NVML_ERROR_NOT_SUPPORTED for a GPU.
    pub fn mig_device(&self, handle: Handle) -> Answer<(&'static Gpu, &'static MigDevice)> {
        match self.device(handle)? {
            Device::Gpu(_) => Err(NOT_SUPPORTED),
            Device::Mig(gpu, device) => Ok((gpu, device)),
        }
    }

    /// A GPU's handle.
    pub fn handle(&self, wanted: &Gpu) -> Answer<Handle> {
        let gpu =
            |object: &Object| matches!(object, Object::Gpu(gpu) if gpu.index == wanted.index).then_some(());
        self.machine.find(gpu).map(|(handle, ())| handle).ok_or(INVALID_ARGUMENT)
    }
}
