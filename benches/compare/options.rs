//! The command line.

use crate::case::{Backend, Call, Peer, Subject, Task, Work};
use crate::client::Result;
use crate::cores::Cores;
use crate::libkv;
use crate::watch::Plan;
use lexopt::prelude::{Long, Short, ValueExt};
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

const HELP: &str = "\
kvactor, what it stands on, and libkv, in turn, on servers that this program starts.

cargo bench --all-features --bench compare -- [OPTIONS]

  --subject NAME      may be given several times  [all]
                        calls    calls by one caller and by many: throughput, latency, processor time, memory
                        linear   list and put once, ten times and a hundred times; memory of large listings
                        watch    latency from put to event
                        fanout   latency from put to the last of many subscribers
                        idle     memory of subscriptions that have nothing to tell
                        lock     how often a lock is got and given back
                        handoff  latency from release to the next holder
                        failover how long no put succeeds when the leader of three servers is killed
  --backend NAME      consul, etcd, zookeeper, local or memory; may be given several times  [all]
  --peer NAME         kvactor (in an actix system), kvactor-tokio, raw or libkv; may be given several times  [all]
  --rounds N          how often each peer has its turn  [3 for calls, linear, fanout and idle; 5]
  --call NAME         calls: get, stale_get, put, atomic_put, delete, txn_10, list_100, list_100_apart, list_1000,
                      list_10000 or delete_tree_100; may be given several times  [all]
  --callers N         calls: how many there are at once; may be given several times
                      [1, 16, 64 and 256; 1 and 16 for list_1000, 1 for list_10000, up to 64 for delete_tree_100]
  --call-time TIME    calls, linear: how long a turn lasts  [300ms]
  --value-size N      calls, linear, watch: in bytes  [100]
  --samples N         watch: how many puts a turn has  [200]
  --gap TIME          watch: the pause between two puts  [20ms]
  --subscribers N     fanout: how many there are  [10000]
  --fan-outs N        fanout: how many puts a turn has  [20]
  --idle N            idle: how many subscriptions there are  [100000]
  --lock-time TIME    lock: how long a turn lasts  [3s]
  --handoffs N        handoff: how many a turn has  [30]
  --failovers N       failover: how many a turn has  [3]
  --apart             clients and servers have half of the processors each, as if on machines of their own; not for failover
  --json FILE         write each turn's figures to this file, a line of JSON each
  --svg FILE          draw the throughput of calls
  --from FILE         measure nothing, and make tables and chart from such lines of JSON; may be given several times

KVACTOR_PEER_LIBKV names the program that drives libkv; without it libkv is left out.
The tables go to standard output, in Markdown; progress and failures to standard error.
";

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) subjects: Vec<Subject>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) calls: Vec<Call>,
    /// Empty: as many as suit each call.
    pub(crate) callers: Vec<usize>,
    pub(crate) amounts: Amounts,
    rounds: Option<u32>,
    pub(crate) cores: Cores,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
    pub(crate) from: Vec<PathBuf>,
    /// The program that drives libkv.
    pub(crate) libkv: Option<PathBuf>,
}

/// How much a turn measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Amounts {
    pub(crate) call_time: Duration,
    pub(crate) value_size: usize,
    pub(crate) samples: u64,
    pub(crate) gap: Duration,
    pub(crate) subscribers: u64,
    pub(crate) fan_outs: u64,
    pub(crate) idle: u64,
    pub(crate) lock_time: Duration,
    pub(crate) handoffs: u64,
    /// Former runs didn't say.
    #[serde(default)]
    pub(crate) failovers: u64,
}

impl Amounts {
    pub(crate) fn watch_plan(&self) -> Plan {
        Plan { samples: self.samples, gap: self.gap, value_size: self.value_size }
    }
}

impl Options {
    /// None where nothing is to be measured.
    pub(crate) fn from_command_line() -> Result<Option<Self>> {
        let mut options = Options::new(Cores::shared()?);
        let (mut arguments, mut by_bench) = (lexopt::Parser::from_env(), false);
        while let Some(argument) = arguments.next()? {
            let Long(name) = argument else {
                if argument == Short('h') {
                    print!("{HELP}");
                    return Ok(None);
                }
                return Err(argument.unexpected().into());
            };
            match name.to_owned().as_str() {
                // What `cargo bench` adds.
                "bench" => by_bench = true,
                "help" => {
                    print!("{HELP}");
                    return Ok(None);
                }
                name => options.set(name, &mut arguments)?,
            }
        }
        if !by_bench {
            println!("Nothing is measured but by `cargo bench`.");
        }
        Ok(by_bench.then(|| options.or_all()))
    }

    fn set(&mut self, name: &str, arguments: &mut lexopt::Parser) -> Result<()> {
        let Options { amounts, .. } = self;
        let mut value = || arguments.value();
        match name {
            "subject" => self.subjects.push(named(Subject::ALL, &value()?.string()?)?),
            "backend" => self.backends.push(named(Backend::ALL, &value()?.string()?)?),
            "peer" => self.peers.push(named(Peer::ALL, &value()?.string()?)?),
            "call" => self.calls.push(named(Call::ALL, &value()?.string()?)?),
            "callers" => self.callers.push(value()?.parse_with(at_least_one)?),
            "rounds" => self.rounds = Some(value()?.parse()?),
            "call-time" => amounts.call_time = value()?.parse_with(humantime::parse_duration)?,
            "value-size" => amounts.value_size = value()?.parse()?,
            "samples" => amounts.samples = value()?.parse()?,
            "gap" => amounts.gap = value()?.parse_with(humantime::parse_duration)?,
            "subscribers" => amounts.subscribers = value()?.parse()?,
            "fan-outs" => amounts.fan_outs = value()?.parse()?,
            "idle" => amounts.idle = value()?.parse()?,
            "lock-time" => amounts.lock_time = value()?.parse_with(humantime::parse_duration)?,
            "handoffs" => amounts.handoffs = value()?.parse()?,
            "failovers" => amounts.failovers = value()?.parse()?,
            "apart" => self.cores = Cores::apart()?,
            "json" => self.json = Some(value()?.into()),
            "svg" => self.svg = Some(value()?.into()),
            "from" => self.from.push(value()?.into()),
            other => return Err(format!("there is no option --{other}; --help shows those there are").into()),
        }
        Ok(())
    }

    /// How often each peer has its turn.
    pub(crate) fn rounds(&self, subject: Subject) -> u32 {
        self.rounds.unwrap_or(match subject {
            Subject::Watch | Subject::Lock | Subject::Handoff | Subject::Failover => 5,
            Subject::Calls | Subject::Linear | Subject::Fanout | Subject::Idle => 3,
        })
    }

    /// What a round of a subject consists of.
    pub(crate) fn tasks(&self, subject: Subject) -> Vec<Task> {
        match subject {
            Subject::Calls => self.calls.iter().flat_map(|call| self.points(*call)).collect(),
            Subject::Linear => {
                let all = |work: &Work| [1, 10, 100].map(|times| Task::Linear { work: *work, times });
                Work::ALL.iter().flat_map(all).collect()
            }
            Subject::Watch => vec![Task::Watch],
            Subject::Fanout => vec![Task::Fanout],
            Subject::Idle => vec![Task::Idle],
            Subject::Lock => vec![Task::Lock],
            Subject::Handoff => vec![Task::Handoff],
            Subject::Failover => vec![Task::Failover],
        }
    }

    fn points(&self, call: Call) -> Vec<Task> {
        let callers = if self.callers.is_empty() { call.callers() } else { &self.callers };
        callers.iter().map(|callers| Task::Calls { call, callers: *callers }).collect()
    }

    /// Nothing is chosen.
    fn new(cores: Cores) -> Self {
        Options {
            subjects: Vec::new(),
            backends: Vec::new(),
            peers: Vec::new(),
            calls: Vec::new(),
            callers: Vec::new(),
            amounts: Amounts {
                call_time: Duration::from_millis(300),
                value_size: 100,
                samples: 200,
                gap: Duration::from_millis(20),
                subscribers: 10_000,
                fan_outs: 20,
                idle: 100_000,
                lock_time: Duration::from_secs(3),
                handoffs: 30,
                failovers: 3,
            },
            rounds: None,
            cores,
            json: None,
            svg: None,
            from: Vec::new(),
            libkv: std::env::var_os(libkv::VARIABLE).filter(|path| !path.is_empty()).map(Into::into),
        }
    }

    /// Without a choice everything is compared.
    fn or_all(mut self) -> Self {
        all_if_none(&mut self.subjects, Subject::ALL);
        all_if_none(&mut self.backends, Backend::ALL);
        all_if_none(&mut self.peers, Peer::ALL);
        all_if_none(&mut self.calls, Call::ALL);
        self
    }
}

fn all_if_none<T: Copy>(chosen: &mut Vec<T>, all: &[T]) {
    if chosen.is_empty() {
        chosen.extend_from_slice(all);
    }
}

fn at_least_one(number: &str) -> Result<usize> {
    match number.parse()? {
        0 => Err("nobody would call".into()),
        callers => Ok(callers),
    }
}

fn named<T: Copy + Display>(all: &[T], name: &str) -> Result<T> {
    let names = || all.iter().map(T::to_string).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|one| one.to_string() == name);
    found.copied().ok_or_else(|| format!("`{name}` is none of {}", names()).into())
}
