//! What is compared with what, and on what.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An enum whose variants have names, on the command line as well as in JSON.
macro_rules! named {
    ($(#[$about:meta])* $type:ident { $($(#[$each:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub(crate) enum $type {
            $($(#[$each])* #[serde(rename = $name)] $variant,)*
        }

        impl $type {
            pub(crate) const ALL: &[Self] = &[$($type::$variant),*];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $($type::$variant => $name,)*
                })
            }
        }
    };
}

named! {
    /// What is compared.
    Subject {
        /// Calls, by one caller and by many at once.
        Calls = "calls",
        /// The same work once, ten times and a hundred times.
        Linear = "linear",
        /// The latency from put to event.
        Watch = "watch",
        /// The latency from put to when a multitude of subscribers have the event.
        Fanout = "fanout",
        /// What subscriptions cost that have nothing to tell.
        Idle = "idle",
        /// How often a lock is got and given back that nobody else wants.
        Lock = "lock",
        /// The latency from the release of a lock to the next holder.
        Handoff = "handoff",
        /// How long no put succeeds when the leader of three servers is killed.
        Failover = "failover",
    }
}

named! {
    /// Who is compared.
    Peer {
        /// Ours, in an actix system: the store's actors run on the caller's thread.
        Kvactor = "kvactor",
        /// Ours, in tokio's runtime of many threads: the store's actors have a thread of their own.
        KvactorTokio = "kvactor-tokio",
        /// What ours stands on, as one would use it directly: a client of the server's, or a storage engine.
        Raw = "raw",
        /// Docker's libkv, in a program of its own.
        Libkv = "libkv",
    }
}

named! {
    /// What is compared on.
    Backend {
        Consul = "consul",
        Etcd = "etcd",
        ZooKeeper = "zookeeper",
        Local = "local",
        Memory = "memory",
    }
}

named! {
    /// A call of which many are made.
    Call {
        Get = "get",
        StaleGet = "stale_get",
        Put = "put",
        AtomicPut = "atomic_put",
        Delete = "delete",
        Txn10 = "txn_10",
        List100 = "list_100",
        /// Each caller lists a directory of its own.
        List100Apart = "list_100_apart",
        List1000 = "list_1000",
        List10000 = "list_10000",
        DeleteTree100 = "delete_tree_100",
    }
}

impl Call {
    /// How many keys a directory has that is listed or deleted.
    pub(crate) fn keys(self) -> usize {
        match self {
            Call::List100 | Call::List100Apart | Call::DeleteTree100 => 100,
            Call::List1000 => 1_000,
            Call::List10000 => 10_000,
            Call::Txn10 => 10,
            _ => 1,
        }
    }

    /// Whether it lists a directory that stays.
    pub(crate) fn is_list(self) -> bool {
        matches!(self, Call::List100 | Call::List100Apart | Call::List1000 | Call::List10000)
    }

    /// By how many callers at once it is made where nothing else is asked for. What is large isn't asked for by many: 256
    /// listings of 10,000 keys are half a gigabyte on their way, and on ZooKeeper two and a half million requests.
    pub(crate) fn callers(self) -> &'static [usize] {
        match self {
            Call::List10000 => &[1],
            Call::List1000 => &[1, 16],
            Call::DeleteTree100 => &[1, 16, 64],
            _ => &[1, 16, 64, 256],
        }
    }
}

named! {
    /// Work of which there can be more.
    Work {
        /// One listing of a directory.
        List = "list",
        /// Puts, by 64 callers.
        Put = "put",
    }
}

/// What one turn measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "subject", rename_all = "snake_case")]
pub(crate) enum Task {
    Calls {
        call: Call,
        callers: usize,
    },
    Linear {
        work: Work,
        /// How often a hundred keys.
        times: usize,
    },
    Watch,
    Fanout,
    Idle,
    Lock,
    Handoff,
    Failover,
}

impl Task {
    pub(crate) fn subject(self) -> Subject {
        match self {
            Task::Calls { .. } => Subject::Calls,
            Task::Linear { .. } => Subject::Linear,
            Task::Watch => Subject::Watch,
            Task::Fanout => Subject::Fanout,
            Task::Idle => Subject::Idle,
            Task::Lock => Subject::Lock,
            Task::Handoff => Subject::Handoff,
            Task::Failover => Subject::Failover,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Calls { call, callers } => write!(f, "{call} by {callers}"),
            Task::Linear { work, times } => write!(f, "{work} x{times}"),
            other => write!(f, "{}", other.subject()),
        }
    }
}

/// What is compared with what, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    #[serde(flatten)]
    pub(crate) task: Task,
    pub(crate) backend: Backend,
    pub(crate) peer: Peer,
}

impl Case {
    /// Whether there is anything to measure.
    pub(crate) fn exists(self) -> bool {
        match self.peer {
            Peer::Kvactor | Peer::KvactorTokio => self.task != Task::Failover || self.backend.kind().is_some(),
            Peer::Raw => self.has_raw(),
            Peer::Libkv => self.backend.kind().is_some() && self.has_libkv(),
        }
    }

    /// The storage engine beneath `local` has neither watches nor locks, and nothing is beneath `memory`.
    fn has_raw(self) -> bool {
        match self.task {
            Task::Calls { .. } | Task::Linear { .. } => self.backend != Backend::Memory,
            Task::Watch | Task::Lock | Task::Handoff | Task::Failover => self.backend.kind().is_some(),
            Task::Fanout | Task::Idle => false,
        }
    }

    fn has_libkv(self) -> bool {
        match self.task {
            Task::Calls { call, callers } => crate::libkv::operation(self.backend, call, callers).is_some(),
            Task::Watch | Task::Lock | Task::Handoff => true,
            Task::Linear { .. } | Task::Fanout | Task::Idle | Task::Failover => false,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.backend, self.task, self.peer)
    }
}
