//! [`Listings`]: who asks for a listing while others wait for the same one has it from one request with them.
//!
//! A request answers those only who had asked when it set off, so that it is as fresh for each of them as one of their own.

use super::Backend;
use super::gather::{Gathered, Gatherer, Job};
use crate::error::Result;
use crate::key::{Dir, Key};
use crate::types::{KvPair, ListOptions, Page};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;

/// How many requests for one listing are on their way for one caller each before others share theirs: the server works on one while
/// the answer to another is read.
const LANES: usize = 2;

/// A directory, and what is asked for of it.
type Question = (Dir, ListOptions);

/// The questions to which somebody awaits the answer.
type Asked<T> = RefCell<HashMap<Question, Rc<Gatherer<Asker<T>>>>>;

/// The listings of one session.
pub(crate) struct Listings {
    backend: Rc<dyn Backend>,
    pairs: Asked<KvPair>,
    keys: Asked<Key>,
}

impl Listings {
    pub(crate) fn new(backend: Rc<dyn Backend>) -> Self {
        Listings { backend, pairs: Asked::default(), keys: Asked::default() }
    }

    /// As [`Backend::list`].
    pub(crate) async fn pairs(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        self.list(&self.pairs, dir, options).await
    }

    /// As [`Backend::list_keys`].
    pub(crate) async fn keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        self.list(&self.keys, dir, options).await
    }

    async fn list<T: Entry>(&self, asked: &Asked<T>, dir: &Dir, options: &ListOptions) -> Result<Page<T>> {
        let crowd = Crowd::join(asked, (dir.clone(), options.clone()), &self.backend);
        match crowd.gatherer.lane() {
            Some(_lane) => T::list(&*self.backend, dir, options).await,
            None => crowd.gatherer.ask(Asker(PhantomData)).await,
        }
    }
}

/// What a listing is of.
trait Entry: Clone + 'static {
    fn list<'a>(
        backend: &'a dyn Backend,
        dir: &'a Dir,
        options: &'a ListOptions,
    ) -> LocalBoxFuture<'a, Result<Page<Self>>>;
}

impl Entry for KvPair {
    fn list<'a>(
        backend: &'a dyn Backend,
        dir: &'a Dir,
        options: &'a ListOptions,
    ) -> LocalBoxFuture<'a, Result<Page<Self>>> {
        backend.list(dir, options)
    }
}

impl Entry for Key {
    fn list<'a>(
        backend: &'a dyn Backend,
        dir: &'a Dir,
        options: &'a ListOptions,
    ) -> LocalBoxFuture<'a, Result<Page<Self>>> {
        backend.list_keys(dir, options)
    }
}

/// One of those who ask the same. The last to leave takes the question along.
struct Crowd<'l, T: Entry> {
    asked: &'l Asked<T>,
    question: Question,
    gatherer: Rc<Gatherer<Asker<T>>>,
}

impl<'l, T: Entry> Crowd<'l, T> {
    fn join(asked: &'l Asked<T>, question: Question, backend: &Rc<dyn Backend>) -> Self {
        let lister = || Lister { backend: backend.clone(), question: question.clone() };
        let mut questions = asked.borrow_mut();
        let gatherer = questions.entry(question.clone()).or_insert_with(|| Rc::new(Gatherer::new(LANES, lister())));
        Crowd { asked, gatherer: gatherer.clone(), question }
    }
}

impl<T: Entry> Drop for Crowd<'_, T> {
    fn drop(&mut self) {
        let is_last = Rc::strong_count(&self.gatherer) == 2;
        if is_last {
            self.asked.borrow_mut().remove(&self.question);
        }
    }
}

/// Somebody who waits for a listing: all who do ask the same.
struct Asker<T>(PhantomData<T>);

/// Who answers a question.
struct Lister {
    backend: Rc<dyn Backend>,
    question: Question,
}

impl<T: Entry> Gathered for Asker<T> {
    type Answer = Result<Page<T>>;
    type Server = Lister;

    fn joins(&self, _: &[Job<Self>]) -> bool {
        true
    }

    fn carry_out(lister: &Lister, mut batch: Vec<Job<Self>>) -> LocalBoxFuture<'static, ()> {
        let (backend, (dir, options)) = (lister.backend.clone(), lister.question.clone());
        async move {
            let page = T::list(&*backend, &dir, &options).await;
            let last = batch.pop();
            batch.into_iter().for_each(|job| job.answer(page.clone()));
            if let Some(last) = last {
                last.answer(page);
            }
        }
        .boxed_local()
    }
}

#[cfg(test)]
#[cfg(feature = "memory")]
mod tests {
    use super::*;
    use crate::backend::Connector;
    use crate::error::Error;
    use crate::flaky::{Fault, Script, unreachable};
    use bytes::Bytes;
    use futures_util::future::join_all;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::Ordering::SeqCst;
    use tokio::task::LocalSet;

    async fn scene() -> (Listings, Arc<Script>) {
        let script = Script::new();
        let backend = script.connector(1).connect(0).await.unwrap();
        backend.put(&key("d/a"), &Bytes::from("1")).await.unwrap();
        (Listings::new(backend), script)
    }

    fn key(path: &str) -> Key {
        Key::parse(path).unwrap()
    }

    fn dir(path: &str) -> Dir {
        Dir::parse(path).unwrap()
    }

    impl Listings {
        async fn names(&self, path: &str) -> Result<Vec<String>> {
            let page = self.pairs(&dir(path), &ListOptions::default()).await?;
            Ok(page.items.into_iter().map(|pair| pair.key.to_string()).collect())
        }

        /// Whether nobody waits for anything.
        fn is_idle(&self) -> bool {
            self.pairs.borrow().is_empty() && self.keys.borrow().is_empty()
        }
    }

    #[tokio::test]
    async fn who_asks_the_same_at_once_shares_a_request() {
        let test = async {
            let (listings, script) = scene().await;
            script.calls([Fault::Wait, Fault::Wait]);
            let (before, everything) = (script.called(), ListOptions::default());
            let mut pairs = pin!(join_all((0..50).map(|_| listings.names("d"))));
            assert!((&mut pairs).now_or_never().is_none());
            assert_eq!(script.called() - before, LANES);
            // Another question has lanes of its own.
            let keys = listings.keys(&dir("d"), &everything).await.unwrap();
            assert_eq!((keys.items, keys.next), (vec![key("d/a")], None));
            let few = ListOptions { limit: Some(1), ..everything };
            assert_eq!(listings.pairs(&dir("d"), &few).await.unwrap().items.len(), 1);
            let before = script.called();
            script.gate.add_permits(LANES);
            assert!(pairs.await.into_iter().all(|names| names.unwrap() == ["d/a"]));
            assert_eq!(script.called() - before, 1);
            assert!(listings.is_idle());
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn who_asks_behind_a_write_sees_it_whatever_is_on_its_way() {
        let test = async {
            let (listings, script) = scene().await;
            script.calls((0..LANES).map(|_| Fault::Late));
            let mut early = pin!(join_all((0..LANES).map(|_| listings.names("d"))));
            assert!((&mut early).now_or_never().is_none());
            listings.backend.put(&key("d/b"), &Bytes::from("2")).await.unwrap();
            let mut late = pin!(listings.names("d"));
            assert!((&mut late).now_or_never().is_none());
            script.gate.add_permits(LANES);
            assert!(early.await.into_iter().all(|names| names.unwrap() == ["d/a"]));
            assert_eq!(late.await.unwrap(), ["d/a", "d/b"]);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn an_error_is_told_to_all_who_share_it() {
        let test = async {
            let (listings, script) = scene().await;
            script.calls([Fault::Wait, Fault::Wait, Fault::Fail(unreachable())]);
            let mut asked = pin!(join_all((0..5).map(|_| listings.names("d"))));
            assert!((&mut asked).now_or_never().is_none());
            script.gate.add_permits(LANES);
            let told = asked.await;
            assert!(told[..LANES].iter().all(Result::is_ok));
            assert!(told[LANES..].iter().all(|told| matches!(told, Err(Error::Unreachable { .. }))), "{told:?}");
            assert_eq!(listings.names("d").await.unwrap(), ["d/a"]);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn nothing_is_left_of_those_who_stop_waiting() {
        let test = async {
            let (listings, script) = scene().await;
            script.calls((0..10).map(|_| Fault::Hang));
            for _ in 0..3 {
                let mut asked = pin!(join_all((0..5).map(|_| listings.names("d"))));
                assert!((&mut asked).now_or_never().is_none());
                assert_eq!((listings.is_idle(), script.running.load(SeqCst)), (false, LANES));
            }
            assert_eq!((listings.is_idle(), script.running.load(SeqCst)), (true, 0));
        };
        LocalSet::new().run_until(test).await;
    }
}
