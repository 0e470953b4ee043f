//! Counts requests in the bytes that a client sends.

use super::server::Kind;
use std::collections::BTreeMap;

/// The opcode under which [`Counts::frames`] has the first frame of a connection, which carries none.
pub const CONNECT: i32 = -10;
/// ZooKeeper's opcode of a session's ping.
pub const PING: i32 = 11;

/// What went through a proxy.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Connections that were accepted, so far.
    pub connections: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Bytes for the server.
    pub to_server: u64,
    /// Bytes for the client.
    pub to_client: u64,
    /// Method and target of each HTTP/1 request, such as `GET /v1/kv/a?raw`, in order.
    pub requests: Vec<String>,
    /// ZooKeeper requests by opcode.
    pub frames: BTreeMap<i32, u64>,
}

impl Counts {
    /// How many HTTP requests begin like this: `GET /v1/kv/`.
    pub fn requests_like(&self, start: &str) -> usize {
        self.requests.iter().filter(|request| request.starts_with(start)).count()
    }

    /// How many ZooKeeper requests with this opcode there were.
    pub fn frames_of(&self, opcode: i32) -> u64 {
        self.frames.get(&opcode).copied().unwrap_or(0)
    }

    /// How many calls there were, on Consul and ZooKeeper: connecting and pings aren't.
    pub fn calls(&self) -> u64 {
        let overhead = self.frames_of(CONNECT) + self.frames_of(PING);
        self.requests.len() as u64 + self.frames.values().sum::<u64>() - overhead
    }
}

/// Reads along on one connection; what it feeds on comes in pieces of any size.
pub enum Meter {
    Http(HttpMeter),
    ZooKeeper(FrameMeter),
    /// HTTP/2 keeps its secrets: the server itself counts, see [`etcd_grpc_count`](super::etcd_grpc_count).
    Bytes,
}

impl Meter {
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Etcd => Meter::Bytes,
            Kind::Consul => Meter::Http(HttpMeter::default()),
            Kind::ZooKeeper => Meter::ZooKeeper(FrameMeter::default()),
        }
    }

    pub fn feed(&mut self, bytes: &[u8], counts: &mut Counts) {
        match self {
            Meter::Http(meter) => meter.feed(bytes, &mut counts.requests),
            Meter::ZooKeeper(meter) => meter.feed(bytes, &mut counts.frames),
            Meter::Bytes => {}
        }
    }
}

/// Counts HTTP/1 requests. Bodies are skipped by their Content-Length, so nothing in them passes for a request.
#[derive(Default)]
pub struct HttpMeter {
    head: Vec<u8>,
    body_left: usize,
}

impl HttpMeter {
    fn feed(&mut self, mut bytes: &[u8], requests: &mut Vec<String>) {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.body_left > 0 {
                let skipped = self.body_left.min(bytes.len());
                self.body_left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            bytes = rest;
            self.head.push(*byte);
            if self.head.ends_with(b"\r\n\r\n") {
                self.finish_head(requests);
            }
        }
    }

    fn finish_head(&mut self, requests: &mut Vec<String>) {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        self.head.clear();
        self.body_left = content_length(&head);
        // A chunked body ends like a head, and lands here without looking like one.
        requests.extend(request_line(&head));
    }
}

fn request_line(head: &str) -> Option<String> {
    let request = head.lines().next()?.strip_suffix(" HTTP/1.1")?;
    let (method, target) = request.split_once(' ')?;
    let known = method.bytes().all(|byte| byte.is_ascii_uppercase()) && target.starts_with('/');
    known.then(|| request.to_owned())
}

fn content_length(head: &str) -> usize {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// Counts ZooKeeper's frames: a length, and that many bytes, which begin with the request's number and its opcode.
#[derive(Default)]
pub struct FrameMeter {
    header: Vec<u8>,
    body_left: usize,
    connected: bool,
    /// Whether this is something else, such as a four-letter word.
    foreign: bool,
}

impl FrameMeter {
    /// Length, number and opcode.
    const HEADER: usize = 12;
    /// Larger frames no server takes.
    const MAX_LEN: usize = 1 << 26;

    fn feed(&mut self, mut bytes: &[u8], frames: &mut BTreeMap<i32, u64>) {
        while !bytes.is_empty() && !self.foreign {
            let skipped = self.body_left.min(bytes.len());
            self.body_left -= skipped;
            bytes = &bytes[skipped..];
            let wanted = if self.body_left > 0 { 0 } else { Self::HEADER - self.header.len() };
            let taken = wanted.min(bytes.len());
            self.header.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.finish_header(frames);
        }
    }

    fn finish_header(&mut self, frames: &mut BTreeMap<i32, u64>) {
        let Ok(header) = <[u8; Self::HEADER]>::try_from(self.header.as_slice()) else { return };
        self.header.clear();
        let [l0, l1, l2, l3, _, _, _, _, o0, o1, o2, o3] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        self.foreign = !(8..Self::MAX_LEN).contains(&length);
        if self.foreign {
            return;
        }
        self.body_left = length - 8;
        let first = !std::mem::replace(&mut self.connected, true);
        let opcode = if first { CONNECT } else { i32::from_be_bytes([o0, o1, o2, o3]) };
        *frames.entry(opcode).or_default() += 1;
    }
}
