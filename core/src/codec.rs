//! The one binary form of inputs, outputs and messages: journals, wire frames and digests all come from here.
//!
//! Fixed-width little-endian integers, `u32` lengths, one tag byte per enum variant. Decoding never panics and never
//! allocates more than the bytes at hand justify. The form is versioned as a whole by [`crate::message::VERSION`].
//!
//! Files use the [`Compact`] form of the same: integers of four and eight bytes as LEB128 varints, so that a small number
//! is one byte.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use thiserror::Error;

use crate::time::nanos;

/// Where encoded values go: bytes, or a fingerprint of them.
pub trait Sink {
    /// Takes one byte.
    fn u8(&mut self, value: u8);
    /// Takes four bytes.
    fn u32(&mut self, value: u32);
    /// Takes eight bytes.
    fn u64(&mut self, value: u64);
    /// Takes raw bytes; the length is the caller's matter.
    fn bytes(&mut self, bytes: &[u8]);
    /// Takes four bytes twice: the form is that of two calls, but a fingerprint may take them at once.
    fn pair(&mut self, first: u32, second: u32) {
        self.u32(first);
        self.u32(second);
    }
}

impl Sink for Vec<u8> {
    fn u8(&mut self, value: u8) {
        self.push(value);
    }
    fn u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Writes the compact form: integers as varints, seven bits to the byte, the low ones first.
#[derive(Debug)]
pub struct Compact<'a>(pub &'a mut Vec<u8>);

impl Sink for Compact<'_> {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u32(&mut self, value: u32) {
        self.u64(u64::from(value));
    }
    fn u64(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// What can be wrong with bytes from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// The value needs more bytes than there are.
    #[error("input ends at byte {at}, in the middle of a value")]
    Short {
        /// Offset of the value that is cut off.
        at: usize,
    },
    /// A tag that names no variant.
    #[error("byte {at}: {tag} names no variant of {of}")]
    Tag {
        /// Offset of the tag.
        at: usize,
        /// The tag.
        tag: u8,
        /// The enum.
        of: &'static str,
    },
    /// A length that the bytes at hand cannot hold.
    #[error("byte {at}: a length of {length} is more than the input holds")]
    Length {
        /// Offset of the length.
        at: usize,
        /// The length.
        length: u64,
    },
    /// A varint of more bits than its integer has.
    #[error("byte {at}: a number that is too large for its type")]
    Varint {
        /// Offset of the number.
        at: usize,
    },
    /// Text that is not UTF-8.
    #[error("byte {at}: text is not UTF-8")]
    Text {
        /// Offset of the text.
        at: usize,
    },
    /// Bytes after the end of the value.
    #[error("{count} bytes after the end of the value")]
    Rest {
        /// How many.
        count: usize,
    },
}

/// Reads values from a slice.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    bytes: &'a [u8],
    at: usize,
    is_compact: bool,
}

impl<'a> Source<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, is_compact: false }
    }

    /// Reads what [`Compact`] wrote.
    #[must_use]
    pub const fn compact(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, is_compact: true }
    }

    /// Offset of the next byte.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    #[must_use]
    pub const fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`] if there are fewer.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        if count > self.rest() {
            return Err(DecodeError::Short { at: self.at });
        }
        let start = self.at;
        self.at += count;
        Ok(&self.bytes[start..self.at])
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.bytes(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let start = self.at;
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Varint { at: start })
    }

    /// An integer of four bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`], or [`DecodeError::Varint`] in the compact form.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        if self.is_compact {
            let at = self.at;
            return u32::try_from(self.varint()?).map_err(|_| DecodeError::Varint { at });
        }
        let mut word = [0; 4];
        word.copy_from_slice(self.bytes(4)?);
        Ok(u32::from_le_bytes(word))
    }

    /// An integer of eight bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`], or [`DecodeError::Varint`] in the compact form.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        if self.is_compact {
            return self.varint();
        }
        let mut word = [0; 8];
        word.copy_from_slice(self.bytes(8)?);
        Ok(u64::from_le_bytes(word))
    }

    /// A count of items of which each takes at least `item_bytes_min` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Length`] if the rest of the input cannot hold that many.
    pub fn length(&mut self, item_bytes_min: usize) -> Result<usize, DecodeError> {
        let at = self.at;
        let length = self.u32()? as usize;
        if length.saturating_mul(item_bytes_min.max(1)) > self.rest() {
            return Err(DecodeError::Length { at, length: length as u64 });
        }
        Ok(length)
    }
}

/// A value with a binary form.
pub trait Codec: Sized {
    /// Writes the value.
    fn encode<S: Sink>(&self, sink: &mut S);
    /// Reads a value.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes; see [`DecodeError`].
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError>;

    /// The value as bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }

    /// The value that `bytes` hold, all of them.
    ///
    /// # Errors
    /// As [`Codec::decode`], and [`DecodeError::Rest`] if bytes are left over.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut source = Source::new(bytes);
        let value = Self::decode(&mut source)?;
        match source.rest() {
            0 => Ok(value),
            count => Err(DecodeError::Rest { count }),
        }
    }
}

macro_rules! integer {
    ($($name:ident via $write:ident),*) => {$(
        impl Codec for $name {
            #[inline]
            fn encode<S: Sink>(&self, sink: &mut S) {
                sink.$write(*self as $write);
            }
            fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
                Ok(source.$write()? as $name)
            }
        }
    )*};
}
integer!(u8 via u8, u32 via u32, i32 via u32, u64 via u64, i64 via u64);

impl Codec for u16 {
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u32(u32::from(*self));
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let at = source.at();
        let value = source.u32()?;
        u16::try_from(value).map_err(|_| DecodeError::Length { at, length: u64::from(value) })
    }
}

impl Codec for bool {
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u8(u8::from(*self));
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let at = source.at();
        match source.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::Tag { at, tag, of: "bool" }),
        }
    }
}

impl Codec for () {
    fn encode<S: Sink>(&self, _sink: &mut S) {}
    fn decode(_source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(())
    }
}

impl Codec for Duration {
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u64(nanos(*self));
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(Duration::from_nanos(source.u64()?))
    }
}

impl Codec for String {
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u32(self.len() as u32);
        sink.bytes(self.as_bytes());
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let length = source.length(1)?;
        let at = source.at();
        let bytes = source.bytes(length)?;
        core::str::from_utf8(bytes).map(String::from).map_err(|_| DecodeError::Text { at })
    }
}

impl<T: Codec> Codec for Option<T> {
    #[inline]
    fn encode<S: Sink>(&self, sink: &mut S) {
        match self {
            None => sink.u8(0),
            Some(value) => {
                sink.u8(1);
                value.encode(sink);
            }
        }
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::decode(source)? { Some(T::decode(source)?) } else { None })
    }
}

impl<T: Codec> Codec for Box<T> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        T::encode(self, sink);
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(Box::new(T::decode(source)?))
    }
}

impl<T: Codec> Codec for Vec<T> {
    #[inline]
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.u32(self.len() as u32);
        for item in self {
            item.encode(sink);
        }
    }
    fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let length = source.length(1)?;
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(T::decode(source)?);
        }
        Ok(items)
    }
}

macro_rules! tuple {
    ($($name:ident.$index:tt),*) => {
        impl<$($name: Codec),*> Codec for ($($name,)*) {
            #[inline]
            fn encode<Out: Sink>(&self, sink: &mut Out) {
                $(self.$index.encode(sink);)*
            }
            fn decode(source: &mut Source<'_>) -> Result<Self, DecodeError> {
                Ok(($($name::decode(source)?,)*))
            }
        }
    };
}
tuple!(A.0, B.1);
tuple!(A.0, B.1, C.2);

/// Gives a struct or an enum its [`Codec`]: fields in the order written, variants by the tag written.
///
/// ```
/// # use pd_core::codec::Codec;
/// #[derive(Debug, PartialEq)]
/// enum Shape { Point, Circle(u32), Box { width: u32, height: u32 } }
/// pd_core::codec!(enum Shape { 0 = Point, 1 = Circle(radius), 2 = Box { width, height } });
/// assert_eq!(Shape::from_bytes(&Shape::Circle(3).to_bytes()), Ok(Shape::Circle(3)));
/// ```
#[macro_export]
macro_rules! codec {
    (struct $name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Codec for $name {
            #[inline]
            fn encode<S: $crate::codec::Sink>(&self, sink: &mut S) {
                let _ = &sink;
                $($crate::codec::Codec::encode(&self.$field, sink);)*
            }
            fn decode(source: &mut $crate::codec::Source<'_>) -> Result<Self, $crate::codec::DecodeError> {
                Ok(Self { $($field: $crate::codec::Codec::decode(source)?),* })
            }
        }
    };
    (enum $name:ident {
        $($tag:literal = $variant:ident $(($($item:ident),*))? $({$($field:ident),*})?),* $(,)?
    }) => {
        impl $crate::codec::Codec for $name {
            #[inline]
            fn encode<S: $crate::codec::Sink>(&self, sink: &mut S) {
                match self {
                    $(Self::$variant $(($($item),*))? $({$($field),*})? => {
                        sink.u8($tag);
                        $($($crate::codec::Codec::encode($item, sink);)*)?
                        $($($crate::codec::Codec::encode($field, sink);)*)?
                    })*
                }
            }
            fn decode(source: &mut $crate::codec::Source<'_>) -> Result<Self, $crate::codec::DecodeError> {
                let at = source.at();
                match source.u8()? {
                    $($tag => {
                        $($(let $item = $crate::codec::Codec::decode(source)?;)*)?
                        $($(let $field = $crate::codec::Codec::decode(source)?;)*)?
                        Ok(Self::$variant $(($($item),*))? $({$($field),*})?)
                    })*
                    tag => Err($crate::codec::DecodeError::Tag { at, tag, of: stringify!($name) }),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests;
