//! kazoo's `Lock` and `Election`, in Python: `kazoo_peer.py` drives them.

use super::common::{self, Server, namespace, skip};
use super::{Peer, a_while, connect, due, next_leader, stand, wait_for};
use kvactor::{Error, LockOptions, Store};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use tokio::process::Command as Spawn;
use zookeeper_client::Client;

/// The interpreter that has kazoo; none skips the test.
fn python() -> Option<&'static PathBuf> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PYTHON.get_or_init(find_python) {
        Ok(python) => Some(python),
        Err(missing) => {
            skip(&format!("kazoo isn't installed here ({missing}); run scripts/install-servers"));
            None
        }
    }
}

fn find_python() -> Result<PathBuf, String> {
    let given = std::env::var_os("KVACTOR_PYTHON").filter(|path| !path.is_empty()).map(PathBuf::from);
    let installed = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/interop-venv/bin/python"));
    let python = given.unwrap_or_else(installed);
    match Command::new(&python).args(["-c", "import kazoo.client"]).output() {
        Ok(Output { status, .. }) if status.success() => Ok(python),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()),
        Err(error) => Err(format!("{}: {error}", python.display())),
    }
}

/// A program with one session, which uses kazoo.
struct Kazoo(Peer);

impl Kazoo {
    async fn start(server: &Server) -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/kazoo_peer.py");
        let mut peer = Peer::start(Spawn::new(python()?).arg(script).arg(server.address().to_string()));
        assert_eq!(peer.says().await, "ready");
        Some(Kazoo(peer))
    }

    async fn tell(&mut self, order: &str) {
        self.0.tell(order).await;
    }

    async fn says(&mut self) -> String {
        self.0.says().await
    }

    async fn asked(&mut self, order: &str) -> String {
        self.tell(order).await;
        self.says().await
    }

    /// Who contends, as kazoo sees it, which has said nothing else since.
    async fn contenders(&mut self, path: &str) -> Vec<String> {
        serde_json::from_str(&self.asked(&format!("contenders {path}")).await).unwrap()
    }
}

/// A namespace with two stores in it, a client of the server's own, and the path of what is at `job`.
struct Stage {
    server: &'static Server,
    one: Store,
    two: Store,
    client: Client,
    path: String,
}

impl Stage {
    async fn set(test: &str) -> Option<Self> {
        let server = common::zookeeper().await?;
        python()?;
        let namespace = namespace(test);
        let (one, two) = (connect(server, &namespace).await, connect(server, &namespace).await);
        let client = Client::connect(&server.address().to_string()).await.unwrap();
        Some(Stage { server, one, two, client, path: format!("/{namespace}/job") })
    }

    async fn kazoo(&self) -> Kazoo {
        Kazoo::start(self.server).await.expect("it was there")
    }

    /// Waits until so many znodes are beneath the path, which is there: two of each store that contends, and one of each kazoo.
    async fn until_in_line(&self, znodes: usize) {
        loop {
            let (names, changed) = self.client.list_and_watch_children(&self.path).await.unwrap();
            if names.len() == znodes {
                return;
            }
            due(changed.changed()).await;
        }
    }

    async fn assert_no_contenders(&self) {
        let names = self.client.list_children(&self.path).await.unwrap_or_default();
        assert_eq!(names, [""; 0]);
    }
}

fn valued(value: &'static str) -> LockOptions {
    LockOptions { value: value.into(), ..LockOptions::default() }
}

#[tokio::test]
async fn who_waits_for_a_lock_stands_in_one_line() {
    let Some(stage) = Stage::set("line").await else { return };
    let (mut first, mut second) = (stage.kazoo().await, stage.kazoo().await);
    let path = &stage.path;
    let guard = stage.one.lock_with("job", valued("one")).await.unwrap();
    let token = guard.token();
    assert_eq!(first.asked(&format!("try {path}")).await, "taken");
    first.tell(&format!("lock {path} first")).await;
    stage.until_in_line(3).await;
    let ours = tokio::spawn({
        let store = stage.two.clone();
        async move { store.lock_with("job", valued("two")).await }
    });
    stage.until_in_line(5).await;
    second.tell(&format!("lock {path} second")).await;
    stage.until_in_line(6).await;
    // `try` has made the lock without a name, and kazoo keeps it.
    assert_eq!(second.contenders(path).await, ["one", "", "two", "second"]);

    guard.unlock().await.unwrap();
    assert_eq!(first.says().await, "held");
    a_while().await;
    assert!(!ours.is_finished(), "kazoo has it");
    assert_eq!(second.contenders(path).await, ["", "two", "second"]);
    assert_eq!(first.asked("release").await, "released");
    let guard = due(ours).await.unwrap().unwrap();
    assert!(guard.token() > token);
    a_while().await;
    assert_eq!(second.contenders(path).await, ["two", "second"], "and nobody said that it is held");
    guard.put("data", "x").await.unwrap();
    guard.unlock().await.unwrap();
    assert_eq!(second.says().await, "held");
    assert_eq!(second.asked("release").await, "released");
    stage.assert_no_contenders().await;
}

#[tokio::test]
async fn a_lock_that_kazoo_holds_shows_its_identifier() {
    let Some(stage) = Stage::set("shown").await else { return };
    let mut kazoo = stage.kazoo().await;
    let path = &stage.path;
    assert_eq!(kazoo.asked(&format!("lock {path} its-name")).await, "held");
    let Stage { one, two, .. } = &stage;
    assert!(matches!(one.try_lock("job").await, Err(Error::LockHeld { .. })));
    assert_eq!(one.get("job").await.unwrap().value, "its-name");
    assert!(two.exists("job").await.unwrap());
    let listed = one.list("").await.unwrap();
    assert_eq!(listed.iter().map(|pair| pair.key.as_str()).collect::<Vec<_>>(), ["job"], "no contenders");
    assert!(one.list("job").await.unwrap().is_empty(), "a key with nothing beneath it");

    let waiting = wait_for(one, "job");
    stage.until_in_line(3).await;
    a_while().await;
    assert!(!waiting.is_finished());
    assert_eq!(kazoo.asked("release").await, "released");
    due(waiting).await.unwrap().unwrap().unlock().await.unwrap();
    assert!(!two.exists("job").await.unwrap());
    stage.assert_no_contenders().await;
}

/// Kazoo makes sure of the lock's znode once, when the lock is first used.
#[tokio::test]
async fn a_lock_that_kazoo_keeps_works_again_and_again() {
    let Some(stage) = Stage::set("again").await else { return };
    let mut kazoo = stage.kazoo().await;
    let order = format!("lock {} again", stage.path);
    for store in [&stage.one, &stage.two, &stage.one] {
        assert_eq!(kazoo.asked(&order).await, "held");
        let waiting = wait_for(store, "job");
        stage.until_in_line(3).await;
        assert_eq!(kazoo.asked("release").await, "released");
        let guard = due(waiting).await.unwrap().unwrap();
        kazoo.tell(&order).await;
        stage.until_in_line(3).await;
        guard.unlock().await.unwrap();
        assert_eq!(kazoo.says().await, "held");
        assert_eq!(kazoo.asked("release").await, "released");
        store.lock("job").await.unwrap().unlock().await.unwrap();
    }
}

/// One that stops waiting is no contender any more, on either side, and nor is one that died when its session is over.
#[tokio::test]
async fn who_gives_up_or_dies_lets_the_others_through() {
    let Some(stage) = Stage::set("gives-up").await else { return };
    let (mut first, mut last) = (stage.kazoo().await, stage.kazoo().await);
    let path = &stage.path;
    assert_eq!(first.asked(&format!("lock {path} first")).await, "held");
    let (ours, given_up) = (wait_for(&stage.one, "job"), wait_for(&stage.two, "job"));
    stage.until_in_line(5).await;
    last.tell(&format!("lock {path} last")).await;
    stage.until_in_line(6).await;
    given_up.abort();
    stage.until_in_line(4).await;
    assert_eq!(last.asked("cancel").await, "cancelled");
    stage.until_in_line(3).await;
    a_while().await;
    assert!(!ours.is_finished());
    drop(first);
    let guard = due(ours).await.unwrap().unwrap();
    last.tell(&format!("lock {path}")).await;
    stage.until_in_line(3).await;
    drop(guard);
    assert_eq!(last.says().await, "held");
    assert_eq!(last.asked("release").await, "released");
    stage.assert_no_contenders().await;
}

#[tokio::test]
async fn one_leads_of_all_candidates_and_everybody_sees_who() {
    let Some(stage) = Stage::set("election").await else { return };
    let (mut first, mut second) = (stage.kazoo().await, stage.kazoo().await);
    let path = &stage.path;
    let mut leaders = stage.two.observe_leader("job").await.unwrap();
    assert_eq!(next_leader(&mut leaders).await, None);
    assert_eq!(first.asked(&format!("elect {path} first")).await, "held");
    let (value, term) = next_leader(&mut leaders).await.unwrap();
    assert_eq!(value, "first");
    let ours = stand(&stage.one, "job", "ours");
    stage.until_in_line(3).await;
    second.tell(&format!("elect {path} second")).await;
    stage.until_in_line(4).await;
    a_while().await;
    assert!(!ours.is_finished());
    assert_eq!(second.contenders(path).await, ["first", "ours", "second"]);

    assert_eq!(first.asked("release").await, "released");
    let leadership = due(ours).await.unwrap().unwrap();
    let our_term = leadership.term().unwrap();
    assert!(our_term > term);
    assert_eq!(told_next(&mut leaders).await, ("ours".to_owned(), our_term));
    leadership.publish("ours-still").await.unwrap();
    assert_eq!(told_next(&mut leaders).await, ("ours-still".to_owned(), our_term));
    a_while().await;
    assert_eq!(second.contenders(path).await, ["ours-still", "second"]);

    leadership.resign().await.unwrap();
    assert_eq!(second.says().await, "held");
    let (value, term) = told_next(&mut leaders).await;
    assert!(value == "second" && term > our_term, "{value} in term {term}");
    let third = stage.kazoo().await;
    hand_over(&stage, second, third, &mut leaders, term).await;
    stage.assert_no_contenders().await;
}

/// From one kazoo to another, and to nobody.
async fn hand_over(stage: &Stage, mut old: Kazoo, mut new: Kazoo, leaders: &mut kvactor::LeaderStream, term: u64) {
    new.tell(&format!("elect {} third", stage.path)).await;
    stage.until_in_line(2).await;
    assert_eq!(old.asked("release").await, "released");
    assert_eq!(new.says().await, "held");
    let (value, next_term) = told_next(leaders).await;
    assert!(value == "third" && next_term > term, "{value} in term {next_term} after {term}");
    assert_eq!(new.asked("release").await, "released");
    assert_eq!(next_leader(leaders).await, None);
}

/// The next leader that is told. Between two of them the place may be seen to be vacant.
async fn told_next(leaders: &mut kvactor::LeaderStream) -> (String, u64) {
    match next_leader(leaders).await {
        Some(leader) => leader,
        None => next_leader(leaders).await.expect("a leader after nobody"),
    }
}
