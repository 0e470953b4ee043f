//! For tests: a memory store whose connections and calls go wrong as a script says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::backend::{
    self, Backend, Bid, Connector, Grant, Holder, Lease, Locking, Place, Position, Progress, Standing, Target, Updates,
};
use crate::config::{Config, Options};
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::store::Store;
use crate::types::{
    Capabilities, Check, Consistency, Expected, KvPair, ListOptions, Operation, Page, TxnOutcome, Version,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::ready;
use futures_util::stream::{self, StreamExt};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// What goes wrong with a call.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It fails, without effect.
    Fail(Error),
    /// It takes effect, and its answer is lost.
    LoseAnswer,
    /// It takes effect, and its answer waits for [`Script::gate`].
    Late,
    /// It waits for ever.
    Hang,
    /// It waits for [`Script::gate`].
    Wait,
    /// It panics.
    Panic,
}

/// One step of locks: what goes wrong with it, and how often it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Step {
    faults: Mutex<VecDeque<Fault>>,
    called: AtomicUsize,
}

impl Step {
    pub(crate) fn then(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// What comes next time and ever after, as far as a test goes.
    pub(crate) fn always(&self, fault: impl Fn() -> Fault) {
        self.then((0..10_000).map(|_| fault()));
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn heal(&self) {
        self.faults.lock().unwrap().clear();
    }

    pub(crate) fn called(&self) -> usize {
        self.called.load(SeqCst)
    }
}

/// What goes wrong with the steps of locks.
#[derive(Debug, Default)]
pub(crate) struct LockScript {
    pub(crate) grant: Step,
    pub(crate) keep_alive: Step,
    pub(crate) revoke: Step,
    pub(crate) contend: Step,
    pub(crate) wait: Step,
    pub(crate) leave: Step,
}

/// What goes wrong, and what was seen. Where a queue is empty nothing goes wrong.
#[derive(Debug)]
pub(crate) struct Script {
    /// By which what its stores keep is told from others'. Its address may be that of one before, whose stores are still closing.
    number: usize,
    pub(crate) connects: Mutex<VecDeque<Fault>>,
    pub(crate) calls: Mutex<VecDeque<Fault>>,
    pub(crate) recovers: Mutex<VecDeque<Fault>>,
    /// What goes wrong with the beginning of a watch.
    pub(crate) watches: Mutex<VecDeque<Fault>>,
    /// One for each watch that is to break.
    pub(crate) breaks: Semaphore,
    /// How it breaks: `None` as a lost connection.
    pub(crate) broken: Mutex<VecDeque<Fault>>,
    pub(crate) gate: Semaphore,
    /// One for each time that the driver is to say that the link is down.
    pub(crate) disruptions: Semaphore,
    pub(crate) connected: Mutex<Vec<usize>>,
    pub(crate) called: AtomicUsize,
    recovered: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) most_running: AtomicUsize,
    pub(crate) closed: Semaphore,
    pub(crate) locks: LockScript,
    /// Whether asking for the session's name panics.
    pub(crate) nameless: AtomicBool,
    /// The sessions that are not dropped yet.
    alive: AtomicUsize,
}

impl Script {
    pub(crate) fn new() -> Arc<Self> {
        static SCRIPTS: AtomicUsize = AtomicUsize::new(0);
        Arc::new(Script {
            number: SCRIPTS.fetch_add(1, SeqCst),
            connects: Mutex::default(),
            calls: Mutex::default(),
            recovers: Mutex::default(),
            watches: Mutex::default(),
            breaks: Semaphore::new(0),
            broken: Mutex::default(),
            gate: Semaphore::new(0),
            disruptions: Semaphore::new(0),
            connected: Mutex::default(),
            called: AtomicUsize::new(0),
            recovered: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            closed: Semaphore::new(0),
            locks: LockScript::default(),
            nameless: AtomicBool::new(false),
            alive: AtomicUsize::new(0),
        })
    }

    pub(crate) fn connects(self: &Arc<Self>, faults: impl IntoIterator<Item = Fault>) -> Arc<Self> {
        self.connects.lock().unwrap().extend(faults);
        self.clone()
    }

    pub(crate) fn calls(&self, faults: impl IntoIterator<Item = Fault>) {
        self.calls.lock().unwrap().extend(faults);
    }

    pub(crate) fn recovers(&self, faults: impl IntoIterator<Item = Fault>) {
        self.recovers.lock().unwrap().extend(faults);
    }

    pub(crate) fn begin_watches(&self, faults: impl IntoIterator<Item = Fault>) {
        self.watches.lock().unwrap().extend(faults);
    }

    pub(crate) fn break_watches(&self, faults: impl IntoIterator<Item = Fault>) {
        self.broken.lock().unwrap().extend(faults);
    }

    /// How often the driver was asked whether its session can go on.
    pub(crate) fn recovered(&self) -> usize {
        self.recovered.load(SeqCst)
    }

    pub(crate) fn called(&self) -> usize {
        self.called.load(SeqCst)
    }

    /// Where others find what the script's stores keep, without its faults.
    pub(crate) fn url(self: &Arc<Self>) -> String {
        format!("memory://flaky-{}", self.number)
    }

    /// How many of the driver's sessions are in use, or held on to.
    pub(crate) fn alive(&self) -> usize {
        self.alive.load(SeqCst)
    }

    async fn step<T>(&self, step: &Step, call: impl Future<Output = Result<T>>) -> Result<T> {
        step.called.fetch_add(1, SeqCst);
        self.play(&step.faults, call).await
    }

    /// The connector that follows this script.
    pub(crate) fn connector(self: &Arc<Self>, endpoints: usize) -> FlakyConnector {
        let memory = backend::connector(&Config::from_url(&self.url()).unwrap()).unwrap();
        FlakyConnector { script: self.clone(), endpoints, memory }
    }

    async fn play<T>(&self, faults: &Mutex<VecDeque<Fault>>, call: impl Future<Output = Result<T>>) -> Result<T> {
        let fault = faults.lock().unwrap().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::None => call.await,
            Fault::Fail(error) => Err(error),
            Fault::LoseAnswer => {
                call.await?;
                Err(Error::indeterminate("the answer was lost"))
            }
            Fault::Late => {
                let answer = call.await;
                self.gate.acquire().await.unwrap().forget();
                answer
            }
            Fault::Hang => std::future::pending().await,
            Fault::Wait => {
                self.gate.acquire().await.unwrap().forget();
                call.await
            }
            Fault::Panic => panic!("as the script says"),
        }
    }
}

/// Counts a call that is running, for as long as it lives.
struct Running<'s>(&'s Script);

impl<'s> Running<'s> {
    fn new(script: &'s Script) -> Self {
        let running = script.running.fetch_add(1, SeqCst) + 1;
        script.most_running.fetch_max(running, SeqCst);
        script.called.fetch_add(1, SeqCst);
        Running(script)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

pub(crate) struct FlakyConnector {
    script: Arc<Script>,
    endpoints: usize,
    memory: Arc<dyn Connector>,
}

#[async_trait(?Send)]
impl Connector for FlakyConnector {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn endpoints(&self) -> Vec<String> {
        (0..self.endpoints).map(|index| format!("server-{index}")).collect()
    }

    async fn connect(&self, index: usize) -> Result<Rc<dyn Backend>> {
        self.script.connected.lock().unwrap().push(index);
        let memory = self.script.play(&self.script.connects, self.memory.connect(0)).await?;
        self.script.alive.fetch_add(1, SeqCst);
        Ok(Rc::new(Flaky { script: self.script.clone(), memory }))
    }
}

struct Flaky {
    script: Arc<Script>,
    memory: Rc<dyn Backend>,
}

impl Drop for Flaky {
    fn drop(&mut self) {
        self.script.alive.fetch_sub(1, SeqCst);
    }
}

impl Flaky {
    fn locking(&self) -> &dyn Locking {
        self.memory.locks().unwrap()
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let _running = Running::new(&self.script);
        self.script.play(&self.script.calls, call).await
    }
}

#[async_trait(?Send)]
impl Locking for Flaky {
    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        self.script.step(&self.script.locks.grant, self.locking().grant(ttl)).await
    }
    async fn keep_alive(&self, grant: &Grant) -> Result<()> {
        self.script.step(&self.script.locks.keep_alive, self.locking().keep_alive(grant)).await
    }
    async fn revoke(&self, grant: &Grant) -> Result<()> {
        self.script.step(&self.script.locks.revoke, self.locking().revoke(grant)).await
    }
    async fn contend(&self, bid: &Bid, progress: &Progress) -> Result<Standing> {
        self.script.step(&self.script.locks.contend, self.locking().contend(bid, progress)).await
    }
    async fn wait(&self, bid: &Bid, place: &Place) -> Result<()> {
        self.script.step(&self.script.locks.wait, self.locking().wait(bid, place)).await
    }
    async fn leave(&self, bid: &Bid, progress: &Progress) -> Result<bool> {
        self.script.step(&self.script.locks.leave, self.locking().leave(bid, progress)).await
    }
    async fn guarded(
        &self,
        bid: &Bid,
        place: &Place,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        self.call(self.locking().guarded(bid, place, checks, operations)).await
    }
    async fn publish(&self, bid: &Bid, place: &Place, value: &Bytes) -> Result<()> {
        self.call(self.locking().publish(bid, place, value)).await
    }
    async fn holder(&self, key: &Key) -> Result<Option<Holder>> {
        self.call(self.locking().holder(key)).await
    }
}

#[async_trait(?Send)]
impl Backend for Flaky {
    fn locks(&self) -> Option<&dyn Locking> {
        Some(self)
    }
    async fn watch(&self, target: &Target, after: Option<&Position>) -> Result<Updates> {
        let updates = self.script.play(&self.script.watches, self.memory.watch(target, after)).await?;
        let script = self.script.clone();
        let broken = stream::once(async move {
            script.breaks.acquire().await.unwrap().forget();
            match script.play(&script.broken, async { Ok(()) }).await {
                Ok(()) => Err(Error::unreachable("the watch broke, as the script says")),
                Err(error) => Err(error),
            }
        });
        let mut over = false;
        let updates = stream::select(updates, broken);
        Ok(updates.take_while(move |update| ready(!std::mem::replace(&mut over, update.is_err()))).boxed_local())
    }

    async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair> {
        self.call(self.memory.get(key, consistency)).await
    }
    async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool> {
        self.call(self.memory.exists(key, consistency)).await
    }
    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        self.call(self.memory.put(key, value)).await
    }
    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        self.call(self.memory.put_leased(key, value, ttl)).await
    }
    async fn renew(&self, lease: &Lease) -> Result<()> {
        self.call(self.memory.renew(lease)).await
    }
    async fn expire(&self, lease: &Lease) -> Result<()> {
        self.call(self.memory.expire(lease)).await
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        self.call(self.memory.delete(key)).await
    }
    async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        self.call(self.memory.list(dir, options)).await
    }
    async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        self.call(self.memory.list_keys(dir, options)).await
    }
    async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
        self.call(self.memory.delete_tree(dir)).await
    }
    async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        self.call(self.memory.atomic_put(key, value, expected)).await
    }
    async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.call(self.memory.atomic_delete(key, version)).await
    }
    async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        self.call(self.memory.txn(checks, operations)).await
    }
    async fn disrupted(&self) -> Error {
        self.script.disruptions.acquire().await.unwrap().forget();
        Error::unreachable("disrupted, as the script says")
    }
    async fn recover(&self) -> Result<()> {
        self.script.recovered.fetch_add(1, SeqCst);
        self.script.play(&self.script.recovers, std::future::ready(Ok(()))).await
    }
    fn session(&self) -> Option<String> {
        match self.script.nameless.load(SeqCst) {
            true => panic!("as the script says"),
            false => self.memory.session(),
        }
    }
    async fn close(&self) -> Result<()> {
        self.script.closed.add_permits(1);
        self.memory.close().await
    }
}

/// Short, for scripts let calls time out.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(400);

/// Options with which everything happens soon.
pub(crate) fn options() -> Options {
    Options {
        request_timeout: TIMEOUT,
        connect_timeout: TIMEOUT,
        backoff_min: Duration::from_millis(2),
        backoff_max: Duration::from_millis(20),
        ..Options::default()
    }
}

pub(crate) fn unreachable() -> Error {
    Error::unreachable("as the script says")
}

/// A store that follows this script.
pub(crate) async fn open(script: &Arc<Script>) -> Store {
    Store::with_backend(script.connector(1), options()).await.unwrap()
}
