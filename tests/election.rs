//! Elections and registrations on real servers, with processes killed and servers restarted: somebody leads soon, and what is
//! registered is there as long as its process.
#![cfg(all(any(feature = "consul", feature = "etcd", feature = "zookeeper"), feature = "memory"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::worker::{Worker, clock, say, told};
use common::{Kind, Server, on_servers};
use kvactor::{
    CampaignOptions, LeaderEvent, LeaderStream, LeadershipEvent, RegistrationEvent, Store, TreeEvent, TreeStream,
};
use std::time::{Duration, Instant};

on_servers! {
    another_leads_soon_after_the_leader_was_killed
    a_candidate_stands_again_after_the_server_was_wiped
    a_registration_survives_the_servers_restart
    a_registration_is_put_back_on_a_wiped_server
    a_registration_goes_with_its_process
}

/// Longest wait for what is due.
const DUE: Duration = Duration::from_secs(90);

async fn due<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DUE, what).await.expect("it is due")
}

/// The shortest TTL that the server keeps for a leader.
fn shortest(kind: Kind) -> Duration {
    match kind {
        Kind::Etcd => Duration::from_secs(2),
        Kind::Consul => Duration::from_secs(10),
        Kind::ZooKeeper => Duration::from_secs(4),
    }
}

/// How long the server may keep a leader that was killed, and a second for the next one.
fn takeover(kind: Kind) -> Duration {
    let kept = match kind {
        // Half a second more, by which its server looks for leases that are over.
        Kind::Etcd => shortest(kind) + Duration::from_millis(500),
        // Its own bound. The time that it gives what a lost leader has on its way is set to nothing here.
        Kind::Consul => 2 * shortest(kind),
        // A lock's session lasts half as long again as its TTL, and ends at the next tick of the server.
        Kind::ZooKeeper => shortest(kind) * 3 / 2 + Duration::from_millis(common::zookeeper::TICK_MS),
    };
    kept + Duration::from_secs(1)
}

fn url(kind: Kind, url: String) -> String {
    match kind {
        Kind::Consul => format!("{url}?lock_delay=1ms"),
        Kind::Etcd | Kind::ZooKeeper => url,
    }
}

/// Not a test of its own but a candidate that tests below start and kill: it leads until it is told to resign.
#[tokio::test]
#[ignore = "a part of the tests that start further processes"]
async fn leading_process() {
    let Some(url) = told("URL") else { return };
    let ttl = Duration::from_millis(told("TTL").unwrap().parse().unwrap());
    let store = Store::connect(&url).await.unwrap();
    let options = CampaignOptions { ttl, stand_again: true, ..CampaignOptions::default() };
    say(format_args!("stands"));
    let leadership = store.campaign_with("leader", told("NAME").unwrap(), options).await.unwrap();
    let term = leadership.term().unwrap();
    say(format_args!("leads {term} {}", clock()));
    leadership.put("written", term.to_string()).await.unwrap();
    let mut resign = store.watch("resign").await.unwrap();
    while store.get("resign").await.map(|pair| pair.value != told("NAME").unwrap()).unwrap_or(true) {
        resign.next().await.unwrap();
    }
    leadership.resign().await.unwrap();
    say(format_args!("resigned {term} {}", clock()));
}

/// What is told of a leader.
async fn next_leader(leaders: &mut LeaderStream, after: u64) -> (String, u64) {
    loop {
        match due(leaders.next()).await {
            Some(LeaderEvent::Elected(leader)) if leader.term > after => {
                return (String::from_utf8_lossy(&leader.value).into_owned(), leader.term);
            }
            Some(LeaderEvent::Closed) | None => panic!("the store is open"),
            Some(_) => {}
        }
    }
}

async fn another_leads_soon_after_the_leader_was_killed(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let url = url(kind, server.url("leaders"));
    let ttl = shortest(kind).as_millis().to_string();
    let store = Store::connect(&url).await.unwrap();
    let mut leaders = store.observe_leader("leader").await.unwrap();
    let start = |name| Worker::start("leading_process", &[("URL", &url), ("TTL", &ttl), ("NAME", name)]);
    let mut workers: Vec<(&str, Worker)> = ["a", "b", "c"].into_iter().map(|name| (name, start(name))).collect();
    for (_, worker) in &workers {
        worker.hear_of("stands", DUE);
    }
    let (name, first) = next_leader(&mut leaders, 0).await;
    let leads = |name: &str| workers.iter().position(|(worker, _)| *worker == name).unwrap();
    let (_, mut killed) = workers.swap_remove(leads(&name));
    killed.hear_of("leads", DUE);
    killed.kill();
    let dead = Instant::now();
    let (name, second) = next_leader(&mut leaders, first).await;
    assert!(dead.elapsed() <= takeover(kind), "{:?} without a leader", dead.elapsed());
    let leads = |name: &str| workers.iter().position(|(worker, _)| *worker == name).unwrap();
    let (_, resigning) = workers.swap_remove(leads(&name));
    resigning.hear_of("leads", DUE);
    store.put("resign", name).await.unwrap();
    let resigned: Vec<u64> =
        resigning.hear_of("resigned", DUE).split(' ').map(|number| number.parse().unwrap()).collect();
    let elected: Vec<u64> =
        workers[0].1.hear_of("leads", DUE).split(' ').map(|number| number.parse().unwrap()).collect();
    assert!(resigned[0] == second && elected[0] > second, "{second} {resigned:?} {elected:?}");
    let took = elected[1].saturating_sub(resigned[1]);
    assert!(took <= 100_000_000, "{} us from the server's answer to the next leader", took / 1000);
}

/// Takes the server's count to where it will not be soon after it was wiped. Otherwise it may come to the same term or version
/// once more, which nobody could tell from the first.
async fn count_on(store: &Store) {
    for _ in 0..32 {
        store.put("count", "").await.unwrap();
    }
}

async fn a_candidate_stands_again_after_the_server_was_wiped(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = Store::connect(&url(kind, server.url("again"))).await.unwrap();
    count_on(&store).await;
    let mut leaders = store.observe_leader("leader").await.unwrap();
    let options = CampaignOptions { stand_again: true, ..CampaignOptions::default() };
    let leadership = store.campaign_with("leader", "a", options).await.unwrap();
    let first = next_leader(&mut leaders, 0).await;
    assert_eq!(Some(first.1), leadership.term());
    server.wipe().await;
    due(async { while !matches!(leaders.next().await, Some(LeaderEvent::Vacant | LeaderEvent::Suspended)) {} }).await;
    let (name, term) = next_leader(&mut leaders, 0).await;
    assert_eq!(name, "a");
    assert!(term < first.1, "a wiped server counts from the beginning: {term} after {}", first.1);
    let mut events = leadership.events();
    due(async { while events.next().await.expect("it stands again") != LeadershipEvent::Elected(term) {} }).await;
    leadership.put("written", "x").await.unwrap();
    leadership.resign().await.unwrap();
}

const TTL: Duration = Duration::from_secs(10);

async fn until_registered(events: &mut kvactor::RegistrationEvents, wanted: RegistrationEvent) {
    due(async { while events.next().await.expect("more events") != wanted {} }).await;
}

async fn a_registration_survives_the_servers_restart(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = Store::connect(&server.url("restart")).await.unwrap();
    let registration = store.register("services/web/1", "10.0.0.1", TTL).await.unwrap();
    let mut events = registration.events();
    until_registered(&mut events, RegistrationEvent::Registered).await;
    server.kill();
    until_registered(&mut events, RegistrationEvent::Suspended).await;
    server.restart().await;
    until_registered(&mut events, RegistrationEvent::Registered).await;
    assert_eq!(store.get("services/web/1").await.unwrap().value, "10.0.0.1");
    registration.unregister().await.unwrap();
    assert!(!store.exists("services/web/1").await.unwrap());
}

/// A wiped server has forgotten the session or lease as well: nothing is left to renew.
async fn a_registration_is_put_back_on_a_wiped_server(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = Store::connect(&server.url("wiped")).await.unwrap();
    count_on(&store).await;
    let registration = store.register("services/web/1", "10.0.0.1", TTL).await.unwrap();
    let mut keys = store.watch_tree("services").await.unwrap();
    due(until_there(&mut keys)).await;
    server.wipe().await;
    due(until_there(&mut keys)).await;
    until_registered(&mut registration.events(), RegistrationEvent::Registered).await;
    registration.unregister().await.unwrap();
    assert!(!store.exists("services/web/1").await.unwrap());
}

async fn until_there(keys: &mut TreeStream) {
    loop {
        match keys.next().await.expect("the store is open") {
            TreeEvent::Put(_) => return,
            TreeEvent::Snapshot(pairs) if !pairs.is_empty() => return,
            _ => {}
        }
    }
}

/// Not a test of its own but a process that registers a key.
#[tokio::test]
#[ignore = "a part of the tests that start further processes"]
async fn registering_process() {
    let Some(url) = told("URL") else { return };
    let store = Store::connect(&url).await.unwrap();
    let registration = store.register("services/web/1", "10.0.0.1", TTL).await.unwrap();
    say(format_args!("registered"));
    let mut events = registration.events();
    while events.next().await.is_some() {}
}

async fn a_registration_goes_with_its_process(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let url = server.url(&common::namespace("process"));
    let store = Store::connect(&url).await.unwrap();
    let mut worker = Worker::start("registering_process", &[("URL", &url)]);
    worker.hear_of("registered", DUE);
    let mut services = store.watch_tree("services").await.unwrap();
    due(until_there(&mut services)).await;
    worker.kill();
    let dead = Instant::now();
    due(async { while !matches!(services.next().await, Some(TreeEvent::Delete { .. })) {} }).await;
    // What the server's own bound is for such a key; a second for the word of it.
    let bound =
        store.put_with("probe", "", kvactor::PutOptions::keep_alive(TTL)).await.unwrap().outlives_process_by.unwrap();
    assert!(dead.elapsed() <= bound + Duration::from_secs(1), "gone after {:?}, {bound:?} allowed", dead.elapsed());
    assert!(store.list("services").await.is_err());
}
