//! kvactor in an actix application: an actor that keeps a counter in the store, by messages.
//!
//! ```sh
//! cargo run --example actix
//! ```

use actix::{Actor, Context, Handler, Message, Recipient, ResponseFuture};
use kvactor::messages::{AtomicPut, Get};
use kvactor::{Error, Expected, Result, Store};

/// Counts one up and returns the new number.
struct Count;

impl Message for Count {
    type Result = Result<u64>;
}

/// Knows of the store just what it needs: who takes a `Get`, and who an `AtomicPut`.
struct Counter {
    get: Recipient<Get>,
    atomic_put: Recipient<AtomicPut>,
}

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<Count> for Counter {
    type Result = ResponseFuture<Result<u64>>;

    fn handle(&mut self, _: Count, _: &mut Context<Self>) -> Self::Result {
        let (get, atomic_put) = (self.get.clone(), self.atomic_put.clone());
        Box::pin(async move {
            loop {
                let (number, expected) = match get.send(Get::new("counter")?).await.unwrap_or(Err(Error::Closed)) {
                    Ok(pair) => (String::from_utf8_lossy(&pair.value).parse().unwrap_or(0), Expected::from(&pair)),
                    Err(Error::KeyNotFound { .. }) => (0, Expected::Absent),
                    Err(error) => return Err(error),
                };
                let next: u64 = number + 1;
                let put = AtomicPut::new("counter", next.to_string(), expected)?;
                match atomic_put.send(put).await.unwrap_or(Err(Error::Closed)) {
                    Ok(_) => return Ok(next),
                    // Somebody else counted in between: look again.
                    Err(Error::KeyModified { .. } | Error::KeyExists { .. } | Error::KeyNotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        })
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or("memory://actix".into());
    let store = Store::connect(&url).await?;
    let counter = Counter { get: store.addr().recipient(), atomic_put: store.addr().recipient() }.start();
    for _ in 0..3 {
        println!("counted to {}", counter.send(Count).await??);
    }
    store.close().await?;
    Ok(())
}
