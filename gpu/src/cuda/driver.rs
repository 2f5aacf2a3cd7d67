//! A checked layer over the driver's calls: contexts, streams, events, memory.
//!
//! Every handle owns what it names and gives it back when it is dropped; every failure names its call and its sizes.

use std::ffi::{CStr, c_void};
use std::fmt;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;

use super::error::CudaError;
use super::library;

pub(crate) type Result<T> = std::result::Result<T, CudaError>;

/// Turns a status of the driver into a result.
pub(crate) fn check(status: sys::CUresult, call: &'static str, about: impl FnOnce() -> String) -> Result<()> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver is loaded, since it gave the status; it returns a constant string or leaves the null.
        unsafe {
            get(status, &mut text);
            if text.is_null() { "unknown".to_owned() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    let hints = [
        (sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY, "; another process may hold memory of this GPU: see `pd doctor`"),
        (sys::CUresult::CUDA_ERROR_NO_DEVICE, "; no GPU is visible: see CUDA_VISIBLE_DEVICES and `pd doctor`"),
        (sys::CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "; the driver was updated: restart the machine"),
    ];
    let hint = hints.into_iter().find(|(of, _)| *of == status).map_or("", |(_, hint)| hint);
    let (name, text) = (text(sys::cuGetErrorName), text(sys::cuGetErrorString));
    Err(CudaError::Call { call, about: about(), name, code: status as u32, text, hint })
}

/// Calls a function of the driver and checks its status; what follows `;` says what it was about.
macro_rules! cu {
    ($function:ident($($argument:expr),* $(,)?)) => { cu!($function($($argument),*); String::new()) };
    ($function:ident($($argument:expr),* $(,)?); $about:expr) => {
        // SAFETY: arguments are handles that their owners keep alive and pointers to live memory of the sizes named; see
        // the function that calls.
        $crate::cuda::driver::check(unsafe { cudarc::driver::sys::$function($($argument),*) }, stringify!($function), || $about)
    };
}
pub(crate) use cu;

/// A GPU's primary context.
pub struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    ordinal: u32,
    /// Name, as the driver gives it.
    pub name: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: u64,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Starts the driver, once.
///
/// # Errors
/// If there is no driver, or none that works.
pub(crate) fn start() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    library::driver()?;
    STARTED.get_or_init(|| cu!(cuInit(0))).clone()
}

/// GPUs that the driver shows.
///
/// # Errors
/// If there is no driver, or none that works.
pub fn devices() -> Result<u32> {
    start()?;
    let mut count = 0;
    cu!(cuDeviceGetCount(&mut count))?;
    Ok(count as u32)
}

impl Context {
    /// Opens a GPU.
    ///
    /// # Errors
    /// If the driver does not start or has no such GPU.
    pub fn open(ordinal: u32) -> Result<Arc<Self>> {
        let count = devices()?;
        if ordinal >= count {
            return Err(CudaError::Unsupported(format!("GPU {ordinal} was asked for, the driver shows {count}")));
        }
        let mut device = 0;
        cu!(cuDeviceGet(&mut device, ordinal as i32))?;
        let mut context = std::ptr::null_mut();
        cu!(cuDevicePrimaryCtxRetain(&mut context, device); format!("GPU {ordinal}"))?;
        let mut name = [0; 128];
        cu!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
        // SAFETY: the driver ends the name with a zero within the buffer.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut memory_bytes = 0;
        cu!(cuDeviceTotalMem_v2(&mut memory_bytes, device))?;
        let attribute = |which| attribute(device, which);
        use sys::CUdevice_attribute as A;
        let context = Self {
            device,
            context,
            ordinal,
            name,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            memory_bytes: memory_bytes as u64,
        };
        context.bind()?;
        Ok(Arc::new(context))
    }

    /// Makes the calling thread work on this GPU.
    ///
    /// # Errors
    /// If the context is broken.
    pub fn bind(&self) -> Result<()> {
        cu!(cuCtxSetCurrent(self.context))
    }

    /// Number among the GPUs that the driver shows.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Free bytes and all bytes.
    ///
    /// # Errors
    /// If the context is broken.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        cu!(cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free as u64, total as u64))
    }

    /// The driver's version, as 1000 * major + 10 * minor of CUDA.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn driver_version() -> Result<u32> {
        start()?;
        let mut version = 0;
        cu!(cuDriverGetVersion(&mut version))?;
        Ok(version as u32)
    }

    /// Lets this GPU reach the memory of another one. Nothing happens if it already can.
    pub(crate) fn enable_peer(&self, other: u32) -> Result<()> {
        let other = Self::open(other)?;
        if !self.reaches(other.ordinal)? {
            let why = format!("GPU {} cannot reach the memory of GPU {}", self.ordinal, other.ordinal);
            return Err(CudaError::Unsupported(why));
        }
        self.bind()?;
        match cu!(cuCtxEnablePeerAccess(other.context, 0)) {
            Err(CudaError::Call { code, .. })
                if code == sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED as u32 =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// True if there is a direct path to another GPU's memory.
    pub(crate) fn reaches(&self, other: u32) -> Result<bool> {
        let (mut device, mut can) = (0, 0);
        cu!(cuDeviceGet(&mut device, other as i32))?;
        cu!(cuDeviceCanAccessPeer(&mut can, self.device, device))?;
        Ok(can != 0)
    }

    /// Has the system keep memory where it is, for the GPU to copy from and to.
    pub(crate) fn register(&self, at: *mut u8, bytes: usize) -> Result<()> {
        self.bind()?;
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE;
        cu!(cuMemHostRegister_v2(at.cast(), bytes, flags); format!("{bytes} bytes of the host"))
    }

    /// Undoes [`Context::register`], when what was started has ended.
    pub(crate) fn unregister(&self, at: *mut u8) -> Result<()> {
        self.wait()?;
        cu!(cuMemHostUnregister(at.cast()))
    }

    /// Brackets what a profiler records (`ncu --profile-from-start off`).
    ///
    /// # Errors
    /// If the context is broken.
    pub fn profile(&self, on: bool) -> Result<()> {
        self.bind()?;
        if on { cu!(cuProfilerStart()) } else { cu!(cuProfilerStop()) }
    }

    /// Waits until everything that was started on this GPU has ended.
    ///
    /// # Errors
    /// What a kernel did wrong.
    pub fn wait(&self) -> Result<()> {
        self.bind()?;
        cu!(cuCtxSynchronize())
    }
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    cu!(cuDeviceGetAttribute(&mut value, which, device))?;
    Ok(value as u32)
}

impl Drop for Context {
    fn drop(&mut self) {
        let _ = cu!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("ordinal", &self.ordinal).field("name", &self.name).finish_non_exhaustive()
    }
}

/// What another process opens a buffer by that begins at this address.
pub(crate) fn ipc_handle(address: u64) -> Result<[u8; 64]> {
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    cu!(cuIpcGetMemHandle(&mut handle, address))?;
    Ok(handle.reserved.map(|byte| byte as u8))
}

/// Maps another process's buffer; over a link between GPUs if it is on another one.
pub(crate) fn open_ipc(handle: [u8; 64]) -> Result<u64> {
    let mut address = 0;
    let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
    let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    cu!(cuIpcOpenMemHandle_v2(&mut address, handle, flags); "memory of another process".to_owned())?;
    Ok(address)
}

/// Undoes [`open_ipc`].
pub(crate) fn close_ipc(address: u64) -> Result<()> {
    cu!(cuIpcCloseMemHandle(address))
}

/// A queue of work.
pub(crate) struct Stream {
    pub(crate) raw: sys::CUstream,
    _context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A queue that waits for no other.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        cu!(cuStreamCreate(&mut raw, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
        Ok(Self { raw, _context: Arc::clone(context) })
    }

    /// Waits until all of it has ended.
    pub(crate) fn wait(&self) -> Result<()> {
        cu!(cuStreamSynchronize(self.raw))
    }

    /// Copies from pinned memory. The caller keeps both alive and unchanged until the copy has ended.
    pub(crate) fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        cu!(cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.raw); format!("{bytes} bytes"))
    }

    /// Copies to pinned memory. The caller keeps both alive until the copy has ended.
    pub(crate) fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        cu!(cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.raw); format!("{bytes} bytes"))
    }

    /// Sets bytes.
    pub(crate) fn fill(&self, to: u64, value: u8, bytes: usize) -> Result<()> {
        cu!(cuMemsetD8Async(to, value, bytes, self.raw); format!("{bytes} bytes"))
    }

    /// Copies within the GPU, or between GPUs.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        cu!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw); format!("{bytes} bytes"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = cu!(cuStreamDestroy_v2(self.raw));
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// A mark in a stream.
pub(crate) struct Event {
    raw: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// One that also tells the time, or only that it was reached.
    pub(crate) fn new(context: &Context, timed: bool) -> Result<Self> {
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = if timed { 0 } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 };
        cu!(cuEventCreate(&mut raw, flags))?;
        Ok(Self { raw })
    }

    /// Marks the end of what is in the stream.
    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        cu!(cuEventRecord(self.raw, stream.raw))
    }

    /// Waits until it is reached. Spins: that is seen some microseconds sooner than a wake-up.
    pub(crate) fn wait(&self) -> Result<()> {
        cu!(cuEventSynchronize(self.raw))
    }

    /// Milliseconds from this mark to a later one; both timed and reached.
    pub(crate) fn ms_until(&self, later: &Self) -> Result<f32> {
        let mut ms = 0.0;
        cu!(cuEventElapsedTime_v2(&mut ms, self.raw, later.raw))?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = cu!(cuEventDestroy_v2(self.raw));
    }
}

/// Memory of a GPU.
pub(crate) struct Buffer {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl Buffer {
    /// Some memory, holding anything.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Self> {
        context.bind()?;
        let mut address = 0;
        // The least that is worth an address of its own.
        let bytes = bytes.max(256);
        let allocated = cu!(cuMemAlloc_v2(&mut address, bytes); format!("{bytes} bytes for {what}"));
        match allocated {
            Ok(()) => Ok(Self { address, bytes, context: Arc::clone(context) }),
            Err(CudaError::Call { code, .. }) if code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 => {
                let (free, total) = context.memory()?;
                let hint = "another process may use this GPU (`pd doctor` names it); lower --mem-fraction-static or take a \
                            smaller model";
                Err(CudaError::Memory { what: what.to_owned(), wanted: bytes as u64, free, total, hint })
            }
            Err(other) => Err(other),
        }
    }

    /// Memory that is zero.
    pub(crate) fn zeroed(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Self> {
        let buffer = Self::new(context, bytes, what)?;
        cu!(cuMemsetD8_v2(buffer.address, 0, buffer.bytes))?;
        Ok(buffer)
    }

    /// Memory with this in it.
    pub(crate) fn from_slice<T: bytemuck::Pod>(context: &Arc<Context>, values: &[T], what: &str) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = Self::new(context, bytes.len(), what)?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Writes from ordinary memory, and waits for it.
    pub(crate) fn write(&self, from: usize, bytes: &[u8]) -> Result<()> {
        assert!(from + bytes.len() <= self.bytes, "within the memory");
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        cu!(cuMemcpyHtoD_v2(self.address + from as u64, bytes.as_ptr().cast::<c_void>(), bytes.len()))
    }

    /// Reads into ordinary memory, and waits for it.
    pub(crate) fn read(&self, from: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(from + bytes.len() <= self.bytes, "within the memory");
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        cu!(cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast::<c_void>(), self.address + from as u64, bytes.len()))
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Where a part of it is.
    pub(crate) fn at(&self, offset: usize) -> u64 {
        assert!(offset <= self.bytes, "within the memory");
        self.address + offset as u64
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.context.bind().and_then(|()| cu!(cuMemFree_v2(self.address)));
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Memory of the host that the GPU reads and writes by itself.
pub(crate) struct Pinned {
    at: *mut u8,
    bytes: usize,
}

// SAFETY: it is plain memory that this owns.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Zeroed memory.
    pub(crate) fn new(context: &Context, bytes: usize) -> Result<Self> {
        context.bind()?;
        let mut at = std::ptr::null_mut::<c_void>();
        cu!(cuMemHostAlloc(&mut at, bytes, sys::CU_MEMHOSTALLOC_PORTABLE); format!("{bytes} pinned bytes"))?;
        // SAFETY: the driver has just given these bytes to us.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { at: at.cast(), bytes })
    }

    /// For copies that the GPU makes.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.at
    }

    /// Its contents. The caller has waited for what the GPU writes into it.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` bytes that this owns, zeroed at the start.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    /// Its contents, to be changed. The caller has waited for what the GPU reads from it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = cu!(cuMemFreeHost(self.at.cast()));
    }
}
