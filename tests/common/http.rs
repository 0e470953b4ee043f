//! As much of HTTP as asking a server about itself takes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a server has for an answer about itself.
const DUE: Duration = Duration::from_secs(20);

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

pub async fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    get_as(address, path, "").await
}

/// With a header line for the token, or none.
pub async fn get_as(address: SocketAddr, path: &str, header: &str) -> io::Result<Answer> {
    send(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{header}\r\n")).await
}

pub async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    request_as(address, method, path, "", body).await
}

/// A request with a body, and with a header line for the token, or none.
pub async fn request_as(address: SocketAddr, method: &str, path: &str, header: &str, body: &str) -> io::Result<Answer> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{header}Content-Length: {length}\r\n\r\n");
    send(address, &(head + body)).await
}

/// One request on a connection of its own. In HTTP/1.0, where the body goes to the end of the connection, never in chunks.
async fn send(address: SocketAddr, request: &str) -> io::Result<Answer> {
    let answer = exchange(address, request).await?;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {answer:?}")))
}

/// What is said on a connection of its own until it is closed, to `request`. Nobody waits for ever for a server that is stuck.
pub async fn exchange(address: SocketAddr, request: &str) -> io::Result<String> {
    timeout(DUE, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
    .await?
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}
