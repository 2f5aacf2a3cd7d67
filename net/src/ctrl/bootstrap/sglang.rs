//! SGLang's bootstrap routes: prefill ranks put their addresses and geometry, decode ranks get them.
//!
//! | route | answer |
//! |---|---|
//! | `PUT /route` [`Rank`] | 200; 409 if its geometry is not that of the ranks before it |
//! | `GET /route`, all four ranks -1 | geometry; 503 until all ranks have registered |
//! | `GET /route?prefill_dp_rank=&prefill_cp_rank=&target_tp_rank=&target_pp_rank=` | `{rank_ip, rank_port}`; 404, 503 |
//! | `POST /register_dp_rank` `{bootstrap_room, dp_rank}` | 200 |
//! | `POST /query_dp_ranks` `{bootstrap_rooms}` | `{"<room>": rank}` for those that are known |
//!
//! The older names of the query (`engine_rank`, `target_dp_group`) are understood, and the older form of the first answer
//! (`prefill_attn_tp_size`, ...) is part of the newer one. A rank that registers again replaces itself and is counted
//! once; geometry is settled by the first one, and checked, not ignored, for the others.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Body, Refusal, Shared};

/// Most ranks of one prefill instance.
const RANKS_MAX: u64 = 65_536;
/// Most rooms of one query.
const QUERY_ROOMS_MAX: usize = 65_536;

/// What a prefill rank puts. Fields that are not listed are allowed: versions add them.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Rank {
    attn_tp_size: u32,
    attn_tp_rank: u32,
    #[serde(default = "one")]
    attn_cp_size: u32,
    #[serde(default)]
    attn_cp_rank: u32,
    attn_dp_size: u32,
    attn_dp_rank: u32,
    pp_size: u32,
    pp_rank: u32,
    system_dp_size: u32,
    system_dp_rank: u32,
    rank_ip: String,
    rank_port: u16,
    page_size: Option<u32>,
    kv_cache_dtype: Option<String>,
    prefill_http_port: Option<u16>,
    load_balance_method: Option<String>,
}

const fn one() -> u32 {
    1
}

/// What all ranks have in common.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Geometry {
    attn_tp_size: u32,
    attn_cp_size: u32,
    dp_size: u32,
    pp_size: u32,
    page_size: Option<u32>,
    kv_cache_dtype: Option<String>,
    follow_bootstrap_room: bool,
    prefill_http_port: Option<u16>,
}

/// Data-, context-, tensor- and pipeline-parallel rank.
type Place = [u32; 4];

/// The table of one prefill instance.
#[derive(Debug)]
pub(super) struct Routes {
    geometry: Option<Geometry>,
    ranks: BTreeMap<Place, (String, u16)>,
    rooms: BTreeMap<u64, (u32, Instant)>,
    /// Rooms in the order in which they were registered; one that came again is in it again.
    order: VecDeque<(Instant, u64)>,
    rooms_max: usize,
    lifetime: Duration,
}

impl Routes {
    pub(super) fn new(rooms_max: usize, lifetime: Duration) -> Self {
        let (ranks, rooms, order) = (BTreeMap::new(), BTreeMap::new(), VecDeque::new());
        Self { geometry: None, ranks, rooms, order, rooms_max, lifetime }
    }

    fn put(&mut self, rank: Rank) -> Result<(), Refusal> {
        let is_single = rank.system_dp_size == 1;
        let (dp_size, dp_rank) =
            if is_single { (rank.attn_dp_size, rank.attn_dp_rank) } else { (rank.system_dp_size, rank.system_dp_rank) };
        let geometry = Geometry {
            attn_tp_size: rank.attn_tp_size,
            attn_cp_size: rank.attn_cp_size,
            dp_size,
            pp_size: rank.pp_size,
            page_size: rank.page_size,
            kv_cache_dtype: rank.kv_cache_dtype,
            follow_bootstrap_room: rank.load_balance_method.is_none_or(|method| method == "follow_bootstrap_room"),
            prefill_http_port: rank.prefill_http_port,
        };
        let place = [dp_rank, rank.attn_cp_rank, rank.attn_tp_rank, rank.pp_rank];
        let sizes = [dp_size, geometry.attn_cp_size, geometry.attn_tp_size, geometry.pp_size];
        if place.iter().zip(sizes).any(|(rank, size)| *rank >= size) || ranks(&geometry) > RANKS_MAX {
            let text = format!("rank {place:?} (dp, cp, tp, pp) is not within sizes {sizes:?} of at most 65536 ranks");
            return Err(Refusal(StatusCode::BAD_REQUEST, text));
        }
        // The port belongs to a rank's own server where there are several.
        let same = |known: &Geometry| Geometry { prefill_http_port: None, ..known.clone() };
        match &self.geometry {
            Some(known) if same(known) != same(&geometry) => {
                let text = format!("this prefill has {known:?}, and the rank {geometry:?}");
                return Err(Refusal(StatusCode::CONFLICT, text));
            }
            Some(_) => {}
            None => self.geometry = Some(geometry),
        }
        self.ranks.insert(place, (rank.rank_ip, rank.rank_port));
        Ok(())
    }

    fn complete(&self) -> Result<&Geometry, Refusal> {
        let text = || format!("Prefill server not fully registered yet ({} workers registered).", self.ranks.len());
        let missing = || Refusal(StatusCode::SERVICE_UNAVAILABLE, text());
        self.geometry.as_ref().filter(|it| self.ranks.len() as u64 >= ranks(it)).ok_or_else(missing)
    }

    fn remember(&mut self, room: u64, rank: u32, now: Instant) {
        self.expire(now);
        self.rooms.insert(room, (rank, now));
        self.order.push_back((now, room));
        while self.order.len() > self.rooms_max {
            self.drop_oldest();
        }
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= self.lifetime) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((at, room)) = self.order.pop_front() else { return };
        if self.rooms.get(&room).is_some_and(|(_, registered)| *registered == at) {
            self.rooms.remove(&room);
        }
    }
}

fn ranks(it: &Geometry) -> u64 {
    [it.attn_tp_size, it.attn_cp_size, it.dp_size, it.pp_size]
        .iter()
        .fold(1_u64, |product, size| product.saturating_mul(u64::from(*size)))
}

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(alias = "target_dp_group")]
    prefill_dp_rank: Option<i64>,
    prefill_cp_rank: Option<i64>,
    #[serde(alias = "engine_rank")]
    target_tp_rank: Option<i64>,
    target_pp_rank: Option<i64>,
}

/// `PUT` and `GET /route`.
pub(super) async fn route(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refusal> {
    if request.method() == Method::PUT {
        shared.authorize(&headers)?;
        let Json(rank) = Json::<Rank>::from_request(request, &()).await?;
        shared.routes().put(rank)?;
        return Ok("OK".into_response());
    }
    if request.method() != Method::GET {
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "PUT or GET".into()));
    }
    let missing = || Refusal(StatusCode::BAD_REQUEST, "Missing inputs for bootstrap server.".into());
    let Query(asked) = Query::<Asked>::try_from_uri(request.uri()).map_err(|_| missing())?;
    let (Some(dp), Some(tp), Some(pp)) = (asked.prefill_dp_rank, asked.target_tp_rank, asked.target_pp_rank) else {
        return Err(missing());
    };
    let is_summary = dp == -1 && tp == -1 && pp == -1 && asked.prefill_cp_rank.is_none_or(|cp| cp == -1);
    let routes = shared.routes();
    let geometry = routes.complete()?;
    if is_summary {
        let mut answer = serde_json::to_value(geometry).unwrap_or_default();
        if let Some(fields) = answer.as_object_mut() {
            for (old, new) in [
                ("prefill_attn_tp_size", "attn_tp_size"),
                ("prefill_dp_size", "dp_size"),
                ("prefill_pp_size", "pp_size"),
            ] {
                let value = fields.get(new).cloned().unwrap_or_default();
                fields.insert(old.into(), value);
            }
        }
        return Ok(Json(answer).into_response());
    }
    let cp = asked.prefill_cp_rank.unwrap_or(0);
    let place = [dp, cp, tp, pp].map(|rank| u32::try_from(rank).unwrap_or(u32::MAX));
    let text = || format!("Bootstrap info not found for dp_rank={dp} cp_rank={cp} tp_rank={tp} pp_rank={pp}");
    let (ip, port) = routes.ranks.get(&place).ok_or_else(|| Refusal(StatusCode::NOT_FOUND, text()))?;
    Ok(Json(serde_json::json!({ "rank_ip": ip, "rank_port": port })).into_response())
}

#[derive(Deserialize)]
pub(super) struct RoomRank {
    bootstrap_room: u64,
    dp_rank: u32,
}

/// `POST /register_dp_rank`.
pub(super) async fn register_dp_rank(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Body<RoomRank>,
) -> Result<&'static str, Refusal> {
    shared.authorize(&headers)?;
    let it = body?.0;
    shared.routes().remember(it.bootstrap_room, it.dp_rank, Instant::now());
    Ok("OK")
}

#[derive(Deserialize)]
pub(super) struct Rooms {
    bootstrap_rooms: Vec<u64>,
}

/// `POST /query_dp_ranks`.
pub(super) async fn query_dp_ranks(
    State(shared): State<Arc<Shared>>,
    body: Body<Rooms>,
) -> Result<Json<BTreeMap<String, u32>>, Refusal> {
    let rooms = body?.0.bootstrap_rooms;
    if rooms.len() > QUERY_ROOMS_MAX {
        return Err(Refusal(StatusCode::BAD_REQUEST, format!("more than {QUERY_ROOMS_MAX} rooms in one query")));
    }
    let mut routes = shared.routes();
    routes.expire(Instant::now());
    let known = rooms.iter().filter_map(|room| Some((room.to_string(), routes.rooms.get(room)?.0)));
    Ok(Json(known.collect()))
}
