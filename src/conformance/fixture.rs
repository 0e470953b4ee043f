//! What a case runs on, and how it is run.

use crate::error::Error;
use crate::store::Store;
use crate::types::LinkState;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::io::Write;
use std::panic::Location;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest time for one case. None comes near it on a sound backend; it turns a hang into a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// How a case ended.
pub type Outcome = std::result::Result<(), Failure>;

/// An error that a case didn't expect, and where.
#[derive(Clone, Debug)]
pub struct Failure {
    error: Error,
    at: &'static Location<'static>,
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        Failure { error, at: Location::caller() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unexpected error at {}: {} ({:?})", self.at, self.error, self.error)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

type OpenStore = Box<dyn Fn() -> LocalBoxFuture<'static, crate::Result<Store>>>;
type OpenFixture = Box<dyn Fn(String) -> LocalBoxFuture<'static, Option<Fixture>>>;

/// What a case runs on: a store in a fresh namespace, and the ways to further ones.
pub struct Fixture {
    store: Store,
    /// Opens a further store on the same namespace, unless only one can be open at a time.
    open_another: Option<OpenStore>,
    /// The way to a neighbouring namespace, and this one's name.
    neighbourhood: Option<(OpenFixture, String)>,
    /// Stores that the case asked for, to be closed when it is over.
    others: RefCell<Vec<Store>>,
    /// What must live as long as the case, say a temporary directory.
    kept: Vec<Box<dyn Any>>,
}

impl Fixture {
    /// A fixture for a backend on which several stores can share a namespace: `open` opens one of them.
    ///
    /// A backend of your own is opened with [`Store::with_backend`], by a connector that was given the namespace:
    ///
    /// ```
    /// use kvactor::conformance::Fixture;
    /// use kvactor::{Connector, Options, Store};
    ///
    /// # async fn doc<MyConnector: Connector>(namespace: String, connector_for: fn(&str) -> MyConnector) -> Fixture {
    /// let open = async move || Store::with_backend(connector_for(&namespace), Options::default()).await;
    /// Fixture::shared(open).await.expect("the server runs")
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `open`.
    pub async fn shared(open: impl AsyncFn() -> crate::Result<Store> + 'static) -> crate::Result<Self> {
        let store = open().await?;
        let open = Rc::new(open);
        let another = move || {
            let open = open.clone();
            async move { open().await }.boxed_local()
        };
        Ok(Fixture { open_another: Some(Box::new(another)), ..Fixture::exclusive(store) })
    }

    /// [`Fixture::shared`] for the stores at a URL, whose path is the namespace.
    ///
    /// # Errors
    /// Those of [`Store::connect`].
    pub async fn connect(url: &str) -> crate::Result<Self> {
        let url = url.to_owned();
        Fixture::shared(async move || Store::connect(&url).await).await
    }

    /// A fixture for a backend that only one store can open at a time.
    pub fn exclusive(store: Store) -> Self {
        Fixture { store, open_another: None, neighbourhood: None, others: RefCell::default(), kept: Vec::new() }
    }

    /// Keeps `guard`, say a temporary directory, until the case is over.
    #[must_use]
    pub fn keeping(mut self, guard: impl Any) -> Self {
        self.kept.push(Box::new(guard));
        self
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A further store on the same namespace with a connection of its own, as another process would have. None where
    /// the backend can't: what needs it is then left out.
    ///
    /// # Errors
    /// Those of opening the store.
    pub async fn another(&self) -> crate::Result<Option<Store>> {
        let Some(open) = &self.open_another else { return Ok(None) };
        let store = open().await?;
        self.others.borrow_mut().push(store.clone());
        Ok(Some(store))
    }

    /// A further store on the same namespace where the backend can, else a clone of the one store.
    ///
    /// # Errors
    /// Those of opening the store.
    pub async fn another_or_clone(&self) -> crate::Result<Store> {
        Ok(self.another().await?.unwrap_or_else(|| self.store.clone()))
    }

    /// A store on another namespace, whose name starts with that of this one.
    pub(super) async fn neighbour(&self) -> Option<Fixture> {
        let (open, namespace) = self.neighbourhood.as_ref()?;
        open(format!("{namespace}-too")).await
    }

    /// Leaves the server as it was found, and closes the stores.
    pub(super) async fn finish(self) -> Outcome {
        if self.store.status().link != LinkState::Closed {
            let everything = crate::DeleteTreeOptions { allow_root: true };
            self.store.delete_tree_with("", everything).await?;
            self.store.close().await?;
        }
        let others = self.others.take();
        for store in others.iter().filter(|store| store.status().link != LinkState::Closed) {
            store.close().await?;
        }
        match self.store.get("after/close").await {
            Err(Error::Closed) => Ok(()),
            other => panic!("a closed store answered {other:?}"),
        }
    }
}

/// Runs one case in a fresh namespace and closes its stores. `open` is as in
/// [`conformance_tests!`](crate::conformance_tests).
///
/// # Panics
/// Where the case fails.
pub async fn run(
    name: &str,
    open: impl AsyncFn(String) -> Option<Fixture> + 'static,
    case: impl AsyncFnOnce(&Fixture) -> Outcome,
) {
    let namespace = fresh_namespace(name);
    let Some(mut fixture) = open(namespace.clone()).await else { return report_skipped(name) };
    fixture.neighbourhood = Some((opener(open), namespace));
    let run = async {
        case(&fixture).await?;
        fixture.finish().await
    };
    match tokio::time::timeout(LIMIT, run).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => panic!("{name}: {failure}"),
        Err(_) => panic!("{name}: hangs, it wasn't over after {LIMIT:?}"),
    }
}

fn opener(open: impl AsyncFn(String) -> Option<Fixture> + 'static) -> OpenFixture {
    let open = Rc::new(open);
    Box::new(move |namespace| {
        let open = open.clone();
        async move { open(namespace).await }.boxed_local()
    })
}

/// A namespace that no other case, process or run has used.
fn fresh_namespace(name: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("kvactor-conformance/{name}-{}-{count}-{now}", std::process::id())
}

/// Past libtest's capture, which `eprintln!` wouldn't get: a skipped case must not look like one that passed.
fn report_skipped(name: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: there is no backend to run it on");
}
