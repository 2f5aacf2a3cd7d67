//! The part of the protobuf wire format that a trace needs, and the packets of `perfetto_trace.proto` that we write.
//!
//! Field numbers are those of <https://perfetto.dev/docs/reference/trace-packet-proto> and `TrackEvent`,
//! `TrackDescriptor` in the same schema; they are part of a stable format.

/// A protobuf message in the making.
#[derive(Clone, Debug, Default)]
pub(super) struct Proto(Vec<u8>);

impl Proto {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A field of type `uint64`, `int64`, `bool` or an enum.
    pub(super) fn int(mut self, field: u32, value: u64) -> Self {
        self.raw(u64::from(field) << 3);
        self.raw(value);
        self
    }

    /// A field of type `fixed64`.
    pub(super) fn fixed(mut self, field: u32, value: u64) -> Self {
        self.raw(u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A field of type `string`.
    pub(super) fn text(self, field: u32, text: &str) -> Self {
        self.chunk(field, text.as_bytes())
    }

    /// A field that is a message.
    pub(super) fn message(self, field: u32, message: &Self) -> Self {
        self.chunk(field, &message.0)
    }

    fn chunk(mut self, field: u32, bytes: &[u8]) -> Self {
        self.raw(u64::from(field) << 3 | 2);
        self.raw(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// Fields of `Trace`.
pub(super) mod trace {
    pub(crate) const PACKET: u32 = 1;
}

/// Fields of `TracePacket`.
pub(super) mod packet {
    pub(crate) const TIMESTAMP: u32 = 8;
    pub(crate) const SEQUENCE: u32 = 10;
    pub(crate) const TRACK_EVENT: u32 = 11;
    pub(crate) const INTERNED: u32 = 12;
    pub(crate) const FLAGS: u32 = 13;
    pub(crate) const TRACK: u32 = 60;
    /// Value of FLAGS: names interned before no longer count.
    pub(crate) const CLEARED: u64 = 1;
    /// Value of FLAGS: interned names are used.
    pub(crate) const NEEDS_STATE: u64 = 2;
}

/// Fields of `InternedData` and of its entries.
pub(super) mod interned {
    pub(crate) const EVENT_NAME: u32 = 2;
    pub(crate) const ANNOTATION_NAME: u32 = 3;
    pub(crate) const ENTRY_ID: u32 = 1;
    pub(crate) const ENTRY_NAME: u32 = 2;
}

/// Fields of `TrackDescriptor` and of what it holds.
pub(super) mod track {
    pub(crate) const UUID: u32 = 1;
    pub(crate) const NAME: u32 = 2;
    pub(crate) const PROCESS: u32 = 3;
    pub(crate) const PARENT: u32 = 5;
    pub(crate) const COUNTER: u32 = 8;
    pub(crate) const CHILD_ORDERING: u32 = 11;
    pub(crate) const RANK: u32 = 12;
    /// Value of `CHILD_ORDERING`: by rank.
    pub(crate) const EXPLICIT: u64 = 3;
    pub(crate) const PROCESS_PID: u32 = 1;
    pub(crate) const PROCESS_NAME: u32 = 6;
    pub(crate) const COUNTER_UNIT_NAME: u32 = 6;
}

/// Fields of `TrackEvent` and of `DebugAnnotation`.
pub(super) mod event {
    pub(crate) const ANNOTATION: u32 = 4;
    pub(crate) const TYPE: u32 = 9;
    pub(crate) const NAME_ID: u32 = 10;
    pub(crate) const TRACK: u32 = 11;
    pub(crate) const NAME: u32 = 23;
    pub(crate) const COUNTER_VALUE: u32 = 30;
    pub(crate) const FLOW: u32 = 47;
    pub(crate) const FLOW_END: u32 = 48;
    /// Values of TYPE.
    pub(crate) const BEGIN: u64 = 1;
    pub(crate) const END: u64 = 2;
    pub(crate) const INSTANT: u64 = 3;
    pub(crate) const COUNTER: u64 = 4;
    pub(crate) const ANNOTATION_NAME_ID: u32 = 1;
    pub(crate) const ANNOTATION_UINT: u32 = 3;
    pub(crate) const ANNOTATION_TEXT: u32 = 6;
}
