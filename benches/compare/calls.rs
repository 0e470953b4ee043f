//! Calls, by one caller and by many at once, all of them on one client: an application's tasks share it.
//!
//! A call that takes something away, `delete` or `delete_tree`, is measured in bursts: between two of them the clock is
//! stopped and things are put back.

use crate::case::Call;
use crate::client::Result;
use crate::figures::Figures;
use crate::resources::processor_time;
use bytes::Bytes;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Linearizable,
    Stale,
}

/// A connection of which clones share everything, with the calls that are compared. Whatever the peer, they are the same
/// requests, and their answers are taken apart as an application would have them: text, bytes, versions.
pub(crate) trait Calls: Clone + 'static {
    /// What `atomic_put` compares.
    type Version;

    /// How many bytes the value has.
    async fn get(&self, key: &str, freshness: Freshness) -> Result<usize>;

    async fn put(&self, key: &str, value: Bytes) -> Result<Self::Version>;

    async fn atomic_put(&self, key: &str, value: Bytes, expected: &Self::Version) -> Result<Self::Version>;

    async fn delete(&self, key: &str) -> Result<()>;

    /// How many keys are in a directory; they and their values are all read. 0 where there is none.
    async fn list(&self, dir: &str) -> Result<usize>;

    /// How many keys were in the directory.
    async fn delete_tree(&self, dir: &str) -> Result<usize>;

    /// Writes keys that exist, at one moment.
    async fn txn(&self, keys: &[String], value: Bytes) -> Result<()>;

    /// Makes keys in one directory, in whatever way is quick. Nothing of this is measured.
    async fn fill(&self, dir: &str, names: Vec<String>, value: Bytes) -> Result<()>;

    async fn close(self) -> Result<()>;
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) call: Call,
    pub(crate) callers: usize,
    pub(crate) time: Duration,
    pub(crate) value_size: usize,
}

/// One caller, with what it needs to make its calls.
pub(crate) struct Caller<C: Calls> {
    client: C,
    call: Call,
    /// A key of its own, or the directory.
    target: String,
    version: Option<C::Version>,
    /// Keys that a transaction writes, or what is there to be deleted.
    keys: Vec<String>,
    /// Values are written in turn: a server may spare itself the writing of what is there already.
    values: [Bytes; 2],
    latencies: Arc<Mutex<Histogram<u64>>>,
    /// How many calls are left to make.
    left: usize,
    until: Instant,
}

impl<C: Calls> Caller<C> {
    /// Makes calls until none is left, or the time is over.
    pub(crate) async fn run(mut self) -> Result<Self> {
        let mut from = Instant::now();
        while self.left > 0 && from < self.until {
            self.left -= 1;
            self.once().await?;
            let at = Instant::now();
            let nanoseconds = u64::try_from((at - from).as_nanos())?;
            self.latencies.lock().unwrap_or_else(PoisonError::into_inner).record(nanoseconds)?;
            from = at;
        }
        Ok(self)
    }

    async fn once(&mut self) -> Result<()> {
        self.values.swap(0, 1);
        let value = self.values[0].clone();
        let Caller { client, call, target, version, keys, .. } = self;
        let expected = call.keys();
        match call {
            Call::Get => agree(client.get(target, Freshness::Linearizable).await?, value.len()),
            Call::StaleGet => agree(client.get(target, Freshness::Stale).await?, value.len()),
            Call::Put => client.put(target, value).await.map(drop),
            Call::AtomicPut => {
                let expected = version.take().ok_or("no version to expect")?;
                *version = Some(client.atomic_put(target, value, &expected).await?);
                Ok(())
            }
            Call::Delete => client.delete(&keys.pop().ok_or("nothing to delete")?).await,
            Call::Txn10 => client.txn(keys, value).await,
            Call::List100 | Call::List100Apart | Call::List1000 | Call::List10000 => {
                agree(client.list(target).await?, expected)
            }
            Call::DeleteTree100 => {
                let dir = keys.pop().ok_or("nothing to delete")?;
                agree(client.delete_tree(&dir).await?, expected)
            }
        }
    }
}

/// A call that found something else than there is was no good one, however fast.
fn agree(found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("found {found} where {expected} were expected").into()) }
}

/// What was measured so far.
#[derive(Default)]
pub(crate) struct Spent {
    pub(crate) time: Duration,
    pub(crate) processor: Duration,
}

/// All callers, between two times that they run.
pub(crate) struct Crowd<C: Calls> {
    client: C,
    load: Load,
    callers: Vec<Caller<C>>,
    pub(crate) latencies: Arc<Mutex<Histogram<u64>>>,
    pub(crate) spent: Spent,
}

/// What is measured of calls made by tasks that `spawn` starts.
pub(crate) async fn measure<C: Calls, F: Future<Output = Result<Caller<C>>>>(
    client: C,
    load: Load,
    run: impl Fn(Caller<C>) -> F,
    spawn: impl Fn(F) -> JoinHandle<Result<Caller<C>>>,
) -> Result<Figures> {
    let mut crowd = Crowd::gather(client, load).await?;
    // Connections are made, and caches are filled. Where a call takes long, one is enough.
    crowd.replenish().await?;
    crowd.go((load.time / 4).min(Duration::from_millis(200)), &run, &spawn).await?;
    crowd.forget();
    while crowd.spent.time < load.time {
        crowd.replenish().await?;
        crowd.go(load.time - crowd.spent.time, &run, &spawn).await?;
    }
    let figures = crowd.figures();
    crowd.client.close().await?;
    Ok(figures)
}

impl<C: Calls> Crowd<C> {
    /// Makes the callers, and what they will need at the server.
    pub(crate) async fn gather(client: C, load: Load) -> Result<Self> {
        let latencies = Arc::new(Mutex::new(Histogram::<u64>::new(3)?));
        let value = |filler: u8| Bytes::from(vec![filler; load.value_size]);
        let mut callers = Vec::with_capacity(load.callers);
        for number in 0..load.callers {
            let (client, latencies) = (client.clone(), latencies.clone());
            let (target, values) = (format!("one/k{number}"), [value(b'x'), value(b'y')]);
            let (version, keys) = (None, Vec::new());
            let (left, until) = (usize::MAX, Instant::now());
            let call = load.call;
            callers.push(Caller { client, call, target, version, keys, values, latencies, left, until });
        }
        let mut crowd = Crowd { client, load, callers, latencies, spent: Spent::default() };
        crowd.prepare().await?;
        Ok(crowd)
    }

    async fn prepare(&mut self) -> Result<()> {
        match self.load.call {
            Call::Get | Call::StaleGet | Call::Put | Call::AtomicPut => self.put_targets().await,
            Call::Txn10 => self.put_ten_each().await,
            Call::List100 | Call::List1000 | Call::List10000 => self.make_directory().await,
            Call::List100Apart => self.make_directories().await,
            // What is to go is made before each burst.
            Call::Delete => self.make_stay("gone").await,
            Call::DeleteTree100 => self.make_stay("trees").await,
        }
    }

    /// Has something stay in a directory that each burst would leave empty: ours would remove it then, which raw clients don't.
    async fn make_stay(&self, dir: &str) -> Result<()> {
        self.client.fill(dir, vec!["stays".into()], self.value()).await
    }

    async fn put_targets(&mut self) -> Result<()> {
        for caller in &mut self.callers {
            caller.version = Some(self.client.put(&caller.target, caller.values[0].clone()).await?);
        }
        Ok(())
    }

    async fn put_ten_each(&mut self) -> Result<()> {
        for (number, caller) in self.callers.iter_mut().enumerate() {
            let names: Vec<_> = (0..Call::Txn10.keys()).map(|index| format!("c{number}-{index}")).collect();
            caller.keys = names.iter().map(|name| format!("ten/{name}")).collect();
            self.client.fill("ten", names, caller.values[0].clone()).await?;
        }
        Ok(())
    }

    /// All list the same directory, which may be there from another turn.
    async fn make_directory(&mut self) -> Result<()> {
        let keys = self.load.call.keys();
        let dir = directory_of(keys);
        if self.client.list(&dir).await? != keys {
            self.client.fill(&dir, names(keys), self.value()).await?;
        }
        self.callers.iter_mut().for_each(|caller| caller.target.clone_from(&dir));
        Ok(())
    }

    /// Each has one of its own, which may be there from another turn.
    async fn make_directories(&mut self) -> Result<()> {
        let (keys, value) = (self.load.call.keys(), self.value());
        for (number, caller) in self.callers.iter_mut().enumerate() {
            caller.target = format!("apart/{number}");
            if self.client.list(&caller.target).await? != keys {
                self.client.fill(&caller.target, names(keys), value.clone()).await?;
            }
        }
        Ok(())
    }

    fn value(&self) -> Bytes {
        vec![b'x'; self.load.value_size].into()
    }

    /// Puts back what was taken away, as much as is to be measured at a time: a burst is long against its end, at which some
    /// callers have nothing to do any more.
    pub(crate) async fn replenish(&mut self) -> Result<()> {
        match self.load.call {
            Call::Delete => self.make_keys((512 / self.load.callers).clamp(8, 64)).await,
            Call::DeleteTree100 => self.make_trees((64 / self.load.callers).clamp(2, 16)).await,
            _ => Ok(()),
        }
    }

    fn is_burst(&self) -> bool {
        matches!(self.load.call, Call::Delete | Call::DeleteTree100)
    }

    async fn make_keys(&mut self, each: usize) -> Result<()> {
        let value = self.value();
        let mut names = Vec::with_capacity(each * self.callers.len());
        for (number, caller) in self.callers.iter_mut().enumerate() {
            let own: Vec<_> = (0..each).map(|index| format!("c{number}-{index}")).collect();
            caller.left = each;
            caller.keys = own.iter().map(|name| format!("gone/{name}")).collect();
            names.extend(own);
        }
        self.client.fill("gone", names, value).await
    }

    async fn make_trees(&mut self, each: usize) -> Result<()> {
        let (value, keys) = (self.value(), Call::DeleteTree100.keys());
        for (number, caller) in self.callers.iter_mut().enumerate() {
            caller.left = each;
            caller.keys = (0..each).map(|index| format!("trees/c{number}-{index}")).collect();
            let trees = caller.keys.iter().map(|dir| self.client.fill(dir, names(keys), value.clone()));
            try_join_all(trees).await?;
        }
        Ok(())
    }

    /// Lets all callers run, for so long where they don't have enough before.
    pub(crate) async fn go<F: Future<Output = Result<Caller<C>>>>(
        &mut self,
        time: Duration,
        run: impl Fn(Caller<C>) -> F,
        spawn: impl Fn(F) -> JoinHandle<Result<Caller<C>>>,
    ) -> Result<()> {
        let (begun, processor) = (Instant::now(), processor_time());
        let until = begun + if self.is_burst() { Duration::from_secs(60) } else { time };
        let callers = std::mem::take(&mut self.callers).into_iter();
        let running: Vec<_> = callers.map(|caller| spawn(run(Caller { until, ..caller }))).collect();
        for caller in running {
            self.callers.push(caller.await??);
        }
        self.spent.time += begun.elapsed();
        self.spent.processor += processor_time() - processor;
        Ok(())
    }

    /// Each caller makes so many calls, however long that takes.
    pub(crate) fn allot(&mut self, calls: usize) {
        let callers = self.callers.len();
        for (number, caller) in self.callers.iter_mut().enumerate() {
            caller.left = calls / callers + usize::from(number < calls % callers);
        }
    }

    /// What was before doesn't count.
    pub(crate) fn forget(&mut self) {
        self.spent = Spent::default();
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }

    fn figures(&self) -> Figures {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        Figures::new(&latencies, 0, self.spent.time).with_processor_time(self.spent.processor)
    }

    pub(crate) fn into_client(self) -> C {
        self.client
    }
}

/// A directory with so many keys.
pub(crate) fn directory_of(keys: usize) -> String {
    format!("of-{keys}")
}

pub(crate) fn names(keys: usize) -> Vec<String> {
    (0..keys).map(|number| format!("k{number:05}")).collect()
}
