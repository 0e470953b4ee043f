//! The command line.

use crate::client::Result;
use crate::libkv;
use crate::site::Backend;
use crate::watch::Plan;
use crate::{Peer, Subject};
use lexopt::prelude::{Long, Short, ValueExt};
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

const HELP: &str = "\
kvactor, the raw Rust clients and libkv, in turn, on servers that this program starts.

cargo bench --all-features --bench compare -- [OPTIONS]

  --subject NAME    watch (latency from put to event), lock (how often a lock is got and given back), handoff (latency from
                    release to the next holder) or failover (how long no put succeeds when the leader of three servers is
                    killed); may be given several times  [all]
  --backend NAME    consul, etcd, zookeeper, local or memory; may be given several times  [all]
  --peer NAME       kvactor (in an actix system), kvactor-tokio, raw or libkv; may be given several times  [all]
  --rounds N        how often each peer has its turn  [5]
  --samples N       watch: how many puts a turn has  [200]
  --gap DURATION    watch: the pause between two puts  [20ms]
  --value-size N    watch: in bytes  [100]
  --lock-time TIME  lock: how long a turn lasts  [3s]
  --handoffs N      handoff: how many a turn has  [30]
  --failovers N     failover: how many a turn has  [3]
  --json FILE       write each turn's figures to this file, a line of JSON each

KVACTOR_PEER_LIBKV names the program that drives libkv; without it libkv is left out.
";

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) subjects: Vec<Subject>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) rounds: u32,
    pub(crate) samples: u64,
    pub(crate) gap: Duration,
    pub(crate) value_size: usize,
    pub(crate) lock_time: Duration,
    pub(crate) handoffs: u64,
    pub(crate) failovers: u64,
    pub(crate) json: Option<PathBuf>,
    /// The program that drives libkv.
    pub(crate) libkv: Option<PathBuf>,
}

impl Options {
    /// None where nothing is to be measured.
    pub(crate) fn from_command_line() -> Result<Option<Self>> {
        let mut options = Options::default();
        let (mut arguments, mut by_bench) = (lexopt::Parser::from_env(), false);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("subject") => options.subjects.push(named(&Subject::ALL, &arguments.value()?.string()?)?),
                Long("backend") => options.backends.push(named(&Backend::ALL, &arguments.value()?.string()?)?),
                Long("peer") => options.peers.push(named(&Peer::ALL, &arguments.value()?.string()?)?),
                Long("rounds") => options.rounds = arguments.value()?.parse()?,
                Long("samples") => options.samples = arguments.value()?.parse()?,
                Long("gap") => options.gap = arguments.value()?.parse_with(humantime::parse_duration)?,
                Long("value-size") => options.value_size = arguments.value()?.parse()?,
                Long("lock-time") => options.lock_time = arguments.value()?.parse_with(humantime::parse_duration)?,
                Long("handoffs") => options.handoffs = arguments.value()?.parse()?,
                Long("failovers") => options.failovers = arguments.value()?.parse()?,
                Long("json") => options.json = Some(arguments.value()?.into()),
                // What `cargo bench` adds.
                Long("bench") => by_bench = true,
                Short('h') | Long("help") => {
                    print!("{HELP}");
                    return Ok(None);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        if !by_bench {
            println!("Nothing is measured but by `cargo bench`.");
        }
        Ok(by_bench.then(|| options.or_all()))
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan { samples: self.samples, gap: self.gap, value_size: self.value_size }
    }

    /// Without a choice everything is compared.
    fn or_all(mut self) -> Self {
        if self.subjects.is_empty() {
            self.subjects = Subject::ALL.into();
        }
        if self.backends.is_empty() {
            self.backends = Backend::ALL.into();
        }
        if self.peers.is_empty() {
            self.peers = Peer::ALL.into();
        }
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            subjects: Vec::new(),
            backends: Vec::new(),
            peers: Vec::new(),
            rounds: 5,
            samples: 200,
            gap: Duration::from_millis(20),
            value_size: 100,
            lock_time: Duration::from_secs(3),
            handoffs: 30,
            failovers: 3,
            json: None,
            libkv: std::env::var_os(libkv::VARIABLE).filter(|path| !path.is_empty()).map(Into::into),
        }
    }
}

fn named<T: Copy + Display>(all: &[T], name: &str) -> Result<T> {
    let names = || all.iter().map(T::to_string).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|one| one.to_string() == name);
    found.copied().ok_or_else(|| format!("`{name}` is none of {}", names()).into())
}
