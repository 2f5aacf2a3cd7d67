//! Kernels as the driver sees them: loaded images, functions, launches, recorded graphs.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Context, Result, Stream, cu};

/// A loaded set of kernels.
pub(crate) struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// One kernel of a set that stays loaded as long as the [`Module`].
#[derive(Clone, Copy)]
pub(crate) struct Function {
    raw: sys::CUfunction,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// How large a launch is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Blocks along x and y.
    pub(crate) grid: (u32, u32),
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Bytes of shared memory that are asked for beside what the kernel declares.
    pub(crate) shared: u32,
}

/// A tiling of memory that the copy engine of an SM walks by itself.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(crate) struct TensorMap([u64; 16]);

/// Arguments of a launch, by value and in order.
#[derive(Default)]
pub(crate) struct Arguments<'a> {
    values: [u64; ARGUMENTS_MAX],
    maps: [Option<&'a TensorMap>; ARGUMENTS_MAX],
    count: usize,
}

impl<'a> Arguments<'a> {
    /// Appends an address, or a number of 64 bits.
    pub(crate) fn long(mut self, value: u64) -> Self {
        self.values[self.count] = value;
        self.count += 1;
        self
    }

    /// Appends a number of 32 bits.
    pub(crate) fn int(self, value: u32) -> Self {
        self.long(u64::from(value))
    }

    /// Appends a float.
    pub(crate) fn float(self, value: f32) -> Self {
        self.long(u64::from(value.to_bits()))
    }

    /// Appends a tiling.
    pub(crate) fn map(mut self, map: &'a TensorMap) -> Self {
        self.maps[self.count] = Some(map);
        self.count += 1;
        self
    }

    fn pointers(&mut self) -> [*mut c_void; ARGUMENTS_MAX] {
        let mut pointers = [std::ptr::null_mut(); ARGUMENTS_MAX];
        for (index, pointer) in pointers.iter_mut().enumerate().take(self.count) {
            *pointer = match self.maps[index] {
                Some(map) => std::ptr::from_ref(map).cast_mut().cast(),
                None => std::ptr::from_mut(&mut self.values[index]).cast(),
            };
        }
        pointers
    }
}

impl Module {
    /// Loads a cubin.
    pub(crate) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Self> {
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        cu!(cuModuleLoadData(&mut raw, image.as_ptr().cast()); format!("a cubin of {} bytes", image.len()))?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// One of its kernels, allowed to use this much dynamic shared memory.
    pub(crate) fn function(&self, name: &'static str, shared: u32) -> Result<Function> {
        use sys::CUfunction_attribute as A;
        let text = CString::new(name).expect("a name without zeros");
        let mut raw = std::ptr::null_mut();
        cu!(cuModuleGetFunction(&mut raw, self.raw, text.as_ptr()); name.to_owned())?;
        if shared > DEFAULT_SHARED_BYTES {
            let which = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            cu!(cuFuncSetAttribute(raw, which, shared as i32); format!("{name}, {shared} bytes of shared memory"))?;
        }
        Ok(Function { raw })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind().and_then(|()| cu!(cuModuleUnload(self.raw)));
    }
}

impl Function {
    /// Starts it behind what is in the stream. It may be set up while its predecessor ends: each kernel of ours waits
    /// for that (`griddepcontrol.wait`) before it touches memory.
    ///
    /// # Safety
    /// The arguments are those of the kernel, with addresses of memory that is as large as it will use and lives until it
    /// has ended.
    pub(crate) unsafe fn launch(self, stream: &Stream, shape: Shape, mut arguments: Arguments<'_>) -> Result<()> {
        let mut pointers = arguments.pointers();
        // SAFETY: all bytes zero is a valid attribute: it consists of numbers and a union of numbers.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid.0,
            gridDimY: shape.grid.1,
            gridDimZ: 1,
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: stream.raw,
            attrs: &mut attribute,
            numAttrs: 1,
        };
        cu!(cuLaunchKernelEx(&config, self.raw, pointers.as_mut_ptr(), std::ptr::null_mut()); format!("{shape:?}"))
    }
}

/// Work that was recorded once and is started as a whole.
pub(crate) struct Graph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` starts in the stream, without starting it.
    pub(crate) fn record(context: &Arc<Context>, stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        context.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        cu!(cuStreamBeginCapture_v2(stream.raw, mode))?;
        let worked = work();
        let mut graph = std::ptr::null_mut();
        let ended = cu!(cuStreamEndCapture(stream.raw, &mut graph));
        worked?;
        ended?;
        let mut executable = std::ptr::null_mut();
        cu!(cuGraphInstantiateWithFlags(&mut executable, graph, 0))?;
        let graph = Self { graph, executable, context: Arc::clone(context) };
        cu!(cuGraphUpload(graph.executable, stream.raw))?;
        Ok(graph)
    }

    /// Starts it behind what is in the stream.
    pub(crate) fn launch(&self, stream: &Stream) -> Result<()> {
        cu!(cuGraphLaunch(self.executable, stream.raw))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.bind();
        let _ = cu!(cuGraphExecDestroy(self.executable));
        let _ = cu!(cuGraphDestroy(self.graph));
    }
}

impl TensorMap {
    /// A tiling of bf16 elements: sizes and boxes in elements, innermost first, strides of the outer three in bytes.
    /// Boxes are 64 elements wide and land with the 128-byte swizzle.
    pub(crate) fn new(base: u64, sizes: [u64; 4], strides: [u64; 3], boxes: [u32; 4]) -> Result<Self> {
        // SAFETY: all bytes zero is a valid map: it consists of numbers.
        let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        let steps = [1_u32; 4];
        cu!(cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            4,
            base as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ); format!("sizes {sizes:?}, strides {strides:?}, boxes {boxes:?}"))?;
        Ok(Self(map.opaque))
    }
}

/// More than any kernel has.
const ARGUMENTS_MAX: usize = 24;
/// What a kernel may use without being allowed more.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;
