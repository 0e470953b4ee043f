//! As much of a Consul agent as it takes to list one directory: two answers, made beforehand, so that hardly an instruction
//! is counted that isn't the client's.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

pub(crate) struct Agent {
    address: SocketAddr,
}

struct Answers {
    leader: Vec<u8>,
    list: Vec<u8>,
}

impl Agent {
    /// One whose directory `micro/of` has so many keys, with values of 100 bytes.
    pub(crate) fn start(keys: usize) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let answers = Arc::new(Answers { leader: http("\"127.0.0.1:8300\""), list: http(&list(keys)) });
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answers = answers.clone();
                // A connection that breaks is one that the client is done with.
                thread::spawn(move || drop(serve(&stream, &answers)));
            }
        });
        Ok(Agent { address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Answers requests, which have no bodies, until the connection ends.
fn serve(mut stream: &TcpStream, answers: &Answers) -> io::Result<()> {
    let (mut requests, mut line) = (BufReader::new(stream), String::new());
    let mut answer = &answers.leader;
    while requests.read_line(&mut line)? > 0 {
        if line.starts_with("GET /v1/kv/") {
            answer = &answers.list;
        }
        if line == "\r\n" {
            stream.write_all(answer)?;
        }
        line.clear();
    }
    Ok(())
}

fn http(body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Index: 7\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// What an agent says of the directory.
fn list(keys: usize) -> String {
    // A hundred times `x` in base64.
    let value = format!("{}eA==", "eHh4".repeat(33));
    let mut json = "[".to_owned();
    for number in 0..keys {
        let comma = if number == 0 { "" } else { "," };
        // Writing to a `String` can't fail.
        let _ = write!(
            json,
            r#"{comma}{{"LockIndex":0,"Key":"micro/of/k{number:05}","Flags":0,"Value":"{value}","CreateIndex":{number},"ModifyIndex":{number}}}"#
        );
    }
    json + "]"
}
