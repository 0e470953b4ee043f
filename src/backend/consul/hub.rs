//! [`Hub`]: the watches of one session with an agent and the queries that serve them.

use super::blocking::{Cursor, News, POLL, Pacer, Place, Places, Worth, wait};
use super::codec::{self, encode_path};
use super::http::{Answer, Http};
use super::plan::{Scope, covering, plan};
use super::watch::{Mark, Outbox, State, Subscription, mark, pairs, sorted, within};
use crate::error::{Error, Result};
use crate::key::{Dir, Namespace};
use futures_util::FutureExt;
use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How many reads that don't wait on the server are under way at once.
const MAX_READS: usize = 16;

/// Runs as many queries as there may be connections, each as a task that ends with its last watch.
pub(super) struct Hub {
    /// Makes the client of a query that waits on the server. Each has its own, so that its connection ends with it, also
    /// while the query isn't under way.
    client: Box<dyn Fn() -> Http>,
    /// For reads that don't.
    calls: Rc<Http>,
    namespace: Namespace,
    /// Around everything that queries may ask for.
    root: Rc<str>,
    silence: Duration,
    max_queries: usize,
    places: Rc<Places>,
    reads: Semaphore,
    marks: RandomState,
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    /// Counts when watches come to queries, and when these are answered: to tell what was sent before from what after.
    moment: u64,
    next_id: u64,
    watches: BTreeMap<u64, Watch>,
    queries: BTreeMap<Scope, Query>,
}

struct Watch {
    /// What is watched.
    scope: Scope,
    /// The query that it is served by.
    query: Scope,
    /// When it came to this query.
    since: u64,
    /// The state that was told last.
    told: Option<Mark>,
    outbox: Rc<Outbox>,
}

struct Query {
    watches: BTreeSet<u64>,
    task: AbortHandle,
    /// When it was last answered with what may be new; 0 where it wasn't yet.
    answered: u64,
}

impl Drop for Query {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hub {
    /// A hub that has at most `max_queries` wait at once, each on a connection of a client of its own.
    pub(super) fn new(
        client: Box<dyn Fn() -> Http>,
        calls: Rc<Http>,
        namespace: Namespace,
        silence: Duration,
        max_queries: usize,
    ) -> Rc<Self> {
        Rc::new(Hub {
            root: Scope::tree(&namespace.prefix(&Dir::root())).in_url().path().into(),
            places: Places::new(max_queries),
            reads: Semaphore::new(MAX_READS),
            marks: RandomState::new(),
            table: RefCell::default(),
            client,
            calls,
            namespace,
            silence,
            max_queries,
        })
    }

    /// What makes the marks of states.
    pub(super) fn marks(&self) -> &RandomState {
        &self.marks
    }

    /// The outcome of a read that doesn't wait on the server, when it is its turn.
    pub(super) async fn read<T>(&self, read: impl Future<Output = Result<T>>) -> Result<T> {
        let _turn = self.reads.acquire().await;
        timeout(self.silence, read).await.unwrap_or_else(|_| {
            let (name, silence) = (self.calls.name(), self.silence);
            Err(Error::unreachable(format!("{name} didn't answer a read within {silence:?}")))
        })
    }

    /// A moment later than all before.
    pub(super) fn now(&self) -> u64 {
        self.table.borrow_mut().next_moment()
    }

    /// Whether a watch of `scope` would have a new query of its own.
    pub(super) fn has_query_for(&self, scope: &Scope) -> bool {
        let table = self.table.borrow();
        scope.in_url() == *scope && self.joinable(&table, scope).is_none() && table.queries.len() < self.max_queries
    }

    /// Follows `scope`, of which the caller knows the state that it began to read at a moment; where it knows none, it is
    /// told first.
    pub(super) fn subscribe(self: &Rc<Self>, scope: Scope, state: Option<(u64, State)>) -> Subscription {
        let outbox = Rc::new(Outbox::default());
        let (read, state) = state.map_or((0, None), |(read, state)| (read, Some(state)));
        let told = state.map(|state| {
            outbox.put_state(state.pairs);
            state.mark
        });
        let table = &mut *self.table.borrow_mut();
        table.next_id += 1;
        let id = table.next_id;
        let joined = self.joinable(table, &scope.in_url());
        let query = joined.clone().unwrap_or_else(|| scope.in_url());
        let watch = Watch { scope, query: query.clone(), since: table.moment, told, outbox: outbox.clone() };
        table.watches.insert(id, watch);
        match joined.is_some() || table.queries.len() < self.max_queries {
            true => self.serve(table, id, query, read),
            false => self.rearrange(table),
        }
        Subscription { hub: self.clone(), id, outbox }
    }

    /// Ends a watch, and the query that served nobody else.
    pub(super) fn unsubscribe(self: &Rc<Self>, id: u64) {
        let table = &mut *self.table.borrow_mut();
        let Some(watch) = table.watches.remove(&id) else { return };
        table.leave(id, &watch.query);
        // Not as soon as possible: one watch that comes and goes isn't to rearrange everything each time.
        if table.watches.len() <= self.max_queries / 2 && table.watches.values().any(Watch::is_gathered) {
            self.rearrange(table);
        }
    }

    /// The query that a new watch of `scope` joins: the very same one, or one that asks for a directory on behalf of
    /// several. It doesn't join the query of somebody who watches the directory itself, which may have a lot to say.
    fn joinable(&self, table: &Table, scope: &Scope) -> Option<Scope> {
        let is_shared =
            |query: &Query| query.watches.iter().any(|id| table.watches.get(id).is_some_and(Watch::is_gathered));
        covering(scope, &self.root, |query| {
            table.queries.get(query).is_some_and(|served| query == scope || is_shared(served))
        })
    }

    /// Plans all queries anew. Watches take with them what they were told, and those that stay with their query notice
    /// nothing.
    fn rearrange(self: &Rc<Self>, table: &mut Table) {
        let scopes: BTreeSet<_> = table.watches.values().map(|watch| watch.scope.in_url()).collect();
        let plan = plan(&scopes, self.max_queries, &self.root);
        let moves = table.watches.iter().filter_map(|(id, watch)| {
            let query = plan.get(&watch.scope.in_url())?;
            let stays =
                *query == watch.query && table.queries.get(query).is_some_and(|query| query.watches.contains(id));
            (!stays).then(|| (*id, watch.query.clone(), query.clone()))
        });
        let moves: Vec<_> = moves.collect();
        // First all leave, so that their connections are free for those who come.
        for (id, from, _) in &moves {
            table.leave(*id, from);
        }
        for (id, _, to) in moves {
            self.serve(table, id, to, 0);
        }
    }

    /// Has `query` serve the watch from now on, which knows a state that was read at a moment or later.
    fn serve(self: &Rc<Self>, table: &mut Table, id: u64, query: Scope, read: u64) {
        let since = table.next_moment();
        let Some(watch) = table.watches.get_mut(&id) else { return };
        watch.since = since;
        watch.query = query.clone();
        match table.queries.entry(query) {
            Entry::Vacant(vacant) => {
                let task = self.start(vacant.key().clone());
                vacant.insert(Query { watches: [id].into(), task, answered: 0 });
            }
            Entry::Occupied(mut served) => {
                // It waits for what comes behind an answer that the watch may know nothing of.
                if read < served.get().answered {
                    let task = self.start(served.key().clone());
                    std::mem::replace(&mut served.get_mut().task, task).abort();
                    served.get_mut().answered = 0;
                }
                served.get_mut().watches.insert(id);
            }
        }
    }

    fn start(self: &Rc<Self>, query: Scope) -> AbortHandle {
        let hub = self.clone();
        let task = async move {
            let followed = AssertUnwindSafe(hub.follow(&query)).catch_unwind().await;
            let panicked = |_| Error::unreachable(format!("the driver panicked while it watched `{}`", query.path()));
            hub.fail(&query, &followed.unwrap_or_else(panicked));
        };
        spawn_local(task).abort_handle()
    }

    /// Asks again and again, until it fails.
    async fn follow(&self, query: &Scope) -> Error {
        let http = (self.client)();
        let (mut cursor, mut place) = (Cursor::default(), None);
        let mut pacer = Pacer::new(Instant::now());
        loop {
            if let Some(due) = pacer.pause(Instant::now()) {
                sleep_until(due).await;
            }
            place = place.or_else(|| self.places.take(Instant::now()));
            match self.ask(&http, query, &mut cursor, place.as_mut()).await {
                Ok(worth) => pacer.charge(Instant::now(), worth),
                Err(error) => return error,
            }
            if place.is_none() {
                sleep(POLL).await;
            }
        }
    }

    async fn ask(&self, http: &Http, query: &Scope, cursor: &mut Cursor, place: Option<&mut Place>) -> Result<Worth> {
        let sent = self.table.borrow().moment;
        let (answer, index) = match place {
            Some(place) => self.waited(http, query, cursor, place).await?,
            None => self.read(request(&self.calls, query, Cursor::default().query(Duration::ZERO))).await?,
        };
        let mut told = Told::default();
        match cursor.advance(index) {
            News::None => {}
            News::Maybe => told = self.tell(query, sent, answer.as_ref())?,
            News::Backward => self.forget(query),
        }
        if told.not_to_all {
            cursor.restart();
        }
        Ok(match (told.news, answer) {
            (true, answer) => Worth::News(answer.map_or(0, |answer| answer.body.len())),
            (false, _) => Worth::Nothing,
        })
    }

    /// What is there when the server has something to tell, or has waited for long enough.
    async fn waited(
        &self,
        http: &Http,
        query: &Scope,
        cursor: &Cursor,
        place: &mut Place,
    ) -> Result<(Option<Answer>, u64)> {
        let wait = wait(self.silence);
        place.waits(Instant::now(), wait);
        let answered = request(http, query, cursor.query(wait)).await;
        place.answered();
        answered
    }

    /// Tells the watches of `query` what is new to them in an answer.
    ///
    /// The request may have been sent before a watch came, who may know of later states: the answer isn't for that one.
    fn tell(&self, query: &Scope, sent: u64, answer: Option<&Answer>) -> Result<Told> {
        let entries: Vec<codec::Entry<'_>> =
            answer.map(|answer| self.calls.json(answer)).transpose()?.unwrap_or_default();
        let entries = sorted(entries);
        let mut table = self.table.borrow_mut();
        let answered = table.next_moment();
        let Table { watches, queries, .. } = &mut *table;
        if let Some(query) = queries.get_mut(query) {
            query.answered = answered;
        }
        let mut told = Told::default();
        for id in queries.get(query).iter().flat_map(|query| &query.watches) {
            let Some(watch) = watches.get_mut(id) else { continue };
            match watch.since <= sent {
                true => told.news |= watch.tell(within(&entries, &watch.scope), self)?,
                false => told.not_to_all = true,
            }
        }
        Ok(told)
    }

    /// Has the next answer told to all watches of `query`: the server isn't where it was, and equal versions say nothing.
    fn forget(&self, query: &Scope) {
        let Table { watches, queries, .. } = &mut *self.table.borrow_mut();
        for id in queries.get(query).iter().flat_map(|query| &query.watches) {
            if let Some(watch) = watches.get_mut(id) {
                watch.told = None;
            }
        }
    }

    /// Ends `query` and all that it served.
    fn fail(&self, query: &Scope, error: &Error) {
        let table = &mut *self.table.borrow_mut();
        let Some(failed) = table.queries.remove(query) else { return };
        for watch in failed.watches.iter().filter_map(|id| table.watches.remove(id)) {
            watch.outbox.put(Err(error.clone()));
        }
    }
}

/// What is there, if anything, and the index.
async fn request(http: &Http, query: &Scope, mut parameters: String) -> Result<(Option<Answer>, u64)> {
    if matches!(query, Scope::Tree(_)) {
        parameters.push_str("&recurse");
    }
    http.read_keys_at(&format!("kv/{}", encode_path(query.path())), parameters).await
}

/// What an answer was to those whom its query serves.
#[derive(Default)]
struct Told {
    /// Somebody didn't know it.
    news: bool,
    /// It wasn't for somebody.
    not_to_all: bool,
}

impl Table {
    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Takes a watch from the query that serves it, and ends that if it was the last.
    fn leave(&mut self, id: u64, query: &Scope) {
        let Some(left) = self.queries.get_mut(query) else { return };
        left.watches.remove(&id);
        if left.watches.is_empty() {
            self.queries.remove(query);
        }
    }
}

impl Watch {
    /// Whether the query asks for more than what is watched here takes.
    fn is_gathered(&self) -> bool {
        self.query != self.scope.in_url()
    }

    /// Tells the state and returns true, unless it is the one that was told last.
    fn tell(&mut self, entries: &[codec::Entry<'_>], hub: &Hub) -> Result<bool> {
        let mark = mark(entries, &hub.marks);
        if self.told == Some(mark) {
            return Ok(false);
        }
        self.outbox.put_state(pairs(entries, &hub.calls, &hub.namespace)?);
        self.told = Some(mark);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::consul::connector;
    use crate::backend::{Target, Update, Updates};
    use crate::config::Config;
    use crate::key::Key;
    use futures_util::StreamExt;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    /// A request to an agent that the test plays itself.
    struct Asked {
        head: String,
        stream: TcpStream,
    }

    impl Asked {
        async fn next(agent: &TcpListener) -> Self {
            let (mut stream, _) =
                timeout(Duration::from_secs(5), agent.accept()).await.expect("a request is due").unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            Asked { head: String::from_utf8(head).unwrap(), stream }
        }

        async fn answer(mut self, index: u64, body: &str) {
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nX-Consul-Index: {index}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            self.stream.write_all(answer.as_bytes()).await.unwrap();
        }

        async fn show(self, index: u64) {
            self.answer(index, &format!(r#"[{{"Key":"k","ModifyIndex":{index},"Value":"eA=="}}]"#)).await;
        }
    }

    async fn told(updates: &mut Updates) -> u64 {
        match updates.next().await {
            Some(Ok(Update::State { pairs, .. })) => pairs[0].version.index(),
            other => panic!("{other:?}"),
        }
    }

    #[actix::test]
    async fn who_reads_while_the_query_is_answered_misses_nothing() {
        let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("consul://{}", agent.local_addr().unwrap());
        let connector = connector(&Config::from_url(&url).unwrap()).unwrap();
        let probed = async { Asked::next(&agent).await.answer(1, r#""h:1""#).await };
        let backend = tokio::join!(connector.connect(0), probed).0.unwrap();
        let target = Target::Key(Key::parse("k").unwrap());
        let mut first = backend.watch(&target, None).await.unwrap();
        Asked::next(&agent).await.show(5).await;
        assert_eq!(told(&mut first).await, 5);
        let query = Asked::next(&agent).await;
        assert!(query.head.contains("index=5&"), "{}", query.head);
        // A second one reads; the query is answered with a later state, waits for more, and then comes the answer to the read.
        let played = async {
            let read = Asked::next(&agent).await;
            assert!(!read.head.contains("index="), "{}", read.head);
            query.show(6).await;
            assert_eq!(told(&mut first).await, 6);
            let query = Asked::next(&agent).await;
            assert!(query.head.contains("index=6&"), "{}", query.head);
            read.show(5).await;
            query
        };
        let (second, _waiting) = tokio::join!(backend.watch(&target, None), played);
        let mut second = second.unwrap();
        assert_eq!(told(&mut second).await, 5);
        Asked::next(&agent).await.show(6).await;
        assert_eq!(told(&mut second).await, 6);
    }
}
