//! Which half of a hand-off a request asks for: the fields that SGLang's routers add.
//!
//! | field | forms |
//! |---|---|
//! | `bootstrap_host` | text, or one for each sequence; `2.2.2.2` is nobody |
//! | `bootstrap_port` | number or null, or one for each sequence |
//! | `bootstrap_room` | number, or one for each sequence or each prompt |
//!
//! Routers send the same body to both halves, so both must read it alike: a single room of several sequences stands for
//! itself and the numbers behind it; a list with one room for each prompt likewise for the answers to that prompt.

use pd_core::config::Mode;
use pd_core::id::Room;
use serde_json::Value;

use super::backend::{JobLeg, Source};
use super::error::ApiError;
use super::fields::Fields;

/// SGLang's address of nobody: warm-up and health probes bring it.
pub(super) const FAKE_HOST: &str = "2.2.2.2";
/// Rooms are numbers of 63 bits.
const ROOM_MAX: u64 = (1 << 63) - 1;

/// One leg for each of `prompts * choices` sequences, those of one prompt side by side.
///
/// `fake_room` makes rooms for hand-offs with nobody, which all bring room 0.
pub(super) fn legs(
    fields: &Fields<'_>,
    mode: Mode,
    prompts: usize,
    choices: usize,
    mut fake_room: impl FnMut() -> Room,
) -> Result<Vec<JobLeg>, ApiError> {
    let count = prompts * choices;
    let whole = || Ok(vec![JobLeg::Whole; count]);
    if mode == Mode::Unified {
        return whole();
    }
    let (hosts, rooms) = (fields.get("bootstrap_host"), fields.get("bootstrap_room"));
    if hosts.is_none() && rooms.is_none() {
        return whole();
    }
    let ports = fields.get("bootstrap_port");
    let mut legs = Vec::with_capacity(count);
    for at in 0..count {
        let host = match pick(fields, "bootstrap_host", hosts, at, prompts, choices)? {
            None => None,
            Some((Value::String(host), _)) if !host.is_empty() && host.len() <= 255 => Some(host.as_str()),
            Some(_) => return Err(fields.wrong("bootstrap_host", "a host name or address, or a list of them")),
        };
        let port =
            match pick(fields, "bootstrap_port", ports, at, prompts, choices)? {
                None => None,
                Some((value, _)) => {
                    let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|&port| port > 0);
                    Some(port.ok_or_else(|| {
                        fields.wrong("bootstrap_port", "a port from 1 to 65535, null, or a list of them")
                    })?)
                }
            };
        let is_fake = host == Some(FAKE_HOST);
        let room = match pick(fields, "bootstrap_room", rooms, at, prompts, choices)? {
            _ if is_fake => fake_room(),
            Some((value, offset)) => {
                let room = value.as_u64().filter(|&room| room <= ROOM_MAX);
                let room = room.ok_or_else(|| {
                    fields.wrong("bootstrap_room", "a whole number from 0 to 2^63 - 1, or a list of them")
                })?;
                Room((room + offset as u64) & ROOM_MAX)
            }
            None => return Err(fields.wrong("bootstrap_room", "a number, because bootstrap_host is given")),
        };
        legs.push(match (mode, host) {
            (Mode::Prefill, _) => JobLeg::Prefill { room },
            (Mode::Decode, _) if is_fake => JobLeg::Decode { room, from: Source::Fake },
            (Mode::Decode, Some(host)) => {
                JobLeg::Decode { room, from: Source::At { host: host.trim_matches(['[', ']']).to_owned(), port } }
            }
            (Mode::Decode, None) => {
                return Err(
                    fields.wrong("bootstrap_host", "the prefill worker's host, because bootstrap_room is given")
                );
            }
            (Mode::Unified, _) => JobLeg::Whole,
        });
    }
    Ok(legs)
}

/// The value for sequence `at`, and how far it is behind the sequence for which the value was given.
fn pick<'a>(
    fields: &Fields<'_>,
    name: &str,
    value: Option<&'a Value>,
    at: usize,
    prompts: usize,
    choices: usize,
) -> Result<Option<(&'a Value, usize)>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    let Some(list) = value.as_array() else { return Ok(Some((value, at))) };
    let (index, offset) = if list.len() == prompts * choices {
        (at, 0)
    } else if list.len() == prompts {
        (at / choices, at % choices)
    } else {
        let must = format!("one value, or a list of {} (one for each sequence)", prompts * choices);
        return Err(fields.wrong(name, &must));
    };
    Ok(Some((&list[index], offset)).filter(|(value, _)| !value.is_null()))
}
