//! The facts file, read: what the served host has. A field that is null or missing is none; a field of the wrong
//! kind is a mistake in the test and refused with its name.

use serde_json::Value;

use crate::types::Placement;

/// The served host.
#[derive(Debug)]
pub struct Host {
    pub driver_version: Option<String>,
    pub nvml_version: Option<String>,
    /// 1000 * major + 10 * minor.
    pub cuda_version: Option<i32>,
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Debug)]
pub struct Gpu {
    pub index: u32,
    pub uuid: String,
    pub minor: Option<u32>,
    pub pci: Option<PciAddress>,
    pub name: Option<String>,
    pub memory_bytes: Option<u64>,
    pub reserved_memory_bytes: Option<u64>,
    pub cores: Option<u32>,
    pub compute_capability: Option<(i32, i32)>,
    /// nvmlComputeMode_t.
    pub compute_mode: Option<u32>,
    /// None on a GPU that cannot do MIG.
    pub mig: Option<Mig>,
}

/// A GPU's MIG state.
#[derive(Debug)]
pub struct Mig {
    pub enabled: bool,
    pub max_devices: Option<u32>,
    pub devices: Vec<MigDevice>,
}

/// One MIG device.
#[derive(Debug)]
pub struct MigDevice {
    pub index: u32,
    pub uuid: Option<String>,
    pub name: Option<String>,
    pub gpu_instance: Option<u32>,
    pub compute_instance: Option<u32>,
    pub multiprocessors: Option<u32>,
    pub memory_mib: Option<u64>,
    pub reserved_memory_bytes: Option<u64>,
    pub placement: Option<Placement>,
    pub gpu_instance_slices: Option<u32>,
    pub compute_instance_slices: Option<u32>,
}

/// Domain, bus and device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    pub domain: u32,
    pub bus: u32,
    pub device: u32,
}

impl Host {
    /// Reads a facts file's text.
    pub fn parse(json: &str) -> Result<Self, String> {
        let host: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        Ok(Self {
            driver_version: field(&host, "driver_version", string)?,
            nvml_version: field(&host, "nvml_version", string)?,
            cuda_version: field(&host, "cuda_version", number)?,
            gpus: list(&host, "gpus", Gpu::parse)?,
        })
    }
}

impl Gpu {
    fn parse(gpu: &Value) -> Result<Self, String> {
        Ok(Self {
            index: needed(gpu, "index", number)?,
            uuid: needed(gpu, "uuid", string)?,
            minor: field(gpu, "minor", number)?,
            pci: field(gpu, "pci_address", |value| PciAddress::parse(value.as_str()?))?,
            name: field(gpu, "name", string)?,
            memory_bytes: field(gpu, "memory_bytes", number)?,
            reserved_memory_bytes: field(gpu, "reserved_memory_bytes", number)?,
            cores: field(gpu, "cores", number)?,
            compute_capability: field(gpu, "compute_capability", |value| {
                Some((number(value.get(0)?)?, number(value.get(1)?)?))
            })?,
            compute_mode: field(gpu, "compute_mode", compute_mode)?,
            mig: field(gpu, "mig", Some)?.map(Mig::parse).transpose()?,
        })
    }
}

impl Mig {
    fn parse(mig: &Value) -> Result<Self, String> {
        Ok(Self {
            enabled: field(mig, "enabled", Value::as_bool)?.unwrap_or(false),
            max_devices: field(mig, "max_devices", number)?,
            devices: list(mig, "devices", MigDevice::parse)?,
        })
    }
}

impl MigDevice {
    fn parse(device: &Value) -> Result<Self, String> {
        Ok(Self {
            index: needed(device, "index", number)?,
            uuid: field(device, "uuid", string)?,
            name: field(device, "name", string)?,
            gpu_instance: field(device, "gpu_instance", number)?,
            compute_instance: field(device, "compute_instance", number)?,
            multiprocessors: field(device, "multiprocessors", number)?,
            memory_mib: field(device, "memory_mib", number)?,
            reserved_memory_bytes: field(device, "reserved_memory_bytes", number)?,
            placement: field(device, "placement", |value| {
                Some(Placement { start: number(value.get("start")?)?, size: number(value.get("size")?)? })
            })?,
            gpu_instance_slices: field(device, "gpu_instance_slices", number)?,
            compute_instance_slices: field(device, "compute_instance_slices", number)?,
        })
    }
}

impl PciAddress {
    /// Parses `DOMAIN:BUS:DEVICE.FUNCTION`, hexadecimal in either case; GPUs are function 0.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, function) = text.split_once('.')?;
        let mut numbers = place.split(':').map(|digits| u32::from_str_radix(digits, 16).ok());
        let address = Self { domain: numbers.next()??, bus: numbers.next()??, device: numbers.next()?? };
        let fits =
            address.bus <= 0xff && address.device <= 0x1f && function == "0" && numbers.next().is_none();
        fits.then_some(address)
    }
}

/// nvmlComputeMode_t by divvy's name.
fn compute_mode(value: &Value) -> Option<u32> {
    match value.as_str()? {
        "default" => Some(0),
        "exclusive-thread" => Some(1),
        "prohibited" => Some(2),
        "exclusive-process" => Some(3),
        _ => None,
    }
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn field<'a, T>(
    object: &'a Value,
    name: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<Option<T>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| format!("{name}: cannot be {value}")),
    }
}

fn needed<'a, T>(
    object: &'a Value,
    name: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<T, String> {
    field(object, name, read)?.ok_or_else(|| format!("{name}: missing in {object}"))
}

fn list<T>(
    object: &Value,
    name: &str,
    parse: impl Fn(&Value) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let items = field(object, name, Value::as_array)?;
    items.into_iter().flatten().map(parse).collect()
}
