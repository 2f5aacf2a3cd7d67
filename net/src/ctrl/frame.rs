<<<<<<< HEAD
//! What travels on a control connection: a greeting in each direction, then messages.
//!
//! ```text
//!   greeting   "pdctrl" | version u16 | length u32 | crc32c u32 | JSON
//!   message    length u32 | crc32c u32 | codec form of a Message            little endian
//! ```
//!
//! A length beyond the limit, a wrong checksum or bytes that are no message end the connection with a reason: whoever
//! sends that is no peer.

use pd_core::codec::{Codec as _, DecodeError};
use pd_core::id::{Epoch, WorkerId};
use pd_core::message::Message;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// First bytes of a connection.
pub(super) const MAGIC: [u8; 6] = *b"pdctrl";
/// Version of the frames; the messages have their own.
pub(super) const VERSION: u16 = 1;
/// Most bytes of a greeting.
const GREETING_MAX: u32 = 64 << 10;
/// Most bytes of a message: the keys and tokens of a prompt of a million tokens.
const MESSAGE_MAX: u32 = 64 << 20;

/// Who speaks, and where its KV may be sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// Its name.
    pub worker: WorkerId,
    /// Its life.
    pub epoch: Epoch,
    /// Where its wire listens.
    pub wire: String,
}

/// Why a connection is closed.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The socket says no, or the other end closed it.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// Not a peer.
    #[error("the other end does not speak pd's control protocol")]
    Magic,
    /// Another version.
    #[error("the other end speaks version {theirs} of the control protocol, not {VERSION}")]
    Version {
        /// Its version.
        theirs: u16,
    },
    /// Longer than anything a peer sends.
    #[error("a frame of {bytes} bytes; at most {max} are taken")]
    Length {
        /// What it says.
        bytes: u32,
        /// What may be.
        max: u32,
    },
    /// Damaged.
    #[error("a frame with a wrong checksum")]
    Checksum,
    /// No message.
    #[error("a frame that is no message: {0}")]
    Message(#[from] DecodeError),
    /// No greeting.
    #[error("a greeting that cannot be read: {0}")]
    Greeting(#[from] serde_json::Error),
}

/// Writes a greeting.
pub(super) async fn greet(to: &mut (impl AsyncWrite + Unpin), greeting: &Greeting) -> Result<(), FrameError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    framed(&mut bytes, &serde_json::to_vec(greeting)?);
    to.write_all(&bytes).await?;
    Ok(to.flush().await?)
}

/// Reads a greeting.
pub(super) async fn greeted(from: &mut (impl AsyncRead + Unpin)) -> Result<Greeting, FrameError> {
    let mut head = [0; 8];
    from.read_exact(&mut head).await?;
    if head[..6] != MAGIC {
        return Err(FrameError::Magic);
    }
    let theirs = u16::from_le_bytes([head[6], head[7]]);
    if theirs != VERSION {
        return Err(FrameError::Version { theirs });
    }
    let payload = payload(from, GREETING_MAX).await?;
    Ok(serde_json::from_slice(&payload)?)
}

/// A message as a frame.
pub(super) fn frame(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    framed(&mut bytes, &message.to_bytes());
    bytes
}

/// Reads a message.
pub(super) async fn message(from: &mut (impl AsyncRead + Unpin)) -> Result<Message, FrameError> {
    let payload = payload(from, MESSAGE_MAX).await?;
    Ok(Message::from_bytes(&payload)?)
}

fn framed(bytes: &mut Vec<u8>, payload: &[u8]) {
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    bytes.extend_from_slice(payload);
}

async fn payload(from: &mut (impl AsyncRead + Unpin), max: u32) -> Result<Vec<u8>, FrameError> {
    let bytes = from.read_u32_le().await?;
    if bytes > max {
        return Err(FrameError::Length { bytes, max });
    }
    let sum = from.read_u32_le().await?;
    let mut payload = Vec::new();
    // Grows with what really arrives, not with what the length claims.
    from.take(u64::from(bytes)).read_to_end(&mut payload).await?;
    if payload.len() < bytes as usize {
        return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    if crc32c::crc32c(&payload) != sum {
        return Err(FrameError::Checksum);
    }
    Ok(payload)
=======
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
>>>>>>> wt-wire
}
