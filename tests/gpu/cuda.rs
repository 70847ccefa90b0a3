//! The driver's CUDA library (libcuda.so.1), as a client of MPS uses it: loaded at run time, so that neither CUDA's
//! toolkit nor a GPU is needed to build. All unsafe code of this target. Signatures follow cuda.h; each answer is a
//! CUresult, 0 for success.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::{from_mut, null_mut};

use libloading::Library;

/// CUresult.
pub type Code = c_int;
/// CUdeviceptr.
pub type Address = u64;
type Function = *mut c_void;
type Context = *mut c_void;
type Module = *mut c_void;
type Stream = *mut c_void;

/// PTX of [`Cuda::launch`]'s kernels, with its zero.
const KERNELS: &str = concat!(include_str!("kernels.ptx"), "\0");
/// CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT.
const MULTIPROCESSOR_COUNT: c_int = 16;

/// A kernel of `kernels.ptx`.
#[derive(Clone, Copy, Debug)]
pub enum Kernel {
    /// Adds one to each number at the first argument.
    AddOne,
    /// Marks the SM that each block ran on, in numbers at the first argument; each block lasts the second, in
    /// nanoseconds.
    MarkSms,
    /// Lasts its argument, nanoseconds.
    Spin,
    /// Writes where nothing is.
    Fault,
}

/// Symbols of the library. The pointers are good for as long as `_library`, which is never unloaded.
struct Calls {
    init: unsafe extern "C" fn(c_uint) -> Code,
    driver_version: unsafe extern "C" fn(*mut c_int) -> Code,
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> Code,
    device_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Code,
    primary_context: unsafe extern "C" fn(*mut Context, c_int) -> Code,
    set_current: unsafe extern "C" fn(Context) -> Code,
    synchronize: unsafe extern "C" fn() -> Code,
    load_module: unsafe extern "C" fn(*mut Module, *const c_void) -> Code,
    function: unsafe extern "C" fn(*mut Function, Module, *const c_char) -> Code,
    launch: unsafe extern "C" fn(
        Function,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Stream,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> Code,
    allocate: unsafe extern "C" fn(*mut Address, usize) -> Code,
    free: unsafe extern "C" fn(Address) -> Code,
    set_numbers: unsafe extern "C" fn(Address, c_uint, usize) -> Code,
    copy_to_host: unsafe extern "C" fn(*mut c_void, Address, usize) -> Code,
    memory: unsafe extern "C" fn(*mut usize, *mut usize) -> Code,
    _library: Library,
}

/// The library, and what this process has of the first device that it sees.
pub struct Cuda {
    calls: Calls,
    device: c_int,
    module: Module,
}

impl Cuda {
    /// Loads the library by its name, as programs do.
    pub fn load() -> Result<Self, libloading::Error> {
        // SAFETY: the driver's own library; its initialisers are what every CUDA program runs.
        let library = unsafe { Library::new("libcuda.so.1") }?;
        /// The symbol, of whatever type the field has.
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: cuda.h declares the symbol with the type of the field that it is put in. The library lies
                // in the same struct.
                unsafe { *library.get(concat!($name, "\0").as_bytes())? }
            };
        }
        let calls = Calls {
            init: symbol!("cuInit"),
            driver_version: symbol!("cuDriverGetVersion"),
            device_get: symbol!("cuDeviceGet"),
            device_attribute: symbol!("cuDeviceGetAttribute"),
            primary_context: symbol!("cuDevicePrimaryCtxRetain"),
            set_current: symbol!("cuCtxSetCurrent"),
            synchronize: symbol!("cuCtxSynchronize"),
            load_module: symbol!("cuModuleLoadData"),
            function: symbol!("cuModuleGetFunction"),
            launch: symbol!("cuLaunchKernel"),
            allocate: symbol!("cuMemAlloc_v2"),
            free: symbol!("cuMemFree_v2"),
            set_numbers: symbol!("cuMemsetD32_v2"),
            copy_to_host: symbol!("cuMemcpyDtoH_v2"),
            memory: symbol!("cuMemGetInfo_v2"),
            _library: library,
        };
        Ok(Self { calls, device: 0, module: null_mut() })
    }

    /// cuInit: a client of MPS connects to the control daemon here.
    pub fn init(&self) -> Result<(), Code> {
        // SAFETY: takes flags, which have to be 0.
        done(unsafe { (self.calls.init)(0) })
    }

    /// cuDriverGetVersion: 13000 is CUDA 13.0. Needs no [`Cuda::init`].
    pub fn version(&self) -> Result<u64, Code> {
        let mut version = 0;
        // SAFETY: writes one int, which `version` is.
        done(unsafe { (self.calls.driver_version)(&mut version) })?;
        Ok(version.unsigned_abs().into())
    }

    /// The device's primary context, current to this thread, and the kernels in it.
    pub fn make_context(&mut self) -> Result<(), Code> {
        let mut context = null_mut();
        // SAFETY: each call writes one value of the type that its first argument points to; PTX ends with a zero.
        unsafe {
            done((self.calls.device_get)(&mut self.device, 0))?;
            done((self.calls.primary_context)(&mut context, self.device))?;
            done((self.calls.set_current)(context))?;
            done((self.calls.load_module)(&mut self.module, KERNELS.as_ptr().cast()))
        }
    }

    /// SMs of the device, as this process is told.
    pub fn sm_count(&self) -> Result<u64, Code> {
        let mut count = 0;
        // SAFETY: writes one int, which `count` is.
        done(unsafe { (self.calls.device_attribute)(&mut count, MULTIPROCESSOR_COUNT, self.device) })?;
        Ok(count.unsigned_abs().into())
    }

    /// cuMemGetInfo: free and total, bytes, as this process is told.
    pub fn memory(&self) -> Result<(u64, u64), Code> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two size_t, which these are.
        done(unsafe { (self.calls.memory)(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Device memory, bytes.
    pub fn allocate(&self, bytes: usize) -> Result<Address, Code> {
        let mut address = 0;
        // SAFETY: writes one CUdeviceptr, which `address` is.
        done(unsafe { (self.calls.allocate)(&mut address, bytes) })?;
        Ok(address)
    }

    /// Gives back what [`Cuda::allocate`] gave.
    pub fn free(&self, address: Address) -> Result<(), Code> {
        // SAFETY: takes a number; one that is no allocation's is refused.
        done(unsafe { (self.calls.free)(address) })
    }

    /// Sets `count` numbers of device memory.
    pub fn set_numbers(&self, address: Address, value: u32, count: usize) -> Result<(), Code> {
        // SAFETY: takes numbers; device memory that is not this process's cannot be reached.
        done(unsafe { (self.calls.set_numbers)(address, value, count) })
    }

    /// Numbers of device memory.
    pub fn numbers(&self, address: Address, count: usize) -> Result<Vec<u32>, Code> {
        let mut numbers = vec![0_u32; count];
        // SAFETY: writes as many bytes as `numbers` has.
        done(unsafe {
            (self.calls.copy_to_host)(numbers.as_mut_ptr().cast(), address, size_of_val(&numbers[..]))
        })?;
        Ok(numbers)
    }

    /// Starts a kernel and does not wait for it.
    pub fn launch(&self, kernel: Kernel, blocks: u32, threads: u32, arguments: [u64; 2]) -> Result<(), Code> {
        let name = match kernel {
            Kernel::AddOne => c"add_one",
            Kernel::MarkSms => c"mark_sms",
            Kernel::Spin => c"spin",
            Kernel::Fault => c"fault",
        };
        let [mut first, mut second] = arguments;
        let mut pointers = [from_mut(&mut first).cast(), from_mut(&mut second).cast()];
        let mut function = null_mut();
        // SAFETY: the module is of this process's context (or null, which is refused), the name is a string. A kernel
        // takes as many of the two arguments, of 8 bytes, as it declares, and they are read before the call returns.
        unsafe {
            done((self.calls.function)(&mut function, self.module, name.as_ptr()))?;
            done((self.calls.launch)(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                null_mut(),
                pointers.as_mut_ptr(),
                null_mut(),
            ))
        }
    }

    /// Waits for all work of this process.
    pub fn synchronize(&self) -> Result<(), Code> {
        // SAFETY: takes nothing.
        done(unsafe { (self.calls.synchronize)() })
    }
}

fn done(code: Code) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(code) }
}
