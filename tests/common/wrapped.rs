//! [`Wrapped`]: any driver of the crate, whose every step goes wrong as a [`Plan`] says, or is done otherwise by a [`Tamper`].
//!
//! ```ignore
//! let plan = Plan::seeded(seed, 0.1);
//! let driver = Wrapped::new("memory://name", plan.clone());
//! let store = Store::with_backend(driver, options).await?;   // trouble everywhere
//! plan.heal();                                               // none from here on
//! ```
//!
//! A bug is planted by a [`Tamper`] that does some call wrongly; all others are the driver's own:
//!
//! ```ignore
//! struct ForgetsDeletes;
//! #[async_trait(?Send)]
//! impl Tamper for ForgetsDeletes {
//!     async fn delete(&self, _: &dyn Backend, _: &Key) -> Result<()> { Ok(()) }
//! }
//! let driver = Wrapped::new("memory://name", Plan::none()).tampered(ForgetsDeletes);
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use kvactor::{
    Backend, Bid, Capabilities, Check, Config, Connector, Consistency, Dir, Error, Expected, Grant, Holder, Key,
    KvPair, Lease, ListOptions, Locking, Operation, Page, Place, Position, Progress, Result, Standing, Target,
    TxnOutcome, Update, Updates, Version, connector,
};
use std::collections::BTreeMap;
use std::future::pending;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// What goes wrong with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing.
    None,
    /// It panics, without effect.
    PanicBefore,
    /// It takes effect, and panics.
    PanicAfter,
    /// It waits for ever, without effect.
    HangBefore,
    /// It takes effect, and waits for ever.
    HangAfter,
    /// It fails, without effect.
    Unreachable,
    /// It takes effect, and its answer is lost.
    LoseAnswer,
    /// It takes so much longer.
    Late(Duration),
    /// A stream ends; anything else fails without effect.
    End,
}

/// What every planned panic says, so that its noise can be told from a real one's.
pub const PLANNED: &str = "a planned panic";

/// Lets planned panics pass in silence. Others are told as ever.
pub fn silence_planned_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let planned = panic.payload().downcast_ref::<String>().is_some_and(|text| text.starts_with(PLANNED));
            if !planned {
                usual(panic);
            }
        }));
    });
}

/// Says what goes wrong with each step. Shared by the sessions of a driver and the test.
pub struct Plan {
    next: Box<dyn Fn(Step) -> Fault + Send + Sync>,
    trouble: watch::Sender<bool>,
    seen: Mutex<BTreeMap<(Step, Fault), u64>>,
}

impl Plan {
    /// What the function says goes wrong.
    pub fn new(next: impl Fn(Step) -> Fault + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Plan { next: Box::new(next), trouble: watch::Sender::new(true), seen: Mutex::default() })
    }

    /// Nothing goes wrong.
    pub fn none() -> Arc<Self> {
        Plan::new(|_| Fault::None)
    }

    /// Anything goes wrong, with this probability, the same for the same seed and order of steps.
    pub fn seeded(seed: u64, odds: f64) -> Arc<Self> {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Plan::new(move |step| {
            let mut random = random.lock().unwrap();
            let odds = match step {
                // Without a connection nothing else can go wrong.
                Step::Connect => odds.min(0.3),
                // A store closes only once, and half of them in peace.
                Step::Close => odds.max(0.5),
                _ => odds,
            };
            if random.f64() >= odds {
                return Fault::None;
            }
            match random.u8(0..9) {
                0 => Fault::PanicBefore,
                1 => Fault::PanicAfter,
                2 => Fault::HangBefore,
                3 => Fault::HangAfter,
                4 => Fault::Unreachable,
                5 | 6 => Fault::LoseAnswer,
                7 => Fault::Late(Duration::from_millis(random.u64(1..60))),
                _ => Fault::End,
            }
        })
    }

    /// From here on nothing goes wrong, until [`resume`](Plan::resume). Steps that are to wait for ever go on doing so, but for
    /// those that have no deadline above: they fail now, as a driver notices a dead connection in the end.
    pub fn heal(&self) {
        self.trouble.send_replace(false);
    }

    /// From here on things go wrong again.
    pub fn resume(&self) {
        self.trouble.send_replace(true);
    }

    /// How often which fault came.
    pub fn seen(&self) -> BTreeMap<(Step, Fault), u64> {
        self.seen.lock().unwrap().clone()
    }

    fn fault(&self, step: Step) -> Fault {
        if !*self.trouble.borrow() {
            return Fault::None;
        }
        let fault = (self.next)(step);
        let kind = if let Fault::Late(_) = fault { Fault::Late(Duration::ZERO) } else { fault };
        *self.seen.lock().unwrap().entry((step, kind)).or_default() += 1;
        fault
    }

    async fn hang(&self, step: Step) -> Error {
        if !step.is_long() {
            return pending().await;
        }
        let _ = self.trouble.subscribe().wait_for(|trouble| !trouble).await;
        Error::unreachable("the silence was noticed, as planned")
    }

    async fn play<T>(&self, step: Step, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.act(self.fault(step), step, work).await
    }

    async fn act<T>(&self, fault: Fault, step: Step, work: impl Future<Output = Result<T>>) -> Result<T> {
        match fault {
            Fault::None => work.await,
            Fault::PanicBefore => panic!("{PLANNED} before {step:?}"),
            Fault::PanicAfter => {
                let _ = work.await;
                panic!("{PLANNED} after {step:?}")
            }
            Fault::HangBefore => Err(self.hang(step).await),
            Fault::HangAfter => {
                let _ = work.await;
                Err(self.hang(step).await)
            }
            Fault::Unreachable | Fault::End => Err(Error::unreachable("as planned")),
            Fault::LoseAnswer => {
                work.await?;
                Err(step.lost())
            }
            Fault::Late(time) => {
                sleep(time).await;
                work.await
            }
        }
    }
}

impl Step {
    /// Whether it may take any time, so that nobody above gives it up.
    fn is_long(self) -> bool {
        matches!(self, Step::Wait | Step::Gone | Step::Update | Step::Disrupted)
    }

    /// What is known when the answer is lost.
    fn lost(self) -> Error {
        let reason = "the answer was lost, as planned";
        match self {
            Step::Put | Step::PutLeased | Step::Delete | Step::DeleteTree | Step::AtomicPut | Step::AtomicDelete => {
                Error::indeterminate(reason)
            }
            Step::Txn | Step::Renew | Step::Expire | Step::Contend | Step::Guarded | Step::Publish => {
                Error::indeterminate(reason)
            }
            _ => Error::unreachable(reason),
        }
    }
}

/// A driver, its plan, and what is done otherwise.
#[derive(Clone)]
pub struct Wrapped {
    driver: Arc<dyn Connector>,
    plan: Arc<Plan>,
    tamper: Arc<dyn Tamper + Send + Sync>,
    patient: bool,
    alive: Arc<AtomicUsize>,
}

impl Wrapped {
    /// The driver of this URL.
    pub fn new(url: &str, plan: Arc<Plan>) -> Self {
        Wrapped::of(&Config::from_url(url).expect("a store URL"), plan)
    }

    /// The driver of this configuration.
    pub fn of(config: &Config, plan: Arc<Plan>) -> Self {
        let driver = connector(config).expect("a driver that this build has");
        Wrapped { driver, plan, tamper: Arc::new(Honest), patient: true, alive: Arc::default() }
    }

    /// Some calls are done otherwise.
    #[must_use]
    pub fn tampered(self, tamper: impl Tamper + Send + Sync) -> Self {
        Wrapped { tamper: Arc::new(tamper), ..self }
    }

    /// A connection or recovery that takes long is given up as the store's options say, and not as the driver does.
    #[must_use]
    pub fn impatient(self) -> Self {
        Wrapped { patient: false, ..self }
    }

    /// How many sessions are not dropped yet.
    pub fn sessions(&self) -> usize {
        self.alive.load(SeqCst)
    }
}

/// One session of the driver.
struct Session {
    driver: Rc<dyn Backend>,
    plan: Arc<Plan>,
    tamper: Arc<dyn Tamper + Send + Sync>,
    _alive: Alive,
}

/// Counts a session while it lives.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[async_trait(?Send)]
impl Connector for Wrapped {
    fn capabilities(&self) -> Capabilities {
        self.driver.capabilities()
    }

    fn endpoints(&self) -> Vec<String> {
        self.driver.endpoints()
    }

    async fn connect(&self, index: usize) -> Result<Rc<dyn Backend>> {
        let driver = self.plan.play(Step::Connect, self.driver.connect(index)).await?;
        self.alive.fetch_add(1, SeqCst);
        let (plan, tamper, _alive) = (self.plan.clone(), self.tamper.clone(), Alive(self.alive.clone()));
        Ok(Rc::new(Session { driver, plan, tamper, _alive }))
    }

    fn connect_within(&self) -> Option<Duration> {
        self.driver.connect_within().filter(|_| self.patient)
    }

    fn recover_within(&self) -> Option<Duration> {
        self.driver.recover_within().filter(|_| self.patient)
    }
}

/// Passes everything on.
struct Honest;

impl Tamper for Honest {}

/// How long a session goes well before its driver says, as planned, that it doesn't.
const DISRUPTED_AFTER: Duration = Duration::from_millis(30);

/// From the list of all calls: what their steps are named, how they are tampered with, and how they are wrapped.
macro_rules! wrap {
    (
        backend { $($call:ident($($name:ident: $type:ty),*) -> $answer:ty = $step:ident;)* }
        locking { $($lock_call:ident($($lock_name:ident: $lock_type:ty),*) -> $lock_answer:ty = $lock_step:ident;)* }
    ) => {
        /// What can go wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Step {
            Connect,
            Disrupted,
            Watch,
            /// The next update of a watch.
            Update,
            $($step,)*
            $($lock_step,)*
        }

        impl Step {
            pub const ALL: &[Step] = &[
                Step::Connect, Step::Disrupted, Step::Watch, Step::Update, $(Step::$step,)* $(Step::$lock_step,)*
            ];
        }

        /// Does some calls otherwise than the driver: those whose methods it overrides.
        #[async_trait(?Send)]
        pub trait Tamper: 'static {
            $(async fn $call(&self, driver: &dyn Backend $(, $name: $type)*) -> Result<$answer> {
                driver.$call($($name),*).await
            })*

            $(async fn $lock_call(&self, driver: &dyn Locking $(, $lock_name: $lock_type)*) -> Result<$lock_answer> {
                driver.$lock_call($($lock_name),*).await
            })*

            async fn watch(
                &self,
                driver: &dyn Backend,
                target: &Target,
                after: Option<&Position>,
            ) -> Result<Updates> {
                driver.watch(target, after).await
            }
        }

        #[async_trait(?Send)]
        impl Backend for Session {
            $(async fn $call(&self $(, $name: $type)*) -> Result<$answer> {
                self.plan.play(Step::$step, self.tamper.$call(&*self.driver $(, $name)*)).await
            })*

            async fn watch(&self, target: &Target, after: Option<&Position>) -> Result<Updates> {
                let begun = self.plan.play(Step::Watch, self.tamper.watch(&*self.driver, target, after)).await;
                Ok(troubled(self.plan.clone(), begun?))
            }

            fn locks(&self) -> Option<&dyn Locking> {
                self.driver.locks().map(|_| self as &dyn Locking)
            }

            async fn disrupted(&self) -> Error {
                match self.plan.fault(Step::Disrupted) {
                    Fault::None | Fault::Late(_) => self.driver.disrupted().await,
                    Fault::HangBefore | Fault::HangAfter => self.plan.hang(Step::Disrupted).await,
                    Fault::Unreachable | Fault::LoseAnswer | Fault::End => {
                        sleep(DISRUPTED_AFTER).await;
                        Error::unreachable("disrupted, as planned")
                    }
                    Fault::PanicBefore | Fault::PanicAfter => {
                        sleep(DISRUPTED_AFTER).await;
                        panic!("{PLANNED} instead of a disruption")
                    }
                }
            }

            fn session(&self) -> Option<String> {
                self.driver.session()
            }
        }

        #[async_trait(?Send)]
        impl Locking for Session {
            $(async fn $lock_call(&self $(, $lock_name: $lock_type)*) -> Result<$lock_answer> {
                let locks = self.driver.locks().expect("the wrapper has locks where the driver has");
                self.plan.play(Step::$lock_step, self.tamper.$lock_call(locks $(, $lock_name)*)).await
            })*
        }
    };
}

wrap! {
    backend {
        get(key: &Key, consistency: Consistency) -> KvPair = Get;
        exists(key: &Key, consistency: Consistency) -> bool = Exists;
        put(key: &Key, value: &Bytes) -> Version = Put;
        put_leased(key: &Key, value: &Bytes, ttl: Duration) -> (Version, Lease) = PutLeased;
        renew(lease: &Lease) -> () = Renew;
        expire(lease: &Lease) -> () = Expire;
        delete(key: &Key) -> () = Delete;
        list(dir: &Dir, options: &ListOptions) -> Page<KvPair> = List;
        list_keys(dir: &Dir, options: &ListOptions) -> Page<Key> = ListKeys;
        delete_tree(dir: &Dir) -> u64 = DeleteTree;
        atomic_put(key: &Key, value: &Bytes, expected: &Expected) -> Version = AtomicPut;
        atomic_delete(key: &Key, version: &Version) -> () = AtomicDelete;
        txn(checks: &[Check], operations: &[Operation]) -> TxnOutcome = Txn;
        recover() -> () = Recover;
        close() -> () = Close;
    }
    locking {
        grant(ttl: Duration) -> Grant = Grant;
        keep_alive(grant: &Grant) -> () = KeepAlive;
        revoke(grant: &Grant) -> () = Revoke;
        contend(bid: &Bid, progress: &Progress) -> Standing = Contend;
        wait(bid: &Bid, place: &Place) -> () = Wait;
        gone(bid: &Bid, place: &Place) -> () = Gone;
        leave(bid: &Bid, progress: &Progress) -> bool = Leave;
        guarded(bid: &Bid, place: &Place, checks: &[Check], operations: &[Operation]) -> TxnOutcome = Guarded;
        publish(bid: &Bid, place: &Place, value: &Bytes) -> () = Publish;
        holder(key: &Key) -> Option<Holder> = Holder;
    }
}

/// A watch's updates, each of which may go wrong. One that is lost ends the stream, as a driver must.
fn troubled(plan: Arc<Plan>, updates: Updates) -> Updates {
    stream::unfold(Some(updates), move |updates| {
        let plan = plan.clone();
        async move {
            let mut updates = updates?;
            let fault = plan.fault(Step::Update);
            if fault == Fault::End {
                return None;
            }
            let next = async { updates.next().await.transpose() };
            match plan.act(fault, Step::Update, next).await {
                Ok(update) => Some((Ok::<Update, Error>(update?), Some(updates))),
                Err(error) => Some((Err(error), None)),
            }
        }
    })
    .boxed_local()
}
