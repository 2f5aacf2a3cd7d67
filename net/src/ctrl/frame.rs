//! Frames of a control connection: `| length | crc32c | codec bytes |`, behind eight bytes that name the protocol.

use std::io::{self, Read, Write};

use pd_core::codec::{Codec, DecodeError};
use pd_core::id::{Epoch, WorkerId};
use thiserror::Error;

/// Most bytes of a message: a want with a prompt of two million tokens.
pub const FRAME_BYTES_MAX: u32 = 16 << 20;
/// Most bytes of a greeting.
pub(super) const GREETING_BYTES_MAX: u32 = 1024;
const MAGIC: [u8; 8] = *b"pd-ctrl1";

/// First frame of a connection, in each direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Greeting {
    pub(super) version: u32,
    pub(super) worker: WorkerId,
    pub(super) epoch: Epoch,
    pub(super) wire: String,
}

pd_core::codec!(struct Greeting { version, worker, epoch, wire });

/// What is wrong with a connection.
#[derive(Debug, Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("what came does not begin like a control connection of pd")]
    Magic,
    #[error("a frame of {0} bytes, which is beyond the limit")]
    Length(u32),
    #[error("a frame whose checksum does not fit")]
    Checksum,
    #[error("a frame that does not decode: {0}")]
    Decode(#[from] DecodeError),
    #[error("it speaks version {theirs} of the protocol, and we {ours}")]
    Version { ours: u32, theirs: u32 },
    #[error("it is this very worker")]
    Ourselves,
    #[error("a later life or a better connection of this worker is up")]
    Superseded,
    #[error("shutting down")]
    Closing,
}

impl Broken {
    /// True if the bytes are to blame, not the network.
    pub(super) const fn is_malformed(&self) -> bool {
        match self {
            Self::Magic | Self::Length(_) | Self::Checksum | Self::Decode(_) => true,
            Self::Io(_) | Self::Version { .. } | Self::Ourselves | Self::Superseded | Self::Closing => false,
        }
    }
}

/// A value as a frame; `None` if it is too large for one.
pub(super) fn frame(value: &impl Codec) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 8];
    value.encode(&mut bytes);
    let length = u32::try_from(bytes.len() - 8).ok().filter(|length| *length <= FRAME_BYTES_MAX)?;
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

/// Reads a frame of at most `limit` bytes. `None` if the other end has closed behind the last one. Memory is taken as
/// bytes arrive.
pub(super) fn read<T: Codec>(stream: &mut impl Read, limit: u32) -> Result<Option<T>, Broken> {
    let mut head = [0; 8];
    if !read_head(stream, &mut head)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    if length > limit {
        return Err(Broken::Length(length));
    }
    let mut bytes = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if crc32c::crc32c(&bytes).to_le_bytes() != head[4..] {
        return Err(Broken::Checksum);
    }
    Ok(Some(T::from_bytes(&bytes)?))
}

/// False if there is no byte of it.
fn read_head(stream: &mut impl Read, head: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < head.len() {
        match stream.read(&mut head[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Both ends say who they are.
pub(super) fn greet(stream: &mut (impl Read + Write), ours: &Greeting) -> Result<Greeting, Broken> {
    let mut hello = MAGIC.to_vec();
    hello.extend(frame(ours).ok_or(Broken::Length(u32::MAX))?);
    stream.write_all(&hello)?;
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(Broken::Magic);
    }
    let theirs: Greeting = read(stream, GREETING_BYTES_MAX)?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
    if theirs.version != ours.version {
        return Err(Broken::Version { ours: ours.version, theirs: theirs.version });
    }
    if theirs.worker == ours.worker {
        return Err(Broken::Ourselves);
    }
    Ok(theirs)
}
