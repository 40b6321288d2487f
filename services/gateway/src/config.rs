//! Every variable of the gateway.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use runtime::{Succession, Variables};
use secrecy::SecretString;
use types::{Networks, Pepper};

use crate::listen::{Patience, Rules};

/// Calls in flight, unless the environment says otherwise. One that waits for its upstream takes
/// 16 kB, by hyper 70 kB, one that passes a long answer to a slow client 80 kB: 1.3 gigabytes at
/// most. Connections and streams alone would allow six million of them.
const CALLS_MAX: u64 = 16_384;

/// What the environment says.
#[derive(Debug)]
pub struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) name: String,
    /// 0: one a core.
    threads: usize,
    pub(crate) peppers: Succession,
    pub(crate) principal_secret: SecretString,
    pub(crate) journal_dir: PathBuf,
    pub(crate) journal_segment_bytes: usize,
    pub(crate) journal_bytes_max: u64,
    pub(crate) trusted_hops: u8,
    pub(crate) country_db: Option<PathBuf>,
    pub(crate) keys_max: usize,
    pub(crate) unknown_keys_per_minute_max: u32,
    pub(crate) unknown_lookups_per_second_max: u32,
    pub(crate) drain: Duration,
    pub(crate) door: Rules,
    /// In flight.
    pub(crate) calls_max: u64,
    pub(crate) tunnel_idle: Duration,
    /// Credits; 0: never.
    pub(crate) disk_cost_min: i64,
    pub(crate) traces_per_second: u32,
    pub(crate) upstreams: Upstreams,
}

/// What bounds calls to upstreams.
#[derive(Clone, Debug)]
pub(crate) struct Upstreams {
    /// Where they may be beside the public internet.
    pub(crate) networks: Networks,
    /// Calls that wait for a connection to one of them, and for how long.
    pub(crate) waiting_max: usize,
    pub(crate) wait: Duration,
}

impl Config {
    /// Reads all variables; problems are collected by `v`.
    pub fn read(v: &mut Variables) -> Self {
        let peppers = read_peppers(v);
        let principal_secret = v.secret(
            "TOLLGATE_GATEWAY_PRINCIPAL_SECRET",
            "signs the tollgate-principal header that upstreams receive",
        );
        let (journal_dir, journal_segment_bytes, journal_bytes_max) = read_journal(v);
        let (unknown_keys_per_minute_max, unknown_lookups_per_second_max) = read_unknown(v);
        Self {
            listen: v.address(
                "TOLLGATE_GATEWAY_LISTEN",
                "127.0.0.1:8080",
                "where calls come in",
            ),
            name: v.text(
                "TOLLGATE_GATEWAY_NAME",
                "gateway",
                "name in reports, unique",
            ),
            threads: v.number(
                "TOLLGATE_GATEWAY_THREADS",
                0,
                0..=256,
                "threads that carry calls, one event loop each; 0: one a core",
            ),
            peppers,
            principal_secret,
            journal_dir,
            journal_segment_bytes,
            journal_bytes_max,
            trusted_hops: v.number(
                "TOLLGATE_GATEWAY_TRUSTED_HOPS",
                0,
                0..=8,
                "proxies in front whose X-Forwarded-For entry is believed",
            ),
            country_db: read_country_db(v),
            keys_max: v.number(
                "TOLLGATE_GATEWAY_KEYS_MAX",
                200_000,
                100..=10_000_000,
                "keys kept in memory",
            ),
            unknown_keys_per_minute_max,
            unknown_lookups_per_second_max,
            drain: v.seconds(
                "TOLLGATE_GATEWAY_DRAIN_SECONDS",
                20,
                0..=3600,
                "calls in flight have so long to end when the gateway stops",
            ),
            door: read_door(v),
            calls_max: read_calls_max(v),
            tunnel_idle: v.seconds(
                "TOLLGATE_GATEWAY_TUNNEL_IDLE_SECONDS",
                600,
                1..=86_400,
                "a WebSocket or another upgraded connection is closed when nothing has passed for \
                 so long",
            ),
            disk_cost_min: read_disk_cost(v),
            traces_per_second: v.number(
                "TOLLGATE_GATEWAY_TRACES_PER_SECOND",
                50,
                1..=100_000,
                "traces that may begin in a second, whatever the sampler says",
            ),
            upstreams: Upstreams::read(v),
        }
    }
}

impl Config {
    /// Threads that carry calls.
    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            threads => threads,
        }
    }
}

fn read_calls_max(v: &mut Variables) -> u64 {
    v.number(
        "TOLLGATE_GATEWAY_CALLS_MAX",
        CALLS_MAX,
        1..=10_000_000,
        "calls in flight, of which half may be tunnels; further ones answer 503 at once",
    )
}

fn read_disk_cost(v: &mut Variables) -> i64 {
    v.number(
        "TOLLGATE_GATEWAY_DISK_COST_MIN",
        10_000,
        0..=i64::MAX,
        "the answer to a call that costs so many credits or more waits until its record is on disk, \
         whatever its route says; 0: never",
    )
}

fn read_country_db(v: &mut Variables) -> Option<PathBuf> {
    let path = v.optional(
        "TOLLGATE_GATEWAY_COUNTRY_DB",
        "an .mmdb file, or geoip text as in Debian's tor-geoipdb",
    );
    path.map(PathBuf::from)
}

fn read_journal(v: &mut Variables) -> (PathBuf, usize, u64) {
    let dir = v.required(
        "TOLLGATE_GATEWAY_JOURNAL_DIR",
        "directory of the journals, one owner",
    );
    let segment_bytes = v.number(
        "TOLLGATE_GATEWAY_JOURNAL_SEGMENT_BYTES",
        8 << 20,
        64 << 10..=1 << 30,
        "size of a journal segment, a multiple of 4096 bytes",
    );
    let bytes_max = v.number(
        "TOLLGATE_GATEWAY_JOURNAL_BYTES_MAX",
        4 << 30,
        1 << 20..=1 << 50,
        "bytes of all journals above which metered calls answer 503",
    );
    (dir.into(), segment_bytes, bytes_max)
}

fn read_door(v: &mut Variables) -> Rules {
    Rules {
        tls: v.certificate(
            (
                "TOLLGATE_GATEWAY_TLS_CERTIFICATE",
                "chain of certificates (PEM) with which the listener speaks TLS; without one, it \
                 does not; as …_FILE, it is replaced in a running gateway",
            ),
            (
                "TOLLGATE_GATEWAY_TLS_KEY",
                "private key (PEM) of the first of them; as …_FILE, it is replaced in a running \
                 gateway",
            ),
        ),
        connections_max: v.number(
            "TOLLGATE_GATEWAY_CONNECTIONS_MAX",
            65_536,
            1..=4_000_000,
            "connections of clients; further ones are closed at once",
        ),
        connections_per_address_max: v.number(
            "TOLLGATE_GATEWAY_CONNECTIONS_PER_ADDRESS_MAX",
            16_384,
            1..=4_000_000,
            "connections of clients from one address (IPv6: /64); not counted behind trusted hops",
        ),
        patience: read_patience(v),
    }
}

fn read_patience(v: &mut Variables) -> Patience {
    Patience {
        head: v.seconds(
            "TOLLGATE_GATEWAY_HEAD_SECONDS",
            15,
            1..=3600,
            "the head of a request must be complete so long after its first byte, and a new \
             connection's first byte be there",
        ),
        idle: v.seconds(
            "TOLLGATE_GATEWAY_IDLE_SECONDS",
            75,
            1..=86_400,
            "a connection without a call is closed after so long",
        ),
        stall: v.seconds(
            "TOLLGATE_GATEWAY_STALL_SECONDS",
            30,
            1..=3600,
            "a client that sends its body or reads its answer is measured over so long",
        ),
        bytes_per_second_min: v.number(
            "TOLLGATE_GATEWAY_CLIENT_BYTES_PER_SECOND_MIN",
            256,
            1..=1_000_000,
            "one that is slower than this on the average is cut off",
        ),
        age: v.seconds(
            "TOLLGATE_GATEWAY_CONNECTION_SECONDS_MAX",
            3600,
            0..=604_800,
            "a connection ends after so long, with its last call, so that clients spread over \
             the gateways again; 0: never",
        ),
    }
}

fn read_unknown(v: &mut Variables) -> (u32, u32) {
    let keys_per_minute = v.number(
        "TOLLGATE_GATEWAY_UNKNOWN_KEYS_PER_MINUTE_MAX",
        20,
        1..=1_000_000,
        "unknown keys that one address (IPv6: /64) may have looked up in a minute; then its keys \
         that are not in memory answer 429",
    );
    let lookups_per_second = v.number(
        "TOLLGATE_GATEWAY_UNKNOWN_LOOKUPS_PER_SECOND_MAX",
        200,
        1..=1_000_000,
        "look-ups of unknown keys for all addresses; above, keys that neither memory nor Redis has \
         answer 503",
    );
    (keys_per_minute, lookups_per_second)
}

impl Upstreams {
    fn read(v: &mut Variables) -> Self {
        let networks = v.parsed(
            "TOLLGATE_GATEWAY_UPSTREAM_NETWORKS",
            "",
            "networks to which calls may be sent beside the public internet, such as \
             10.1.0.0/16, with commas between them",
            Networks::parse,
        );
        Self {
            networks: networks.unwrap_or_default(),
            waiting_max: v.number(
                "TOLLGATE_GATEWAY_UPSTREAM_WAITING_MAX",
                1024,
                1..=1_000_000,
                "calls that may wait for a connection to one upstream that has as many as it \
                 may; more answer 503",
            ),
            wait: v.millis(
                "TOLLGATE_GATEWAY_UPSTREAM_WAIT_MILLIS",
                1000,
                1..=60_000,
                "how long a call waits for a connection to an upstream; then it answers 503",
            ),
        }
    }
}

fn read_peppers(v: &mut Variables) -> Succession {
    v.succession(
        (
            "API_KEY_PEPPER",
            "hashed with every key, 32 bytes or more; `tollgate pepper generate` makes one",
        ),
        (
            "API_KEY_PEPPER_PREVIOUS",
            "the pepper before, while keys wait for their first use; with both as …_FILE, `tollgate \
             pepper rotate` replaces them in running services",
        ),
        |text| Pepper::new(text).map(drop).map_err(|error| error.to_string()),
    )
}
