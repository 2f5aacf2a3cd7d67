//! What is on a wire connection, byte by byte. All numbers are little-endian.
//!
//! ```text
//!  source                                                    sink
//!    | magic | length | crc | Hello (codec) |  ------------->
//!                              <------------  | magic | length | crc | Reply (codec) |
//!    | Chunk, 48 bytes | payload |           ------------->    as often as there is something to move
//!                              <------------  | Ack, 24 bytes |     when a chunk asks for it, and when one is refused
//! ```
//!
//! Every length is bounded before anything is allocated or read, and every header carries its own checksum, so that a
//! flipped bit is never a length or a page.

use std::io::{self, Read, Write};

use pd_core::codec::Codec;
use pd_core::id::{Epoch, Generation, Room, WorkerId};
use thiserror::Error;

/// Version of this protocol. Ends of different versions refuse each other.
pub(super) const VERSION: u32 = 2;
/// Most bytes of a greeting.
const GREETING_BYTES_MAX: u32 = 4096;
const GREETING: u32 = u32::from_le_bytes(*b"PDWG");
const CHUNK: u32 = u32::from_le_bytes(*b"PDWC");
const ACK: u32 = u32::from_le_bytes(*b"PDWA");
/// Bytes of a chunk's header.
pub(super) const CHUNK_BYTES: usize = 48;
/// Bytes of an acknowledgement.
pub(super) const ACK_BYTES: usize = 24;

/// Who calls whom, and what for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) from: WorkerId,
    pub(super) from_epoch: Epoch,
    pub(super) to: WorkerId,
    pub(super) to_epoch: Epoch,
    pub(super) page_bytes: u64,
    /// Which of the streams of this life to this peer; a newer connection of a stream replaces the older one.
    pub(super) stream: u32,
    /// The caller would rather write into shared memory.
    pub(super) wants_shared: bool,
    /// The caller moves nothing.
    pub(super) is_fake: bool,
}

pd_core::codec!(struct Hello {
    version, from, from_epoch, to, to_epoch, page_bytes, stream, wants_shared, is_fake
});

/// The answer to a [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    Welcome(Welcome),
    Reject(Reject),
}

pd_core::codec!(enum Reply { 0 = Welcome(welcome), 1 = Reject(reject) });

/// Chunks may come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Welcome {
    pub(super) pages: u32,
    /// Where the pages are, if they are in shared memory and the caller asked.
    pub(super) shared: Option<Place>,
}

pd_core::codec!(struct Welcome { pages, shared });

/// A shared arena; see [`pd_sync::Identity`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    path: String,
    id: (u64, u64),
    epoch: u32,
    page_bytes: u64,
    pages: u32,
    /// A device's handle, in words and the number of its bytes.
    device: Option<(u32, Vec<u64>)>,
}

pd_core::codec!(struct Place { path, id, epoch, page_bytes, pages, device });

impl From<&pd_sync::Identity> for Place {
    fn from(identity: &pd_sync::Identity) -> Self {
        let id = u128::from_le_bytes(identity.id);
        Self {
            path: identity.path.clone(),
            id: (id as u64, (id >> 64) as u64),
            epoch: identity.epoch,
            page_bytes: identity.page_bytes,
            pages: identity.pages,
            device: identity.device.as_ref().map(|handle| {
                let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                (handle.len() as u32, handle.chunks(8).map(word).collect())
            }),
        }
    }
}

impl From<Place> for pd_sync::Identity {
    fn from(place: Place) -> Self {
        let id = u128::from(place.id.0) | u128::from(place.id.1) << 64;
        Self {
            path: place.path,
            id: id.to_le_bytes(),
            epoch: place.epoch,
            page_bytes: place.page_bytes,
            pages: place.pages,
            device: place.device.map(|(length, words)| {
                let bytes = words.into_iter().flat_map(u64::to_le_bytes);
                bytes.take(length as usize).collect()
            }),
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Reject {
    /// Another version of the protocol.
    #[error("it speaks version {ours} of the wire protocol, and we another one")]
    Version {
        /// That of the one who refuses.
        ours: u32,
    },
    /// The address leads to another worker.
    #[error("the address leads to worker {ours}; the registration is out of date")]
    Worker {
        /// Who is there.
        ours: WorkerId,
    },
    /// It lives another life.
    #[error("it lives in epoch {ours} by now")]
    Epoch {
        /// The life of the one who refuses.
        ours: Epoch,
    },
    /// Pages of another size.
    #[error("its pages have {ours} bytes; model, dtype and page size must be the same on both ends")]
    PageBytes {
        /// Of the one who refuses.
        ours: u64,
    },
    /// One end moves pages, the other believes that they move by themselves.
    #[error("one end uses the transfer backend `fake` and the other does not; set both alike")]
    Fake,
    /// No more connections are taken.
    #[error("it has {max} connections, which is its limit")]
    Full {
        /// The limit.
        max: u32,
    },
}

pd_core::codec!(enum Reject {
    0 = Version { ours }, 1 = Worker { ours }, 2 = Epoch { ours }, 3 = PageBytes { ours }, 4 = Fake, 5 = Full { max },
});

/// What is wrong with bytes of the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(super) enum Malformed {
    #[error("what came does not begin like a {0}: it is no pd worker, or of another version")]
    Magic(&'static str),
    #[error("a length of {0} bytes, which is beyond the limit")]
    Length(u64),
    #[error("a header whose checksum does not fit")]
    Header,
    #[error("a greeting that does not decode")]
    Greeting,
    #[error("a chunk beyond the end of its page, or of a page that is not there")]
    Range,
    #[error("chunks out of order")]
    Order,
    #[error("a payload whose checksum does not fit")]
    Payload,
}

/// A part of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    /// Counts chunks of the connection from 1.
    pub(super) sequence: u64,
    pub(super) room: Room,
    pub(super) generation: Generation,
    pub(super) page: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
    /// crc32c of the payload.
    pub(super) crc: u32,
    /// The source waits for an acknowledgement of this and all before it.
    pub(super) wants_ack: bool,
}

/// How a chunk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    /// Written, as were all before it that were not named.
    Landed,
    /// Its lease is gone, or never was.
    Fenced,
    /// Somebody else uses the page.
    Busy,
    /// The bytes were damaged on the way; the connection is closed.
    Damaged,
}

/// What the sink says of a chunk and those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ack {
    pub(super) sequence: u64,
    pub(super) status: Status,
}

impl Chunk {
    pub(super) fn to_bytes(self) -> [u8; CHUNK_BYTES] {
        let mut bytes = [0; CHUNK_BYTES];
        put(&mut bytes, 0, CHUNK);
        put(&mut bytes, 4, self.length);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.room.0.to_le_bytes());
        put(&mut bytes, 24, self.generation.0);
        put(&mut bytes, 28, self.page);
        put(&mut bytes, 32, self.offset);
        put(&mut bytes, 36, self.crc);
        put(&mut bytes, 40, u32::from(self.wants_ack));
        seal(&mut bytes);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; CHUNK_BYTES]) -> Result<Self, Malformed> {
        check(bytes, CHUNK, "chunk")?;
        Ok(Self {
            sequence: word(bytes, 8),
            room: Room(word(bytes, 16)),
            generation: Generation(half(bytes, 24)),
            page: half(bytes, 28),
            offset: half(bytes, 32),
            length: half(bytes, 4),
            crc: half(bytes, 36),
            wants_ack: half(bytes, 40) & 1 == 1,
        })
    }
}

impl Ack {
    pub(super) fn to_bytes(self) -> [u8; ACK_BYTES] {
        let mut bytes = [0; ACK_BYTES];
        put(&mut bytes, 0, ACK);
        let status = match self.status {
            Status::Landed => 0,
            Status::Fenced => 1,
            Status::Busy => 2,
            Status::Damaged => 3,
        };
        put(&mut bytes, 4, status);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; ACK_BYTES]) -> Result<Self, Malformed> {
        check(bytes, ACK, "acknowledgement")?;
        let status = match half(bytes, 4) {
            0 => Status::Landed,
            1 => Status::Fenced,
            2 => Status::Busy,
            3 => Status::Damaged,
            other => return Err(Malformed::Length(u64::from(other))),
        };
        Ok(Self { sequence: word(bytes, 8), status })
    }
}

/// Writes a greeting.
pub(super) fn write_greeting(stream: &mut impl Write, value: &impl Codec) -> io::Result<()> {
    let body = value.to_bytes();
    let mut bytes = Vec::with_capacity(12 + body.len());
    bytes.extend_from_slice(&GREETING.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes)
}

/// Reads a greeting. The stream's timeout bounds each read, the limit all of it.
pub(super) fn read_greeting<T: Codec>(stream: &mut impl Read) -> io::Result<Result<T, Malformed>> {
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if half(&head, 0) != GREETING {
        return Ok(Err(Malformed::Magic("greeting")));
    }
    let length = half(&head, 4);
    if length > GREETING_BYTES_MAX {
        return Ok(Err(Malformed::Length(u64::from(length))));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    if crc32c::crc32c(&body) != half(&head, 8) {
        return Ok(Err(Malformed::Header));
    }
    Ok(T::from_bytes(&body).map_err(|_| Malformed::Greeting))
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Puts the checksum of all before it into the last four bytes.
fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    put(bytes, end, crc);
}

fn check(bytes: &[u8], magic: u32, what: &'static str) -> Result<(), Malformed> {
    if half(bytes, 0) != magic {
        return Err(Malformed::Magic(what));
    }
    let end = bytes.len() - 4;
    if crc32c::crc32c(&bytes[..end]) != half(bytes, end) {
        return Err(Malformed::Header);
    }
    Ok(())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
