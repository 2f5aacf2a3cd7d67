//! The CUDA kernels without a GPU: the sources that NVRTC compiles, run by a SIMT emulator (`gpu/tests/emu`) against
//! references in f64, against themselves in other company and in other pieces, and with mistakes put in on purpose.
//!
//! Needs a C++ compiler (`$CXX`, `c++`, `g++` or `clang++`). Without one each test says that it is skipped, and passes.

mod attention;
mod check;
mod decode;
mod emu;
mod gemm;
mod layer;
mod mutants;
mod pool;
mod prefill;
mod sampling;
mod util;
