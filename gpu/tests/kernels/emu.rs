//! Compiles a kernel source with the emulator and runs jobs in it: a process each, so that what dies (a deadlock, an
//! access out of bounds) dies alone and can be asserted.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use bytemuck::Pod;

/// A source and the kernels in it.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    file: &'static str,
    kernels: &'static [&'static str],
}

pub(crate) const LAYER: Unit =
    Unit { file: "layer.cu", kernels: &["embed", "rmsnorm_residual", "rope_kv_write", "silu_mul"] };
pub(crate) const DECODE: Unit = Unit { file: "decode.cu", kernels: &["decode_d128", "decode_d64"] };
pub(crate) const PREFILL: Unit = Unit { file: "prefill.cu", kernels: &["prefill_wgmma"] };
pub(crate) const ANY: Unit = Unit { file: "attention_any.cu", kernels: &["attention_any"] };
pub(crate) const SEQK: Unit =
    Unit { file: "seqk.cu", kernels: &["seqk_wgmma_8", "seqk_wgmma_16", "seqk_wgmma_32", "seqk_wgmma_64"] };
pub(crate) const SAMPLE: Unit = Unit { file: "sample.cu", kernels: &["sample_greedy_gumbel", "sample_filtered"] };
pub(crate) const UTIL: Unit = Unit {
    file: "util.cu",
    kernels: &["draw_bf16", "count_differences", "update_tables", "gather_rows", "push_pieces"],
};

/// A kernel source compiled with the emulator.
#[derive(Clone)]
pub(crate) struct Program {
    path: PathBuf,
}

/// The program of a unit; `None`, after saying so, where there is no compiler.
pub(crate) fn program(unit: Unit) -> Option<Program> {
    static BUILT: Mutex<BTreeMap<&'static str, Program>> = Mutex::new(BTreeMap::new());
    let tools = tools()?;
    let mut built = BUILT.lock().expect("no test panics while it compiles");
    let made = built.entry(unit.file).or_insert_with(|| tools.build(unit, &source(unit), unit.file));
    Some(made.clone())
}

/// The unit's program with one piece of its source exchanged, which the source must contain exactly once.
pub(crate) fn mutant(unit: Unit, from: &str, to: &str) -> Option<Program> {
    let tools = tools()?;
    let text = source(unit);
    assert_eq!(text.matches(from).count(), 1, "{}: the place of a mutation is there once: {from}", unit.file);
    let name = blake3::hash(format!("{from}\n{to}").as_bytes()).to_hex();
    Some(tools.build(unit, &text.replace(from, to), &name[..16]))
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/kernels")
}

fn source(unit: Unit) -> String {
    fs::read_to_string(kernels().join(unit.file)).expect("part of the repository")
}

struct Tools {
    compiler: String,
    folder: PathBuf,
    emulator: PathBuf,
}

fn tools() -> Option<&'static Tools> {
    static TOOLS: OnceLock<Option<Tools>> = OnceLock::new();
    let tools = TOOLS.get_or_init(Tools::find).as_ref();
    if tools.is_none() {
        println!("skipped: no C++ compiler ($CXX, c++, g++, clang++)");
    }
    tools
}

impl Tools {
    fn find() -> Option<Self> {
        let named = std::env::var("CXX").ok();
        let compiler = named.into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned)).find(|name| {
            let version = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            version.is_ok_and(|status| status.success())
        })?;
        // Of this process alone: two runs at once do not build into each other.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emu-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the emulator");
        let emulator = folder.join("emu.o");
        let tools = Self { compiler, folder, emulator };
        let emu = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emu/emu.cpp");
        tools.compile(&["-c".as_ref(), emu.as_ref(), "-o".as_ref(), tools.emulator.as_ref()]);
        Some(tools)
    }

    fn compile(&self, arguments: &[&Path]) {
        let emu = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emu");
        let run = Command::new(&self.compiler)
            .args(["-std=c++17", "-O2", "-w", "-ffp-contract=off", "-I"])
            .arg(emu)
            .arg("-I")
            .arg(kernels())
            .args(arguments)
            .output()
            .expect("the compiler starts, as it did for its version");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }

    fn build(&self, unit: Unit, text: &str, name: &str) -> Program {
        let mut main = format!("#include \"run.h\"\n#include \"hopper.h\"\n{text}\n");
        main.push_str("void emu::find(Launch& l, size_t arguments) {\n");
        for kernel in unit.kernels {
            main.push_str(&format!("    FIND({kernel})\n"));
        }
        main.push_str("    die(\"no such kernel\");\n}\n");
        let source = self.folder.join(format!("{name}.cpp"));
        fs::write(&source, main).expect("a writable folder");
        let path = self.folder.join(format!("{name}.run"));
        self.compile(&[source.as_ref(), &self.emulator, "-o".as_ref(), &path]);
        Program { path }
    }
}

/// Device memory of a job.
#[derive(Clone, Copy)]
pub(crate) struct Buffer(usize);

/// A 4-d tensor map with 128-byte swizzle over bf16: sizes of the dimensions, strides of the outer ones in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Map {
    pub(crate) buffer: Buffer,
    /// Where the tensor begins, in bytes.
    pub(crate) offset: u64,
    pub(crate) dims: [u64; 4],
    pub(crate) strides: [u64; 3],
    pub(crate) tile: [u64; 4],
}

/// What a kernel is called with.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    Value(u64),
    /// An address: a place in bytes from the start of a buffer.
    At(Buffer, u64),
    Null,
    Map(Map),
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self::Value(u64::from(value as u32))
    }
}
impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::Value(u64::from(value))
    }
}
impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self::Value(value as u64)
    }
}
impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}
impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::Value(u64::from(value.to_bits()))
    }
}
impl From<Buffer> for Argument {
    fn from(buffer: Buffer) -> Self {
        Self::At(buffer, 0)
    }
}
impl From<Option<Buffer>> for Argument {
    fn from(buffer: Option<Buffer>) -> Self {
        buffer.map_or(Self::Null, Self::from)
    }
}
impl From<Map> for Argument {
    fn from(map: Map) -> Self {
        Self::Map(map)
    }
}

/// Arguments of different types as a slice of [`Argument`].
#[macro_export]
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$($crate::emu::Argument::from($argument)),*] };
}

/// The shape of a launch.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [usize; 2],
    pub(crate) block: usize,
    pub(crate) shared_bytes: usize,
}

/// Buffers, and kernels to launch over them one after the other.
pub(crate) struct Job {
    /// Names the order in which threads run and copies land.
    seed: u64,
    buffers: Vec<Vec<u8>>,
    launches: Vec<u8>,
    launch_count: u64,
}

impl Job {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, buffers: Vec::new(), launches: Vec::new(), launch_count: 0 }
    }

    pub(crate) fn buffer<T: Pod>(&mut self, values: &[T]) -> Buffer {
        self.buffers.push(bytemuck::cast_slice(values).to_vec());
        Buffer(self.buffers.len() - 1)
    }

    /// Memory that nobody has written: NaN as bf16 and as f32, -1 as an integer.
    pub(crate) fn poisoned<T: Pod>(&mut self, count: usize) -> Buffer {
        self.buffers.push(vec![0xff; count * size_of::<T>()]);
        Buffer(self.buffers.len() - 1)
    }

    pub(crate) fn launch(&mut self, kernel: &str, shape: Shape, arguments: &[Argument]) {
        let mut name = [0; 32];
        name[..kernel.len()].copy_from_slice(kernel.as_bytes());
        self.launches.extend(name);
        let mut words = vec![shape.grid[0], shape.grid[1], shape.block, shape.shared_bytes, arguments.len()]
            .into_iter()
            .map(|word| word as u64)
            .collect::<Vec<_>>();
        for argument in arguments {
            match *argument {
                Argument::Value(value) => words.extend([0, value]),
                Argument::At(buffer, offset) => words.extend([1, buffer.0 as u64, offset]),
                Argument::Null => words.extend([1, u64::MAX, 0]),
                Argument::Map(map) => {
                    words.extend([2, map.buffer.0 as u64, map.offset]);
                    words.extend(map.dims);
                    words.extend(map.strides);
                    words.extend(map.tile);
                }
            }
        }
        self.launches.extend(bytemuck::cast_slice::<u64, u8>(&words));
        self.launch_count += 1;
    }

    /// Runs everything.
    ///
    /// # Errors
    /// What the emulator died of.
    pub(crate) fn run(&self, program: &Program) -> Result<Done, String> {
        let mut input = Vec::new();
        let mut put = |words: &[u64]| input.extend(bytemuck::cast_slice::<u64, u8>(words));
        put(&[self.seed, self.buffers.len() as u64]);
        for buffer in &self.buffers {
            input.extend((buffer.len() as u64).to_le_bytes());
            input.extend(buffer);
        }
        input.extend(self.launch_count.to_le_bytes());
        input.extend(&self.launches);

        let mut child = Command::new(&program.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", program.path.display()))?;
        // It reads everything before it writes. One that dies early leaves the pipe broken; its message says why.
        let _ = child.stdin.take().expect("a pipe").write_all(&input);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} {}", said.trim(), output.status));
        }
        let mut rest = output.stdout.as_slice();
        let mut buffers = Vec::new();
        for buffer in &self.buffers {
            let (bytes, after) = rest.split_at(buffer.len());
            buffers.push(bytes.to_vec());
            rest = after;
        }
        assert!(rest.is_empty(), "the buffers and nothing else");
        Ok(Done { buffers })
    }
}

/// The buffers after a job.
pub(crate) struct Done {
    buffers: Vec<Vec<u8>>,
}

impl Done {
    pub(crate) fn get<T: Pod>(&self, buffer: Buffer) -> Vec<T> {
        self.buffers[buffer.0].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}
