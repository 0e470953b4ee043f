//! How ZooKeeper is run and asked.

use super::server::{Setup, on_path};
use super::tls::ServerTls;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// For clients.
pub const PORTS: usize = 1;

/// One tick; sessions last for 2 of them at least, and by default for 20 at most.
pub const TICK_MS: u64 = 500;
/// The longest session, as with the default tick of 2 s.
pub const MAX_SESSION_MS: u64 = 40_000;

/// Where Debian puts the jars, and those that a server without its admin pages needs; Netty's are for TLS.
const JAR_DIR: &str = "/usr/share/java";
const JARS: [&str; 14] = [
    "zookeeper",
    "zookeeper-jute",
    "slf4j-api",
    "slf4j-simple",
    "metrics-core",
    "snappy-java",
    "netty-buffer",
    "netty-codec",
    "netty-common",
    "netty-handler",
    "netty-resolver",
    "netty-transport",
    "netty-transport-native-epoll",
    "netty-transport-native-unix-common",
];

pub fn missing() -> Option<String> {
    if !on_path("java") {
        return Some("no `java` on PATH".to_owned());
    }
    let jar = jars().next()?;
    (own_classpath().is_none() && !jar.is_file()).then(|| format!("no {}", jar.display()))
}

pub fn command(dir: &Path, ports: &[u16], setup: &Setup) -> Vec<String> {
    let mut config = format!(
        "tickTime={TICK_MS}\nmaxSessionTimeout={MAX_SESSION_MS}\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
         admin.enableServer=false\n4lw.commands.whitelist=*\n",
        dir.join("data").display(),
        ports[0]
    );
    config.extend(setup.tls.as_ref().map(|tls| secure(tls, ports[PORTS])));
    let file = dir.join("zoo.cfg");
    std::fs::write(&file, config).expect("the server's configuration");
    let options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
    let mut command = vec!["java".to_owned()];
    command.extend(options.map(str::to_owned));
    // Its file in the system's temporary directory would stay behind when the server is killed.
    command.push("-XX:-UsePerfData".to_owned());
    command.extend(["-cp".to_owned(), classpath()]);
    command.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned());
    command.push(file.display().to_string());
    command
}

/// What the configuration says of TLS, which only the server's other way of doing I/O speaks.
fn secure(tls: &ServerTls, port: u16) -> String {
    let demand = if tls.demanding { "need" } else { "none" };
    format!(
        "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\nsecureClientPort={port}\n\
         secureClientPortAddress=127.0.0.1\nssl.clientAuth={demand}\n\
         ssl.keyStore.type=PEM\nssl.keyStore.location={}\nssl.trustStore.type=PEM\nssl.trustStore.location={}\n",
        tls.identity.both.display(),
        tls.clients.display()
    )
}

fn classpath() -> String {
    let found = || jars().filter(|jar| jar.is_file()).map(|jar| jar.display().to_string());
    own_classpath().unwrap_or_else(|| found().collect::<Vec<_>>().join(":"))
}

fn own_classpath() -> Option<String> {
    std::env::var("KVACTOR_ZOOKEEPER_CLASSPATH").ok().filter(|path| !path.is_empty())
}

fn jars() -> impl Iterator<Item = PathBuf> {
    JARS.iter().map(|name| Path::new(JAR_DIR).join(format!("{name}.jar")))
}

pub async fn healthy(address: SocketAddr) -> bool {
    // Before it serves requests the answer says that it doesn't, and names no mode.
    four_letters(address, "srvr").await.is_ok_and(|answer| answer.contains("Mode: "))
}

/// The answer to one of ZooKeeper's four-letter words.
pub async fn four_letters(address: SocketAddr, word: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(word.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
