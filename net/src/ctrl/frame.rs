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
}
