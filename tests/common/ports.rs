//! Ports for servers and proxies.

use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that systems hand out for port 0 and for outgoing connections. While a server is down its port must stay
/// free: from that range another connection could take it, even the very client that tries to reach the server, which then
/// is connected to itself.
const FIRST: u16 = 10_000;
const COUNT: u32 = 22_000;

/// A loopback port that nobody listens on now. Nothing holds it: whoever binds it must be ready to find it taken.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    // Test processes run side by side, so each begins somewhere else.
    let next = NEXT.get_or_init(|| AtomicU32::new(random() % COUNT));
    (0..COUNT)
        .map(|_| FIRST + (next.fetch_add(1, Ordering::Relaxed) % COUNT) as u16)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port on the loopback interface")
}

fn random() -> u32 {
    std::hash::RandomState::new().hash_one(std::process::id()) as u32
}
