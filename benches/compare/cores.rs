//! Who has which processors.
//!
//! Where clients and servers share them, a call waits for both, and where the kernel puts their threads decides over more than
//! what a client costs. Apart from each other it is as if servers had a machine of their own.

use crate::client::Result;

/// The processors of this program, and of what it starts.
#[derive(Clone, Debug)]
pub(crate) enum Cores {
    /// All of them for everybody.
    Shared(usize),
    #[cfg(target_os = "linux")]
    Apart(Box<apart::Split>),
}

impl Cores {
    pub(crate) fn shared() -> Result<Self> {
        Ok(Cores::Shared(std::thread::available_parallelism()?.get()))
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn apart() -> Result<Self> {
        Err("only Linux is known to keep clients and servers apart".into())
    }

    /// Does what starts a server: it has the servers' processors.
    pub(crate) fn for_servers<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        match self {
            Cores::Shared(_) => start(),
            #[cfg(target_os = "linux")]
            Cores::Apart(split) => split.on(split.servers, start),
        }
    }

    /// Does what starts a client: it has the clients' processors.
    pub(crate) fn for_clients<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        match self {
            Cores::Shared(_) => start(),
            #[cfg(target_os = "linux")]
            Cores::Apart(split) => split.on(split.clients, start),
        }
    }

    /// How many clients have, and how many servers have for themselves.
    pub(crate) fn counts(&self) -> (usize, Option<usize>) {
        match self {
            Cores::Shared(all) => (*all, None),
            #[cfg(target_os = "linux")]
            Cores::Apart(split) => (split.clients.count() as usize, Some(split.servers.count() as usize)),
        }
    }
}

#[cfg(target_os = "linux")]
mod apart {
    use super::{Cores, Result};
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    #[derive(Clone, Debug)]
    pub(crate) struct Split {
        all: CpuSet,
        pub(super) clients: CpuSet,
        pub(super) servers: CpuSet,
    }

    impl Cores {
        /// Half of them for either side.
        pub(crate) fn apart() -> Result<Self> {
            let all = sched_getaffinity(None)?;
            let mut ours = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
            let (mut clients, mut servers) = (CpuSet::new(), CpuSet::new());
            ours.by_ref().take(all.count() as usize / 2).for_each(|core| clients.set(core));
            ours.for_each(|core| servers.set(core));
            match clients.count() {
                0 => Err("clients and servers can't be apart on one core".into()),
                _ => Ok(Cores::Apart(Box::new(Split { all, clients, servers }))),
            }
        }
    }

    impl Split {
        /// Processes have what the thread had that started them.
        pub(super) fn on<T>(&self, cores: CpuSet, start: impl FnOnce() -> Result<T>) -> Result<T> {
            sched_setaffinity(None, &cores)?;
            let started = start();
            sched_setaffinity(None, &self.all)?;
            started
        }
    }
}
