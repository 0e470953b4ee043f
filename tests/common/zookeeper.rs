//! How ZooKeeper is run and asked.

use super::cluster::Standing;
use super::http;
use super::server::{Member, Setup, on_path};
use super::tls::ServerTls;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// For clients, and for the peers that it may have: one for what they write, one for their elections.
pub const PORTS: usize = 3;

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
    config.extend(setup.member.as_ref().map(|member| ensemble(member, &dir.join("data"))));
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

/// What the configuration says of the others. Who has no word from the leader, or the leader from most of the others, for 4
/// ticks gives up on it. Which of them a server is, it looks up beside its data.
fn ensemble(member: &Member, data: &Path) -> String {
    std::fs::create_dir_all(data).expect("the server's folder");
    std::fs::write(data.join("myid"), (member.index + 1).to_string()).expect("the server's number");
    let servers = member.ports.iter().enumerate();
    let servers = servers.map(|(index, ports)| format!("server.{}=127.0.0.1:{}:{}\n", index + 1, ports[1], ports[2]));
    format!("initLimit=20\nsyncLimit=4\n{}", servers.collect::<String>())
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

pub async fn healthy(address: SocketAddr, setup: &Setup) -> bool {
    // Before it serves requests the answer says that it doesn't, and names no mode.
    let serves = four_letters(address, "srvr").await.is_ok_and(|answer| answer.contains("Mode: "));
    serves && (setup.member.is_none() || open_session(address).await.is_ok())
}

/// Opens a session and leaves: it ends after two ticks. For the members of a cluster that is a transaction, and a new leader
/// has to have made one before its number can be compared with what others have applied.
async fn open_session(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    // Version, last transaction, timeout in ms, session, and a password of 16 bytes.
    let request = [&[0; 4][..], &[0; 8], &1i32.to_be_bytes(), &[0; 8], &16i32.to_be_bytes(), &[0; 16]].concat();
    stream.write_u32(request.len() as u32).await?;
    stream.write_all(&request).await?;
    let length = stream.read_u32().await?;
    stream.read_exact(&mut vec![0; length as usize]).await?;
    Ok(())
}

/// How the member stands that answers here. The upper half of a transaction's number says in whose time it was made.
pub async fn standing(address: SocketAddr) -> Option<Standing> {
    let answer = four_letters(address, "srvr").await.ok()?;
    let word = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name));
    let applied = u64::from_str_radix(word("Zxid: 0x")?, 16).ok()?;
    Some(Standing { leads: word("Mode: ")? == "leader", term: applied >> 32, applied })
}

/// The answer to one of ZooKeeper's four-letter words.
pub async fn four_letters(address: SocketAddr, word: &str) -> io::Result<String> {
    http::exchange(address, word).await
}
